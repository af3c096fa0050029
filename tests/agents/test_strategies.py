"""What each strategy does with what it sees, on synthetic studies: no training, no key."""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import replace

import numpy as np
import pytest
from pydantic_ai.models import Model

from agents import notebook
from agents.beam import Beam, idea, survivors
from agents.cmaes import CMAES
from agents.hybrid import Hybrid, kind_of
from agents.independent import without_outcomes
from agents.numeric import numeric_effect, observed
from agents.posterior import beliefs, pair_sd
from agents.random_search import RandomSearch
from agents.reflective import Reflective, combine, earlier_parent
from agents.space import Space
from agents.tpe import TPE
from jaxresearch.errors import ConfigurationError
from jaxresearch.experiment import Experiment, Verdict
from jaxresearch.llm import resolve_model
from jaxresearch.proposal import Edit, Note, Proposal
from jaxresearch.strategy import StudyView
from jaxresearch.synthetic import HYPERPARAMETERS, SyntheticStudy, completed_run
from jaxresearch.testing import play


@pytest.fixture
def model() -> Model:
    return resolve_model("builtin")


def propose(parent: int = 0, **what) -> Proposal:
    return Proposal(parent=parent, hypothesis="h", **what)


def edit(replace: str, search: str = "RATE = 1.0") -> Proposal:
    return propose(edits=(Edit(path="models/recipe.py", search=search, replace=replace),), tag=replace)


def scored(study: SyntheticStudy, proposal: Proposal, *gains: float, verdict: Verdict = Verdict.DISCARD) -> Experiment:
    """Add an experiment that is better than the baseline by `gains`, one for each seed from 0."""
    fate, study.fate = study.fate, lambda number: Verdict.DUPLICATE  # its own score is not wanted
    experiment = study.add(proposal)
    study.fate = fate
    runs = tuple(completed_run(study.experiments[0].scores[seed] - gain, seed) for seed, gain in enumerate(gains))
    forced = experiment.model_copy(update={"runs": runs, "verdict": verdict})
    study.experiments[experiment.number] = forced
    study.incumbent = forced.number if verdict is Verdict.KEEP else study.incumbent
    return forced


# Posterior means


def test_one_lucky_seed_is_believed_less_than_three_good_ones(model):
    study = SyntheticStudy(model)
    lucky = scored(study, propose(config={"batch": 8}), 0.012)
    solid = scored(study, propose(config={"batch": 4}), 0.010, 0.011, 0.010)
    found = beliefs(study.view())
    assert found[solid.number].mean < found[lucky.number].mean < 0
    assert found[solid.number].sd < found[lucky.number].sd
    assert found[lucky.number].mean > -0.012


def test_a_child_is_drawn_towards_its_parent(model):
    study = SyntheticStudy(model)
    parent = scored(study, propose(config={"batch": 8}), 0.03, 0.03, 0.03, verdict=Verdict.KEEP)
    child = scored(study, propose(parent.number, config={"depth": 3}), 0.0)
    stranger = scored(study, propose(config={"depth": 3}), 0.0)
    found = beliefs(study.view())
    assert found[child.number].mean < found[stranger.number].mean == pytest.approx(0, abs=1e-9)


def test_the_pair_deviation_is_learned_from_replicates(model):
    study = SyntheticStudy(model)
    before = pair_sd(study.view())
    for value in (4, 8, 12, 20):
        scored(study, propose(config={"batch": value}), 0.010, 0.0101, 0.0099)
    assert pair_sd(study.view()) < before / 2


# Beam


def test_the_beam_deals_children_to_members_and_keeps_one_of_each_idea(model):
    study, beam = SyntheticStudy(model), Beam(Beam.Options(width=2, children=2))
    assert beam.generation(study.view()) == ([0], [])
    first = scored(study, propose(config={"batch": 8}), 0.02, 0.02, 0.02, verdict=Verdict.KEEP)
    assert beam.generation(study.view()) == ([0], [0])
    second = scored(study, propose(config={"batch": 4}), 0.019, 0.019, 0.019)
    members, born = beam.generation(study.view())
    assert (members, born) == ([first.number, 0], [])  # experiment 2 is the same idea as 1
    third = scored(study, propose(second.number, config={"depth": 3}), 0.04, 0.04, 0.04)
    assert beam.generation(study.view()) == (members, [second.number])
    assert idea(study.view(), third.number) == {"batch", "depth"}
    assert survivors(study.view(), [0, 1, 2, 3], beliefs(study.view()), 3) == [3, 1, 0]


def test_a_beam_generation_spans_rounds_and_waits_for_its_children():
    played = play(Beam, {"width": 2, "children": 3}, experiments=9, slots=2)
    parents = [[proposal.parent for proposal in each] for each in played.rounds]
    assert parents[:2] == [[0, 0], [0]]  # the first generation: three children of the baseline, two slots at a time
    assert [len(each) for each in parents[2:5]] == [2, 2, 2]
    members = [parent for each in parents[2:5] for parent in each]
    assert sorted(members.count(parent) for parent in set(members)) == [3, 3]


# The notebook


def test_lessons_are_replaced_retired_contradicted_and_bounded(model):
    study = SyntheticStudy(model)
    scored(study, propose(config={"batch": 8}), 0.01)

    def note(topic: str, text: str = "t", experiments: tuple[int, ...] = (1,), helps: bool | None = None) -> Proposal:
        value = len(study.experiments) + 20
        return propose(
            config={"batch": value}, notes=(Note(topic=topic, text=text, experiments=experiments, helps=helps),)
        )

    scored(study, note("a", "first"), 0.0)
    scored(study, note("a", "second"), 0.0)
    scored(study, note("b"), 0.0)
    scored(study, note("unsupported", experiments=()), 0.0)
    scored(study, note("of the future", experiments=(99,)), 0.0)
    assert [(each.topic, each.text) for each in notebook.lessons(study.view(), 10)] == [("a", "second"), ("b", "t")]
    scored(study, note("b", text=""), 0.0)
    scored(study, note("depth", helps=True), 0.0)
    assert [each.topic for each in notebook.lessons(study.view(), 10)] == ["a", "depth"]
    assert [each.topic for each in notebook.lessons(study.view(), 1)] == ["depth"]
    scored(study, propose(config={"depth": 8}), -0.2)
    assert [each.topic for each in notebook.lessons(study.view(), 10)] == ["a"]


def test_calibration_compares_what_was_said_with_what_came(model):
    study = SyntheticStudy(model)
    assert notebook.calibration(study.view()) is None
    scored(study, propose(config={"batch": 8}, confidence=0.9, predicted_bpb=-0.02), 0.01, verdict=Verdict.KEEP)
    scored(study, propose(config={"batch": 4}, confidence=0.1, predicted_bpb=-0.02), 0.02)
    study.add(propose(config={"width": 96, "head_size": 64}, confidence=0.5))  # crashes: no word on the score
    found = notebook.calibration(study.view())
    assert (found.predictions, found.kept_share, found.brier) == (2, 0.5, pytest.approx(0.01))
    assert found.brier_of_share == 0.25
    assert found.error_bpb == pytest.approx(0.005)


def test_categories():
    assert notebook.category(propose(config={"matrix_lr": 0.1})) == "lr"
    assert notebook.category(propose(config={"matrix_lr": 0.1, "head_lr": 0.1})) == "lr"
    assert notebook.category(propose(config={"adam_beta2": 0.9})) == "beta"
    assert notebook.category(propose(config={"batch": 8, "depth": 3})) == "combination"
    assert notebook.category(edit("x")) == "code models/recipe.py"


# Reflective


def test_near_misses_are_combined(model):
    study = SyntheticStudy(model)
    scored(study, propose(config={"batch": 8}, tag="batch"), 0.001)
    scored(study, propose(config={"batch": 6}, tag="batch2"), 0.0008)
    scored(study, edit("RATE = 2.0"), 0.0005)
    both = asyncio.run(combine(study.view()))
    assert both.config == {"batch": 8}
    assert len(both.edits) == 1
    assert both.predicted_bpb == pytest.approx(-0.0015)
    assert (both.parent, both.confidence) == (0, 0.5)
    scored(study, both, 0.0)
    again = asyncio.run(combine(study.view()))
    assert (again.config, len(again.edits), again.confidence) == ({"batch": 6}, 1, pytest.approx(1 / 3))


def test_it_goes_back_to_the_best_that_is_not_the_incumbent_and_not_used_up(model):
    study = SyntheticStudy(model)
    best = scored(study, propose(config={"batch": 8}), 0.03, 0.03, 0.03, verdict=Verdict.KEEP)
    other = scored(study, propose(config={"depth": 3}), 0.02, 0.02, 0.02)
    assert earlier_parent(study.view()) == other.number != best.number
    for value in (0.3, 0.4, 0.6, 0.7, 0.8, 0.9):
        scored(study, propose(other.number, config={"warmdown": value}), -0.2)
    assert earlier_parent(study.view()) != other.number


def test_what_is_exhausted_is_left_alone(model):
    study, strategy = SyntheticStudy(model), Reflective(Reflective.Options(patience=3))
    for value in (0.03, 0.05, 0.06):
        scored(study, propose(config={"matrix_lr": value}), -0.01)
    assert strategy.exhausted(study.view()) == ["lr"]
    study.rounds = 5
    for _ in range(6):
        study.rounds += 1
        (proposal,) = asyncio.run(strategy.propose(study.view(), 1))
        assert notebook.category(proposal) != "lr"
        assert proposal.confidence is not None


def test_reflective_uses_all_its_moves_and_its_words_stay_bounded():
    played = play(Reflective, {"patience": 2}, experiments=60)
    proposals = [proposal for each in played.rounds for proposal in each]
    assert any(proposal.hypothesis.startswith("Together") for proposal in proposals)
    study = played.study
    assert any(
        study.experiments[proposal.parent].verdict is Verdict.DISCARD or proposal.parent == 0
        for proposal in proposals[20:]
    )
    prompts = [call.request for call in played.calls if call.request.count("user-prompt") == 1]
    early, late = (max(map(len, part)) for part in (prompts[10:20], prompts[-10:]))
    assert len(notebook.text(study.view(), 10)) < 4000
    assert late < 3 * early


# Numbers


@pytest.mark.parametrize("each", HYPERPARAMETERS[:-1], ids=lambda each: each.name)
def test_an_axis_goes_to_the_unit_interval_and_back(model, each):
    (axis,) = Space.of(SyntheticStudy(model).view(), 0, [each.name]).axes
    values = [axis.at(float(unit)) for unit in np.linspace(0, 1, 301)]
    assert {type(value) for value in values} == {type(each.value)}
    assert all(axis.at(axis.unit(value)) == value for value in values)
    if each.choices:
        assert set(values) == set(each.choices)
    else:
        assert (min(values), max(values)) == (each.low, each.high)


def test_only_what_has_bounds_is_searched_and_a_wrong_name_is_named(model):
    view = SyntheticStudy(model).view()
    assert "context" not in {axis.name for axis in Space.of(view, 0).axes}
    assert "pattern" not in {axis.name for axis in Space.of(view, 0, ordered=True).axes}
    with pytest.raises(ConfigurationError, match=r"strategy.names: 'contxt'"):
        Space.of(view, 0, ["contxt"])


def test_the_optimiser_is_told_what_became_of_each_point(model):
    study = SyntheticStudy(model, fate=lambda number: {2: Verdict.TIMEOUT, 3: Verdict.INFRASTRUCTURE}.get(number))
    scored(study, propose(config={"batch": 8}), 0.01)
    study.add(propose(config={"batch": 4}))
    study.add(propose(config={"batch": 5}))
    scored(study, edit("RATE = 2.0"), 0.02)
    scored(study, propose(4, config={"batch": 6}), 0.025)
    view = study.view().with_pending(propose(config={"batch": 7}))
    points = observed(view, Space.of(view, 0, ["batch"]))
    assert [(each.number, each.config["batch"], each.infeasible) for each in points] == [
        (0, 16, False), (1, 8, False), (2, 4, True), (5, 6, False), (6, 7, False)
    ]  # fmt: skip
    assert points[1].value == pytest.approx(-0.01)
    assert points[3].value == pytest.approx(-0.005)  # code's own gain of 0.02 is not credited to batch
    assert points[4].value is None
    assert numeric_effect(view, 4) == 0


@pytest.mark.parametrize("factory", [TPE, CMAES])
def test_optimisers_beat_random_search(factory):
    def reached(strategy) -> float:
        studies = [play(strategy, experiments=30, seed=seed).study for seed in range(4)]
        return statistics.fmean(study.true_bpb(study.incumbent) for study in studies)

    assert reached(factory) < reached(RandomSearch) - 0.003


def test_tpe_stays_away_from_what_failed(model):
    """Everything with a batch above 8 runs out of memory, though it would score best."""
    options = TPE.Options(names=("batch", "matrix_lr"), startup=5)
    study, strategy = SyntheticStudy(model, surface=lambda values, files: 2 - 0.1 * values["batch"] / 128), TPE(options)
    study.fate = lambda number: Verdict.CRASH if study.candidates[number].config.get("batch", 1) > 8 else None
    for _ in range(30):
        study.rounds += 1
        (proposal,) = asyncio.run(strategy.propose(study.view(), 1))
        study.add(proposal)
    failed = [each.verdict is Verdict.CRASH for each in study.experiments[1:]]
    assert sum(failed[20:]) < 5 < sum(failed)


def test_hybrid_holds_its_shares():
    proposals = [each for row in play(Hybrid, experiments=20).rounds for each in row]
    kinds = [kind_of(proposal) for proposal in proposals]
    assert [kinds.count(kind) for kind in ("tpe", "code", "informed")] == pytest.approx(
        [8, 8, 4], abs=3
    )  # repairs, and turns of a kind that has nothing left
    view_kinds = Hybrid(Hybrid.Options(code_share=1.0)).kinds(play(Hybrid, experiments=2).study.view())
    assert view_kinds == ["code"]


def test_hybrid_goes_on_where_code_or_a_person_took_its_numbers_away(model):
    study = SyntheticStudy(model)
    without = replace(
        study.view(), hyperparameters=lambda number: study.declared(number)[:1] if number else HYPERPARAMETERS
    )
    study.add(propose(config={"batch": 8}))
    view = replace(without, experiments=tuple(study.experiments), incumbent=study.experiments[1])
    assert [axis.name for axis in Space.of(view, 1, ("depth", "batch")).axes] == ["depth"]
    with pytest.raises(ConfigurationError, match="'bacth' is not searched"):
        Space.of(view, 1, ("bacth",))
    taboo = "Taboo: " + ", ".join(each.name for each in HYPERPARAMETERS)
    played = play(Hybrid, experiments=4, instructions=taboo)
    assert all(proposal.edits and not proposal.config for (proposal,) in played.rounds)
    with pytest.raises(ConfigurationError, match="No hyperparameter is left"):
        play(TPE, experiments=2, instructions=taboo)


def test_hybrid_tells_the_model_what_the_optimiser_knows():
    study = play(Hybrid, experiments=10).study
    state = Hybrid(Hybrid.Options()).state(study.view())
    assert state.startswith("best: #")
    assert "it would set: " in state


# Controls


def test_independent_sees_neither_scores_nor_verdicts(model):
    study = SyntheticStudy(model)
    kept = scored(study, propose(config={"batch": 8}), 0.05, 0.05, 0.05, verdict=Verdict.KEEP)
    hidden: StudyView = without_outcomes(study.view())
    assert hidden.incumbent.number == 0
    assert (hidden.experiments[kept.number].verdict, hidden.experiments[kept.number].scores) == (None, {})
    assert hidden.experiments[kept.number].proposal == kept.proposal
    finding = asyncio.run(hidden.check(propose(config={"batch": 8})))
    assert "keep" not in finding
    assert "before" in finding


def test_what_the_notebook_says_of_a_category_does_not_grow_with_its_keeps():
    few, many = (notebook.Evidence("lr", 900, tuple(range(1, keeps + 1)), 0, (-0.1, 1)) for keeps in (5, 400))
    assert str(few) == "lr: 900 tried, kept #1, #2, #3, #4, #5, best -0.1000 (#1)"
    assert str(many) == "lr: 900 tried, 400 kept, the last #396, #397, #398, #399, #400, best -0.1000 (#1)"

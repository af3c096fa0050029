"""The builtin model: valid, deterministic, never twice the same, and it learns from the history."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from fake_study import SOURCE, FakeStudy, run
from pydantic_ai.messages import ToolReturnPart

from agents import builtin, choice
from agents import digest as digest_module
from agents.builtin import BuiltinModel
from agents.digest import digest
from agents.greedy import Greedy
from agents.library import Idea, RunSize
from agents.researcher import find_problem
from jaxresearch.llm import resolve_model
from jaxresearch.proposal import Edit, Hyperparameter, Proposal
from jaxresearch.strategy import ProposalError


def _swap(search: str, replace: str):
    def edits(files):
        found = files.get("models/gpt.py", "").count(search) == 1
        return [Edit(path="models/gpt.py", search=search, replace=replace)] if found else None

    return edits


IDEAS = (
    Idea("gelu", "activation", 0.3, "gelu", _swap("relu(x) ** 2", "gelu(x)")),
    Idea("silu", "activation", 0.3, "silu", _swap("relu(x) ** 2", "silu(x) ** 2")),
    Idea("cube", "activation", 0.3, "cube", _swap("relu(x) ** 2", "relu(x) ** 3")),
    Idea("post-norm", "norm", 0.3, "post", _swap("x + attention(norm(x))", "norm(x + attention(x))")),
    Idea("gone", "norm", 0.9, "not in the source", _swap("not in the source", "x")),
)


@pytest.fixture(autouse=True)
def library(monkeypatch):
    monkeypatch.setattr(choice.choose, "__defaults__", (IDEAS,))


def bowl(config, files) -> float:
    """Best at batch 4, depth 4, lr 0.1, warmdown 0.8; silu helps, gelu hurts."""
    score = 1.5 + 0.02 * (math.log(config["batch"] / 4) ** 2 + math.log(config["matrix_lr"] / 0.1) ** 2)
    score += 0.01 * (config["depth"] - 4) ** 2 + 0.1 * (config["warmdown"] - 0.8) ** 2
    return score - 0.02 * ("silu" in files["models/gpt.py"]) + 0.02 * ("gelu" in files["models/gpt.py"])


def play(rounds: int, *, slots: int = 1, **options) -> FakeStudy:
    study = FakeStudy(BuiltinModel(), **options)

    async def rounds_of_greedy():
        strategy = Greedy(Greedy.Options())
        for _ in range(rounds):
            view = study.view()
            for proposal in await strategy.propose(view, slots):
                assert find_problem(proposal, view) is None
                study.add(proposal)

    asyncio.run(rounds_of_greedy())
    return study


def proposals(study: FakeStudy) -> list[Proposal]:
    return [each.proposal for each in study.experiments[1:]]


def test_forty_rounds_never_repeat_and_find_the_bowl():
    study = play(40, surface=bowl)
    assert len(study.experiments) == 41
    assert len({each.tag for each in proposals(study)}) == 40
    assert len({(each.parent, str(each.config), each.edits) for each in proposals(study)}) == 40
    assert study.score(study.incumbent) < 1.5 + 0.25 * (study.score(0) - 1.5)
    assert "gone" not in {each.tag for each in proposals(study)}


def test_equal_seeds_give_equal_studies_and_others_do_not():
    first, second, other = (proposals(play(12, surface=bowl, seed=seed)) for seed in (1, 1, 2))
    assert first == second
    assert first != other


@pytest.mark.parametrize("seed", range(4))
def test_a_direction_that_helps_is_taken_more_often(seed):
    def slope(config, files):
        return 1.5 - 0.05 * math.log(config["matrix_lr"] / 0.04)

    study = play(16, surface=slope, seed=seed)
    moved = Counter(name for each in proposals(study) for name in each.config)
    assert moved["matrix_lr"] >= 5
    assert moved["matrix_lr"] == max(moved.values())
    values = [each.config["matrix_lr"] for each in proposals(study) if list(each.config) == ["matrix_lr"]]
    assert sum(after > before for before, after in itertools.pairwise(values)) >= len(values) // 2


@pytest.mark.parametrize("seed", range(3))
def test_it_does_not_go_back_over_ground_that_was_worse(seed):
    study = play(30, surface=bowl, seed=seed)
    left: dict[str, list[tuple[float, int]]] = {}
    for each in study.experiments[1:]:
        if len(each.proposal.config) != 1 or each.proposal.edits:
            continue
        ((name, value),) = each.proposal.config.items()
        if isinstance(value, bool | str):
            continue
        assert all((value - place) * side > 0 for place, side in left.get(name, []))
        before = {known.name: known.value for known in study.hyperparameters(each.parent)}[name]
        if each.verdict == "keep":
            left.setdefault(name, []).append((before, 1 if value > before else -1))
    assert left


def test_where_nothing_helps_it_still_varies():
    study = play(40)
    assert len({each.tag for each in proposals(study)}) == 40
    families = Counter(name for each in proposals(study)[:20] for name in (each.config or {"edit": 0}))
    assert max(families.values()) <= 8


def test_slots_of_one_round_differ():
    study = play(3, slots=5, surface=bowl)
    assert len(proposals(study)) == 15
    assert len({(each.parent, each.tag) for each in proposals(study)}) == 15
    made = [(each.files, tuple(sorted(each.config.items()))) for each in study.candidates.values()]
    assert len({str(each) for each in made}) == 16


def test_a_refused_move_is_replaced_by_another():
    study = FakeStudy(BuiltinModel())
    refused: list[str] = []

    def refuse_twice(proposal):
        if len(refused) < 2:
            refused.append(proposal.tag)
            return "does not trace"
        return None

    study.problem = refuse_twice
    (proposal,) = asyncio.run(Greedy(Greedy.Options()).propose(study.view(), 1))
    assert len({*refused, proposal.tag}) == 3


def test_one_bad_slot_does_not_lose_the_good_ones():
    study = FakeStudy(BuiltinModel())

    def only_the_first_can_be_checked(proposal):
        if len(study.checked) > 1:
            raise RuntimeError("the laboratory is gone")

    study.problem = only_the_first_can_be_checked
    assert len(asyncio.run(Greedy(Greedy.Options()).propose(study.view(), 3))) == 1
    with pytest.raises(ProposalError):
        asyncio.run(Greedy(Greedy.Options()).propose(study.view(), 3))


def test_near_misses_are_combined():
    def ripple(config, files):
        return 1.5 - 0.001 * sum(word in files["models/gpt.py"] for word in ("silu", "norm(x + attention(x))"))

    study = play(40, surface=ripple, margin=0.01)
    assert "post-norm & silu" in {each.tag for each in proposals(study)}


def test_gains_below_the_noise_are_no_near_misses():
    study = play(40, surface=lambda config, files: 1.5 - 0.0001 * ("silu" in files["models/gpt.py"]), margin=0.01)
    assert not any(" & " in each.tag for each in proposals(study))


@pytest.mark.parametrize(("effect", "expected"), [(-0.001, [4]), (0.01, [1])])
def test_a_number_goes_on_after_a_near_miss_and_turns_after_a_loss(effect, expected):
    depth = Hyperparameter("size", 2, low=1, high=8)
    tried = [choice.Tried(1, "discard", effect, "size=3", {"size": (2, 3)})]
    assert choice.choose([depth], {}, tried, frozenset(), np.random.default_rng(0)).config["size"] in expected


@pytest.mark.parametrize(("effect", "why"), [(0.1, ""), (None, "cut at 35% of its budget")])
def test_a_clear_loss_on_one_side_is_a_promise_for_the_other(effect, why):
    """In a budget that is too small for three blocks, one block may win; a loss like noise says nothing of it."""
    names = ("size", "matrix_lr", "embedding_lr", "head_lr")
    others = [Hyperparameter(name, 2, low=1, high=8) for name in names]

    def picks(effect: float | None, why: str, *earlier: choice.Tried) -> int:
        lost = choice.Tried(2, "discard", effect, "size=3", {"size": (2, 3)}, threshold=0.003, why=why)
        moves = [
            choice.choose(others, {}, [*earlier, lost], frozenset(), np.random.default_rng(seed)) for seed in range(60)
        ]
        return sum(move.config == {"size": 1} for move in moves)

    clearly = picks(effect, why)
    assert clearly > 3 * picks(0.01, "not better on the first seed")
    assert clearly > 60 / 4
    below = choice.Tried(1, "discard", 0.1, "size=1.5", {"size": (2, 1.5)}, threshold=0.003)
    assert picks(effect, why, below) == 0, "that side was worse as well"


def first_moves(budget: str, tokens: int, parameters: int) -> Counter:
    """What the first proposals of 40 studies move, and which way."""
    found: Counter = Counter()
    for seed in range(40):
        study = FakeStudy(BuiltinModel(), seed=seed, budget=budget)
        study.experiments[0] = study.experiments[0].model_copy(
            update={"runs": (run(1.5, tokens=tokens, parameters=parameters),)}
        )
        (proposal,) = asyncio.run(Greedy(Greedy.Options()).propose(study.view(), 1))
        now = {each.name: each.value for each in study.hyperparameters(0)}
        found.update((name, value > now[name]) for name, value in proposal.config.items())
    return found


def test_a_model_too_large_for_its_compute_is_made_smaller_first():
    starved = first_moves("1e12flop", tokens=200_000, parameters=1_200_000)
    assert first_moves("60s", tokens=200_000, parameters=1_200_000) == starved
    fed = first_moves("1e12flop", tokens=12_000_000, parameters=1_200_000)
    given = first_moves("200000tok", tokens=200_000, parameters=1_200_000)
    assert starved["depth", False] > 2 * max(starved["depth", True], starved["batch", False], 1)
    assert fed["depth", True] > max(fed["depth", False], 3)
    assert given == fed, "where tokens are what is given, a smaller model sees no more of them"


def test_where_steps_are_given_a_larger_batch_sees_more_text():
    steps, tokens = (first_moves(budget, 200_000, 1_200_000) for budget in ("200steps", "200000tok"))
    assert steps["batch", True] > 3 > steps["batch", False]
    assert tokens["batch", False] > 3 > tokens["batch", True]


@pytest.mark.parametrize(
    ("value", "history", "expected"),
    [
        (512, [], 256),
        (384, [], 192),
        (256, [choice.Tried(1, "keep", -0.1, "width=256", {"width": (512, 256)})], 128),
        (512, [choice.Tried(1, "discard", 0.1, "width=256", {"width": (512, 256)})], 384),
        (
            384,
            [
                choice.Tried(1, "discard", 0.1, "width=256", {"width": (512, 256)}),
                choice.Tried(2, "keep", -0.1, "width=384", {"width": (512, 384)}),
            ],
            None,  # between 256 and 512, which were both worse, there is nothing else
        ),
    ],
)
def test_a_size_is_halved_and_halved_again_but_not_past_what_was_worse(value, history, expected):
    width = Hyperparameter("width", value, choices=(64, 96, 128, 192, 256, 384, 512))
    size = RunSize("flops", tokens=1000, parameters=1000)
    spare = Hyperparameter("scalar_lr", 0.005, low=0.0005, high=0.05, log=True)
    move = choice.choose([width, spare], {}, history, frozenset(), np.random.default_rng(0), size=size)
    assert move.config.get("width") == expected


def test_a_prompt_without_sizes_is_answered_too():
    """A parent whose runs all failed has none."""
    study = FakeStudy(BuiltinModel(), budget="1e12flop")
    study.experiments[0] = study.experiments[0].model_copy(update={"runs": ()})
    assert "tokens a parameter" not in digest(study.view(), 0)
    assert asyncio.run(Greedy(Greedy.Options()).propose(study.view(), 1))


@pytest.mark.parametrize("wants_edits", [True, False])
def test_a_slot_for_code_or_for_numbers_gets_them(wants_edits):
    numbers, files = [Hyperparameter("batch", 8, choices=(4, 8))], {"models/gpt.py": SOURCE}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        move = choice.choose(numbers, files, [], frozenset(), rng, wants_edits=wants_edits)
        assert bool(move.edits) == wants_edits


def test_a_hint_for_less_is_no_reason_for_more():
    def why(value: int) -> str:
        batch = Hyperparameter("batch", value, choices=(4, 8))
        return choice.choose([batch], {}, [], frozenset(), np.random.default_rng(0)).hypothesis

    assert why(8).startswith("batch 8 -> 4: half the batch takes twice the steps")
    assert why(4).startswith("batch 4 -> 8: not tried yet")


def test_it_says_what_it_is_and_costs_nothing():
    model = resolve_model("builtin")
    assert (model.system, model.model_name) == ("jaxresearch", "builtin")
    assert BuiltinModel.__doc__.startswith("No language model: a library of edits and bounded numeric moves")
    assert Greedy.__doc__.startswith("Builds every proposal on the incumbent")


def test_it_reads_a_study_of_five_hundred_experiments():
    study = FakeStudy(BuiltinModel(), files={"models/gpt.py": SOURCE})
    for number in range(1, 501):
        study.add(Proposal(parent=0, hypothesis="x", config={"matrix_lr": 0.01 + number * 1e-5}, tag=f"t{number}"))
    (proposal,) = asyncio.run(Greedy(Greedy.Options()).propose(study.view(), 1))
    assert find_problem(proposal, study.view()) is None


def _read_in_one_proposal(study: FakeStudy) -> int:
    """Characters of the tools' answers."""
    read = 0

    class Reader(BuiltinModel):
        async def request(self, messages, *rest):
            nonlocal read
            read = sum(len(str(part.content)) for part in messages[-1].parts if isinstance(part, ToolReturnPart))
            return await super().request(messages, *rest)

    study.model = Reader()
    (proposal,) = asyncio.run(Greedy(Greedy.Options()).propose(study.view(), 1))
    assert find_problem(proposal, study.view()) is None
    return read


def test_what_it_reads_of_a_study_does_not_grow():
    study = FakeStudy(None, files={"models/gpt.py": SOURCE})
    sizes = {}
    for number in range(1, 901):
        name, value = (("matrix_lr", 0.01 + number * 1e-5), ("warmdown", number * 1e-3))[number % 2]
        study.add(Proposal(parent=0, hypothesis="x", config={name: value}, tag=f"{name}={value:.6g}"))
        if number in (50, 199, 200, 900):
            sizes[number] = _read_in_one_proposal(study)
    assert sizes[50] < sizes[199]
    assert sizes[900] < sizes[199] * 1.05


def test_what_it_forgets_of_a_long_study_it_does_not_try_again(monkeypatch):
    monkeypatch.setattr(builtin, "RELEVANT", 60)
    monkeypatch.setattr(digest_module, "RELEVANT", 60)
    study = play(120, surface=bowl)
    assert len({(each.parent, str(each.config), each.edits) for each in proposals(study)}) == 120
    assert study.score(study.incumbent) < 1.5 + 0.1 * (study.score(0) - 1.5)

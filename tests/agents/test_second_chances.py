"""Second chances: a crashed idea is repaired once, a near miss runs once with other learning rates."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from pydantic_ai.messages import ModelResponse, ToolCallPart, UserPromptPart
from pydantic_ai.models.function import FunctionModel

from agents.beam import Beam
from agents.greedy import Greedy
from agents.reflective import Reflective
from agents.second_chance import second_chances
from jaxresearch.experiment import FailedRun, Verdict
from jaxresearch.llm import laboratory_model, resolve_model
from jaxresearch.proposal import Edit, Hyperparameter, Proposal
from jaxresearch.study.replay import replay
from jaxresearch.study.summary import status_object
from jaxresearch.synthetic import SyntheticStudy, completed_run
from jaxresearch.testing import play
from tests.study.fakes import Bench, FakeExecutor, config, mode

IDEA = Proposal(
    parent=0,
    hypothesis="double the rate",
    edits=(Edit(path="models/recipe.py", search="RATE = 1.0", replace="RATE = 2.0 / 0"),),
    tag="double",
    predicted_bpb=-0.01,
)


def mending(search: str, replace: str, prompts: list[str] | None = None) -> FunctionModel:
    """A model that always answers with one edit."""

    def answer(messages, info) -> ModelResponse:
        parts = [part for message in messages for part in message.parts]
        if prompts is not None:
            prompts.extend(str(part.content) for part in parts if isinstance(part, UserPromptPart))
        edit = {"path": "models/recipe.py", "search": search, "replace": replace}
        change = {"hypothesis": "no division", "expected_effect": "none", "edits": [edit], "tag": "mend"}
        change |= {"predicted_change": -0.01, "confidence": 0.5}
        return ModelResponse(parts=[ToolCallPart("propose_code", json.dumps(change))])

    return FunctionModel(answer)


def crashed(model, reason: str = "ZeroDivisionError while train", proposal: Proposal = IDEA) -> SyntheticStudy:
    study = SyntheticStudy(model)
    study.fate = lambda number: Verdict.CRASH
    study.add(proposal)
    run = FailedRun(identity="x", verdict=Verdict.CRASH, reason=reason, seed=0, traceback=f"Traceback\n{reason}")
    study.experiments[-1] = study.experiments[-1].model_copy(update={"runs": (run,), "reason": reason})
    study.fate = lambda number: None
    return study


def owed(study: SyntheticStudy, slots: int = 1, *, retune: bool = True) -> list[Proposal]:
    return asyncio.run(second_chances(study.view(), slots, repair=True, retune=retune))


def test_a_crashed_idea_comes_back_whole_once():
    prompts: list[str] = []
    study = crashed(mending("2.0 / 0", "2.0", prompts))
    (repair,) = owed(study)
    assert (repair.parent, repair.repairs, repair.tag) == (0, 1, "double")
    assert repair.edits == (*IDEA.edits, Edit(path="models/recipe.py", search="2.0 / 0", replace="2.0"))
    assert repair.hypothesis == "Repair of #1: double the rate"
    assert "ZeroDivisionError while train" in prompts[0]
    assert re.search(r"<<<UNTRUSTED [0-9a-f]{16}\nTraceback", prompts[0])
    study.add(repair)
    assert study.candidates[2].files["models/recipe.py"] == "RATE = 2.0\n"
    assert study.experiments[2].scores
    assert owed(study, slots=2) == []


def test_a_repair_that_crashes_is_not_repaired():
    study = crashed(mending("2.0 / 0", "2.0 / 0.0"))
    (repair,) = owed(study)
    study.fate = lambda number: Verdict.CRASH
    study.add(repair)
    assert owed(study, slots=2) == []


@pytest.mark.parametrize("strategy", [Greedy, Beam, Reflective])
def test_strategies_repair_before_they_go_on_and_may_be_told_not_to(strategy):
    study = crashed(mending("2.0 / 0", "2.0"))
    (first,) = asyncio.run(strategy(strategy.Options()).propose(study.view(), 1))
    assert first.repairs == 1
    prompts: list[str] = []
    study.model = mending("RATE = 1.0", "RATE = 3.0", prompts)
    assert not asyncio.run(strategy(strategy.Options(repair=False)).propose(study.view(), 1))[0].repairs
    assert not any("repairs=" in prompt for prompt in prompts)


def test_without_a_repair_the_round_is_not_lost():
    """The answer does not apply to the crashed source; the same round asks for something else."""
    calls = []
    study = crashed(laboratory_model(mending("RATE = 1.0", "RATE = 3.0"), on_call=calls.append))
    (proposal,) = asyncio.run(Greedy(Greedy.Options()).propose(study.view(), 1))
    assert (proposal.repairs, proposal.edits[0].replace) == (None, "RATE = 3.0")
    assert len(calls) > 1


def test_the_builtin_model_slows_down_what_diverged_and_mends_nothing_else():
    study = crashed(resolve_model("builtin"), reason="the loss is not finite at step 3 (seed 0 at step 3)")
    (repair,) = owed(study)
    assert repair.edits == IDEA.edits
    assert repair.config == {"matrix_lr": 0.02, "head_lr": 0.002}
    assert owed(crashed(resolve_model("builtin"))) == []


def test_a_repair_is_counted_in_the_ledger_and_replays(tmp_path):
    """Through a whole study: the idea gains, and would be lost to a mode that breaks at run time."""

    def answer(messages, info) -> ModelResponse:
        text = str(messages)
        if "repairs=" in text:
            edit = {"path": "models/recipe.py", "search": "'nan'", "replace": "'fine'"}
        else:
            body = "GAIN = 0.1\nMODE = 'nan'\n"
            edit = {"path": "models/recipe.py", "search": "GAIN = 0.0\nMODE = 'fine'\n", "replace": body}
        change = {"hypothesis": "more gain", "expected_effect": "-0.1", "edits": [edit], "tag": "gain"}
        return ModelResponse(parts=[ToolCallPart("propose_code", json.dumps(change))])

    study = Bench(tmp_path / "study", config(2)).create()
    strategy = Greedy(Greedy.Options())
    asyncio.run(
        study.run(FakeExecutor(), strategy, lambda record: laboratory_model(FunctionModel(answer), on_call=record))
    )
    verdicts = [str(entry.verdict) for entry in study.history.contenders]
    assert verdicts == ["crash", "keep"]
    assert study.history.entries[2].experiment.proposal.repairs == 1
    assert status_object(study.history, "")["repairs"] == {"tried": 1, "kept": 1}
    asyncio.run(replay(study, Greedy(Greedy.Options())))
    assert mode("nan").repairs is None  # proposals of older ledgers have none


RATES = (
    Hyperparameter("matrix_lr", 0.04, low=0.005, high=0.2, log=True, traced=True),
    Hyperparameter("final_lr_fraction", 0.0, low=0.0, high=0.3, traced=True),
    Hyperparameter("depth", 2, low=1, high=8),
)
CODE = IDEA.model_copy(update={"edits": (Edit(path="models/recipe.py", search="1.0", replace="2.0"),)})


def discarded(effect: float, proposal: Proposal = CODE) -> SyntheticStudy:
    study = SyntheticStudy(resolve_model("builtin"), hyperparameters=RATES, surface=lambda values, files: 1.5)
    study.fate = lambda number: Verdict.DISCARD
    study.add(proposal)
    start = study.experiments[0].scores[0]
    study.experiments[1] = study.experiments[1].model_copy(update={"runs": (completed_run(start + effect, 0),)})
    return study


@pytest.mark.parametrize(("effect", "owes"), [(-0.004, True), (0.002, True), (0.01, False)])
def test_code_that_did_not_clearly_lose_runs_once_more_at_other_rates(effect, owes):
    study = discarded(effect)  # seeds deviate by 0.01
    proposals = owed(study)
    assert bool(proposals) is owes
    if owes:
        (again,) = proposals
        assert (again.edits, again.parent, list(again.config)) == (CODE.edits, 0, ["matrix_lr"])
        assert again.config["matrix_lr"] in (0.06, 0.0267)
        assert again.tag in ("double lr-up", "double lr-down")
        study.add(again)
        assert owed(study, slots=2) == []
        assert owed(study, retune=False, slots=2) == []


def test_rates_go_where_it_helped_before():
    study = discarded(-0.004)
    for rate, gain in ((0.05, 0.01), (0.03, -0.01)):
        study.add(Proposal(parent=0, hypothesis="rate", config={"matrix_lr": rate}))
        start = study.experiments[0].scores[0]
        runs = (completed_run(start + gain, 0),)
        study.experiments[-1] = study.experiments[-1].model_copy(update={"runs": runs})
    (again,) = owed(study, slots=3)
    assert again.config == {"matrix_lr": 0.0267}


def test_numbers_and_what_set_its_own_rates_are_owed_nothing():
    assert owed(discarded(-0.004, Proposal(parent=0, hypothesis="deeper", config={"depth": 3}))) == []
    assert owed(discarded(-0.004, CODE.model_copy(update={"config": {"matrix_lr": 0.05}}))) == []


def test_at_most_one_in_five_is_spent_on_rates():
    def spent(seed: int) -> int:
        played = play(Beam, experiments=40, seed=seed)
        return sum(each.tag.endswith((" lr-up", " lr-down")) for row in played.rounds for each in row)

    found = [spent(seed) for seed in range(4)]
    assert max(found) <= 8
    assert sum(found) > 0, "none of these studies had a near miss"

"""transfer: baseline and winner at another size or time, each from its own values, on fresh seeds."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from fakes import Bench, FakeExecutor, config, gain, mode, rate

from jaxresearch.errors import ConfigurationError
from jaxresearch.experiment import FailedRun, Verdict
from jaxresearch.proposal import Candidate, Hyperparameter
from jaxresearch.study.stopping import Stop
from jaxresearch.study.study import Study
from jaxresearch.study.transfer import (
    check_scale,
    parse_scale,
    scaled_budget,
    scaled_config,
    transfer,
    transfer_object,
)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Bench(tmp_path / "study", config(2)).run([gain(0.1), rate(0.05, parent=1)])


def transferred(study: Study, text: str, executor: FakeExecutor | None = None, **options) -> dict:
    scale = parse_scale(text)

    def work(journal, workspace):
        return transfer(journal, workspace, executor or FakeExecutor(), Stop(), scale=scale, **{"count": 4, **options})

    asyncio.run(study.beside(work))
    return json.loads(json.dumps(transfer_object(study.history, "s", scale), allow_nan=False))


def test_a_gain_that_survives(study: Study):
    executor = FakeExecutor()
    facts = transferred(study, "lr=2x,budget=2x", executor)
    assert facts["budget"] == "1200000tok"
    assert {request.budget for request in executor.requests} == {"1200000tok"}
    assert {request.split for request in executor.requests} == {"validation"}
    assert [request.seed for request in executor.requests[:4]] == [3, 3, 4, 4], "seed by seed"
    assert {request.traced["lr"] for request in executor.requests} == {0.02, 0.1}, "each from its own value"
    assert facts["gain"]["mean_bpb"] == pytest.approx(0.1 + 0.5 * 0.08, abs=0.003)
    assert facts["gain"]["low_bpb"] > 0
    assert facts["claimed_gain_bpb"] == pytest.approx(0.12, abs=0.003)
    assert facts["conclusion"].startswith("At 2x budget and 2x lr the gain survives: 0.1")
    assert study.history.openings == ()
    assert study.verify() == study.history.seq


def test_a_gain_that_does_not(study: Study):
    class Reversing(FakeExecutor):
        async def trace(self, candidate: Candidate):
            traced = await super().trace(candidate)
            return traced.model_copy(update={"program": traced.program.replace(":0.1:", ":-0.5:")})

    facts = transferred(study, "lr=3x", Reversing())
    assert facts["gain"]["high_bpb"] < 0
    assert "the winner is worse than the baseline" in facts["conclusion"]


def test_a_winner_that_fails_on_some_seeds_is_not_said_to_survive(study: Study):
    class Choosy(FakeExecutor):
        async def run(self, request, on_progress):
            outcome = await super().run(request, on_progress)
            if request.seed != 4 or ":0.1:" not in request.program:
                return outcome
            return FailedRun(identity=request.identity, verdict=Verdict.CRASH, reason="diverged", seed=request.seed)

    facts = transferred(study, "lr=2x", Choosy())
    assert facts["gain"]["low_bpb"] > 0
    assert "the gain is not shown to survive: the winner gave no score on 1 of 4 seeds" in facts["conclusion"]


def test_one_that_does_not_trace_there_is_said(study: Study):
    class Failing(FakeExecutor):
        async def trace(self, candidate: Candidate):
            text = candidate.files["models/recipe.py"].replace("MODE = 'fine'", "MODE = 'syntax'")
            return await super().trace(Candidate({"models/recipe.py": text}, candidate.config))

    facts = transferred(study, "lr=2x", Failing())
    assert facts["gain"] is None
    assert "nothing can be said: SyntaxError: bad" in facts["conclusion"]


def test_it_is_shown_again_and_run_again_only_when_asked(study: Study):
    first = transferred(study, "lr=2x")
    executor = FakeExecutor()
    assert transferred(study, "lr=2x", executor) == first
    assert executor.requests == []
    assert not set(transferred(study, "lr=2x", again=True)["seeds"]) & set(first["seeds"])
    assert not set(transferred(study, "budget=2x")["seeds"]) & set(first["seeds"])


@pytest.mark.parametrize(
    ("value", "factor", "scaled"),
    [(50, "1.1x", 55), (20, "1.15x", 23), (3, "2x", 6), (0.1, "3x", 0.3), (1e-5, "2x", 2e-5)],
)
def test_factors_are_multiplied_as_people_do(value: float, factor: str, scaled: float):
    declared = [Hyperparameter("it", value)]
    assert scaled_config(declared, {"it": factor}, "the winner") == {"it": scaled}
    assert type(scaled_config(declared, {"it": factor}, "the winner")["it"]) is type(value)
    assert scaled_budget("50steps", {"budget": "1.1x"}) == "55steps"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("depth", "'depth' is not NAME=FACTORx"),
        ("lr=2", "'lr=2' is not NAME=FACTORx"),
        ("lr=0x", "'lr=0x' is not NAME=FACTORx"),
        ("lr=2x,lr=3x", "lr is given twice"),
        ("nothing=2x", "no hyperparameter 'nothing'"),
        ("lr=100x", "out of bounds"),
        ("budget=0.0000001x", "not a whole number"),
    ],
)
def test_what_cannot_be_is_one_clear_line_before_anything_runs(study: Study, text: str, said: str):
    before = study.history.seq
    with pytest.raises(ConfigurationError, match=said.replace("(", r"\(")):
        check_scale(study.history, study.workspace, parse_scale(text))
    assert study.history.seq == before


def test_old_ledgers_know_no_trials(tmp_path: Path):
    study = Bench(tmp_path / "study", config(1)).run([mode("syntax")])
    assert study.history.trials == ()

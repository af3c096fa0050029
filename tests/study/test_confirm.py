"""confirm: the sealed test is opened once, on fresh seeds, and the ledger says so."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from fakes import SCRIPT, Bench, FakeExecutor, config, gain

from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import RunProgress, RunRequest
from jaxresearch.experiment import CompletedRun, FailedRun, RunOutcome, Verdict
from jaxresearch.study.confirm import confirmation_object, is_confirmed
from jaxresearch.study.stopping import Interrupted, Stop
from jaxresearch.study.study import Study


@pytest.fixture
def study(bench: Bench) -> Study:
    return bench.run()


def confirmed(study: Study, executor: FakeExecutor | None = None, **options) -> dict:
    asyncio.run(study.confirm(executor or FakeExecutor(), **options))
    return json.loads(json.dumps(confirmation_object(study.history, "s"), allow_nan=False))


def test_it_reports_gain_interval_and_gap(study: Study):
    facts = confirmed(study, count=5)
    assert facts["opening"] == 1
    assert facts["seeds"] == [3, 4, 5, 6, 7]
    assert facts["incumbent"]["experiment"] == 6
    assert facts["gain"]["low_bpb"] < facts["gain"]["mean_bpb"] < facts["gain"]["high_bpb"]
    assert facts["gain"]["mean_bpb"] == pytest.approx(0.12, abs=0.002)
    assert facts["gain"]["p_value"] < 1e-4
    assert facts["incumbent"]["gap_bpb"] == pytest.approx(0.02)
    assert facts["claimed_gain_bpb"] == pytest.approx(0.12, abs=0.003)
    assert facts["conclusion"].startswith("Confirmed on unseen text: experiment 6 is better than the baseline by 0.1")


def test_only_these_runs_ask_for_the_test_and_none_is_the_experiments(bench: Bench):
    executor = FakeExecutor()
    study = bench.run(executor=executor)
    assert {request.split for request in executor.requests} == {"validation"}
    before = study.history
    searched = {request.identity for request in executor.requests}
    executor.requests.clear()
    confirmed(study, executor, count=3)
    assert [(r.split, r.reference) for r in executor.requests] == [("test", None)] * 6
    assert not searched & {request.identity for request in executor.requests}
    assert study.history.experiments == before.experiments
    assert study.history.costs == before.costs
    assert study.history.stopped == before.stopped
    assert study.verify() == before.seq + 7
    assert bench.open().history == study.history


def test_a_second_opening_is_possible_and_marked(study: Study):
    first = confirmed(study, count=3)
    assert is_confirmed(study.history)
    second = confirmed(study, count=3)
    assert second["opening"] == 2
    assert not set(first["seeds"]) & set(second["seeds"])
    assert "The test was open before: this is opening 2." in second["conclusion"]


def test_an_opening_that_was_cut_short_goes_on(study: Study):
    stop = Stop()

    class Stopping(FakeExecutor):
        async def run(self, request: RunRequest, on_progress) -> RunOutcome:
            if len(self.requests) == 2:
                stop.request()
            return await super().run(request, on_progress)

    executor = Stopping()
    with pytest.raises(Interrupted):
        asyncio.run(study.confirm(executor, stop=stop, count=3))
    assert not is_confirmed(study.history)
    facts = confirmed(study, executor, count=9)
    assert facts["opening"] == 1
    assert facts["incumbent"]["runs"] == 3
    assert len(executor.requests) == 6, "no run was made twice"


def test_when_nothing_was_kept_it_says_so(bench: Bench):
    bench.config = config(1)
    facts = confirmed(bench.run([gain(-0.1)]), count=3)
    assert facts["gain"] is None
    assert facts["baseline"]["runs"] == 3
    assert facts["conclusion"] == "Nothing was kept, so there is no gain to confirm."


def test_runs_that_fail_are_reported_and_lost_ones_are_tried_again(study: Study):
    executor = FakeExecutor()
    executor.lose_runs = 2
    facts = confirmed(study, executor, count=2)
    assert facts["incumbent"]["runs"] == facts["baseline"]["runs"] == 2
    executor.lose_runs = 99
    with pytest.raises(JaxresearchError, match="3 runs in a row were lost"):
        confirmed(study, executor, count=2)


def test_a_winner_that_gives_no_score_on_some_seeds_is_not_confirmed(study: Study):
    """It sees its seed and its own loss, and could fail where its score would be a bad one."""

    class Choosy(FakeExecutor):
        async def run(self, request: RunRequest, on_progress) -> RunOutcome:
            outcome = await super().run(request, on_progress)
            if request.seed != 4 or request.traced["lr"] != 0.05:
                return outcome
            return FailedRun(identity=request.identity, verdict=Verdict.CRASH, reason="diverged", seed=request.seed)

    facts = confirmed(study, Choosy(), count=5)
    assert facts["gain"]["low_bpb"] > 0
    assert facts["incumbent"]["failed"] == ["diverged"]
    assert facts["conclusion"].startswith(
        "Not confirmed: experiment 6 gave no score on 1 of 5 fresh seeds (diverged); which those are may be its own choice."
    )


def test_a_study_without_a_baseline_has_nothing_to_confirm(bench: Bench):
    with pytest.raises(JaxresearchError, match="baseline has no score"):
        asyncio.run(bench.create().confirm(FakeExecutor()))


def test_a_test_score_that_nobody_asked_for_is_refused(tmp_path: Path):
    class Leaky(FakeExecutor):
        async def run(self, request: RunRequest, on_progress) -> RunOutcome:
            outcome = await super().run(request, lambda _: on_progress(RunProgress("train")))
            assert isinstance(outcome, CompletedRun)
            return outcome.model_copy(update={"test_bpb": 1.0})

    with pytest.raises(JaxresearchError, match="another split than the one asked for"):
        Bench(tmp_path / "study", config(1)).run(SCRIPT[:1], executor=Leaky())

"""Early stopping inside a study: who is cut, what is charged, and that stopping and resuming change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import Bench, FakeExecutor, completed, config, gain

from jaxresearch.execution.base import RunRequest
from jaxresearch.experiment import FailedRun, RunOutcome, Verdict
from jaxresearch.statistics.early import CHECKPOINTS, cut_at
from jaxresearch.study.cuts import cuts
from jaxresearch.study.study import Study
from jaxresearch.study.summary import status_object, tsv

SCRIPT = [gain(-5.0), gain(0.1), gain(0.05), gain(-3.0)]


class Probing(FakeExecutor):
    """Runs that fall to their score; one that is above its limit at a checkpoint is cut there, as a worker would."""

    async def run(self, request: RunRequest, on_progress) -> RunOutcome:
        outcome = await super().run(request, on_progress)
        if not request.probe_at or isinstance(outcome, FailedRun):
            return outcome
        curve = [(at, outcome.val_bpb + 0.5 * (1 - at)) for at in (*request.probe_at, 1.0)]
        at = cut_at(curve, request.cut_above)
        if at is None:
            return outcome.model_copy(update={"probes": tuple(curve)})
        return FailedRun(
            identity=request.identity,
            verdict=Verdict.DISCARD,
            reason=f"cut at {at:.0%}",
            seed=request.seed,
            program=request.program,
            step=3,
            train_seconds=8.0 * at,
            total_seconds=8.0 * at + 1,
            flops=1e9 * at,
            probes=tuple(point for point in curve if point[0] <= at),
        )


def played(folder: Path, **settings) -> tuple[Study, Probing]:
    executor = Probing()
    return Bench(folder, config(len(SCRIPT), **settings)).run(SCRIPT, executor=executor), executor


def test_a_hopeless_first_run_is_cut_and_judged_discard(tmp_path: Path):
    study, executor = played(tmp_path / "study")
    first = study.history.experiments[1]
    assert (first.verdict, first.scores, len(first.runs)) == (Verdict.DISCARD, {}, 1)
    assert first.reason == "cut at 30% (seed 0 at step 3)"
    verdicts = [str(each.verdict) for each in study.history.experiments[1:]]
    assert verdicts == ["discard", "keep", "discard", "discard"]
    assert study.history.experiments[3].scores, "not far enough behind"
    assert {request.probe_at for request in executor.requests} == {CHECKPOINTS}
    limited = [request for request in executor.requests if request.cut_above]
    assert [request.seed for request in limited] == [0, 0, 0, 0], "only first runs of contenders"


def test_what_was_spent_is_charged_and_what_was_saved_is_said(tmp_path: Path):
    study, _ = played(tmp_path / "study")
    whole = sum(len(each.scores) for each in study.history.experiments)
    assert study.history.costs.flops == pytest.approx(whole * 1e9 + 2 * 0.3e9)
    saved = cuts(study.history)
    assert (saved.runs, saved.train_seconds_saved, saved.flops_saved) == pytest.approx((2, 2 * 5.6, 2 * 0.7e9))
    assert status_object(study.history, "s")["early_stopping"]["runs"] == 2
    row = tsv(study.history).splitlines()[2].split("\t")
    assert row[3] == "discard"
    assert float(row[1]) > 6, "what it scored when it was cut, never 0"


@pytest.mark.parametrize("acceptance", [{"rule": "fixed"}, {"early_stopping": False}])
def test_it_can_be_off_and_is_under_fixed(tmp_path: Path, acceptance: dict):
    study, executor = played(tmp_path / "study", acceptance=acceptance)
    assert not any(request.probe_at or request.cut_above for request in executor.requests)
    assert all(each.scores for each in study.history.experiments)


def test_a_study_without_probes_goes_on_without_cutting(tmp_path: Path):
    """One that began before there were any."""

    class Older(FakeExecutor):
        async def run(self, request: RunRequest, on_progress) -> RunOutcome:
            assert request.cut_above == ()
            return completed(request, 1.5 - float(request.program.split(":")[1]))

    study = Bench(tmp_path / "study", config(2)).run([gain(-5.0), gain(0.1)], executor=Older())
    assert [each.verdict for each in study.history.contenders] == [Verdict.DISCARD, Verdict.KEEP]

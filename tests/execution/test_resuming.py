"""A worker that dies is replaced, and its run goes on from the last checkpoint; a program that kills is still a crash."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from jaxresearch.execution import local
from jaxresearch.experiment import CompletedRun, FailedRun, Verdict
from jaxresearch.training.seal import checkpoint_folder, sealed
from tests.laboratory import BASELINE, Laboratory

STEPS = "400steps"


@pytest.fixture(scope="module")
def writing(make_laboratory: Callable[..., Laboratory]) -> Iterator[Laboratory]:
    """A laboratory that writes a checkpoint after every 20 ms of training."""
    laboratory = make_laboratory()
    write_every(laboratory, 0.02)
    yield laboratory
    laboratory.close()


def write_every(laboratory: Laboratory, seconds: float, **others: object) -> None:
    """For the executor, which looks for checkpoints, and for the workers to come, which write them."""
    executor, changes = laboratory.executor, {"checkpoint_seconds": seconds, **others}
    executor._settings = executor._settings.model_copy(update=changes)
    executor._house._settings = executor._house._settings.model_copy(update=changes)


def killing(laboratory: Laboratory, request, times: int) -> Callable:
    """Kills the worker at each of the first `times` new checkpoints that it has written."""
    folder, known = checkpoint_folder(laboratory.executor._settings.runs, request.identity), []

    def on_progress(progress) -> None:
        there = max(sealed(folder), default=0)
        if len(known) < times and there > max(known, default=0):
            known.append(there)
            os.kill(laboratory.executor._worker._process.pid, signal.SIGKILL)

    return on_progress


def test_a_run_goes_on_in_another_worker_to_the_very_same_score(writing: Laboratory):
    traced = writing.traced(BASELINE)
    whole = writing.run(traced, budget=STEPS)
    assert isinstance(whole, CompletedRun)
    assert (whole.resumed, whole.checkpoint) == ((), "")
    request = writing.request(traced, budget=STEPS, keep_state=True)
    cut = writing.runner.run(writing.executor.run(request, killing(writing, request, 1)))
    assert isinstance(cut, CompletedRun), cut
    assert len(cut.resumed) == 1
    assert 0 < cut.resumed[0].steps < 400
    assert cut.resumed[0].alike
    assert (cut.val_bpb.hex(), cut.loss, cut.curve) == (whole.val_bpb.hex(), whole.loss, whole.curve)
    folder = checkpoint_folder(writing.executor._settings.runs, request.identity)
    assert cut.checkpoint.startswith("sha256:")
    assert sealed(folder) == [400]


def test_a_run_may_not_cost_workers_without_end(writing: Laboratory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local, "MAX_DEATHS", 0)
    request = writing.request(writing.traced(BASELINE), budget="100000steps")
    outcome = writing.runner.run(writing.executor.run(request, killing(writing, request, 1)))
    assert isinstance(outcome, FailedRun)
    assert outcome.verdict is Verdict.CRASH
    assert "SIGKILL" in outcome.reason


def test_a_run_that_fails_leaves_no_checkpoint(writing: Laboratory):
    request = writing.request(writing.traced(BASELINE), budget="100000steps", wall_cap_seconds=0.5, keep_state=True)
    outcome = writing.runner.run(writing.executor.run(request, lambda _: None))
    assert isinstance(outcome, FailedRun)
    assert outcome.verdict is Verdict.TIMEOUT
    assert not checkpoint_folder(writing.executor._settings.runs, request.identity).exists()


def test_a_training_that_is_given_up_writes_its_checkpoint_and_goes_on_from_there(
    make_laboratory: Callable[..., Laboratory],
):
    """SIGTERM, or a second Ctrl-C: the run is cancelled long before a checkpoint would have been due."""
    laboratory = make_laboratory()
    executor = laboratory.executor
    write_every(laboratory, 3600.0)
    executor._parting_seconds = 20.0
    traced = laboratory.traced(BASELINE)
    request = laboratory.request(traced, budget="3000steps")
    folder = checkpoint_folder(executor._settings.runs, request.identity)

    async def cancelled() -> None:
        reached = asyncio.Event()
        work = asyncio.ensure_future(executor.run(request, lambda p: reached.set() if p.step >= 50 else None))
        await reached.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    laboratory.runner.run(cancelled())
    (steps,) = sealed(folder)
    assert 50 <= steps < 3000
    assert not executor._worker.alive
    outcome = laboratory.runner.run(executor.run(request, lambda _: None))
    assert isinstance(outcome, CompletedRun), outcome
    assert [each.steps for each in outcome.resumed] == [steps]

"""A study that nobody watches: it ends by itself, within its time, and a later session may change when."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time
from pathlib import Path

import pytest
from fakes import SCRIPT, Bench, FakeExecutor, FakeModel, Scripted, comment, config, gain

from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import RunProgress
from jaxresearch.study.events import RunFinished, RunStarted, SessionStarted, Stopped, Traced
from jaxresearch.study.ledger import Ledger
from jaxresearch.study.replay import replay
from jaxresearch.study.stopping import Stop, stop_on_signals
from jaxresearch.study.study import Study
from jaxresearch.study.summary import status_object

WORSE = [gain(0.1), *(gain(round(0.1 - 0.01 * at, 2), parent=1, old=0.1) for at in range(1, 8))]


def events(study: Study) -> list:
    return [stored.event for stored in Ledger.open(study.layout.ledger).read()]


class Quiet(Scripted):
    """Asks no model, so that its study can be replayed."""

    async def propose(self, view, slots):
        start = len(view.experiments) - 1
        return self.script[start : start + slots]


def driven(bench: Bench, script: list, **options: object) -> Study:
    return bench.run(strategy=Quiet(script), **options)


def replayed(study: Study, script: list) -> int:
    return asyncio.run(replay(study, Quiet(script))).verdicts


def test_it_stops_after_experiments_in_a_row_without_a_gain(tmp_path: Path):
    study = driven(Bench(tmp_path / "study", config(8, stop_after_no_gain=3)), WORSE)
    assert len(study.history.contenders) == 4
    assert study.history.stopped == Stopped(
        reason="stop_after_no_gain: 3 experiments in a row improved nothing", finished=True
    )
    assert replayed(study, WORSE) == 5
    again = driven(Bench(study.layout.folder), WORSE)  # without another end it is over
    assert len(again.history.contenders) == 4


def test_only_what_was_tried_counts_and_a_simpler_one_is_no_gain(tmp_path: Path):
    study = Bench(tmp_path / "study", config(8)).run([gain(0.1), comment(parent=1), gain(0.05, parent=1, old=0.1)])
    history = study.history
    assert [str(entry.verdict) for entry in history.contenders] == ["keep", "duplicate", "discard"]
    assert history.without_gain == 1
    kept = history.contenders[0]
    simpler = dataclasses.replace(kept, decision=kept.decision.model_copy(update={"simpler": True}))
    entries = (history.entries[0], simpler, *history.entries[2:])
    assert dataclasses.replace(history, entries=entries).without_gain == 2


def test_a_resume_changes_the_ends_and_replay_knows(tmp_path: Path):
    bench = Bench(tmp_path / "study", config(2))
    study = driven(bench, WORSE)
    assert study.history.stopped.reason == "all 2 experiments are done"
    study = driven(bench, WORSE, experiments=4, max_seconds=1e6)
    assert len(study.history.contenders) == 4
    assert study.history.stopped.reason == "all 4 experiments are done"
    study = driven(bench, WORSE, experiments=8, stop_after_no_gain=4)
    assert len(study.history.contenders) == 5
    assert study.history.stopped.finished
    study = driven(bench, WORSE, stop_after_no_gain=0)  # never
    assert len(study.history.contenders) == 8
    assert [event.experiments for event in events(study) if isinstance(event, SessionStarted)] == [None, 4, 8, None]
    status = status_object(study.history, "s")
    assert (status["planned_experiments"], status["max_seconds"], status["stop_after_no_gain"]) == (8, 1e6, None)
    assert replayed(study, WORSE) == 9


def test_five_percent_for_the_study_are_not_shared_out_anew(tmp_path: Path):
    bench = Bench(tmp_path / "study", config(2, acceptance={"control": "study"}))
    driven(bench, WORSE)
    with pytest.raises(JaxresearchError, match="shared out"):
        driven(bench, WORSE, experiments=3)
    assert driven(bench, WORSE, experiments=1).history.planned == 1


def test_nothing_is_begun_when_the_time_is_used(tmp_path: Path):
    """The fake clock moves with each event, so that the time runs out in the middle of an experiment."""
    bench = Bench(tmp_path / "study", config(8, max_seconds=20))
    study = driven(bench, SCRIPT)
    assert study.history.stopped == Stopped(reason="max_seconds: 20 s are used", finished=True)
    assert study.history.pending is not None
    assert isinstance(events(study)[-2], RunFinished | Traced)
    assert replayed(study, SCRIPT) >= 1
    assert driven(bench, SCRIPT).history.pending is not None
    study = driven(bench, SCRIPT, max_seconds=1e6)
    assert study.history.pending is None
    assert len(study.history.contenders) == 8
    assert replayed(study, SCRIPT) == 9


class Training(FakeExecutor):
    """Its fourth run trains for `seconds` and says so; it notes whether it was given up."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.long, self.given_up = seconds, False

    async def run(self, request, on_progress):
        if len(self.requests) == 3 and not self.given_up:
            began = time.monotonic()
            try:
                while (share := (time.monotonic() - began) / self.long) < 1.0:
                    on_progress(RunProgress("train", share))
                    await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                self.given_up = True
                raise
        return await super().run(request, on_progress)


def terminated(bench: Bench, executor: Training, *, grace: float) -> Study:
    """Drive it, with a SIGTERM half a second into the long run."""
    study = bench.create()

    async def main() -> None:
        stop = Stop(study.config.execution.model_copy(update={"grace_seconds": grace}))
        with stop_on_signals(stop):
            driving = asyncio.ensure_future(study.run(executor, Quiet(WORSE), FakeModel, stop=stop))
            while sum(isinstance(event, RunStarted) for event in events(study)) < 4:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.5)
            os.kill(os.getpid(), signal.SIGTERM)
            ending = await asyncio.wait_for(driving, 30)
            assert ending.interrupted

    asyncio.run(main())
    return study


def test_sigterm_gives_up_a_run_that_would_take_too_long(tmp_path: Path):
    bench, executor = Bench(tmp_path / "study", config(2)), Training(3600.0)
    study = terminated(bench, executor, grace=25.0)
    assert executor.given_up
    assert [type(event) for event in events(study)[-2:]] == [RunStarted, Stopped]
    assert len(driven(bench, WORSE).history.contenders) == 2


def test_sigterm_lets_a_run_finish_that_is_nearly_done(tmp_path: Path):
    bench, executor = Bench(tmp_path / "study", config(2)), Training(2.0)
    study = terminated(bench, executor, grace=60.0)
    assert not executor.given_up
    assert [type(event) for event in events(study)[-2:]] == [RunFinished, Stopped]


def test_a_run_that_would_overrun_the_time_by_far_is_given_up(tmp_path: Path):
    """In real seconds: the study's own clock and the timer then agree."""
    bench = Bench(tmp_path / "study", config(2, max_seconds=2.0), clock=time.time)
    executor = Training(3600.0)
    study = driven(bench, WORSE, executor=executor)
    assert executor.given_up
    assert study.history.stopped == Stopped(reason="max_seconds: 2 s are used", finished=True)
    assert replayed(study, WORSE) >= 1

"""Pace: how soon the runs at hand will have ended, from how fast they train. A Reporter."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from jaxresearch.execution.base import RunProgress
from jaxresearch.experiment import CompletedRun
from jaxresearch.study.events import RunFinished, RunStarted, SessionStarted, TestScored, TrialRun
from jaxresearch.study.history import History
from jaxresearch.study.ledger import StoredEvent
from jaxresearch.study.reporter import run_ended_by

_ENOUGH = 0.02
"""Of the budget, trained since the first sign of it, before its speed says anything."""


@dataclass
class _Run:
    """One run: its stage since when, and the first and the last that was heard of its training, as (time, progress)."""

    stage: str = ""
    since: float = 0.0
    first: tuple[float, float] | None = None
    last: tuple[float, float] = (0.0, 0.0)


class Pace:
    """Follows the runs of a session. `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._runs: dict[tuple[int, int], _Run] = {}
        self._scoring: list[float] = []

    def on_event(self, stored: StoredEvent, history: History) -> None:
        if (ended := run_ended_by(stored.event, history)) is not None:
            self._runs.pop(ended, None)
        match stored.event:
            case SessionStarted():
                self._runs.clear()
                done = [run for entry in history.entries for run in entry.experiment.runs]
                self._scoring = [_scoring_seconds(run) for run in done if isinstance(run, CompletedRun)]
            case RunStarted(number=number, seed=seed):
                self._runs[number, seed] = _Run(since=self._clock())
            case (
                RunFinished(outcome=CompletedRun() as run)
                | TestScored(outcome=CompletedRun() as run)
                | TrialRun(outcome=CompletedRun() as run)
            ):
                self._scoring.append(_scoring_seconds(run))

    def on_progress(self, number: int, seed: int, progress: RunProgress) -> None:
        run, now = self._runs.setdefault((number, seed), _Run()), self._clock()
        if progress.stage != run.stage:
            run.stage, run.since = progress.stage, now
        if progress.stage == "train" and progress.progress > 0.0:
            run.first, run.last = run.first or (now, progress.progress), (now, progress.progress)

    def remaining_seconds(self) -> float | None:
        """Until the last of the runs at hand has been scored; None when there is none, or one cannot be foreseen."""
        each = [self._remaining(run) for run in self._runs.values()]
        known = [seconds for seconds in each if seconds is not None]
        return max(known) if known and len(known) == len(each) else None

    def _remaining(self, run: _Run) -> float | None:
        if not self._scoring:
            return None
        scoring, now = statistics.median(self._scoring), self._clock()
        if run.stage == "score":
            return max(0.0, scoring - (now - run.since))
        if run.stage != "train" or run.first is None or run.last[1] - run.first[1] < _ENOUGH:
            return None
        seconds = (run.last[0] - run.first[0]) / (run.last[1] - run.first[1])
        return max(0.0, (1.0 - run.last[1]) * seconds - (now - run.last[0])) + scoring


def _scoring_seconds(run: CompletedRun) -> float:
    return run.eval_seconds + run.audit_seconds

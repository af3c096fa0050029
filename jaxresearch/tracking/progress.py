"""progress.json: how far the runs at hand have come. The driver writes it anew about once a second; the dashboard reads it.

It is no record: the ledger knows nothing of it, and it goes when the session ends.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jaxresearch.experiment import RunProgress
from jaxresearch.study.events import RunFinished, Stopped, TestScored, TrialRun
from jaxresearch.study.history import History
from jaxresearch.study.ledger import StoredEvent

FILE = "progress.json"
STALE_SECONDS = 60.0
"""A file that is older was left by a session that was killed, or its runs are in a stage that tells nothing."""
POINTS = 120


@dataclass
class Running:
    """A run on its way. curve: (share of the budget, training loss) pairs; halved whenever it has twice `POINTS`."""

    number: int
    seed: int
    began: float
    stage: str = ""
    progress: float = 0.0
    step: int = 0
    loss: float | None = None
    curve: list[tuple[float, float]] = field(default_factory=list)

    def move(self, progress: RunProgress) -> None:
        self.stage, self.progress, self.step, self.loss = (
            progress.stage,
            progress.progress,
            progress.step,
            progress.loss,
        )
        if progress.loss is not None and (not self.curve or progress.progress > self.curve[-1][0]):
            self.curve.append((round(progress.progress, 4), round(progress.loss, 4)))
            if len(self.curve) >= 2 * POINTS:
                self.curve = self.curve[::2]


class ProgressFile:
    """Keeps `FILE` in `folder` up with the runs: a Reporter. Runs are told apart by experiment and seed."""

    def __init__(self, folder: Path, *, every_seconds: float = 1.0, clock: Callable[[], float] = time.time) -> None:
        self._path, self._every, self._clock = folder / FILE, every_seconds, clock
        self._runs: dict[tuple[int, int], Running] = {}
        self._written = 0.0

    def on_event(self, stored: StoredEvent, history: History) -> None:
        match stored.event:
            case RunFinished() | TestScored() as event:
                self._runs.pop((event.number, event.outcome.seed), None)
            case TrialRun() as event:
                self._runs = {key: run for key, run in self._runs.items() if key[1] != event.outcome.seed}
            case Stopped():
                self._runs.clear()
            case _:
                return
        self._write()

    def on_progress(self, number: int, seed: int, progress: RunProgress) -> None:
        now = self._clock()
        self._runs.setdefault((number, seed), Running(number, seed, now)).move(progress)
        if now - self._written >= self._every:
            self._write()

    def close(self) -> None:
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        self._written = self._clock()
        draft = self._path.with_name(f".{FILE}")
        facts = {"time": self._written, "runs": [asdict(run) for run in self._runs.values()]}
        draft.write_text(json.dumps(facts, separators=(",", ":")), "utf-8")
        os.replace(draft, self._path)


def read_progress(folder: Path, *, now: float | None = None) -> list[dict[str, Any]]:
    """The runs on their way in a study's folder, as `Running` has them; none when nobody wrote of any lately."""
    try:
        facts = json.loads((folder / FILE).read_text("utf-8"))
        fresh = (time.time() if now is None else now) - float(facts["time"]) < STALE_SECONDS
        return [asdict(Running(**run)) for run in facts["runs"]] if fresh else []
    except (OSError, ValueError, KeyError, TypeError):
        return []

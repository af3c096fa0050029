"""The heartbeat: what the process that drives a study is doing, written every few seconds, and what it tells a reader.

It is a file beside the ledger, `heartbeat.json`, and no part of the study: nothing is decided by it. A reader on the same
machine sees by the lock whether the process lives; one on another machine's disk, or on a copy, goes by the file's time.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from jaxresearch.execution.base import RunProgress
from jaxresearch.study.control import driver_of
from jaxresearch.study.events import (
    Decided,
    ProposalRequested,
    Proposed,
    RunFinished,
    RunStarted,
    SessionStarted,
    Stopped,
    TestOpened,
    Traced,
    TrialOpened,
)
from jaxresearch.study.history import History
from jaxresearch.study.layout import StudyLayout
from jaxresearch.study.ledger import StoredEvent
from jaxresearch.study.reporter import run_ended_by
from jaxresearch.text import one_line

BEAT_SECONDS = 2.0
SILENT_SECONDS = 60.0
"""After which a heartbeat is no sign of life any more."""
POINTS = 120


@dataclass
class Running:
    """A run on its way. curve: (share of the budget, training loss) pairs; halved whenever it has twice `POINTS`."""

    experiment: int
    seed: int
    began: float
    stage: str = "starting"
    progress: float = 0.0
    step: int = 0
    loss: float | None = None
    curve: list[tuple[float, float]] = field(default_factory=list)

    def move(self, progress: RunProgress) -> None:
        self.stage, self.step, self.loss = progress.stage, progress.step, progress.loss
        self.progress = round(progress.progress, 4)
        if progress.loss is not None and (not self.curve or self.progress > self.curve[-1][0]):
            self.curve.append((self.progress, round(progress.loss, 4)))
            if len(self.curve) >= 2 * POINTS:
                self.curve = self.curve[::2]


class Heartbeat:
    """Writes the file. A Reporter; `beat` is called every `BEAT_SECONDS` by whoever runs the session."""

    def __init__(self, layout: StudyLayout) -> None:
        self._path = layout.heartbeat
        self._since = time.time()
        self._stage = "starting"
        self._runs: dict[tuple[int, int], Running] = {}

    def on_event(self, stored: StoredEvent, history: History) -> None:
        if (ended := run_ended_by(stored.event, history)) is not None:
            self._runs.pop(ended, None)
        match stored.event:
            case SessionStarted():
                self._stage = "starting"
            case ProposalRequested():
                self._stage = "choosing the next experiment"
            case Proposed(number=number):
                self._stage = f"tracing experiment {number}"
            case Traced(number=number):
                self._stage = f"experiment {number} is traced"
            case RunStarted(number=number, seed=seed):
                self._runs[number, seed] = Running(number, seed, time.time())
            case RunFinished(number=number):
                self._stage = f"judging experiment {number}"
            case Decided():
                self._stage = "between two experiments"
            case TestOpened():
                self._stage = "confirming on the sealed test"
            case TrialOpened(purpose=purpose):
                self._stage = f"{purpose} beside the search"
            case Stopped():
                self._stage = "stopped"
                self._runs.clear()

    def on_progress(self, number: int, seed: int, progress: RunProgress) -> None:
        self._runs.setdefault((number, seed), Running(number, seed, time.time())).move(progress)

    def beat(self, hooks: Mapping[str, Any] | None) -> None:
        """Write what is going on. A disk that is full, or read-only, costs the heartbeat and nothing else."""
        facts = {
            "time": time.time(),
            "since": self._since,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "doing": "running" if self._runs else self._stage,
            "runs": [asdict(run) for run in self._runs.values()],
            "hooks": hooks,
        }
        draft = self._path.with_name(f".heartbeat-{os.getpid()}")
        with contextlib.suppress(OSError):
            draft.write_text(json.dumps(facts), "utf-8")
            draft.replace(self._path)


@dataclass(frozen=True)
class Liveness:
    """Whether something is at work on a study. said: in plain words; facts: fields of `status --json`."""

    said: str
    facts: dict[str, Any]


def liveness(layout: StudyLayout, history: History, *, now: float | None = None) -> Liveness:
    """What lock, heartbeat and ledger say together.

    {"alive": state, "alive_text", "heartbeat"}, where the state is one of: running (its process holds the lock, or on
    another host beat within the last minute), silent (holds the lock, and has not beaten for a minute), finished,
    stopped, killed (it ended without a word), unstarted. heartbeat: the file, with `age_seconds`; None without one.
    """
    now = time.time() if now is None else now
    beat = _read(layout)
    age = max(0.0, now - beat["time"]) if beat else None
    holder, here = driver_of(layout.lock), beat is None or beat["host"] == socket.gethostname()
    fresh = age is not None and age < SILENT_SECONDS
    doing = _doing(beat) if beat else "no heartbeat yet"
    stopped = history.stopped
    if holder is not None and (beat is None or now - max(beat["time"], history.time) < SILENT_SECONDS):
        state, said = "running", f"running: {doing} ({holder})"
    elif holder is not None:
        state = "silent"
        said = (
            f"{holder} holds the lock but was last heard of {_when(beat)}: {doing}. Is the machine suspended, or busy?"
        )
    elif stopped is not None:
        state = "finished" if stopped.finished else "stopped"
        over = stopped.finished or history.hopeless
        going_on = "" if over else f"; go on with: {layout.way_on}"
        said = f"{state}: {one_line(stopped.reason, 200)}{going_on}"
    elif not history.sessions:
        state, said = "unstarted", f"not started; go on with: {layout.way_on}"
    elif beat is not None and not here and fresh:
        state, said = "running", f"running on {beat['host']}, as of {age:.0f} s ago: {doing}"
    else:
        last = f"no heartbeat since {_when(beat)}, then {doing}" if beat else "and left no heartbeat"
        where = "" if here or beat is None else f" on {beat['host']}"
        state = "killed"
        said = f"killed{where}: {last}. Nothing is lost; resume with: {layout.way_on}"
    told = beat and {**beat, "runs": [_brief(run) for run in beat["runs"]], "age_seconds": age}
    hooks = (beat or {}).get("hooks") or {}
    if hooks.get("failed"):
        said += f"\nhooks      {hooks['failed']} messages could not be sent, the last by {hooks['last_error']}"
    return Liveness(said, {"alive": state, "alive_text": said, "heartbeat": told})


def runs_on_their_way(layout: StudyLayout, *, now: float | None = None) -> list[Running]:
    """What the driver last said of them; none when it has not beaten for `SILENT_SECONDS`."""
    beat = _read(layout)
    if beat is None or (time.time() if now is None else now) - beat["time"] >= SILENT_SECONDS:
        return []
    try:
        return [Running(**run) for run in beat["runs"]]
    except TypeError:
        return []


def _brief(run: object) -> object:
    """A run without its curve."""
    return {name: fact for name, fact in run.items() if name != "curve"} if isinstance(run, dict) else run


def _read(layout: StudyLayout) -> dict[str, Any] | None:
    """The last heartbeat; None where there is none that can be read."""
    try:
        beat = json.loads(layout.heartbeat.read_text("utf-8"))
        return {**beat, "time": float(beat["time"]), "host": one_line(str(beat["host"]), 100), "runs": beat["runs"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _doing(beat: Mapping[str, Any]) -> str:
    runs = [_doing_run(run) for run in beat["runs"] if isinstance(run, dict)]
    return "; ".join(runs) or one_line(str(beat.get("doing", "")), 200)


def _doing_run(run: Mapping[str, Any]) -> str:
    of = f"experiment {run.get('experiment')}, seed {run.get('seed')}"
    share = run.get("progress")
    trained = f" {share:.0%}" if run.get("stage") == "train" and isinstance(share, int | float) else ""
    return one_line(f"{of}: {run.get('stage')}{trained}", 200)


def _when(beat: Mapping[str, Any] | None) -> str:
    if beat is None:
        return "never"
    return datetime.fromtimestamp(beat["time"], UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")

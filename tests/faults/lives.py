"""Lives of one study: each is a process of its own, forked from this one, which may be killed; then the next goes on."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxresearch.errors import JaxresearchError
from tests.faults.points import POINTS, Points
from tests.faults.study import live

_LONGEST_SECONDS = 120.0


class FaultError(AssertionError):
    """Something was lost, counted twice, or silently wrong."""


@dataclass(frozen=True)
class Life:
    """How a process ended. result: of a study that came to its end. error: the one line that it stopped with."""

    killed: bool
    seconds: float
    result: dict[str, Any] | None = None
    error: str = ""
    passed: dict[str, int] = field(default_factory=dict)


def lead(
    folder: Path,
    points: Points | None = None,
    *,
    kill_after: float | None = None,
    **options: Any,
) -> Life:
    """One life of the study in `folder`. kill_after: seconds until a SIGKILL from outside. options: of `live`."""
    descriptor, name = tempfile.mkstemp(prefix="life-")  # elsewhere: the study's disk may be full
    os.close(descriptor)
    told = Path(name)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _live_and_die(folder, points or Points(), told, options)
    status = _wait(child, started, kill_after)
    seconds = time.monotonic() - started
    if os.WIFSIGNALED(status):
        told.unlink()
        if os.WTERMSIG(status) != signal.SIGKILL:
            raise FaultError(f"the driver died of signal {os.WTERMSIG(status)}")
        return Life(killed=True, seconds=seconds)
    facts = json.loads(told.read_text())
    told.unlink()
    if "traceback" in facts:
        raise FaultError(f"not one clear line, but\n{facts['traceback']}")
    return Life(killed=False, seconds=seconds, **facts)


def _live_and_die(folder: Path, points: Points, told: Path, options: dict[str, Any]) -> None:
    try:
        os.setsid()
        points.install()
        facts: dict[str, Any] = {"result": live(folder, points, **options), "passed": dict(points.passed)}
    except JaxresearchError as error:
        facts = {"error": str(error)}
    except BaseException:
        facts = {"traceback": traceback.format_exc()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    told.write_text(json.dumps(facts))
    sys.stdout.flush()
    os._exit(0)


def _wait(child: int, started: float, kill_after: float | None) -> int:
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        elapsed = time.monotonic() - started
        if elapsed > _LONGEST_SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise FaultError(f"the driver does not end within {_LONGEST_SECONDS:g} s")
        if kill_after is not None and elapsed >= kill_after:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001)


class Arena:
    """Studies that are disturbed, each held against one that was not."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random = root, random.Random(seed)
        self.kills: Counter[str] = Counter()
        self.studies = 0
        live(root / "first", Points())  # so that what is imported late is there before any process is forked
        whole = lead(root / "whole")
        if whole.result is None:
            raise FaultError(f"the undisturbed study stopped: {whole.error}")
        self.whole, self.seconds = whole.result, whole.seconds
        self.passed = whole.passed
        never = [name for name in POINTS if name not in self.passed]
        if never:
            raise FaultError(f"points that no study passes: {', '.join(never)}")

    def fresh(self) -> Path:
        self.studies += 1
        return self.root / f"study-{self.studies:04d}"

    def killed_at(self, name: str, times: int = 1) -> None:
        """A study that is killed at point `name`, `times` times, each at a random passing; then it must end well."""
        folder = self.fresh()
        for _ in range(times):
            life = lead(folder, Points(name, self.random.randint(1, self.passed[name])))
            if not life.killed:
                self.judge(life, f"killed at {name}")  # what was left had too few passings
                return
            self.kills[name] += 1
        self.judge(lead(folder), f"killed at {name}")

    def killed_at_random(self, times: int) -> None:
        """A study that is killed `times` times, whenever it happens to be."""
        folder = self.fresh()
        for _ in range(times):
            life = lead(folder, kill_after=self.random.uniform(0.0, self.seconds))
            if not life.killed:
                self.judge(life, "killed at random")
                return
            self.kills["random"] += 1
        self.judge(lead(folder), "killed at random")

    def judge(self, life: Life, what: str) -> None:
        """Raise `FaultError` unless the study ended as the undisturbed one."""
        if life.result is None:
            raise FaultError(f"{what}: it did not go on: {life.error or 'killed'}")
        for name, expected in self.whole.items():
            if life.result[name] != expected:
                raise FaultError(f"{what}: {name} differs: {_difference(expected, life.result[name])}")


def _difference(expected: Any, found: Any, where: str = "") -> str:
    """The first place at which two results differ."""
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        return next(_difference(v, found[k], f"{where}.{k}") for k, v in expected.items() if found[k] != v)
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return next(_difference(a, b, f"{where}[{at}]") for at, (a, b) in pairs if a != b)
    return f"at {where or 'the top'}: {str(expected)[:300]} became {str(found)[:300]}"

"""Damage: bits flipped and files cut in a study at rest. It goes on to the right end, or stops with one clear line."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.lives import Arena, FaultError, Life, lead
from tests.faults.points import Points

FILES = {
    "ledger": "ledger.sqlite",
    "log": "ledger.sqlite-wal",
    "commit": "workspace/objects/??/*",
    "branch": "workspace/refs/heads/*",
    "head": "workspace/HEAD",
    "seal": "runs/*/checkpoints/*.json",
    "checkpoint": "runs/*/checkpoints/*/*",
    "lock": "lock",
}
"""Kinds of files of a study, by pattern."""


def flip(path: Path, chance: random.Random) -> str:
    content = bytearray(path.read_bytes())
    if not content:
        return "empty"
    at = chance.randrange(len(content))
    content[at] ^= 1 << chance.randrange(8)
    path.chmod(0o644)
    path.write_bytes(bytes(content))
    return f"bit flipped in byte {at} of {len(content)}"


def cut(path: Path, chance: random.Random) -> str:
    size = path.stat().st_size
    left = chance.randrange(size) if size else 0
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.truncate(left)
    return f"cut from {size} to {left} bytes"


def half_done(arena: Arena) -> Path:
    """A study that was killed in its second half, its write-ahead log still there."""
    folder = arena.fresh()
    life = lead(folder, Points("run.training", max(1, arena.passed["run.training"] - 1)))
    if not life.killed:
        raise FaultError("the study to be damaged was not killed")
    return folder


def damaged(arena: Arena, template: Path, kind: str, harm: Callable[[Path, random.Random], str]) -> str:
    """Harm one file of that kind in a copy of `template`, and go on. What came of it, in words."""
    folder = arena.fresh()
    shutil.copytree(template, folder)
    path = arena.random.choice(sorted(folder.glob(FILES[kind])))
    what = f"{path.relative_to(folder)}: {harm(path, arena.random)}"
    life = lead(folder)
    if life.result is None:
        if not life.error or "\n" in life.error:
            raise FaultError(f"{what}: not one clear line: {life.error!r}")
    else:
        arena.judge(life, what)
    shutil.rmtree(folder)
    return f"{what}: {life.error or 'went on'}"


def clock_jumps(arena: Arena) -> None:
    """The time of day jumps by up to twenty years, back and forth, whenever it is read."""
    chance, real = random.Random(arena.random.random()), time.time

    def jumping() -> float:
        return max(0.0, real() + chance.uniform(-20, 20) * 365 * 86400)

    arena.judge(lead(arena.fresh(), clock=jumping), "the clock jumps")


def two_drivers(arena: Arena) -> None:
    """Two processes drive one study from its first moment: one of them is told so, and the other is not disturbed."""
    folder, found = arena.fresh(), []
    first = lead(folder, Points("ask.before"))  # there is a study now
    if not first.killed:
        raise FaultError("the first driver was not killed")
    threads = [threading.Thread(target=lambda: found.append(lead(folder))) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if len(found) != 2:
        raise FaultError("a driver came to no end")
    ended: list[Life] = [life for life in found if life.result is not None]
    told = [life for life in found if life.result is None]
    for life in told:
        if "driven by" not in life.error:
            raise FaultError(f"two drivers: {life.error}")
    if not ended:
        raise FaultError("two drivers: neither went on")
    for life in ended:  # two, where one came when the other was done
        arena.judge(life, "two drivers")


def another_corpus(arena: Arena) -> None:
    """The corpus changes between two sessions: the study refuses it, and goes on with its own."""
    folder = half_done(arena)
    life = lead(folder, corpus="sha256:1")
    if "corpus has changed" not in life.error:
        raise FaultError(f"another corpus: {life.error or 'it went on'}")
    arena.judge(lead(folder), "another corpus")

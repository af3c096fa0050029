"""The whole fault injection, or a sample of it: `python -m tests.faults [--sample]`. Exit status 1 at the first fault."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests.faults import damage, disk, laboratory
from tests.faults.lives import Arena
from tests.faults.points import POINTS

_KILLS = 220


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="A few of everything, as in the test suite.")
    parser.add_argument(
        "--synthetic", action="store_true", help="All, but for the real laboratory (minutes, not seconds)."
    )
    parser.add_argument("--seed", type=int, default=0, help="Of the moments that are random.")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=_fast()) as folder:
        arena = Arena(Path(folder), options.seed)
        facts = _sample(arena) if options.sample else _whole(arena)
        if not options.sample and not options.synthetic:
            facts |= _real(Path(folder) / "real")
    facts |= {"kills": sum(arena.kills.values()), "at": dict(arena.kills), "studies": arena.studies}
    print(json.dumps({**facts, "seconds": round(time.monotonic() - started, 1)}))


def _whole(arena: Arena) -> dict[str, int]:
    for name in POINTS:
        _tell(f"killed at {name}")
        arena.killed_at(name, times=4)
    while sum(arena.kills.values()) < _KILLS:
        arena.killed_at_random(times=4)
        _tell(f"killed at random: {sum(arena.kills.values())} kills")
    full = disk.all_writes(arena, arena.root, _tell)
    template, harmed = damage.half_done(arena), 0
    for kind in damage.FILES:
        for harm in (damage.flip, damage.cut):
            for _ in range(5):
                _tell(damage.damaged(arena, template, kind, harm))
                harmed += 1
    _others(arena)
    return {"full_disks": full, "damaged": harmed}


def _real(root: Path) -> dict[str, int]:
    root.mkdir()
    arena = laboratory.RealArena(root)
    for name, (pattern, harm) in laboratory.HARM.items():
        _tell(arena.harmed_between_sessions(name.replace(" ", "-"), pattern, harm))
    for point in laboratory.POINTS:
        _tell(f"killed at {point}")
        arena.killed_at(point, 1)
    return {"real_kills": len(laboratory.POINTS), "real_damaged": len(laboratory.HARM)}


def _sample(arena: Arena) -> dict[str, int]:
    for name in arena.random.sample(POINTS, 4):
        arena.killed_at(name)
    arena.killed_at_random(times=2)
    names = arena.random.sample(sorted(disk.WRITES), 2)
    full = disk.all_writes(arena, arena.root, _tell, names)
    template = damage.half_done(arena)
    kinds = ("log", arena.random.choice(sorted(damage.FILES)))
    for kind in kinds:
        _tell(damage.damaged(arena, template, kind, arena.random.choice([damage.flip, damage.cut])))
    _others(arena)
    return {"full_disks": full, "damaged": len(kinds)}


def _others(arena: Arena) -> None:
    for what in (damage.clock_jumps, damage.two_drivers, damage.another_corpus):
        _tell(what.__name__.replace("_", " "))
        what(arena)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _fast() -> str | None:
    """A disk in memory: what a kill leaves behind is the same, and nobody waits for fsync."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


if __name__ == "__main__":
    main()

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

from tests.faults.lives import Arena
from tests.faults.points import POINTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="A few of everything, as in the test suite.")
    parser.add_argument("--seed", type=int, default=0, help="Of the moments that are random.")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=_fast()) as folder:
        arena = Arena(Path(folder), options.seed)
        points = arena.random.sample(POINTS, 6) if options.sample else POINTS
        for name in points:
            print(f"killed at {name}", file=sys.stderr, flush=True)
            arena.killed_at(name, times=1 if options.sample else 4)
        for _ in range(1 if options.sample else 20):
            arena.killed_at_random(times=4)
    facts = {"kills": sum(arena.kills.values()), "points": dict(arena.kills), "studies": arena.studies}
    print(json.dumps({**facts, "seconds": round(time.monotonic() - started, 1)}))


def _fast() -> str | None:
    """A disk in memory: what a kill leaves behind is the same, and nobody waits for fsync."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


if __name__ == "__main__":
    main()

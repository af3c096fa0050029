"""What a waiting tracer saves: the default subject traced by a fresh one and by one that has waited, in turns.

    python benchmarks/tracing.py [--rounds 7]

Prints the median and range of the seconds from a candidate to its modules, of each, and the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxresearch.config import LimitsConfig
from jaxresearch.program.tracers import Tracers
from jaxresearch.program.tracing import TracedModules, trace
from jaxresearch.sandbox import choose_sandbox
from jaxresearch.subjects import load_subject

WAITED_SECONDS = 10.0
"""Longer than its imports take."""


async def traced(tracers: Tracers) -> float:
    """Seconds of one trace."""
    started = time.perf_counter()
    found = await trace(
        load_subject("gpt", {}),
        laboratory={"vocab_size": 2048, "context": 256},
        evaluation_batch=16,
        platform="cpu",
        tracers=tracers,
        limits=LimitsConfig(),
    )
    if not isinstance(found, TracedModules):
        raise SystemExit(found.reason)
    return time.perf_counter() - started


async def measure(rounds: int, root: Path) -> tuple[list[float], list[float]]:
    tracers = Tracers(await choose_sandbox(), root)
    fresh, waiting = [], []
    for _ in range(2):
        await traced(tracers)
    for _ in range(rounds):
        fresh.append(await traced(tracers))
        tracers.expect_another()
        await asyncio.sleep(WAITED_SECONDS)
        waiting.append(await traced(tracers))
    return fresh, waiting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as root:
        fresh, waiting = asyncio.run(measure(rounds, Path(root)))
    for name, seconds in (("fresh", fresh), ("waiting", waiting)):
        print(f"{name:8} {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")
    print(f"ratio    {statistics.median(b / a for a, b in zip(fresh, waiting, strict=True)):.2f}")


if __name__ == "__main__":
    main()

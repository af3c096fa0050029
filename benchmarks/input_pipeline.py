"""How fast batches come, in tokens per second, with and without prefetching.

    python benchmarks/input_pipeline.py [--corpus FOLDER] [--gigabytes 1] [--cold] [--json]

Rows of random tokens in a file of its own, or the training rows of a prepared corpus. `delivered`: nobody works on the
batches, so this is the most that the input pipeline can give. `waited`: between two batches the consumer does other work
for as long as a device would; this is what it still waits for each. Both ways take turns, each with an order of its own,
and the medians are shown. With --cold the rows leave the page cache before each measurement, as if the corpus were larger
than memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from jaxresearch.data import Batches, Corpus, Prefetched
from jaxresearch.data.npy import NpyWriter

SHAPES = ((16, 256), (32, 2048))
"""(batch, context): the CPU's default, and a device's."""
STEP_SECONDS = 0.02
"""Of work between batches, for `waited`."""

Take = Callable[[int, int], tuple[np.ndarray, int]]


@contextmanager
def training_rows(corpus: Path | None, gigabytes: float, context: int) -> Iterator[np.ndarray]:
    """uint16[N, context + 1], memory-mapped."""
    if corpus is not None:
        yield Corpus.open(corpus).rows("train", context)
        return
    with tempfile.TemporaryDirectory() as folder:
        path, generator = Path(folder, "rows.npy"), np.random.default_rng(0)
        rows = max(1, int(gigabytes * 1e9) // (2 * (context + 1)))
        with NpyWriter(path, np.uint16, (context + 1,)) as file:
            while file.count < rows:
                shape = (min(4096, rows - file.count), context + 1)
                file.append(generator.integers(0, 8192, shape, dtype=np.uint16))
        yield np.load(path, mmap_mode="r")


def leave_cache(rows: np.ndarray) -> None:
    """Drops the file of memory-mapped `rows` from the page cache, those pages excepted that are mapped."""
    if isinstance(rows, np.memmap) and rows.filename is not None:
        with Path(rows.filename).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(take: Take, cursor: int, batch: int, steps: int, work_seconds: float) -> tuple[float, float, int]:
    """(seconds of all steps, seconds waited for batches, the cursor behind them)."""
    waited, started = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        _, cursor = take(cursor, batch)
        waited += time.perf_counter() - asked
        if work_seconds:
            time.sleep(work_seconds)
    return time.perf_counter() - started, waited, cursor


def compare(rows: np.ndarray, batch: int, repeats: int, steps: int, cold: bool) -> dict[str, dict[str, float]]:
    """Medians over `repeats` of `steps` batches each: tokens_per_second delivered, and waited_ms for a batch."""
    plain, prefetched = Batches(rows, 1, seed=0), Prefetched(Batches(rows, 1, seed=1))
    ways: dict[str, Take] = {"plain": plain.take, "prefetched": prefetched.take}
    delivered: dict[str, list[float]] = {way: [] for way in ways}
    waited: dict[str, list[float]] = {way: [] for way in ways}
    cursors = dict.fromkeys(ways, 0)
    for way, take in ways.items():
        _, _, cursors[way] = measure(take, 0, batch, 2, 0.0)  # the order of the first epoch
    for repeat in range(repeats):
        for way in list(ways)[:: 1 if repeat % 2 == 0 else -1]:
            if cold:
                leave_cache(rows)
            seconds, _, cursors[way] = measure(ways[way], cursors[way], batch, steps, 0.0)
            delivered[way].append(steps * batch * (rows.shape[1] - 1) / seconds)
            if cold:
                leave_cache(rows)
            _, waiting, cursors[way] = measure(ways[way], cursors[way], batch, min(steps, 20), STEP_SECONDS)
            waited[way].append(1000 * waiting / min(steps, 20))
    prefetched.close()
    return {
        way: {"tokens_per_second": statistics.median(delivered[way]), "waited_ms": statistics.median(waited[way])}
        for way in ways
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="folder of a prepared corpus")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of random rows, without --corpus")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=200, help="batches of one measurement")
    parser.add_argument("--cold", action="store_true", help="read from the disk, not from the page cache")
    parser.add_argument("--json", action="store_true", help="JSON alone")
    given = parser.parse_args()
    results = []
    for batch, context in SHAPES:
        with training_rows(given.corpus, given.gigabytes, context) as rows:
            found = compare(rows, batch, given.repeats, given.steps, given.cold)
            results.append({"batch": batch, "context": context, "rows_bytes": rows.nbytes, **found})
    if not given.json:
        print(f"{'batch':>5} {'context':>7}  {'':10} {'Mtok/s delivered':>16} {'ms waited a step':>17}")
        for result in results:
            for way in ("plain", "prefetched"):
                found, shape = result[way], f"{result['batch']:5} {result['context']:7}"
                print(f"{shape}  {way:10} {found['tokens_per_second'] / 1e6:16.1f} {found['waited_ms']:17.3f}")
    print(json.dumps({"step_seconds": STEP_SECONDS, "repeats": given.repeats, "cold": given.cold, "results": results}))


if __name__ == "__main__":
    main()

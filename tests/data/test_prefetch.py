"""Prefetched batches are the same batches, in the same order, whatever is asked for."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxresearch.data import Batches, Prefetched


def numbered(count: int) -> np.ndarray:
    return np.repeat(np.arange(count, dtype=np.uint16)[:, None], 5, axis=1)


class Recorded(Batches):
    """Batches that write down what is taken from them, and by whom."""

    def __init__(self, count: int = 100) -> None:
        super().__init__(numbered(count), 1, seed=0)
        self.taken: list[tuple[int, int | None]] = []
        self.threads: set[str] = set()

    def take(self, cursor: int, batch: int | None = None) -> tuple[np.ndarray, int]:
        self.taken.append((cursor, batch))
        self.threads.add(threading.current_thread().name)
        return super().take(cursor, batch)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@settings(deadline=None)  # threads take turns as the machine likes
@given(st.lists(st.tuples(st.integers(0, 90), st.integers(1, 9), st.integers(1, 6)), max_size=6), st.integers(1, 5))
def test_every_pattern_of_asking_gets_what_the_source_gives(runs, ahead):
    plain, prefetched = Batches(numbered(37), 1, seed=5), Prefetched(Batches(numbered(37), 1, seed=5), ahead)
    for cursor, batch, times in runs:
        for _ in range(times):
            (wanted, _), (got, cursor) = plain.take(cursor, batch), prefetched.take(cursor, batch)
            assert got.dtype == np.int32
            assert (got == wanted).all()
    prefetched.close()


def test_a_thread_keeps_ahead_and_no_further():
    source = Recorded()
    prefetched = Prefetched(source, ahead=3)
    prefetched.take(0, 4)
    wait_for(lambda: source.taken == [(0, 4), (4, 4), (8, 4), (12, 4)])
    prefetched.take(4, 4)
    wait_for(lambda: source.taken[4:] == [(16, 4)])
    time.sleep(0.02)
    assert len(source.taken) == 5
    assert all(name.startswith("prefetch") for name in source.threads)
    prefetched.close()


def test_an_error_of_the_source_reaches_whoever_takes_the_batch():
    class Broken(Batches):
        def take(self, cursor, batch=None):
            if cursor >= 8:
                raise OSError(5, "Input/output error")
            return super().take(cursor, batch)

    prefetched = Prefetched(Broken(numbered(100), 1, seed=0))
    prefetched.take(0, 4)
    prefetched.take(4, 4)
    with pytest.raises(OSError, match="Input/output error"):
        prefetched.take(8, 4)
    prefetched.close()


def test_the_thread_ends_with_the_last_holder():
    before = threading.active_count()
    prefetched = Prefetched(Recorded())
    prefetched.take(0, 2)
    assert threading.active_count() == before + 1
    del prefetched
    gc.collect()
    wait_for(lambda: threading.active_count() == before)

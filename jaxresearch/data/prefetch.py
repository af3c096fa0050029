"""Prefetching: the next batches are gathered by a thread while the device works on this one."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from jaxresearch.data.batches import Batches

BATCHES_AHEAD = 4


class Prefetched:
    """`take` returns exactly what `source.take` returns, and sooner when it was foreseen.

    Foreseen is that the next batch is as large as the last one and begins where that ended. Any other is gathered on
    demand, and foreseeing starts there. Rows of a corpus that is larger than memory come from the disk, so the thread
    also does the waiting for it. One thread does all gathering, so `source` need not be safe for more. The thread ends
    with `close`, or when nobody holds this object any more.
    """

    def __init__(self, source: Batches, ahead: int = BATCHES_AHEAD) -> None:
        self._source = source
        self._ahead = ahead
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._coming: deque[tuple[int, Future[tuple[np.ndarray, int]]]] = deque()
        self._batch = 0

    def take(self, cursor: int, batch: int) -> tuple[np.ndarray, int]:
        """(int32[batch, context + 1], the cursor behind it): see `Batches.take`."""
        if not self._coming or (self._coming[0][0], self._batch) != (cursor, batch):
            self._forget()
            self._batch = batch
            self._foresee(cursor)
        _, gathered = self._coming.popleft()
        rows = gathered.result()
        while len(self._coming) < self._ahead:
            self._foresee(self._coming[-1][0] + batch if self._coming else cursor + batch)
        return rows

    def close(self) -> None:
        """Ends the thread."""
        self._forget()
        self._thread.shutdown()

    def _foresee(self, cursor: int) -> None:
        self._coming.append((cursor, self._thread.submit(self._source.take, cursor, self._batch)))

    def _forget(self) -> None:
        for _, gathered in self._coming:
            gathered.cancel()
        self._coming.clear()

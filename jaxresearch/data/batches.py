"""Batches: which rows a step trains on, and which rows a score is made of."""

from __future__ import annotations

import numpy as np

from jaxresearch.errors import ConfigurationError


class Batches:
    """Rows in an order that is a pure function of `seed`, epoch after epoch, each epoch a permutation of its own.

    rows: uint16[N, context + 1], possibly memory-mapped.

    A cursor is the number of rows drawn so far; a checkpoint need hold nothing else. Batches may grow from phase to
    phase: `take` says how many rows it wants. A batch may reach over the end of an epoch; no row is dropped.
    """

    def __init__(self, rows: np.ndarray, batch: int, seed: int) -> None:
        if len(rows) == 0:
            raise ConfigurationError("corpus.source: no training rows at this context.", fix="Lower context.")
        if batch < 1 or seed < 0:
            raise ValueError(f"batch {batch} must be at least 1, and seed {seed} at least 0")
        self._rows = np.asarray(rows)  # a plain array over the same mapping, which is quicker to pick from
        self._batch = batch
        self._seed = seed
        self._orders: dict[int, np.ndarray] = {}

    def at(self, step: int) -> np.ndarray:
        """int32[batch, context + 1]: the batch of step 0, 1, ... when every step has the same batch size."""
        return self.take(step * self._batch)[0]

    def take(self, cursor: int, batch: int | None = None) -> tuple[np.ndarray, int]:
        """(int32[batch, context + 1], the cursor behind it). `batch` is the constructor's when None."""
        batch = self._batch if batch is None else batch
        end = cursor + batch
        chosen = []
        while cursor < end:
            epoch, position = divmod(cursor, len(self._rows))
            stop = min(len(self._rows), position + end - cursor)
            chosen.append(self._order(epoch)[position:stop])
            cursor += stop - position
        return np.take(self._rows, np.concatenate(chosen), axis=0).astype(np.int32), end

    def _order(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch. NumPy promises the bits of Philox for ever, but not `Generator.permutation`."""
        if epoch not in self._orders:
            bits = np.random.Philox(np.random.SeedSequence([self._seed, epoch]))
            order = np.argsort(bits.random_raw(len(self._rows)), kind="stable")
            self._orders = {known: self._orders[known] for known in self._orders if known == epoch - 1}
            self._orders[epoch] = order
        return self._orders[epoch]


def evaluation_rows(rows: np.ndarray, tokens: int, batch: int) -> np.ndarray:
    """int32[n, batch, context + 1]: at most `tokens` targets in whole batches, or all whole batches there are.

    rows: uint16[N, context + 1] of the split to score. The choice is spread evenly over them and is the same for every
    candidate. Raises ConfigurationError when not even one batch comes together.
    """
    context = rows.shape[1] - 1
    if tokens < batch * context:
        raise ConfigurationError(
            f"evaluation.tokens: {tokens:,} is less than one batch of {batch} x {context} = {batch * context:,}.",
            fix=f"Raise evaluation.tokens to {batch * context} or more, or lower evaluation.batch or context.",
        )
    if len(rows) < batch:
        raise ConfigurationError(
            f"evaluation.batch: {batch} rows are asked for, but this corpus has {len(rows)} of context {context}.",
            fix="Lower evaluation.batch or context, or give more text.",
        )
    batches = min(tokens // (batch * context), len(rows) // batch)
    count = batches * batch
    chosen = np.arange(count) * len(rows) // count
    return rows[chosen].astype(np.int32).reshape(batches, batch, context + 1)

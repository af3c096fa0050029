"""Packing: documents into rows of one length, with no padding and no token lost but the last unfilled row's."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

BUFFER_PIECES = 4096
_ROWS_A_BLOCK = 1024


def pack(
    documents: Iterable[np.ndarray], context: int, bos: int, buffer_pieces: int = BUFFER_PIECES
) -> Iterator[np.ndarray]:
    """Packs documents best-fit, and yields the rows in blocks, uint16[n, context + 1].

    documents: integer[m] tokens each, without BOS. Read as a stream, a bounded number ahead.
    Every row starts with BOS. A document of more than `context` tokens becomes several pieces, each led by a BOS of
    its own. Into the gap of a row goes the longest buffered piece that fits, the oldest of its length first. Where none
    fits, the shortest is cropped to the gap and its rest goes back, led by BOS. The order is a function of the input.
    """
    length = context + 1
    pieces = _pieces(documents, context)
    buffer = _Buffer(length)
    block = np.empty((_ROWS_A_BLOCK, length), dtype=np.uint16)
    filled = 0
    while True:
        row, gap = block[filled], length
        while gap:
            buffer.refill(pieces, buffer_pieces)
            piece = buffer.take(gap)
            if piece is None:
                break  # the documents are at an end, and what is left does not fill a row
            end = length - gap + 1 + len(piece)
            row[length - gap] = bos
            row[length - gap + 1 : end] = piece
            gap = length - end
        if gap:
            break
        filled += 1
        if filled == len(block):
            yield block.copy()
            filled = 0
    if filled:
        yield block[:filled].copy()


def _pieces(documents: Iterable[np.ndarray], context: int) -> Iterator[np.ndarray]:
    """Each document in pieces of at most `context` tokens, so that each fits a row with its BOS."""
    for tokens in documents:
        for start in range(0, len(tokens), context):
            yield tokens[start : start + context]


class _Buffer:
    """Pieces by length, BOS included. Bit n of `_present` says that some piece of length n is here."""

    def __init__(self, longest: int) -> None:
        self._by_length: list[deque[np.ndarray]] = [deque() for _ in range(longest + 1)]
        self._present = 0
        self._count = 0

    def refill(self, pieces: Iterator[np.ndarray], size: int) -> None:
        while self._count < size:
            piece = next(pieces, None)
            if piece is None:
                return
            self._put(piece)

    def take(self, gap: int) -> np.ndarray | None:
        """A piece that with its BOS is at most `gap` long; None when the buffer is empty."""
        fitting = self._present & ((1 << (gap + 1)) - 1)
        if fitting:
            return self._pop(fitting.bit_length() - 1)
        if not self._present:
            return None
        shortest = (self._present & -self._present).bit_length() - 1
        piece = self._pop(shortest)
        self._put(piece[gap - 1 :])
        return piece[: gap - 1]

    def _put(self, piece: np.ndarray) -> None:
        self._by_length[len(piece) + 1].append(piece)
        self._present |= 1 << (len(piece) + 1)
        self._count += 1

    def _pop(self, length: int) -> np.ndarray:
        queue = self._by_length[length]
        piece = queue.popleft()
        if not queue:
            self._present &= ~(1 << length)
        self._count -= 1
        return piece

"""Shards: the tokens of a split on disk, as plain .npy files that are memory-mapped when read.

Shard i of a split is `tokens-i.npy`, uint16[n], and `offsets-i.npy`, int64[documents + 1]: document d of the shard is
`tokens[offsets[d] : offsets[d + 1]]`, without BOS. A document lies in one shard.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxresearch.data.npy import NpyWriter

SHARD_TOKENS = 2**26


class ShardWriter:
    """Streams documents to the disk in the order in which they are added; `close` ends the last shard."""

    def __init__(self, folder: Path, shard_tokens: int = SHARD_TOKENS) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._shard_tokens = shard_tokens
        self._file: NpyWriter | None = None
        self._lengths = array("q")
        self.shards: list[str] = []
        self.documents = 0
        self.tokens = 0

    def add(self, tokens: np.ndarray) -> None:
        """tokens: uint16[n] of one document."""
        if self._file is None:
            self._file = NpyWriter(self._folder / f"tokens-{len(self.shards):05d}.npy", np.uint16)
        self._file.append(tokens)
        self._lengths.append(len(tokens))
        self.documents += 1
        self.tokens += len(tokens)
        if self._file.count >= self._shard_tokens:
            self.close()

    def close(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        file.close()
        number = f"{len(self.shards):05d}"
        offsets = np.concatenate([[0], np.cumsum(self._lengths, dtype=np.int64)]).astype(np.int64)
        np.save(self._folder / f"offsets-{number}.npy", offsets)
        self.shards.append(number)
        self._lengths = array("q")


def read_tokens(folder: Path, shards: Sequence[str]) -> Iterator[np.ndarray]:
    """The tokens of each shard, uint16[n], memory-mapped."""
    for number in shards:
        yield np.load(folder / f"tokens-{number}.npy", mmap_mode="r")


def read_documents(folder: Path, shards: Sequence[str]) -> Iterator[np.ndarray]:
    """Each document's tokens, uint16[n], as views of memory-mapped shards."""
    for number, tokens in zip(shards, read_tokens(folder, shards), strict=True):
        tokens = np.asarray(tokens)  # a plain array over the same mapping: slicing a memmap is ten times slower
        bounds = np.load(folder / f"offsets-{number}.npy").tolist()
        for start, end in itertools.pairwise(bounds):
            yield tokens[start:end]

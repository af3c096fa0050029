"""Corpus: a prepared corpus on disk, its tokenizer and its rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from jaxresearch.data import batches
from jaxresearch.data.cache import file_sha256, locked, sync
from jaxresearch.data.corpus import OnProgress, Split, no_progress
from jaxresearch.data.manifest import (
    BYTE_LENGTHS_FILE,
    ROWS_FOLDERS,
    SEALED,
    SPLIT_FOLDERS,
    TOKENIZER_FILE,
    Manifest,
)
from jaxresearch.data.npy import NpyWriter, read_npy
from jaxresearch.data.packing import pack
from jaxresearch.data.shards import read_documents, read_tokens
from jaxresearch.data.tokenizer import Tokenizer
from jaxresearch.errors import JaxresearchError
from jaxresearch.files import write_whole

_PREPARE_AGAIN = "Delete that folder and run `jaxresearch prepare` again."


MAX_PACKED_LENGTHS = 24
"""Row lengths of training text that a cache keeps; one program has 16 at most."""
_sound: dict[Path, tuple[int, int, int]] = {}
"""Files of rows that this process has looked through: path -> inode, size and time of change, as they were then."""


class Corpus:
    """Open one with `Corpus.open`. Rows of training and validation are here; the test split is sealed."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: Path | str) -> Corpus:
        """The corpus in `folder`; raises JaxresearchError when it is none, of another version, or incomplete.

        The sealed part may be absent: a worker that must not see it is given the folder without.
        """
        corpus = cls(Path(folder), Manifest.load(Path(folder)))
        corpus.check_files(sealed=False)
        return corpus

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def fingerprint(self) -> str:
        """ "sha256:..." of the text and its splits."""
        return self.manifest.fingerprint

    @property
    def tokenizer_fingerprint(self) -> str:
        return self.manifest.tokenizer

    @property
    def vocab_size(self) -> int:
        return self.manifest.vocab_size

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder / TOKENIZER_FILE)

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """int32[V]: UTF-8 bytes of each token; 0 for specials."""
        return read_npy(self.folder / BYTE_LENGTHS_FILE)

    def rows(self, split: Literal["train", "validation"], context: int) -> np.ndarray:
        """uint16[N, context + 1], memory-mapped: BOS-led rows, packed once for each context and kept.

        Raises JaxresearchError for the test split, which only `open_sealed_test` reads.
        """
        if split not in ("train", "validation"):
            raise JaxresearchError(
                f"the {split} split cannot be read as rows of the corpus.", fix="`confirm` opens it, once, at the end."
            )
        return _packed_rows(self, split, context)

    def pack(self, context: int, on_progress: OnProgress = no_progress) -> None:
        """Packs the rows of training and validation now, where they are not yet whole, instead of at their first use.

        on_progress: called with "pack" and the part of a split that is done.
        """
        for split in ("train", "validation"):
            _sound_rows(self, split, context, on_progress)

    def provide_rows(self, lengths: Iterable[int]) -> None:
        """Pack training rows of each of `lengths` that the text is long enough for, so that others need only read them.

        Files that are not what was written are packed anew.
        Files of the lengths longest unused make room: candidates choose lengths, and a cache must not grow with them.
        """
        for length in set(lengths):
            if self.manifest.splits["train"].tokens > length:
                with suppress(OSError):
                    os.utime(self.folder / ROWS_FOLDERS["train"] / f"train-{length}.npy")
                _sound_rows(self, "train", length)
        packed = sorted((self.folder / ROWS_FOLDERS["train"]).glob("train-*.npy"), key=lambda path: -_last_used(path))
        for path in packed[MAX_PACKED_LENGTHS:]:
            path.unlink(missing_ok=True)  # who reads it now has it open, and keeps it
            _hash_path(path).unlink(missing_ok=True)

    def provide_evaluation(self, context: int) -> None:
        """As `provide_rows`, the rows of validation text."""
        _sound_rows(self, "validation", context)

    def tokens(self, split: Literal["train", "validation"]) -> Iterator[np.ndarray]:
        """The split's tokens without BOS, shard by shard: uint16[n], memory-mapped."""
        if split not in ("train", "validation"):
            raise JaxresearchError(f"the {split} split is sealed.", fix="`confirm` opens it, once, at the end.")
        yield from read_tokens(self.folder / SPLIT_FOLDERS[split], self.manifest.splits[split].shards)

    def check_files(self, *, sealed: bool) -> None:
        """Raises JaxresearchError that names a missing file, or one of another size than the manifest says."""
        for name, facts in self.manifest.files.items():
            if name.startswith(SEALED) and not sealed:
                continue
            path = self.folder / name
            if not path.is_file():
                raise JaxresearchError(f"{path} is missing.", fix=_PREPARE_AGAIN)
            if path.stat().st_size != facts.size_bytes:
                raise JaxresearchError(
                    f"{path} has {path.stat().st_size:,} bytes, not {facts.size_bytes:,}.", fix=_PREPARE_AGAIN
                )

    def check_bytes(self, *, sealed: bool) -> None:
        """As `check_files`, and hashes every file; raises JaxresearchError that names the first wrong one."""
        self.check_files(sealed=sealed)
        for name, facts in self.manifest.files.items():
            if name.startswith(SEALED) and not sealed:
                continue
            if file_sha256(self.folder / name) != facts.sha256:
                raise JaxresearchError(f"{self.folder / name} was changed since it was made.", fix=_PREPARE_AGAIN)

    def verify(self, *, sealed: bool = True) -> None:
        """As `check_bytes`, and packs rows anew to compare; raises JaxresearchError that names the first wrong one."""
        self.check_bytes(sealed=sealed)
        for split, folder in ROWS_FOLDERS.items():
            if split == "test" and not sealed:
                continue
            for path in sorted((self.folder / folder).glob(f"{split}-*.npy")):
                _verify_rows(self, split, path)


def evaluation_rows(corpus: Corpus, context: int, tokens: int, batch: int) -> np.ndarray:
    """int32[n, batch, context + 1] of validation text, the same for every candidate: see `batches.evaluation_rows`."""
    return batches.evaluation_rows(corpus.rows("validation", context), tokens, batch)


def open_sealed_test(corpus: Corpus, context: int) -> np.ndarray:
    """uint16[N, context + 1] of the test split. For the final confirmation only, once: nothing may be chosen by it."""
    corpus.check_files(sealed=True)
    return _sound_rows(corpus, "test", context)


def _sound_rows(corpus: Corpus, split: Split, context: int, on_progress: OnProgress = no_progress) -> np.ndarray:
    """`_packed_rows`, from a file that is what was written, byte for byte; packed anew where it is not."""
    path = corpus.folder / ROWS_FOLDERS[split] / f"{split}-{context}.npy"
    try:
        if path.exists() and not _is_sound(corpus, split, path):
            path.unlink(missing_ok=True)
        rows = _packed_rows(corpus, split, context, on_progress)
        _sound[path] = _state(path)
    except OSError as error:
        raise _unusable(path, error) from None
    return rows


def _is_sound(corpus: Corpus, split: Split, path: Path) -> bool:
    """Whether the rows in `path` are those that were packed. Where their hash is not known, they are packed anew to see."""
    if _sound.get(path) == _state(path):
        return True
    try:
        return _hash_path(path).read_text(encoding="ascii") == file_sha256(path)
    except (FileNotFoundError, UnicodeDecodeError):
        pass
    try:
        _verify_rows(corpus, split, path)
    except JaxresearchError:
        return False
    with suppress(OSError):  # a cache that may only be read
        write_whole(_hash_path(path), file_sha256(path).encode())
    return True


def _state(path: Path) -> tuple[int, int, int]:
    facts = path.stat()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def _hash_path(path: Path) -> Path:
    """Where the SHA-256 of the rows in `path` stands."""
    return path.with_suffix(".sha256")


def _unusable(path: Path, error: Exception) -> JaxresearchError:
    return JaxresearchError(
        f"cannot keep or read packed rows at {path}: {getattr(error, 'strerror', None) or error}.",
        fix="Make room and see that the cache can be written, or delete that file.",
    )


def _packed_rows(corpus: Corpus, split: Split, context: int, on_progress: OnProgress = no_progress) -> np.ndarray:
    if context < 1:
        raise ValueError(f"context {context} must be at least 1")
    folder = corpus.folder / ROWS_FOLDERS[split]
    path = folder / f"{split}-{context}.npy"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder, path.name):
                if not path.exists():
                    facts = corpus.manifest.splits[split]
                    expected = (facts.tokens + facts.documents) / (context + 1)
                    _write_rows(path, _pack(corpus, split, context), context, expected, on_progress)
        rows = read_npy(path, "r")
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from None
    if rows.dtype != np.uint16 or rows.ndim != 2 or rows.shape[1] != context + 1:
        raise JaxresearchError(f"{path} does not hold rows of context {context}.", fix="Delete that file.")
    return rows


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _pack(corpus: Corpus, split: Split, context: int) -> Iterator[np.ndarray]:
    shards = corpus.manifest.splits[split].shards
    return pack(read_documents(corpus.folder / SPLIT_FOLDERS[split], shards), context, corpus.tokenizer.bos)


def _write_rows(
    path: Path, blocks: Iterator[np.ndarray], context: int, expected: float, on_progress: OnProgress
) -> None:
    """Streams rows into a .npy file that appears as a whole. expected: roughly how many there will be."""
    draft = path.with_suffix(".draft")  # one name: the caller holds the lock, so any there is a dead process's
    with NpyWriter(draft, np.uint16, (context + 1,)) as file:
        for block in blocks:
            file.append(block)
            on_progress("pack", min(1.0, file.count / max(1.0, expected)))
    write_whole(_hash_path(path), file_sha256(draft).encode())
    draft.rename(path)
    sync(path.parent)


def _verify_rows(corpus: Corpus, split: Split, path: Path) -> None:
    context = int(path.stem.rpartition("-")[2])
    kept, start = _packed_rows(corpus, split, context), 0
    for block in _pack(corpus, split, context):
        if not np.array_equal(kept[start : start + len(block)], block):
            break
        start += len(block)
    else:
        if start == len(kept):
            return
    raise JaxresearchError(f"{path} was changed since it was made.", fix="Delete that file.")

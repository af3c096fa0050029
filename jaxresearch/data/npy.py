"""A .npy file that is written as a stream: the length of its first axis is known, and put in, at the end. And read."""

from __future__ import annotations

import os
from pathlib import Path
from tokenize import TokenError
from typing import Literal, Self

import numpy as np
from numpy.lib import format as npy


def read_npy(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """The array in `path`. Raises `OSError`, or `ValueError` for whatever is none: numpy's reader raises others too."""
    try:
        return np.load(path, mmap_mode, allow_pickle=False)
    except (EOFError, SyntaxError, TokenError) as error:
        raise ValueError(f"it holds no array: {error}") from None


class NpyWriter:
    """Writes dtype[n, *rest] to `path`, n growing. Whoever needs the file whole or absent renames it into place."""

    def __init__(self, path: Path, dtype: type[np.generic], rest: tuple[int, ...] = ()) -> None:
        self._dtype, self._rest = np.dtype(dtype), rest
        self._file = path.open("wb")
        self.count = 0
        self._write_header()

    def append(self, block: np.ndarray) -> None:
        """dtype[m, *rest]"""
        self._file.write(np.ascontiguousarray(block, self._dtype).data)
        self.count += len(block)

    def close(self) -> None:
        """Puts the length in, and forces the file to the disk."""
        with self._file as file:
            file.seek(0)
            self._write_header()
            file.flush()
            os.fsync(file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_header(self) -> None:
        """NumPy leaves room in the header for the first axis to grow, so that its size does not change."""
        shape = (self.count, *self._rest)
        header = {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self._file, header)

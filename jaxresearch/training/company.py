"""Company: the processes that do one run together, as far as a training must hear of them."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Company(Protocol):
    """process: our number among `processes`. leads: it is 0, whose word counts where only one can have it.

    All must call the same methods in the same order: each waits for the others.
    """

    leads: bool
    process: int
    processes: int

    def share(self, value: np.ndarray) -> np.ndarray:
        """Process 0's value, on every process. Its shape and dtype must be the same on all."""
        ...

    def agree(self, yes: bool) -> bool:
        """Whether all say yes."""
        ...


class Sole:
    """One process, which is the whole company."""

    leads, process, processes = True, 0, 1

    def share(self, value: np.ndarray) -> np.ndarray:
        return value

    def agree(self, yes: bool) -> bool:
        return yes


SOLE = Sole()


def share_bytes(company: Company, content: bytes) -> bytes:
    """Process 0's `content`, of any length, on every process."""
    length = int(company.share(np.array([len(content)], np.int64))[0])
    if not length:
        return b""
    return company.share(np.frombuffer(content.ljust(length, b"\0")[:length], np.uint8)).tobytes()

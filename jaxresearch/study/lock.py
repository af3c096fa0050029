"""One driver for each study: a lock that dies with its owner, and says who holds it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from jaxresearch.errors import JaxresearchError

_TRIES, _BETWEEN_SECONDS = 5, 0.02


class StudyLocked(JaxresearchError):  # noqa: N818 - it is a state of the study, and reads so where it is caught
    """Another process drives the study."""


@contextmanager
def sole_driver(path: Path, *, now: float) -> Iterator[None]:
    """Hold the study's lock file `path`. Raises `StudyLocked`, naming the holder, when another process has it.

    The kernel frees the lock when the owner ends, however it ends; what stands in the file only says who it was.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        if not _taken(descriptor):
            raise StudyLocked(
                f"The study is being driven by {holder_of(descriptor)}.", fix="Wait for it, or stop it first."
            )
        with contextlib.suppress(OSError):  # a full disk: the lock holds without the name
            _sign(descriptor, now)
        yield
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    """Whether the lock is ours now. Who only looks holds it for an instant: that is waited for."""
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_BETWEEN_SECONDS)
    return False


def _sign(descriptor: int, now: float) -> None:
    since = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def holder_of(descriptor: int) -> str:
    """Who signed the lock file that `descriptor` has open."""
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(owner['pid'])} on {owner['host']} since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"

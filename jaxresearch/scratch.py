"""Scratch: a temporary folder that goes with its owner. What a killed one left is removed when the next is made."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType

_LOCK = ".lock"


class Scratch:
    """A folder in the system's temporary one, there until `close`. As a context manager it gives the folder.

    Its owner holds a lock on a file in it, which the kernel frees when the owner dies, in whatever way.
    """

    def __init__(self, prefix: str) -> None:
        """prefix: of its name. Folders of this prefix whose owner has died are removed first."""
        _sweep(prefix)
        self.folder = Path(tempfile.mkdtemp(prefix=prefix))
        draft = self.folder / f"{_LOCK}-draft"
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._remove = weakref.finalize(self, _remove, self.folder, descriptor)  # at the latest when Python ends
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        draft.rename(self.folder / _LOCK)  # never there without its lock: one that sweeps at this moment lets it be

    def __enter__(self) -> Path:
        return self.folder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder and all in it. Once is enough, and twice does no harm."""
        self._remove()


def _remove(folder: Path, descriptor: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)


def _sweep(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):  # still held, or just removed by another
            if folder.lstat().st_uid != os.getuid():
                continue
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)

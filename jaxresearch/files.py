"""Files that are there whole, or as they were; and what a full disk looks like."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from pathlib import Path

from jaxresearch.errors import ConfigurationError, JaxresearchError

DRAFT = ".draft-"
"""How the names of files begin that are being written. What a killed process left of them is nobody's."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFullError(JaxresearchError):
    """Nothing more can be written. No experiment's fault: a session stops there, and goes on when there is room."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"The disk is full: {error}.", fix="Nothing is lost: make room, then resume.")


def is_full(error: BaseException) -> bool:
    """Whether `error` says that a disk, or a quota, has no room left."""
    return isinstance(error, OSError) and error.errno in _FULL


def refuse_bytes(path: Path, option: str) -> None:
    """Raises `ConfigurationError` for a path that is no text: it cannot stand in a ledger, or in a request to a worker."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise ConfigurationError(f"{option}: the path {shown} is not UTF-8.", fix="Choose another.") from None


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path`: on the disk before it has that name, so what stood there stays until then.

    Raises `OSError`; then nothing has changed.
    """
    if path.exists() and not path.is_file():  # a pipe, a terminal
        path.write_bytes(content)
        return
    draft = path.parent / f"{DRAFT}{secrets.token_hex(8)}"
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)  # a worker may not chmod
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def sweep_drafts(folder: Path, depth: int = 1) -> None:
    """Remove what killed processes left unfinished in `folder`, and in folders down to `depth`. Only while none writes."""
    for level in range(depth):
        for path in folder.glob("*/" * level + f"{DRAFT}*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

"""The cache: where prepared corpora live, and the file operations that keep whole what is in it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxresearch.files import refuse_bytes

_BUILDING = ".building-"
_LOCK = ".lock-"


def default_cache_root() -> Path:
    """`$JAXRESEARCH_CACHE`, else `$XDG_CACHE_HOME/jaxresearch`, else `~/.cache/jaxresearch`."""
    if own := os.environ.get("JAXRESEARCH_CACHE"):
        refuse_bytes(Path(own), "JAXRESEARCH_CACHE")
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "jaxresearch"
    return Path.home() / ".cache" / "jaxresearch"


@contextmanager
def locked(root: Path, name: str, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock of `name` in `root`; the kernel frees a dead process's lock.

    While another process holds it: waits, or raises BlockingIOError unless `wait`.
    """
    descriptor = os.open(root / f"{_LOCK}{name}", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def building(root: Path, name: str) -> Iterator[Path]:
    """An empty folder that becomes `root/name` when the block ends, and vanishes when the block raises.

    The caller holds `locked(root, name)`. At no instant is `root/name` half there: files and folders reach the disk
    before the rename, and whatever stood under that name is moved aside first.
    """
    draft, target = root / f"{_BUILDING}{name}", root / name
    aside = root / f"{_BUILDING}{name}.old"
    for stale in (draft, aside):
        shutil.rmtree(stale, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        sync_tree(draft)
        if target.exists():
            target.rename(aside)
        draft.rename(target)
        sync(root)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def sweep(root: Path) -> None:
    """Removes the drafts that killed processes left in `root`. A draft whose lock is held is being built: it stays."""
    for draft in root.glob(f"{_BUILDING}*"):
        name = draft.name.removeprefix(_BUILDING).removesuffix(".old")
        with suppress(OSError), locked(root, name, wait=False):
            shutil.rmtree(draft, ignore_errors=True)


def keep_within(folder: Path, most_bytes: int) -> None:
    """Delete the files of a cache that nobody has read or written for longest, until `most_bytes` are left.

    Only of what can be made again: who else deletes or reads there meanwhile finds a file, or does not.
    """
    found: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        with suppress(OSError):
            facts = path.lstat()
            found.append((max(facts.st_atime, facts.st_mtime), facts.st_size, path))
    excess = sum(size for _, size, _ in found) - most_bytes
    for _, size, path in sorted(found):
        if excess <= 0:
            return
        with suppress(OSError):
            path.unlink()
            excess -= size


def sync(path: Path) -> None:
    """Forces a file's or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Forces everything below `folder`, and `folder` itself, to the disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""A study's copy in a bucket, or on another disk, while it is being driven: a folder that `resume` can go on with.

The ledger cannot live in a mounted bucket: SQLite's log and the lock need a real file system. So it is copied. A snapshot
of the ledger is taken first and put into place last: whatever it speaks of has then been copied before it. Checkpoints
that were removed meanwhile may be missing; a run whose checkpoint is missing begins again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from jaxresearch.errors import JaxresearchError
from jaxresearch.study.layout import StudyLayout

_NOT_COPIED = ("lock", "control")
_LEDGER = "ledger.sqlite"


def save(study: Path, target: Path) -> int:
    """Copy what is new of `study` to `target`; the number of files. Raises `JaxresearchError`."""
    if not StudyLayout(study).exists:
        raise JaxresearchError(f"{study} holds no study.", fix="Give the folder of a study.")
    if target.resolve().is_relative_to(study.resolve()):
        raise JaxresearchError(f"{target} is inside the study.", fix="Give another folder.")
    try:
        with tempfile.TemporaryDirectory(prefix="ledger-") as scratch:
            snapshot = Path(scratch) / _LEDGER
            _snapshot(study / _LEDGER, snapshot)
            count = sum(_copied(path, study, target) for path in _files(study))
            _put(snapshot, target / _LEDGER)
            _remove_old(study, target)
    except (OSError, sqlite3.Error) as error:
        raise JaxresearchError(f"{study} could not be copied to {target}: {error}.") from error
    return count + 1


def fetch(source: Path, study: Path) -> None:
    """Make `study`, which must not be there, from the copy in `source`; whole, or not at all. Raises `JaxresearchError`."""
    if not StudyLayout(source).exists:
        raise JaxresearchError(f"{source} holds no study.", fix="Give the folder that `cloud save` wrote.")
    if study.exists():
        raise JaxresearchError(f"{study} is there already.", fix="Go on with it, or give another folder.")
    draft = study.parent / f".{study.name}.fetching-{os.getpid()}"
    try:
        study.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, draft, ignore=shutil.ignore_patterns(*_NOT_COPIED, ".draft-*"))
        for name in ("programs", "runs"):
            (draft / name).mkdir(exist_ok=True)  # buckets hold no empty folders
        for name in ("objects/info", "objects/pack", "refs/heads", "refs/tags"):
            (draft / "workspace" / name).mkdir(parents=True, exist_ok=True)
        draft.rename(study)
    except OSError as error:
        raise JaxresearchError(f"{source} could not be copied to {study}: {error}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _snapshot(ledger: Path, copy: Path) -> None:
    """The ledger as it is at one moment, in a file of its own."""
    address = f"{ledger.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(address, uri=True)) as source, closing(sqlite3.connect(copy)) as made:
        source.backup(made)
        made.execute("PRAGMA journal_mode=DELETE")


def _remove_old(study: Path, target: Path) -> None:
    """Checkpoints that the study has removed need no room in the copy either."""
    for folder, _, names in os.walk(target / "runs"):
        for path in (Path(folder) / name for name in names):
            if not (study / path.relative_to(target)).exists():
                path.unlink(missing_ok=True)


def _files(study: Path) -> Iterator[Path]:
    """All but the ledger and what belongs to the process that drives: whole files, none of them a draft."""
    for folder, _, names in os.walk(study):
        for name in names:
            path = Path(folder) / name
            top = path.relative_to(study).parts[0]
            drafted = name.startswith((".draft-", ".heartbeat-", ".control-")) or name.endswith(".lock")
            if not (top in _NOT_COPIED or top.startswith(_LEDGER) or drafted or path.is_symlink()):
                yield path


def _copied(path: Path, study: Path, target: Path) -> bool:
    """Whether `path` had to be copied: what is gone meanwhile had not.

    Files of programs and commits never change. Those of a run do: one that was cut before the ledger had it is done again,
    and on another machine comes out otherwise, in files of the same size.
    """
    within = path.relative_to(study)
    copy, of_run = target / within, within.parts[0] == "runs"
    try:
        with contextlib.suppress(FileNotFoundError):
            ours, theirs = path.stat(), copy.stat()
            unchanged = "objects" in within.parts or within.parts[0] == "programs"
            unchanged |= of_run and ours.st_mtime_ns <= theirs.st_mtime_ns
            if unchanged and ours.st_size == theirs.st_size:
                return False
        _put(path, copy)
    except FileNotFoundError:
        if path.exists():
            raise
        return False
    return True


def _put(path: Path, target: Path) -> None:
    """A copy of `path` at `target`, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".draft-{target.name}")
    shutil.copyfile(path, draft)
    draft.replace(target)

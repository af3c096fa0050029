"""Parcels: programs, corpora and results on their way between the driver and the nodes, as names and bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from jaxresearch.data.manifest import MANIFEST_FILE, SEALED, FileFacts, Manifest
from jaxresearch.errors import JaxresearchError
from jaxresearch.program.program import program_folder, read_manifest

Parcel = Mapping[str, bytes]
"""Relative POSIX path -> content."""


def pack_folder(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` but drafts; empty when there is no such folder. Links are not followed."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    named = ((path.relative_to(folder), path) for path in found)
    return {name.as_posix(): path.read_bytes() for name, path in named if not _is_draft(name)}


def unpack(parcel: Parcel, folder: Path) -> None:
    """Write the files into `folder`, each appearing as a whole, in the parcel's order. Raises `JaxresearchError`."""
    for name, content in parcel.items():
        _check_name(name)
        _write(folder / name, content)


def unpack_whole(parcel: Parcel, folder: Path) -> None:
    """`folder` becomes what the parcel holds, at once; what stood there is gone."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
    try:
        unpack(parcel, draft)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process brought the same meanwhile
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def has_program(root: Path, program: str) -> bool:
    """Whether `root` holds the program whole; `load` then checks that it is the one that its name says."""
    folder = program_folder(root, program)
    try:
        artefacts = read_manifest(root, program).artefacts
        return all(f"sha256:{_digest(folder / name)}" == digest for name, digest in artefacts.items())
    except (JaxresearchError, OSError):
        return False


def corpus_name(manifest: Manifest) -> str:
    """A name that two corpora share only if they are equal, file by file."""
    facts = manifest.model_dump_json(include={"format_version", "fingerprint", "tokenizer", "files"})
    return hashlib.sha256(facts.encode()).hexdigest()[:32]


def missing_files(folder: Path, manifest: Manifest, *, sealed: bool) -> list[str]:
    """Files that a corpus in `folder` lacks or has otherwise, its manifest last: a folder without one is no corpus."""
    wanted = {name: facts for name, facts in manifest.files.items() if sealed or not name.startswith(SEALED)}
    missing = [name for name, facts in sorted(wanted.items()) if not _is(folder / name, facts)]
    return missing if (folder / MANIFEST_FILE).exists() else [*missing, MANIFEST_FILE]


def accept_file(folder: Path, name: str, manifest: Manifest) -> None:
    """Give the received `NAME.part` its name, if it is what the manifest says. Raises `JaxresearchError`."""
    part = part_path(folder, name)
    if name != MANIFEST_FILE and _digest(part) != manifest.files[name].sha256:
        part.unlink()
        raise JaxresearchError(f"{name} of the corpus arrived damaged.", fix="Try again.")
    part.rename(folder / name)


def part_path(folder: Path, name: str) -> Path:
    """Where a file of a corpus is while it arrives."""
    _check_name(name)
    return folder / f"{name}.part"


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise JaxresearchError(f"{name!r} is no name of a file in a parcel.")


def _is_draft(name: Path) -> bool:
    return any(part.startswith(".draft-") for part in name.parts)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    Path(draft).rename(path)


def _is(path: Path, facts: FileFacts) -> bool:
    try:
        return path.stat().st_size == facts.size_bytes and _digest(path) == facts.sha256
    except OSError:
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

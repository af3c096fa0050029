"""A checkpoint on disk: a folder that Orbax wrote, and a seal that says whose it is and what every file hashes to.

    FOLDER/step-0000000120/       the state, sharded
    FOLDER/step-0000000120.json   the seal, written last: what has none is no checkpoint

The SHA-256 of the seal names the checkpoint, whole: one byte changed in any file and the name is no longer its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from jaxresearch.experiment import Resumption
from jaxresearch.files import write_whole

_SCHEME = "sha256:"
_STEP = re.compile(r"step-(\d{10})\.json")


class DamagedCheckpointError(Exception):
    """What is on disk is not what was written."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Owner(_Part):
    """The run that a checkpoint belongs to. No other run may be continued from it.

    traced: values of the program's runtime inputs, as exact hexadecimal floats.
    """

    program: str
    traced: dict[str, str]
    seed: int
    budget: str
    corpus: str
    tokenizer: str

    @staticmethod
    def exact(traced: Mapping[str, float]) -> dict[str, str]:
        return {name: float(value).hex() for name, value in traced.items()}


class Position(_Part):
    """Where a training stands between two steps.

    progress: share of the budget that is spent. seconds: of training, by our clock. cursors: rows drawn so far, by row
    length. loss: of the last step, nats per token. points: how many (progress, loss) pairs the curve has.
    probes: what early scores gave, as (share of the budget, bits per byte).
    """

    progress: float
    steps: int
    tokens: int
    flops: float
    seconds: float
    cursors: dict[int, int]
    loss: float
    points: int
    probes: tuple[tuple[float, float], ...] = ()


class Seal(_Part):
    """What a checkpoint holds. machine: device, devices, threads, processes and jax that wrote it.

    leaves: dtype and shape of each leaf of the state, in order. resumed: where the training had been taken up before.
    files: SHA-256 of each, by path below the folder.
    """

    owner: Owner
    position: Position
    leaves: tuple[str, ...]
    machine: dict[str, str | int]
    resumed: tuple[Resumption, ...]
    files: dict[str, str]


def checkpoint_folder(runs: Path, identity: str) -> Path:
    """Where the checkpoints of the run called `identity` lie below `runs`."""
    return runs / identity / "checkpoints"


def state_folder(folder: Path, steps: int) -> Path:
    """Where the state after `steps` steps lies."""
    return folder / f"step-{steps:010d}"


def seal_path(state: Path) -> Path:
    return state.with_name(f"{state.name}.json")


def sealed(folder: Path) -> list[int]:
    """Numbers of steps of the checkpoints in `folder`, rising; empty when there is no such folder."""
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(found[1]) for found in map(_STEP.fullmatch, names) if found)


def write_seal(state: Path, seal: Mapping[str, Any]) -> str:
    """Hash what lies in the folder `state` and seal it; the name of the checkpoint. seal: the fields but `files`."""
    files = {str(path.relative_to(state)): _digest(path) for path in _files(state)}
    whole = Seal(**seal, files=files)
    text = json.dumps(whole.model_dump(mode="json"), sort_keys=True, allow_nan=False).encode()
    write_whole(seal_path(state), text)
    return _SCHEME + hashlib.sha256(text).hexdigest()


def read_seal(state: Path, *, name: str | None = None) -> Seal:
    """The seal of the folder `state`, once every file was found to be what it says.

    name: "sha256:..." that the checkpoint must have. Raises `DamagedCheckpointError`.
    """
    try:
        text = seal_path(state).read_bytes()
        seal = Seal.model_validate(json.loads(text))
        found = {str(path.relative_to(state)): _digest(path) for path in _files(state)}
    except (ValidationError, UnicodeDecodeError, json.JSONDecodeError):
        raise DamagedCheckpointError("its seal cannot be read") from None
    except OSError as error:
        raise DamagedCheckpointError(error.strerror or str(error)) from None
    if name is not None and _SCHEME + hashlib.sha256(text).hexdigest() != name:
        raise DamagedCheckpointError("its seal is another than the one that was recorded")
    for path in sorted(seal.files.keys() | found.keys()):
        if path not in found:
            raise DamagedCheckpointError(f"{path} is missing")
        if seal.files.get(path) != found[path]:
            raise DamagedCheckpointError(f"{path} was changed")
    return seal


def find_named(folder: Path, name: str) -> Path | None:
    """The checkpoint of that name in `folder`, its files not yet checked; None when it is not there."""
    states = (state_folder(folder, steps) for steps in sealed(folder))
    return next((state for state in states if name_of(state) == name), None)


def name_of(state: Path) -> str:
    """ "sha256:..." of the checkpoint in the folder `state`, as its seal has it."""
    return _SCHEME + _digest(seal_path(state))


def clear(folder: Path, *, but: Iterable[int] = ()) -> None:
    """Remove all of `folder`, drafts and broken writes too, but the checkpoints after the steps `but`.

    What the disk will not let go of stays; that fails nobody.
    """
    kept = {
        path.name for steps in but for path in (state_folder(folder, steps), seal_path(state_folder(folder, steps)))
    }
    for name in sorted(os.listdir(folder) if folder.is_dir() else [], reverse=True):  # a seal goes before its folder
        path = folder / name
        if name in kept:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    if not kept:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise DamagedCheckpointError("its folder is missing")
    yield from (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

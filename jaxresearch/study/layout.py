"""StudyLayout: where everything of a study lies in its folder."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxresearch.errors import JaxresearchError
from jaxresearch.files import refuse_bytes
from jaxresearch.text import clean, quoted


@dataclass(frozen=True)
class StudyLayout:
    """The paths of one study's folder."""

    folder: Path

    @property
    def settings(self) -> Path:
        """The resolved configuration, for people to read. The ledger holds the copy that counts."""
        return self.folder / "study.yaml"

    @property
    def instructions(self) -> Path:
        """What the person who started the study asks of its strategy; read anew in every round."""
        return self.folder / "program.md"

    @property
    def ledger(self) -> Path:
        """The append-only events: the truth about the study."""
        return self.folder / "ledger.sqlite"

    @property
    def workspace(self) -> Path:
        """A bare git repository with one commit for each experiment."""
        return self.folder / "workspace"

    @property
    def programs(self) -> Path:
        """Traced programs, each under its SHA-256."""
        return self.folder / "programs"

    @property
    def runs(self) -> Path:
        """What runs leave behind (checkpoints, logs), each under its identity."""
        return self.folder / "runs"

    @property
    def lock(self) -> Path:
        """Held by the one process that drives the study."""
        return self.folder / "lock"

    @property
    def control(self) -> Path:
        """What a person asks of the process that drives the study: `pause` or `stop`."""
        return self.folder / "control"

    @property
    def heartbeat(self) -> Path:
        """What the process that drives the study was last doing, and when."""
        return self.folder / "heartbeat.json"

    @property
    def tournament(self) -> Path | None:
        """The folder of the tournament that it is an arm of: its runs are the tournament's. None for a study by itself."""
        return self.runs.resolve().parent if self.runs.is_symlink() else None

    @property
    def way_on(self) -> str:
        """How a person goes on with it."""
        if self.tournament is not None:
            return f"jaxresearch compare --tournament {quoted(self.tournament)}"
        return f"jaxresearch resume {quoted(self.folder)}"

    @property
    def exists(self) -> bool:
        return self.ledger.is_file()


def create_folder(folder: Path, fill: Callable[[StudyLayout], None]) -> StudyLayout:
    """Make the study folder `folder`, whole or not at all: `fill` writes into a neighbour that is renamed at the end.

    Raises `JaxresearchError` when `folder` exists and is not an empty folder, or cannot be written.
    """
    folder = folder.absolute()
    refuse_used(folder)
    draft = folder.parent / f".{folder.name}.creating-{os.getpid()}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        layout = StudyLayout(draft)
        layout.programs.mkdir()
        layout.runs.mkdir()
        fill(layout)
        draft.rename(folder)
    except OSError as error:
        raise JaxresearchError(
            f"The study folder {folder} cannot be made: {error.strerror or error}.", fix="Choose another with --study."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return StudyLayout(folder)


def no_study(folder: Path) -> JaxresearchError:
    """That `folder` holds none, with the names of those in it, if there are any: it may be a tournament's."""
    with contextlib.suppress(OSError):
        inside = sorted(each.name for each in folder.iterdir() if StudyLayout(each).exists)
        if inside:
            names = ", ".join(map(clean, inside[:5])) + (", ..." if len(inside) > 5 else "")
            return JaxresearchError(f"{folder} holds no study, but folders of studies.", fix=f"Name one: {names}.")
    return JaxresearchError(f"{folder} holds no study.", fix="Start one with `jaxresearch run --study DIR`.")


def refuse_used(folder: Path) -> None:
    """Raises `JaxresearchError` when `folder` is there and not an empty folder."""
    refuse_bytes(folder, "--study")
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise JaxresearchError(
            f"The study folder {folder} cannot be used: {error.strerror}.", fix="Choose another with --study."
        ) from error
    if not taken:
        return
    if not folder.is_dir():
        raise JaxresearchError(f"{folder} is a file.", fix="Choose another folder with --study.")
    if StudyLayout(folder).exists:
        raise JaxresearchError(
            f"{folder} holds a study already.",
            fix=f"Go on with `jaxresearch resume {quoted(folder)}`, or choose another.",
        )
    raise JaxresearchError(f"{folder} is not empty.", fix="Choose a new or empty folder with --study.")

"""Studies under a folder, followed while they run: each is read once, and then only what its ledger gains."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxresearch.errors import JaxresearchError
from jaxresearch.experiment import Verdict
from jaxresearch.report.build import StudyReader, experiment_record
from jaxresearch.report.page import detail_data, row_data, search_text, study_data
from jaxresearch.study.heartbeat import runs_on_their_way
from jaxresearch.study.layout import StudyLayout
from jaxresearch.text import one_line
from jaxresearch.tournament.plan import PLAN_FILE

DEPTH = 3
"""How far below the folder a study may lie."""
TROUBLE_SECONDS = 60.0
"""A ledger that could not be read is read again when its files change, and after this."""

Stamp = tuple[tuple[int, ...], ...]


class WatchedStudy:
    """One study. Not for several threads: SQLite's connection belongs to the one that opened it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._folder = folder
        self._layout = StudyLayout(folder)
        self._reader: StudyReader | None = None
        self._file: tuple[int, ...] = ()
        self._trouble: tuple[Stamp, float, JaxresearchError] | None = None
        self._data: tuple[int, dict[str, Any]] = (0, {})
        self._card: tuple[int, dict[str, Any]] = (0, {})
        self._rows: dict[int, tuple[int, dict[str, Any]]] = {}

    @property
    def unread(self) -> bool:
        """Whether its ledger was never looked at, so that `refresh` will read all of it."""
        return self._reader is None and self._trouble is None

    @property
    def seq(self) -> int:
        """The last event that was read, once `refresh` was called."""
        return self._open().history.seq

    @property
    def begun(self) -> str:
        """The hash of the first event: another one in the same place is another study."""
        return self._open().history.baseline.anchor

    def refresh(self) -> bool:
        """Read what the ledger gained; whether it did. Raises `JaxresearchError` when it cannot be read.

        One that lies there in place of another is read anew. One that could not be read is not tried again at once:
        that would be its whole length each time.
        """
        stamp = self._stamp()
        if self._reader is not None and self._file == stamp[0][:2]:
            try:
                return self._reader.refresh()
            except JaxresearchError as error:
                self._failed(stamp, error)
                raise
        if self._trouble is not None:
            failed, at, trouble = self._trouble
            if failed == stamp and time.monotonic() - at < TROUBLE_SECONDS:
                raise trouble.with_traceback(None)  # else it grows with every time
        self.close()
        try:
            self._open()
        except JaxresearchError as error:
            self._failed(stamp, error)
            raise
        self._file, self._trouble = stamp[0][:2], None
        return True

    def page(self) -> dict[str, Any]:
        """All that the page starts from; details stay here until they are asked for."""
        return {"kind": "study", "begun": self.begun, **self.news(0), "running": self.running()}

    def news(self, after: int) -> dict[str, Any]:
        """What changed after event `after`: the study's own figures, and the rows of experiments that it touched."""
        touched = self._open().timeline.touched
        rows = [self._row(number) for number in sorted(touched) if touched[number] > after]
        return {"study": self._study(), "rows": rows}

    def running(self) -> list[dict[str, Any]]:
        """How far the runs at hand have come, by the driver's own word."""
        return [asdict(run) for run in runs_on_their_way(self._layout)]

    def experiment(self, number: int) -> dict[str, Any] | None:
        """The details of one experiment, None when there is none of that number."""
        reader = self._open()
        if not 0 <= number < len(reader.history.entries):
            return None
        diff = reader.diffs([number]).get(number, "")
        entry = reader.history.entries[number]
        return detail_data(experiment_record(reader.history, reader.timeline, entry, study=reader.name, diff=diff))

    def card(self) -> dict[str, Any]:
        """The study in the list of studies."""
        history = self._open().history
        if self._card[0] != history.seq:
            self._card = (history.seq, self._figures())
        return {**self._card[1], "running": len(self.running())}

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
            self._rows.clear()
            self._data = self._card = (0, {})

    def _stamp(self) -> Stamp:
        """Of the ledger and what was written after it: device, inode, change, size; zeros for what is not there."""
        return _stamp(self._layout.ledger), _stamp(self._layout.ledger.with_name(f"{self._layout.ledger.name}-wal"))

    def _failed(self, stamp: Stamp, error: JaxresearchError) -> None:
        self.close()
        self._trouble = (stamp, time.monotonic(), error)

    def _figures(self) -> dict[str, Any]:
        study, entries = self._study(), self._open().history.entries
        kept = [each.experiment for each in entries if each.verdict is Verdict.KEEP]
        names = ("strategy", "llm", "budget", "state", "gain", "wall_seconds", "llm_cost_usd")
        return {
            "name": one_line(self.name),
            **{name: study[name] for name in names},
            "experiments": sum(each.verdict is not None for each in entries[1:]),
            "planned": study["planned_experiments"],
            "kept": study["verdicts"]["keep"],
            "val_bpb": _figure(entries[study["incumbent"]].experiment.val_bpb),
            "best": [(each.number, score) for each in kept if (score := _figure(each.val_bpb)) is not None],
        }

    def _open(self) -> StudyReader:
        if self._reader is None:
            self._reader = StudyReader(self._folder)
        return self._reader

    def _study(self) -> dict[str, Any]:
        reader = self._open()
        if self._data[0] != reader.history.seq:
            self._data = (
                reader.history.seq,
                study_data(reader.record(check_anchors=False, diffs=False, experiments=False)),
            )
        return self._data[1]

    def _row(self, number: int) -> dict[str, Any]:
        reader = self._open()
        touched = reader.timeline.touched[number]
        seq, row = self._rows.get(number, (0, {}))
        if seq != touched:
            entry = reader.history.entries[number]
            record = experiment_record(reader.history, reader.timeline, entry, study=reader.name)
            row = {**row_data(record), "find": search_text(record)}
            self._rows[number] = (touched, row)
        return row


class Watcher:
    """All studies under `folder`, the folder itself included. Not for several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._studies: dict[str, WatchedStudy] = {}

    def studies(self) -> dict[str, WatchedStudy]:
        """By name, which is the path below the folder. Looks at the disk anew."""
        found = dict(_find(self.folder, self.folder, DEPTH))
        for name in [name for name in self._studies if name not in found]:
            self._studies.pop(name).close()
        for name, path in found.items():
            self._studies.setdefault(name, WatchedStudy(path, name))
        return dict(sorted(self._studies.items()))

    def study(self, name: str) -> WatchedStudy | None:
        """The study called `name`, read up to now."""
        study = self._studies.get(name) or self.studies().get(name)
        if study is not None:
            study.refresh()
        return study

    def cards(self) -> dict[str, dict[str, Any]]:
        """Every study in a few figures, by name. One that cannot be read says why, and one that nobody read yet, so."""
        return {name: _card(study) for name, study in self.studies().items()}

    def read_another(self) -> bool:
        """Read one study that nobody read yet; whether there was any. A long one takes a while, and many take long."""
        study = next((each for each in self._studies.values() if each.unread), None)
        if study is not None:
            with suppress(JaxresearchError):
                study.refresh()
        return study is not None

    def tournaments(self) -> dict[str, Path]:
        """Folders of tournaments by name. Their arms are studies of their own, which `studies` finds, too."""
        return dict(_find_tournaments(self.folder, self.folder, DEPTH))

    def close(self) -> None:
        for study in self._studies.values():
            study.close()


def _card(study: WatchedStudy) -> dict[str, Any]:
    name = one_line(study.name)
    if study.unread:
        return {"name": name, "unread": True}
    try:
        study.refresh()
        return study.card()
    except JaxresearchError as error:
        return {"name": name, "error": one_line(str(error), 400)}


def _figure(value: float | None) -> float | None:
    return round(value, 6) if value is not None and math.isfinite(value) else None


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0, 0)
    # SQLite makes an empty write-ahead log to read with, and may take it away: that is no change.
    return (found.st_dev, found.st_ino, found.st_ctime_ns, found.st_size) if found.st_size else (0, 0, 0, 0)


def _find_tournaments(folder: Path, root: Path, depth: int) -> Iterator[tuple[str, Path]]:
    if (folder / PLAN_FILE).is_file():
        yield _name_of(folder, root), folder
        return
    for below in _below(folder) if depth else ():
        yield from _find_tournaments(below, root, depth - 1)


def _find(folder: Path, root: Path, depth: int) -> Iterator[tuple[str, Path]]:
    if StudyLayout(folder).exists:
        yield _name_of(folder, root), folder
        return
    for below in _below(folder) if depth else ():
        yield from _find(below, root, depth - 1)


def _name_of(folder: Path, root: Path) -> str:
    return folder.relative_to(root).as_posix() if folder != root else folder.absolute().name


def _below(folder: Path) -> list[Path]:
    """The folders in `folder` by name, hidden ones and links left out."""
    try:
        entries = [entry for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [Path(entry.path) for entry in sorted(entries, key=lambda each: each.name) if not entry.name.startswith(".")]

"""Studies under a folder, followed while they run: each is read once, and then only what its ledger gains."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
from jaxresearch.tournament.tournament import PLAN_FILE

DEPTH = 3
"""How far below the folder a study may lie."""


class WatchedStudy:
    """One study. Not for several threads: SQLite's connection belongs to the one that opened it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._folder = folder
        self._reader: StudyReader | None = None
        self._data: tuple[int, dict[str, Any]] = (0, {})
        self._rows: dict[int, tuple[int, dict[str, Any]]] = {}

    @property
    def seq(self) -> int:
        """The last event that was read, once `refresh` was called."""
        return self._open().history.seq

    def refresh(self) -> bool:
        """Read what the ledger gained; whether it did. Raises `JaxresearchError` when it cannot be read."""
        if self._reader is None:
            self._open()
            return True
        try:
            return self._reader.refresh()
        except JaxresearchError:
            self.close()
            raise

    def page(self) -> dict[str, Any]:
        """All that the page starts from; details stay here until they are asked for."""
        return {"kind": "study", **self.news(0), "running": self.running()}

    def news(self, after: int) -> dict[str, Any]:
        """What changed after event `after`: the study's own figures, and the rows of experiments that it touched."""
        touched = self._open().timeline.touched
        rows = [self._row(number) for number in sorted(touched) if touched[number] > after]
        return {"study": self._study(), "rows": rows}

    def running(self) -> list[dict[str, Any]]:
        """How far the runs at hand have come, by the driver's own word."""
        return [asdict(run) for run in runs_on_their_way(StudyLayout(self._folder))]

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
        study, rows = self._study(), [self._row(number) for number in range(len(self._open().history.entries))]
        kept = [row for row in rows if row["verdict"] == Verdict.KEEP and row["val_bpb"] is not None]
        names = ("strategy", "llm", "budget", "state", "gain", "wall_seconds", "llm_cost_usd")
        return {
            "name": one_line(self.name),
            **{name: study[name] for name in names},
            "experiments": sum(row["verdict"] is not None for row in rows[1:]),
            "planned": study["planned_experiments"],
            "kept": study["verdicts"]["keep"],
            "val_bpb": rows[study["incumbent"]]["val_bpb"],
            "best": [(row["number"], row["val_bpb"]) for row in kept],
            "running": len(self.running()),
        }

    def close(self) -> None:
        if self._reader is not None:
            self._reader.ledger.close()
            self._reader = None
            self._rows.clear()
            self._data = (0, {})

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

    def cards(self) -> list[dict[str, Any]]:
        """Every study in a few figures; one that cannot be read says why."""
        cards = []
        for name, study in self.studies().items():
            try:
                study.refresh()
                cards.append(study.card())
            except JaxresearchError as error:
                cards.append({"name": one_line(name), "error": one_line(str(error), 400)})
        return cards

    def tournaments(self) -> dict[str, Path]:
        """Folders of tournaments by name. Their arms are studies of their own, which `studies` finds, too."""
        return dict(_find_tournaments(self.folder, self.folder, DEPTH))

    def close(self) -> None:
        for study in self._studies.values():
            study.close()


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

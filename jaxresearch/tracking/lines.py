"""metrics.jsonl: the figures of a study as JSON lines, appended while it runs, for anything that can read a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxresearch.experiment import RunProgress
from jaxresearch.study.events import StudyCreated
from jaxresearch.study.history import History, fold
from jaxresearch.study.ledger import StoredEvent
from jaxresearch.tracking.metrics import metrics_of

FILE = "metrics.jsonl"


def metrics_lines(events: Iterable[StoredEvent]) -> Iterator[str]:
    """One line for each event of a whole ledger that has figures; see `metrics_of`."""
    history: History | None = None
    for stored in events:
        if history is None or isinstance(stored.event, StudyCreated):
            history = fold([stored])
            continue
        history = history.apply(stored)
        facts = metrics_of(stored, history)
        if facts is not None:
            yield _line(facts)


class JsonLines:
    """Keeps `FILE` in `folder` up with the ledger: a Reporter. The file is a view of the ledger, and nothing reads it.

    A line that a crash cut off is taken away, and what is missing (all, if there is no file) is written from `events`.
    """

    def __init__(self, folder: Path, events: Iterable[StoredEvent], upto: int) -> None:
        self._path = folder / FILE
        self._seq = _mend(self._path)
        if self._seq < upto:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(line for line in metrics_lines(events) if json.loads(line)["seq"] > self._seq)
            self._seq = upto

    def on_event(self, stored: StoredEvent, history: History) -> None:
        facts = metrics_of(stored, history)
        if facts is None or stored.seq <= self._seq:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(facts))
        self._seq = stored.seq

    def on_progress(self, number: int, seed: int, progress: RunProgress) -> None:
        pass

    def close(self) -> None:
        pass


def _mend(path: Path) -> int:
    """Cut off what is no whole line; the `seq` of the last line that is, 0 without one."""
    if not path.exists():
        return 0
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) != len(text):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    last = whole.splitlines()[-1:]
    try:
        return int(json.loads(last[0])["seq"]) if last else 0
    except (ValueError, KeyError, TypeError):  # not ours, or damaged: it is a view, so begin again
        path.unlink()
        return 0


def _line(facts: dict) -> str:
    return json.dumps(facts, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n"

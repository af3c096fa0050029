"""Trackers: several reporters as one. A tracker that fails is left out and named; it never stops a study."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Self

from jaxresearch.errors import ConfigurationError
from jaxresearch.experiment import RunProgress
from jaxresearch.study.history import History, fold
from jaxresearch.study.ledger import StoredEvent
from jaxresearch.study.reporter import Reporter
from jaxresearch.study.study import Study
from jaxresearch.text import one_line
from jaxresearch.tracking.lines import JsonLines

ENTRY_POINT_GROUP = "jaxresearch.reporters"
"""Each names a callable that takes a study's folder and gives a Reporter. It may have `close()`, and `wants_past`:
whether it is to be told all events from before it was there."""

Complain = Callable[[str], None]


class Trackers:
    """A Reporter that tells `first` (the display), metrics.jsonl and the trackers called `names`."""

    def __init__(self, study: Study, first: Reporter, names: Sequence[str], complain: Complain) -> None:
        folder = study.layout.folder
        self._complain, self._first = complain, first
        self._others: dict[str, Any] = {}
        check_trackers(names)
        self._add("metrics.jsonl", lambda: JsonLines(folder, study.events(whole=False), study.history.seq))
        for name in dict.fromkeys(names):
            self._others[name] = _factory(name)(folder)
            if getattr(self._others[name], "wants_past", False):
                self._guard(name, lambda tracker: _tell_all(tracker, study.events(whole=False)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._others):
            self._guard(name, lambda tracker: getattr(tracker, "close", lambda: None)())

    def on_event(self, stored: StoredEvent, history: History) -> None:
        self._first.on_event(stored, history)
        for name in list(self._others):
            self._guard(name, lambda tracker: tracker.on_event(stored, history))

    def on_progress(self, number: int, seed: int, progress: RunProgress) -> None:
        self._first.on_progress(number, seed, progress)
        for name in list(self._others):
            self._guard(name, lambda tracker: tracker.on_progress(number, seed, progress))

    def _add(self, name: str, make: Callable[[], Reporter]) -> None:
        try:
            self._others[name] = make()
        except OSError as error:
            self._complain(f"{name} cannot be written: {error.strerror}. The study goes on without it.")

    def _guard(self, name: str, call: Callable[[Any], object]) -> None:
        try:
            call(self._others[name])
        except Exception as error:
            del self._others[name]
            self._complain(f"tracker {name} failed and is left out: {one_line(repr(error), 200)}")


def check_trackers(names: Iterable[str]) -> None:
    """Raise `ConfigurationError` when one of `names` is not installed."""
    for name in names:
        _factory(name)


def _factory(name: str) -> Callable[[Path], Any]:
    if name == "tensorboard":
        from jaxresearch.tracking.tensorboard import TensorBoard

        return TensorBoard
    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in points:
        installed = ", ".join(sorted({"tensorboard", *points}))
        raise ConfigurationError(f"tracking: no tracker {name!r}.", fix=f"Installed: {installed}.")
    try:
        return points[name].load()
    except Exception as error:
        raise ConfigurationError(
            f"tracking: {name!r} does not import: {error!r}.", fix="Fix or uninstall it."
        ) from error


def _tell_all(tracker: Reporter, events: Iterable[StoredEvent]) -> None:
    """What happened before `tracker` was there."""
    history: History | None = None
    for stored in events:
        history = fold([stored]) if history is None else history.apply(stored)
        tracker.on_event(stored, history)

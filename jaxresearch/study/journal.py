"""Journal: a ledger with its history kept beside it. Everything that happens to a study goes through `record`."""

from __future__ import annotations

from jaxresearch.study.events import Event
from jaxresearch.study.history import History, fold
from jaxresearch.study.ledger import Ledger
from jaxresearch.study.reporter import NullReporter, Reporter


class Journal:
    """The ledger, and the history that its events amount to."""

    def __init__(self, ledger: Ledger, reporter: Reporter | None = None) -> None:
        self.ledger = ledger
        self.reporter = reporter or NullReporter()
        self.history: History = fold(ledger.read())

    def record(self, *events: Event) -> None:
        """Append `events` together, move the history on, then tell the reporter."""
        stored = self.ledger.append(*events)
        for each in stored:
            self.history = self.history.apply(each)
        for each in stored:
            self.reporter.on_event(each, self.history)

"""Journal: a ledger with its history kept beside it. Everything that happens to a study goes through `record`."""

from __future__ import annotations

from jaxresearch.llm import known_secrets, redact
from jaxresearch.study.events import Event, decode, encode
from jaxresearch.study.history import History, fold, moved
from jaxresearch.study.ledger import Ledger
from jaxresearch.study.reporter import NullReporter, Reporter


class Journal:
    """The ledger, and the history that its events amount to."""

    def __init__(self, ledger: Ledger, reporter: Reporter | None = None, *, whole: bool = True) -> None:
        """whole: check what models were sent too, as whoever goes on with a study should. The open round's is needed."""
        self.ledger = ledger
        self.reporter = reporter or NullReporter()
        history = fold(ledger.read(whole=whole))
        self.history: History = moved(history, calls=tuple(map(ledger.whole, history.calls)))
        self._secrets = known_secrets()

    def record(self, *events: Event) -> None:
        """Append `events` together, move the history on, then tell the reporter.

        The values of API keys are taken out first, wherever they came from: a traceback, a reply, an error of a provider.
        """
        stored = self.ledger.append(*(self._redacted(event) for event in events))
        for each in stored:
            self.history = self.history.apply(each)
        for each in stored:
            self.reporter.on_event(each, self.history)

    def _redacted(self, event: Event) -> Event:
        if not self._secrets:
            return event
        text = encode(event)
        clean = redact(text, self._secrets)
        return event if clean == text else decode(clean)

"""Reporter: who watches a study live. It sees events after they are in the ledger, and can change nothing."""

from __future__ import annotations

from typing import Protocol

from jaxresearch.execution.base import RunProgress
from jaxresearch.study.history import History
from jaxresearch.study.ledger import StoredEvent


class Reporter(Protocol):
    """Shows a study as it goes."""

    def on_event(self, stored: StoredEvent, history: History) -> None:
        """`stored` is in the ledger; `history` is the study with it."""
        ...

    def on_progress(self, number: int, seed: int, progress: RunProgress) -> None:
        """The run of experiment `number` with `seed` has come so far."""
        ...


class NullReporter:
    """Shows nothing."""

    def on_event(self, stored: StoredEvent, history: History) -> None:
        pass

    def on_progress(self, number: int, seed: int, progress: RunProgress) -> None:
        pass

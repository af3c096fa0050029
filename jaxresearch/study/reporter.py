"""Reporter: who watches a study live. It sees events after they are in the ledger, and can change nothing."""

from __future__ import annotations

from typing import Protocol

from jaxresearch.execution.base import RunProgress
from jaxresearch.study.events import Event, RunDiscarded, RunFinished, TestScored, TrialRun
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


def run_ended_by(event: Event, history: History) -> tuple[int, int] | None:
    """Experiment and seed, as `on_progress` had them, of the run that is over with `event`; None where it ends none."""
    match event:
        case RunFinished(number=number, outcome=outcome) | TestScored(number=number, outcome=outcome):
            return number, outcome.seed
        case RunDiscarded(number=number, seed=seed):
            return number, seed
        case TrialRun(outcome=outcome):
            return history.trials[-1].event.experiment, outcome.seed
        case _:
            return None


class NullReporter:
    """Shows nothing."""

    def on_event(self, stored: StoredEvent, history: History) -> None:
        pass

    def on_progress(self, number: int, seed: int, progress: RunProgress) -> None:
        pass

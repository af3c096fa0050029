"""Timeline: where a study's time and money went, and which event touched an experiment last. A fold over its events."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from jaxresearch.experiment import CompletedRun
from jaxresearch.study.costs import accelerator_seconds, tokens_of
from jaxresearch.study.events import (
    Checked,
    Decided,
    LLMCalled,
    ProposalFailed,
    Proposed,
    RunFinished,
    RunStarted,
    SessionStarted,
    StudyCreated,
    TestOpened,
    TestScored,
    Traced,
    TrialOpened,
)
from jaxresearch.study.ledger import StoredEvent
from jaxresearch.study.trial import TrialEvent

PHASES = ("proposing", "tracing", "compiling", "training", "scoring", "auditing", "other")
"""In the order of an experiment's life. `proposing` is the strategy and its model, `other` all that has no name."""

_BETWEEN = SessionStarted | StudyCreated | TestOpened | TestScored | TrialOpened | TrialEvent
"""The time before these is not the study's, as in `History`."""


@dataclass
class Spending:
    """What the model requests of one round, or of one experiment, used."""

    calls: float = 0
    tokens: float = 0
    cost_usd: float = 0.0


def spending(events: Iterable[StoredEvent], number: int) -> Spending:
    """What the model was used for experiment `number`, by the whole ledger's `events`."""
    timeline = Timeline()
    for stored in events:
        timeline.apply(stored)
    return timeline.spending(number)


class Timeline:
    """Wall seconds by phase, spending by experiment. `apply` each event once, in order."""

    def __init__(self) -> None:
        self.phases: defaultdict[str, float] = defaultdict(float)
        self.created_at = 0.0
        self.decided_at: dict[int, float] = {}
        self.accelerator_seconds: defaultdict[int, float] = defaultdict(float)
        self.shared_from: dict[tuple[int, str], int] = {}
        self.touched: dict[int, int] = {0: 1}
        self._rounds: defaultdict[int, Spending] = defaultdict(Spending)
        self._round_of: dict[int, int] = {}
        self._members: Counter[int] = Counter()
        self._time = 0.0

    def spending(self, number: int) -> Spending:
        """Of experiment `number`: an equal share of its round's."""
        if number not in self._round_of:
            return Spending()
        whole, share = self._rounds[self._round_of[number]], self._members[self._round_of[number]]
        return Spending(whole.calls / share, whole.tokens / share, whole.cost_usd / share)

    def apply(self, stored: StoredEvent) -> None:
        event = stored.event
        elapsed = 0.0 if isinstance(event, _BETWEEN) else max(0.0, stored.time - self._time)
        self._time = stored.time
        match event:
            case StudyCreated():
                self.created_at = stored.time
            case LLMCalled():
                self._spend(event)
                self.phases["proposing"] += elapsed
            case ProposalFailed():
                self.phases["proposing"] += elapsed
            case Proposed():
                self.phases["proposing"] += elapsed
                self._round_of[event.number] = event.round
                self._members[event.round] += 1
            case Checked() | Traced():
                self.phases["tracing"] += elapsed
            case RunFinished():
                self._run(event, elapsed)
            case _:
                self.phases["other"] += elapsed
        if isinstance(event, Decided):
            self.decided_at[event.number] = stored.time
        if isinstance(event, Proposed | Traced | RunStarted | RunFinished | Decided):
            self.touched[event.number] = stored.seq

    def _spend(self, event: LLMCalled) -> None:
        spent = self._rounds[event.round]
        spent.calls += 1
        spent.tokens += tokens_of(event)
        spent.cost_usd += float(event.record.get("cost_usd") or 0.0)

    def _run(self, event: RunFinished, elapsed: float) -> None:
        outcome = event.outcome
        if event.shared_from is not None:
            self.shared_from[event.number, outcome.identity] = event.shared_from
            self.phases["other"] += elapsed
            return
        if isinstance(outcome, CompletedRun):
            spent = {
                "compiling": outcome.compile_seconds,
                "training": outcome.train_seconds,
                "scoring": outcome.eval_seconds,
                "auditing": outcome.audit_seconds,
            }
        else:
            spent = {"training": outcome.train_seconds}
        self.accelerator_seconds[event.number] += accelerator_seconds(outcome)
        left = elapsed
        for phase, seconds in spent.items():
            part = min(left, max(0.0, seconds))
            self.phases[phase] += part
            left -= part
        self.phases["other"] += left

"""History: the events folded into what they mean. Every table, view and decision is computed from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, assert_never

from jaxresearch.config import StudyConfig
from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import TracedCandidate
from jaxresearch.experiment import CompletedRun, Experiment, FailedRun, RunOutcome, TraceFailure, Verdict
from jaxresearch.proposal import Proposal
from jaxresearch.statistics.noise import NoiseFloor, Spread, seed_noise
from jaxresearch.study.costs import Costs
from jaxresearch.study.entry import Entry
from jaxresearch.study.events import (
    Approval,
    Checked,
    Decided,
    LLMCalled,
    ProposalFailed,
    ProposalRequested,
    Proposed,
    Quarantined,
    RunDiscarded,
    RunFinished,
    RunStarted,
    SessionStarted,
    Stopped,
    StudyCreated,
    TestOpened,
    TestScored,
    Traced,
    TraceOutcome,
    TrialClosed,
    TrialJudged,
    TrialOpened,
    TrialRun,
    TrialTraced,
)
from jaxresearch.study.identity import ANY_SEED, identity_of
from jaxresearch.study.incidents import Incident, incidents_of
from jaxresearch.study.ledger import StoredEvent
from jaxresearch.study.trial import Trial, TrialEvent

CAPS = ("max_cost", "max_tokens", "experiments", "max_seconds", "stop_after_no_gain")
"""Settings that a session may change for what is left of the study."""
REFUSALS_KEPT = 5
"""Proposals that gave no program, of earlier rounds, which researchers are told."""


@dataclass(frozen=True)
class Opening:
    """One opening of the sealed test: which experiments, on which seeds, and what their runs gave so far."""

    event: TestOpened
    outcomes: tuple[tuple[int, RunOutcome], ...] = ()

    def run(self, number: int, seed: int) -> RunOutcome | None:
        """The last outcome of experiment `number` with `seed`; infrastructure failures do not count."""
        for at, outcome in reversed(self.outcomes):
            lost = isinstance(outcome, FailedRun) and outcome.verdict is Verdict.INFRASTRUCTURE
            if at == number and outcome.seed == seed and not lost:
                return outcome
        return None


@dataclass(frozen=True)
class History:
    """A study up to one event. Made by `fold`, moved on by `apply`; the two agree.

    entries: element i is experiment i, and 0 is the baseline. incumbent_number: the last kept experiment.
    reference_number: the best incumbent so far; another than the incumbent after a keep for simplicity.
    rounds: how many have ended. request: the round that is open, with its `checks` and model `calls` so far, those of
    sessions that were cut off included. traces: what tracing gave,
    by candidate fingerprint. failed_proposals: in all, the last for `last_failure`.
    proposal_streak, infrastructure_streak: failed proposals and lost experiments in a row, this session.
    stopped: how the last session ended, None while one is going (or was killed).
    openings: of the sealed test, by `confirm`. trials: ablations and transfers. Their runs and time are not the study's.
    approvals: a person's answers, by fingerprint of the sources. round_began, anchor: seq and hash of the event that
    opened the last round. incidents: all of them; those from `incidents_mark` on count towards the limit.
    caps: where a session set others than the settings. trained: runs of the search that were trained to an outcome; what
    the infrastructure lost is none. spread: of all entries with a verdict together. refused: proposals of earlier rounds
    that gave no program when they were checked, the last few. programs: texts of program.md, by fingerprint.
    """

    created: StudyCreated
    entries: tuple[Entry, ...]
    seq: int
    head: str
    time: float
    incumbent_number: int = 0
    rounds: int = 0
    request: ProposalRequested | None = None
    checks: tuple[Checked, ...] = ()
    calls: tuple[LLMCalled, ...] = ()
    traces: Mapping[str, TraceOutcome] = field(default_factory=dict)
    failed_proposals: int = 0
    last_failure: str = ""
    proposal_streak: int = 0
    infrastructure_streak: int = 0
    sessions: int = 0
    costs: Costs = field(default_factory=Costs)
    stopped: Stopped | None = None
    openings: tuple[Opening, ...] = ()
    reference_number: int = 0
    approvals: Mapping[str, Approval] = field(default_factory=dict)
    round_began: int = 0
    anchor: str = ""
    incidents: tuple[Incident, ...] = ()
    incidents_mark: int = 0
    caps: SessionStarted | None = None
    trials: tuple[Trial, ...] = ()
    trained: int = 0
    spread: Spread = field(default_factory=Spread)
    refused: tuple[Proposal, ...] = ()
    programs: Mapping[str, str] = field(default_factory=dict)

    @property
    def config(self) -> StudyConfig:
        return self.created.config

    @property
    def max_cost(self) -> float | None:
        """US dollars of model calls, as the last session that said so wants it."""
        return self._cap("max_cost")

    @property
    def max_tokens(self) -> int | None:
        """Tokens of model calls, both ways, likewise."""
        return self._cap("max_tokens")

    @property
    def planned(self) -> int:
        """Experiments to do, the baseline not counted, likewise."""
        return self._cap("experiments")

    @property
    def max_seconds(self) -> float | None:
        """Wall seconds of the study, likewise."""
        return self._cap("max_seconds")

    @property
    def stop_after_no_gain(self) -> int | None:
        """Contenders in a row without an improvement after which the study is over, likewise."""
        return self._cap("stop_after_no_gain") or None

    @property
    def without_gain(self) -> int:
        """Contenders in a row, up to the last verdict, that were tried and improved nothing.

        A keep for simplicity is no improvement. Duplicates and what the infrastructure lost were not tried: they
        neither count nor end the row.
        """
        count = 0
        for entry in reversed(self.contenders):
            if entry.verdict in (None, Verdict.DUPLICATE, Verdict.INFRASTRUCTURE):
                continue
            if entry.verdict is Verdict.KEEP and not (entry.decision is not None and entry.decision.simpler):
                break
            count += 1
        return count

    def _cap(self, name: str) -> Any:
        given = getattr(self.caps, name) if self.caps is not None else None
        return getattr(self.config, name) if given is None else given

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        return tuple(entry.experiment for entry in self.entries)

    @property
    def baseline(self) -> Entry:
        return self.entries[0]

    @property
    def hopeless(self) -> bool:
        """The baseline was judged and gave no score: the study can never go on."""
        return self.baseline.verdict not in (None, Verdict.KEEP)

    @property
    def incumbent(self) -> Entry:
        return self.entries[self.incumbent_number]

    def lineage(self, number: int) -> tuple[Entry, ...]:
        """Experiment `number` and what it is built on, oldest first, without the baseline."""
        found: list[Entry] = []
        while number:
            found.append(self.entries[number])
            number = found[-1].experiment.parent or 0
        return tuple(reversed(found))

    @property
    def reference(self) -> Entry:
        """The best incumbent that there was: what simpler candidates are held against."""
        return self.entries[self.reference_number]

    @property
    def asked_llm(self) -> str:
        """The model that answered last in the open round; empty when none was asked."""
        return str(self.calls[-1].record.get("model", "")) if self.calls else ""

    @property
    def counted_incidents(self) -> int:
        """Incidents that count towards `oversight.max_incidents`, since the study last paused for them."""
        return sum(each.kind.counts for each in self.incidents[self.incidents_mark :])

    @property
    def contenders(self) -> tuple[Entry, ...]:
        """All entries but the baseline."""
        return self.entries[1:]

    @property
    def pending(self) -> Entry | None:
        """The first experiment without a verdict."""
        return next((entry for entry in self.entries if entry.verdict is None), None)

    @property
    def verdicts(self) -> dict[Verdict, int]:
        """How often each verdict was given, the baseline not counted."""
        counts = Counter(entry.verdict for entry in self.contenders)
        return {verdict: counts[verdict] for verdict in Verdict}

    @property
    def noise(self) -> NoiseFloor | None:
        """The noise floor: between seeds of one experiment, pooled over all that ran on two or more."""
        return seed_noise([entry.experiment.scores for entry in self.entries if entry.believed])

    def known_run(self, identity: str) -> tuple[int, CompletedRun] | None:
        """The completed run called `identity`, with the number of the experiment that it was made for."""
        for entry in self.entries:
            for run in entry.experiment.runs:
                if isinstance(run, CompletedRun) and run.identity == identity:
                    return entry.number, run
        return None

    def same_as(self, *, tree: str, key: str, before: int) -> Entry | None:
        """The first experiment below number `before` with equal sources, or a program and values that make equal runs.

        One that only the infrastructure failed was never tried, so it does not count. Duplicates point further back.
        """
        for entry in self.entries[:before]:
            untried = entry.verdict in (Verdict.INFRASTRUCTURE, Verdict.DUPLICATE)
            if not untried and ((tree and entry.tree == tree) or (key and entry.key == key)):
                return entry
        return None

    def apply(self, stored: StoredEvent) -> History:
        """The history one event later. Raises `JaxresearchError` when the event cannot follow."""
        between = isinstance(stored.event, SessionStarted | TestOpened | TestScored | TrialOpened | TrialEvent)
        elapsed = 0.0 if between else max(0.0, stored.time - self.time)
        costs = moved(self.costs, wall_seconds=self.costs.wall_seconds + elapsed)
        try:
            found = incidents_of(self, stored)
            incidents = (*self.incidents, *found) if found else self.incidents
            told = moved(self, seq=stored.seq, head=stored.hash, time=stored.time, costs=costs, incidents=incidents)
            return told._with(stored)
        except IndexError:
            raise JaxresearchError(f"Event {stored.seq} speaks of an experiment that does not exist.") from None

    def _with(self, stored: StoredEvent) -> History:
        event = stored.event
        match event:
            case StudyCreated():
                raise JaxresearchError(f"Event {stored.seq} creates the study a second time.")
            case SessionStarted():
                return self._with_session(event)
            case ProposalRequested():
                programs = self.programs if event.text is None else {**self.programs, event.instructions: event.text}
                began = {"round_began": stored.seq, "anchor": stored.hash}
                return moved(self, request=event, checks=(), calls=(), programs=programs, **began)
            case LLMCalled():
                return self._with_call(event)
            case Checked():
                return moved(self, checks=(*self.checks, event), traces=self._traces_with(event.tree, event.trace))
            case Approval():
                return moved(self, approvals={**self.approvals, event.sources: event})
            case ProposalFailed():
                return self._with_failed_proposal(event)
            case Proposed():
                return self._with_proposal(event, stored)
            case Traced():
                return self._with_trace(event)
            case RunStarted():
                return self._changed(event.number, running=event)
            case RunFinished():
                return self._with_run(event)
            case RunDiscarded():
                return self._with_discarded(event)
            case Quarantined():
                return self._changed(event.number, quarantine=event)
            case Decided():
                return self._with_decision(event)
            case TestOpened():
                return moved(self, openings=(*self.openings, Opening(event)))
            case TestScored():
                *before, last = self.openings
                outcomes = (*last.outcomes, (event.number, event.outcome))
                return moved(self, openings=(*before, replace(last, outcomes=outcomes)))
            case TrialOpened():
                return moved(self, trials=(*self.trials, Trial(event)))
            case TrialTraced() | TrialRun() | TrialJudged() | TrialClosed():
                *done, open_trial = self.trials
                return moved(self, trials=(*done, open_trial.apply(event)))
            case Stopped():
                mark = len(self.incidents) if event.incidents else self.incidents_mark
                return moved(self, stopped=event, incidents_mark=mark)
            case _:
                assert_never(event)

    def _with_session(self, event: SessionStarted) -> History:
        before = {name: getattr(self.caps, name) for name in CAPS} if self.caps is not None else {}
        given = {name: getattr(event, name) for name in CAPS if getattr(event, name) is not None}
        entries = tuple(replace(entry, running=None, faults=()) for entry in self.entries)
        return moved(
            self,
            entries=entries,
            sessions=self.sessions + 1,
            stopped=None,
            proposal_streak=0,
            infrastructure_streak=0,
            caps=event.model_copy(update={**before, **given}) if given else self.caps,
        )

    def _with_call(self, event: LLMCalled) -> History:
        return moved(self, costs=self.costs.with_call(event), calls=(*self.calls, event))

    def _with_failed_proposal(self, event: ProposalFailed) -> History:
        return moved(
            self,
            rounds=event.round + 1,
            request=None,
            checks=(),
            refused=self._refused_by_now(),
            calls=(),
            failed_proposals=self.failed_proposals + 1,
            last_failure=event.reason,
            proposal_streak=self.proposal_streak + 1,
        )

    def _with_proposal(self, event: Proposed, stored: StoredEvent) -> History:
        if event.number != len(self.entries):
            raise JaxresearchError(f"Event {stored.seq} proposes experiment {event.number} out of turn.")
        experiment = Experiment(number=event.number, parent=event.proposal.parent, proposal=event.proposal)
        return moved(
            self,
            entries=(*self.entries, Entry(experiment, stored.time, stored.hash, llm=self.asked_llm)),
            rounds=event.round + 1,
            request=None,
            checks=(),
            refused=self._refused_by_now(),
            calls=(),
            proposal_streak=0,
        )

    def _refused_by_now(self) -> tuple[Proposal, ...]:
        found = list(self.refused)
        for check in self.checks:
            gave_none = isinstance(check.trace, TraceFailure) and check.trace.verdict is not Verdict.INFRASTRUCTURE
            same = [
                each for each in found if (each.config, each.edits) == (check.proposal.config, check.proposal.edits)
            ]
            if gave_none and not same:
                found.append(check.proposal)
        return tuple(found[-REFUSALS_KEPT:])

    def _with_trace(self, event: Traced) -> History:
        outcome = event.outcome
        program, key = "", ""
        if isinstance(outcome, TracedCandidate):
            program, key = outcome.program, identity_of(outcome, self.created, ANY_SEED)
        elif outcome.verdict is Verdict.INFRASTRUCTURE:
            experiment = self._published(event.number, commit=event.commit)
            return self._changed(event.number, experiment=experiment)._with_fault(event.number, outcome.reason)
        traced = self._changed(
            event.number,
            experiment=self._published(event.number, commit=event.commit, program=program),
            trace=outcome,
            tree=event.tree,
            key=key,
            size=event.size,
            faults=(),
        )
        return moved(traced, traces=self._traces_with(event.tree, outcome))

    def _with_run(self, event: RunFinished) -> History:
        entry, outcome, own = self.entries[event.number], event.outcome, event.shared_from is None
        costs = self.costs.with_run(outcome) if own else self.costs
        if isinstance(outcome, FailedRun) and outcome.verdict is Verdict.INFRASTRUCTURE:
            return moved(self._changed(event.number, running=None), costs=costs)._with_fault(
                event.number, outcome.reason
            )
        ran = self._changed(
            event.number,
            experiment=self._published(event.number, runs=(*entry.experiment.runs, outcome)),
            running=None,
            faults=(),
            places=(*entry.places, self._place_of(event)),
        )
        more = ran.entries[event.number].spread - entry.spread if entry.verdict is not None else Spread()
        return moved(ran, costs=costs, trained=self.trained + own, spread=self.spread + more)

    def _place_of(self, event: RunFinished) -> int:
        if event.shared_from is None:
            return self.trained
        original = self.entries[event.shared_from]
        placed = zip(original.experiment.runs, original.places, strict=True)
        return next((place for run, place in placed if run.identity == event.outcome.identity), self.trained)

    def _with_discarded(self, event: RunDiscarded) -> History:
        seconds = self.costs.discarded_seconds + event.accelerator_seconds
        return moved(self, costs=moved(self.costs, discarded_seconds=seconds))

    def _with_decision(self, event: Decided) -> History:
        lost = event.verdict is Verdict.INFRASTRUCTURE
        experiment = self._published(event.number, verdict=event.verdict, reason=event.reason)
        decided = self._changed(event.number, experiment=experiment, decision=event)
        decided = decided._without_faults(self.incumbent_number)._without_faults(self.reference_number)
        kept = event.verdict is Verdict.KEEP
        best = event.number if event.reference is None else event.reference
        return moved(
            decided,
            spread=self.spread + decided.entries[event.number].spread,
            incumbent_number=event.number if kept else self.incumbent_number,
            reference_number=best if kept else self.reference_number,
            infrastructure_streak=self.infrastructure_streak + 1 if lost else 0,
        )

    def _with_fault(self, number: int, reason: str) -> History:
        return self._changed(number, faults=(*self.entries[number].faults, reason))

    def _without_faults(self, number: int) -> History:
        return self._changed(number, faults=()) if self.entries[number].faults else self

    def _traces_with(self, tree: str, outcome: TraceOutcome | None) -> Mapping[str, TraceOutcome]:
        """What is worth remembering: a timeout or an infrastructure failure might end otherwise the next time."""
        passing = not isinstance(outcome, TracedCandidate) and (
            outcome is None or outcome.verdict in (Verdict.TIMEOUT, Verdict.INFRASTRUCTURE)
        )
        return self.traces if passing or not tree or outcome is None else {**self.traces, tree: outcome}

    def _changed(self, number: int, **changes: object) -> History:
        entry = moved(self.entries[number], **changes)
        return moved(self, entries=(*self.entries[:number], entry, *self.entries[number + 1 :]))

    def _published(self, number: int, **changes: object) -> Experiment:
        return self.entries[number].experiment.model_copy(update=changes)


_Data = TypeVar("_Data")


def moved(data: _Data, **changes: Any) -> _Data:
    """`dataclasses.replace`, which asks every field of a class in turn: most of the time that a long ledger took."""
    found = object.__new__(type(data))
    vars(found).update(vars(data), **changes)
    return found


def fold(events: Iterable[StoredEvent]) -> History:
    """The history of `events`, the first of which must have created the study."""
    remaining = iter(events)
    first = next(remaining, None)
    if first is None or not isinstance(first.event, StudyCreated):
        raise JaxresearchError("The ledger does not begin with the creation of a study.", fix="Restore it.")
    baseline = Entry(Experiment(number=0, parent=None, proposal=None), first.time, first.hash)
    history = History(created=first.event, entries=(baseline,), seq=first.seq, head=first.hash, time=first.time)
    for stored in remaining:
        history = history.apply(stored)
    return history

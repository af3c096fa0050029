"""Replay: derives every decision of a study again from its ledger and workspace. No key, no network, no training.

Given as they are recorded: the model's replies, what tracing and running gave. Derived, and compared event by event:
when the strategy was asked and with which seed, what it proposed, each candidate's sources, what `check` answered,
which run came next and under which identity, and every verdict. The first difference ends it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import assert_never

from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import RunProgress, RunRequest, TracedCandidate, TraceFailure
from jaxresearch.experiment import RunOutcome, Verdict
from jaxresearch.llm import REDACTED, LLMCall
from jaxresearch.proposal import Candidate, EditError, apply
from jaxresearch.statistics.acceptance import Acceptance
from jaxresearch.strategy import Strategy
from jaxresearch.study.approval import Gate
from jaxresearch.study.asking import NOTHING_LEFT, asked, events_of_round
from jaxresearch.study.events import (
    Approval,
    Checked,
    Decided,
    Event,
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
from jaxresearch.study.history import History, fold
from jaxresearch.study.identity import candidate_fingerprint, round_seed, text_fingerprint
from jaxresearch.study.ledger import StoredEvent
from jaxresearch.study.pairing import search_identity
from jaxresearch.study.reporter import NullReporter, Reporter
from jaxresearch.study.size import CodeSize, code_size
from jaxresearch.study.steps import AskStrategy, Decide, Finish, Isolate, RunCandidate, Step, TraceCandidate, next_step
from jaxresearch.study.stopping import Stop
from jaxresearch.study.study import Study
from jaxresearch.study.view import Checker, study_view
from jaxresearch.study.workspace import Workspace
from jaxresearch.text import one_line


class ReplayDifference(JaxresearchError):  # noqa: N818 - what it found, not what went wrong
    """The ledger says something else than replaying it gives."""


@dataclass(frozen=True)
class Replayed:
    """What was derived again and found equal. `open_round`: the last round has no outcome yet, so it was not judged."""

    events: int = 0
    rounds: int = 0
    proposals: int = 0
    candidates: int = 0
    checks: int = 0
    runs: int = 0
    verdicts: int = 0
    llm_calls: int = 0
    open_round: bool = False


async def replay(study: Study, strategy: Strategy, *, acceptance: Acceptance | None = None) -> Replayed:
    """Derive every decision of `study` again. Raises `ReplayDifference` that names the first event that differs."""
    events = list(study.events())
    replayer = _Replayer(study.workspace, strategy, acceptance or study.rule, study.instructions())
    replayer.start(events[0])
    at = 1
    while at < len(events):
        at += await replayer.advance(events, at)
    return replace(replayer.counts, events=len(events))


class _Replayer:
    def __init__(self, workspace: Workspace, strategy: Strategy, acceptance: Acceptance, instructions: str) -> None:
        self._workspace = workspace
        self._strategy = strategy
        self._acceptance = acceptance
        self._instructions = instructions
        self._program_is_lost = False
        self.counts = Replayed()
        self.history: History

    def start(self, first: StoredEvent) -> None:
        self.history = fold([first])
        tree = candidate_fingerprint(self._workspace.candidate(self._workspace.resolve("baseline")))
        self._expect(first, "subject", tree, self.history.created.subject)

    async def advance(self, events: list[StoredEvent], at: int) -> int:
        """Judge the event `at`, move the history on, and return by how many events."""
        stored = events[at]
        event = stored.event
        match event:
            case StudyCreated() | SessionStarted() | TestOpened() | TestScored() | Approval():
                pass  # the sealed test decides nothing, and a person's answer is given
            case RunDiscarded():
                pass  # nor does a run that was not needed
            case TrialOpened() | TrialTraced() | TrialRun() | TrialJudged() | TrialClosed():
                pass  # nor does what was run beside the search
            case ProposalRequested():
                self._requested(stored, event)
            case LLMCalled():
                self._round_of(stored, event.round)
                self._expect(stored, "ordinal", len(self.history.calls), event.ordinal)
                self._count("llm_calls")
            case Checked():
                await self._checked(stored, event)
            case ProposalFailed() | Proposed():
                return await self._round(events, at)
            case Traced():
                self._traced(stored, event)
            case RunStarted():
                self._run_started(stored, event)
            case RunFinished():
                self._run_finished(stored, event)
            case Quarantined():
                step = self._step()
                derived = step.event if isinstance(step, Isolate) else _described(step)
                self._expect(stored, "the quarantine", derived, event)
            case Decided():
                step = self._step()
                derived = step.decision if isinstance(step, Decide) else None
                self._expect(stored, "the verdict", derived or _described(step), event)
                self._count("verdicts")
            case Stopped():
                await self._stopped(stored, event)
            case _:
                assert_never(event)
        self._apply(stored)
        return 1

    # What the laboratory decides

    def _requested(self, stored: StoredEvent, event: ProposalRequested) -> None:
        step = self._step()
        if not isinstance(step, AskStrategy):
            raise self._difference(stored, f"the next step is {_described(step)}, not to ask the strategy")
        self._expect(stored, "round and slots", (step.round, step.slots), (event.round, event.slots))
        self._expect(stored, "the round's seed", round_seed(self.history.config, event.round), event.seed)
        if event.text is not None and REDACTED not in event.text:
            self._expect(stored, "program.md's SHA-256", text_fingerprint(event.text), event.instructions)
        self.counts = replace(self.counts, open_round=True)

    def _traced(self, stored: StoredEvent, event: Traced) -> None:
        self._expect(stored, "the next step", _described(self._step()), _described(TraceCandidate(event.number)))
        proposal = self.history.entries[event.number].experiment.proposal
        committed = self._workspace.candidate(event.commit)
        if proposal is None:
            self._expect(stored, "the baseline", self.history.created.subject, candidate_fingerprint(committed))
            return
        parent = self._workspace.candidate(self.history.entries[proposal.parent].experiment.commit)
        tree = ""
        try:
            candidate = apply(proposal, parent)
            tree = candidate_fingerprint(candidate) if event.tree else ""
        except EditError:
            candidate = parent
        self._expect(stored, "the candidate's sources", tree, event.tree)
        if tree:
            self._expect(stored, "the committed sources", tree, candidate_fingerprint(committed))
            if event.size is not None:
                self._expect(stored, "the size of the sources", self._size(committed), event.size)
            known = self.history.traces.get(tree)
            if known is not None:
                self._expect(stored, "what tracing gave before", known, event.outcome)
        self._count("candidates")

    def _size(self, candidate: Candidate) -> CodeSize:
        return code_size(candidate, self._workspace.candidate(self._workspace.resolve("baseline")))

    def _run_started(self, stored: StoredEvent, event: RunStarted) -> None:
        self._expect(stored, "the run", self._next_run(), (event.number, event.seed, event.identity))

    def _run_finished(self, stored: StoredEvent, event: RunFinished) -> None:
        outcome = event.outcome
        self._expect(stored, "the run", self._next_run(), (event.number, outcome.seed, outcome.identity))
        known = self.history.known_run(outcome.identity)
        self._expect(stored, "the run that is shared", known[0] if known else None, event.shared_from)
        if known is not None:
            self._expect(stored, "the shared score", known[1], outcome)
        elif self.history.entries[event.number].running is None:
            raise self._difference(stored, "the run was never started")
        self._count("runs")

    def _next_run(self) -> object:
        step = self._step()
        if not isinstance(step, RunCandidate):
            return _described(step)
        entry = self.history.entries[step.number]
        return step.number, step.seed, search_identity(self.history, entry, step.seed)

    async def _stopped(self, stored: StoredEvent, event: Stopped) -> None:
        if not event.finished:
            return
        if event.reason == NOTHING_LEFT:
            self._expect(stored, "what the strategy proposes", await self._asked(stored), ())
            return
        later = max(0.0, stored.time - self.history.time)
        step = self._step(self.history.costs.wall_seconds + later)
        ended = isinstance(step, Finish) and step.reason == event.reason
        if not ended:
            raise self._difference(stored, f"the study ended ({event.reason}), but the next step is {_described(step)}")

    # What the strategy decides

    async def _round(self, events: list[StoredEvent], at: int) -> int:
        """Ask the strategy for the open round again; compare all events that it amounted to."""
        derived = await self._asked(events[at])
        for offset, expected in enumerate(derived):
            if at + offset >= len(events):
                raise self._difference(events[-1], f"the strategy also gives {_named(expected)}")
            recorded = events[at + offset]
            if not self._same_failure(recorded.event, expected):
                self._expect(recorded, "what the strategy gives", expected, recorded.event)
        if not derived:
            raise self._difference(events[at], "the strategy has nothing left to try")
        proposals = 0
        for stored in events[at : at + len(derived)]:
            proposals += isinstance(stored.event, Proposed)
            self._apply(stored)
        counts = self.counts
        self.counts = replace(
            counts, rounds=counts.rounds + 1, proposals=counts.proposals + proposals, open_round=False
        )
        return len(derived)

    def _same_failure(self, recorded: Event, derived: Event) -> bool:
        """A provider's exception is recorded as text, so after one only the failure itself can be the same.

        A reason may say more than it did when it was recorded.
        """
        if not (isinstance(recorded, ProposalFailed) and isinstance(derived, ProposalFailed)):
            return False
        by_provider = any(call.record.get("failure") == "proposal" for call in self.history.calls)
        return by_provider or (recorded.round == derived.round and derived.reason.startswith(f"{recorded.reason}: "))

    async def _asked(self, stored: StoredEvent) -> tuple[Event, ...]:
        from jaxresearch.llm import ReplayModel

        request = self.history.request
        if request is None:
            raise self._difference(stored, "the strategy was not asked")
        model = ReplayModel([LLMCall.model_validate(call.record) for call in self.history.calls])
        journal = _Recorded(self.history)
        view = study_view(
            journal,  # type: ignore[arg-type]
            self._workspace,
            _NoExecutor(None),
            lambda record: model,
            request,
            self._program(request),
        )
        try:
            derived = await events_of_round(asked(self._strategy, view, request.slots), self.history, request)
        except JaxresearchError as error:
            raise self._difference(stored, f"the strategy ends with: {error}") from error
        if journal.new:
            raise self._difference(
                stored, f"the strategy asks about {_asked_about(journal.new[0])}, and did not then: has it changed?"
            )
        if model.unused:
            raise self._difference(stored, f"the strategy leaves {model.unused} recorded model replies unused")
        return derived

    def _program(self, request: ProposalRequested) -> str:
        """program.md as that round read it. Ledgers from before they held it leave the file as it is now."""
        kept = self.history.programs.get(request.instructions)
        if kept is not None:
            return kept
        self._program_is_lost = request.instructions not in map(text_fingerprint, (self._instructions, ""))
        return "" if self._program_is_lost else self._instructions

    async def _checked(self, stored: StoredEvent, event: Checked) -> None:
        self._round_of(stored, event.round)
        journal = _Recorded(self.history)
        baseline = self._workspace.candidate(self._workspace.resolve("baseline"))
        gate = Gate(journal, baseline, None, Stop())  # type: ignore[arg-type]
        executor = _NoExecutor(event.trace)
        checker = Checker(journal, self._workspace, executor, event.round, gate, event.nonce)  # type: ignore[arg-type]
        await checker.check(event.proposal)
        self._expect(stored, "what `check` answers", journal.new[0] if journal.new else None, event)
        self._count("checks")

    def _round_of(self, stored: StoredEvent, number: int) -> None:
        request = self.history.request
        self._expect(stored, "the open round", request.round if request is not None else None, number)

    # Tools

    def _step(self, wall_seconds: float = 0.0) -> Step:
        """Time is given and not derived, so `max_seconds` ends nothing here but a study that says so."""
        return next_step(self.history, self._acceptance, wall_seconds=wall_seconds)

    def _apply(self, stored: StoredEvent) -> None:
        self.history = self.history.apply(stored)

    def _count(self, what: str) -> None:
        self.counts = replace(self.counts, **{what: getattr(self.counts, what) + 1})

    def _expect(self, stored: StoredEvent, what: str, derived: object, recorded: object) -> None:
        if derived != recorded:
            raise self._difference(stored, f"{what}: derived {_named(derived)}, recorded {_named(recorded)}")

    def _difference(self, stored: StoredEvent, what: str) -> ReplayDifference:
        lost = (
            " (program.md was edited since, and this ledger does not hold what it was)" if self._program_is_lost else ""
        )
        return ReplayDifference(f"Replay differs at event {stored.seq} ({stored.event.kind}): {what}{lost}.")


class _Recorded:
    """A journal that knows the history and only notes what somebody wants to add to it."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.reporter: Reporter = NullReporter()
        self.new: list[Event] = []

    def record(self, *events: Event) -> None:
        self.new += events


class _NoExecutor:
    """Traces nothing: it gives what was recorded. Runs nothing at all."""

    def __init__(self, trace: TraceOutcome | None) -> None:
        self._trace = trace

    async def trace(self, candidate: Candidate) -> TracedCandidate | TraceFailure:
        del candidate
        return self._trace or TraceFailure(verdict=Verdict.INFRASTRUCTURE, reason="nothing is traced in a replay")

    async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
        raise AssertionError("nothing is run in a replay")

    async def close(self) -> None:
        pass


def _asked_about(event: Event) -> str:
    """A new question only: nothing was traced, so its answer means nothing."""
    return repr(event.proposal.hypothesis[:120]) if isinstance(event, Checked) else _named(event)


def _described(step: Step) -> str:
    match step:
        case TraceCandidate(number=number):
            return f"tracing experiment {number}"
        case RunCandidate(number=number, seed=seed):
            return f"running experiment {number} with seed {seed}"
        case Decide(decision=decision):
            return f"the verdict {decision.verdict} on experiment {decision.number}"
        case Isolate(event=event):
            return f"putting experiment {event.number} into quarantine"
        case AskStrategy(round=number):
            return f"round {number}"
        case Finish(reason=reason):
            return f"the end ({reason})"
        case _:
            return f"giving up ({step.reason})"


def _named(what: object) -> str:
    """An event or a value in a few words."""
    match what:
        case Proposed(number=number, proposal=proposal):
            change = ", ".join([*map(str, proposal.config.items()), *(f"edit {edit.path}" for edit in proposal.edits)])
            return f"experiment {number} on {proposal.parent}: {proposal.hypothesis[:120]!r} ({one_line(change)})"
        case ProposalFailed(reason=reason):
            return f"no proposal ({reason[:200]})"
        case Decided(verdict=verdict, reason=reason):
            return f"{verdict} ({reason[:160]})"
        case Checked(proposal=proposal, finding=finding):
            return f"{proposal.hypothesis[:120]!r}: {finding or 'nothing wrong'}"
        case _:
            return str(what)[:200]

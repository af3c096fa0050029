"""The driver: does what `next_step` says, one step after another, and records what came of each."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import Executor, RunProgress, TraceFailure
from jaxresearch.experiment import Experiment, Verdict
from jaxresearch.llm import LLMBudgetSpent, known_secrets, redact
from jaxresearch.proposal import Candidate, EditError, Proposal, apply
from jaxresearch.statistics.acceptance import Acceptance
from jaxresearch.strategy import Strategy
from jaxresearch.study.ahead import Ahead
from jaxresearch.study.approval import Approver, Gate
from jaxresearch.study.asking import NOTHING_LEFT, asked, check_fit, events_of_round
from jaxresearch.study.entry import Entry
from jaxresearch.study.events import (
    ProposalRequested,
    RunFinished,
    RunStarted,
    SessionStarted,
    Stopped,
    Traced,
    TraceOutcome,
)
from jaxresearch.study.foresight import Foresight
from jaxresearch.study.history import History
from jaxresearch.study.identity import candidate_fingerprint, round_seed, text_fingerprint
from jaxresearch.study.journal import Journal
from jaxresearch.study.requests import attempt, search_request
from jaxresearch.study.shelf import Shelf
from jaxresearch.study.size import code_size
from jaxresearch.study.steps import (
    AskStrategy,
    Decide,
    Finish,
    GiveUp,
    Isolate,
    RunCandidate,
    TraceCandidate,
    next_step,
)
from jaxresearch.study.stopping import Interrupted, Stop
from jaxresearch.study.view import ModelFactory, study_view, trace_once
from jaxresearch.study.workspace import Workspace


@dataclass(frozen=True)
class Ending:
    """How a session ended. finished: the study reached its end. interrupted: a person stopped it.

    paused: by a person, or by itself for too many incidents.
    """

    reason: str
    finished: bool
    interrupted: bool
    paused: bool = False
    incidents: bool = False


class Driver:
    """One session of a study. It keeps nothing that the journal does not hold."""

    def __init__(
        self,
        journal: Journal,
        workspace: Workspace,
        *,
        executor: Executor,
        strategy: Strategy,
        model_factory: ModelFactory,
        acceptance: Acceptance,
        instructions: Callable[[], str],
        stop: Stop,
        clock: Callable[[], float],
        pause: Callable[[History], str | None] = lambda history: None,
        shelf: Shelf | None = None,
        pause_wanted: Callable[[], bool] = lambda: False,
        approver: Approver | None = None,
        caps: Mapping[str, Any] | None = None,
    ) -> None:
        self._journal = journal
        self._workspace = workspace
        self._strategy = strategy
        self._model_factory = model_factory
        self._acceptance = acceptance
        self._instructions = instructions
        self._stop = stop
        self._clock = clock
        self._pause = pause
        self._shelf = shelf
        self._pause_wanted = pause_wanted
        self._gate = Gate(journal, workspace.candidate(workspace.resolve("baseline")), approver, stop)
        self._caps = caps or {}
        foresight = Foresight(workspace, acceptance, may_trace=self._gate.passes, keeps_state=self._keeps_state)
        self._executor = Ahead(executor, journal, foresight, stop)

    @property
    def _history(self) -> History:
        return self._journal.history

    async def drive(self) -> Ending:
        """Go on until the study ends or is stopped.

        Raises `JaxresearchError` when it cannot go on as things are; it may be resumed once they are repaired.
        """
        self._workspace.clear_stale_locks()
        self._journal.record(SessionStarted(pid=os.getpid(), host=socket.gethostname(), **self._caps))
        self._point_at_incumbent()
        try:
            check_fit(self._history)
            ending = await self._until_the_end()
        except Interrupted:
            ending = self._end_of_time() or Ending("interrupted", finished=False, interrupted=True)
        except JaxresearchError as error:
            self._journal.record(Stopped(reason=str(error), failed=True))
            raise
        self._journal.record(
            Stopped(
                reason=ending.reason,
                finished=ending.finished,
                interrupted=ending.interrupted,
                incidents=ending.incidents,
            )
        )
        return ending

    async def _until_the_end(self) -> Ending:
        try:
            while True:
                if self._stop.requested:
                    raise Interrupted
                self._executor.look()
                ending = self._pausing() or await self._do_next()
                if ending is not None:
                    return ending
        finally:
            await self._executor.end()

    def _end_of_time(self) -> Ending | None:
        """The study's end, when the work at hand was given up because its time is used."""
        step = next_step(self._history, self._acceptance, wall_seconds=self._wall_seconds())
        if self._stop.out_of_time and isinstance(step, Finish):
            return Ending(step.reason, finished=True, interrupted=False)
        return None

    def _wall_seconds(self) -> float:
        return self._history.costs.wall_seconds + max(0.0, self._clock() - self._history.time)

    def _pausing(self) -> Ending | None:
        """Whether to end this session here. A person's pause waits for the verdict on what is at hand."""
        history = self._history
        limit = history.config.oversight.max_incidents
        if limit is not None and history.counted_incidents >= limit:
            reason = f"{history.counted_incidents} incidents, and oversight.max_incidents is {limit}"
            return Ending(reason, finished=False, interrupted=False, paused=True, incidents=True)
        if history.pending is not None:
            return None
        if self._pause_wanted():
            return Ending("paused by a person", finished=False, interrupted=False, paused=True)
        reason = self._pause(history)
        return None if reason is None else Ending(reason, finished=False, interrupted=False)

    async def _do_next(self) -> Ending | None:
        history = self._history
        step = next_step(history, self._acceptance, wall_seconds=self._wall_seconds())
        match step:
            case TraceCandidate(number=number):
                await self._trace(history.entries[number])
            case RunCandidate(number=number, seed=seed):
                await self._run(history.entries[number], seed)
            case Isolate(event=event):
                self._journal.record(event)
            case Decide(decision=decision):
                self._journal.record(decision)
                self._point_at_incumbent()
                if self._shelf is not None:
                    self._shelf.prune(self._history, busy=self._executor.identities)
            case AskStrategy(round=round_number, slots=slots):
                return await self._ask(round_number, slots)
            case Finish(reason=reason):
                return Ending(reason, finished=True, interrupted=False)
            case GiveUp(reason=reason, fix=fix):
                raise JaxresearchError(f"{reason.rstrip('.')}.", fix=fix)
            case _:
                assert_never(step)
        return None

    def _point_at_incumbent(self) -> None:
        commit = self._history.incumbent.experiment.commit
        if commit:
            self._workspace.set_incumbent(commit)

    # Tracing

    async def _trace(self, entry: Entry) -> None:
        candidate, tree, commit, error = self._committed(entry)
        if error is not None:
            outcome: TraceOutcome = TraceFailure(verdict=Verdict.CRASH, reason=f"the proposal does not apply: {error}")
        else:
            outcome = await self._refused(entry, candidate) or await self._stop.obey(
                trace_once(self._history, self._executor, candidate, tree), requests=2
            )
        size = code_size(candidate, self._workspace.candidate(self._workspace.resolve("baseline")))
        self._journal.record(Traced(number=entry.number, commit=commit, tree=tree, outcome=outcome, size=size))
        if entry.number == 0:
            check_fit(self._history)

    async def _refused(self, entry: Entry, candidate: Candidate) -> TraceFailure | None:
        """A failure in the place of a trace, when a person does not want these sources traced."""
        proposal = entry.experiment.proposal
        if proposal is None:
            return None
        parent = self._workspace.candidate(self._history.entries[proposal.parent].experiment.commit)
        refusal = await self._stop.obey(self._gate.refusal(proposal, candidate, parent), requests=1)
        return None if refusal is None else TraceFailure(verdict=Verdict.DISCARD, reason=refusal)

    def _committed(self, entry: Entry) -> tuple[Candidate, str, str, EditError | None]:
        """The entry's candidate, its fingerprint and commit. With an error it is the parent's, committed once more."""
        proposal = entry.experiment.proposal
        if proposal is None:
            return self._baseline()
        parent_commit = self._history.entries[proposal.parent].experiment.commit
        parent, message = self._workspace.candidate(parent_commit), _message(entry, proposal)
        try:
            candidate = apply(proposal, parent)
            commit = self._workspace.commit(entry.number, candidate, parent_commit, message, when=entry.time)
        except EditError as error:
            commit = self._workspace.commit(entry.number, parent, parent_commit, message, when=entry.time)
            return parent, "", commit, error
        return candidate, candidate_fingerprint(candidate), commit, None

    def _baseline(self) -> tuple[Candidate, str, str, None]:
        commit = self._workspace.resolve("baseline")
        candidate = self._workspace.candidate(commit)
        tree = candidate_fingerprint(candidate)
        if tree != self._history.created.subject:
            raise JaxresearchError(
                "The workspace's baseline is not the subject of this study.", fix="Start a new study."
            )
        return candidate, tree, commit, None

    # Running

    async def _run(self, entry: Entry, seed: int) -> None:
        request = search_request(self._history, entry, seed, keep_state=self._keeps_state(entry.experiment))
        known = self._history.known_run(request.identity)
        if known is not None:
            number, outcome = known
            self._journal.record(RunFinished(number=entry.number, outcome=outcome, shared_from=number))
            return
        self._journal.record(RunStarted(number=entry.number, identity=request.identity, seed=seed))

        def on_progress(progress: RunProgress) -> None:
            self._journal.reporter.on_progress(entry.number, seed, progress)

        outcome = await self._stop.obey(attempt(self._executor, request, on_progress), requests=2)
        self._journal.record(RunFinished(number=entry.number, outcome=outcome))

    def _keeps_state(self, experiment: Experiment) -> bool:
        return self._shelf is not None and self._shelf.wants(experiment)

    # Proposing

    async def _ask(self, round_number: int, slots: int) -> Ending | None:
        instructions = self._instructions()
        request = ProposalRequested(
            round=round_number,
            slots=slots,
            seed=round_seed(self._history.config, round_number),
            instructions=text_fingerprint(instructions),
        )
        there = self._history.request
        if there is None or there.model_copy(update={"text": None}) != request:
            known = not instructions or request.instructions in self._history.programs
            text = None if known else redact(instructions, known_secrets())
            self._journal.record(request.model_copy(update={"text": text}))
        view = study_view(
            self._journal, self._workspace, self._executor, self._model_factory, request, instructions, self._gate
        )
        asking = self._stop.obey(asked(self._strategy, view, slots), requests=1)
        try:
            events = await events_of_round(asking, self._history, request)
        except LLMBudgetSpent as spent:
            return Ending(str(spent), finished=False, interrupted=False)
        if not events:
            return Ending(NOTHING_LEFT, finished=True, interrupted=False)
        self._journal.record(*events)
        return None


def _message(entry: Entry, proposal: Proposal) -> str:
    """A commit's message. Its last line anchors the ledger: the hash of the event that proposed the experiment."""
    return (
        f"{proposal.hypothesis.strip() or 'No hypothesis'}\n\n"
        f"Experiment: {entry.number}\nParent: {proposal.parent}\nLedger: {entry.anchor}"
    )

"""What a strategy sees in one round: the StudyView over a journal and a workspace, and its `check`."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import Executor, ExecutorLostError, TracedCandidate, TraceFailure
from jaxresearch.experiment import Verdict
from jaxresearch.files import DiskFullError, is_full
from jaxresearch.proposal import Candidate, EditError, Hyperparameter, Proposal, apply, config_problem
from jaxresearch.strategy import StudyView
from jaxresearch.study.approval import Gate
from jaxresearch.study.constraints import broken_by_trace
from jaxresearch.study.entry import Entry
from jaxresearch.study.events import Checked, LLMCalled, ProposalRequested, Proposed, TraceOutcome, decode, encode
from jaxresearch.study.history import History
from jaxresearch.study.identity import ANY_SEED, candidate_fingerprint, identity_of
from jaxresearch.study.journal import Journal
from jaxresearch.study.simplicity import margin_bpb
from jaxresearch.study.size import code_size
from jaxresearch.study.workspace import Workspace, check_tree
from jaxresearch.text import fenced

ModelFactory = Callable[[Callable[[BaseModel], None]], Any]
"""Makes the view's model. Its argument is to be called with the record of every request that the model answers."""


def study_view(
    journal: Journal,
    workspace: Workspace,
    executor: Executor,
    model_factory: ModelFactory,
    request: ProposalRequested,
    instructions: str,
    gate: Gate | None = None,
) -> StudyView:
    """The view of the round that `request` opened."""
    history = journal.history
    noise = history.noise

    def record_call(record: BaseModel) -> None:
        ordinal = len(journal.history.calls)
        journal.record(LLMCalled(round=request.round, ordinal=ordinal, record=record.model_dump(mode="json")))

    return StudyView(
        experiments=history.experiments,
        incumbent=history.incumbent.experiment,
        seed=request.seed,
        noise_sd=noise.sd_bpb if noise is not None else None,
        budget=history.config.budget,
        instructions=instructions,
        candidate=lambda number: workspace.candidate(history.entries[number].experiment.commit),
        hyperparameters=lambda number: hyperparameters_of(history, number),
        diff=lambda number: diff_of(history, workspace, number),
        model=model_factory(record_call),
        max_requests=history.config.llm.max_requests,
        check=Checker(journal, workspace, executor, request.round, gate).check,
        constraints=history.config.constraints.binding,
        simplicity_bpb=margin_bpb(history),
        refused=history.refused,
        nonce=hashlib.sha256(f"{history.anchor} digest".encode()).hexdigest()[:16],
    )


def hyperparameters_of(history: History, number: int) -> tuple[Hyperparameter, ...]:
    """What experiment `number` declares; what its nearest traced ancestor declares when it gave no program."""
    entry: Entry = history.entries[number]
    while not isinstance(entry.trace, TracedCandidate):
        if entry.experiment.parent is None:
            return ()
        entry = history.entries[entry.experiment.parent]
    return entry.trace.hyperparameters


def diff_of(history: History, workspace: Workspace, number: int) -> str:
    """Unified diff of experiment `number` against its parent; empty for the baseline, and before it has a commit."""
    experiment = history.entries[number].experiment
    if experiment.parent is None or not experiment.commit:
        return ""
    return workspace.diff(history.entries[experiment.parent].experiment.commit, experiment.commit)


class Checker:
    """Answers a strategy's `check` in one round, and records each answer: the same question has the same one."""

    def __init__(
        self,
        journal: Journal,
        workspace: Workspace,
        executor: Executor,
        round_number: int,
        gate: Gate | None = None,
        nonce: str | None = None,
    ) -> None:
        """gate: asks a person first; None lets everything pass. nonce: of a recorded check; None draws one each time."""
        self._journal = journal
        self._workspace = workspace
        self._executor = executor
        self._round = round_number
        self._gate = gate
        self._nonce = nonce
        self._one_at_a_time = asyncio.Lock()

    async def check(self, proposal: Proposal) -> str | None:
        """What is wrong with `proposal` (it does not apply, does not trace, was tried before), or None."""
        async with self._one_at_a_time:
            wrong = proposal_error(self._journal.history, proposal)
            if wrong is not None:
                return wrong
            for earlier in self._journal.history.checks:
                if earlier.proposal == proposal:
                    return earlier.finding
            checked = await self._checked(proposal)
            self._journal.record(checked)
            return checked.finding

    async def _checked(self, proposal: Proposal) -> Checked:
        history = self._journal.history
        try:
            parent = self._workspace.candidate(history.entries[proposal.parent].experiment.commit)
            candidate = apply(proposal, parent)
            check_tree(candidate)
        except EditError as error:
            return Checked(round=self._round, proposal=proposal, finding=str(error))
        tree = candidate_fingerprint(candidate)
        known = history.same_as(tree=tree, key="", before=len(history.entries))
        if known is not None:
            finding = _tried("sources", known)
            return Checked(round=self._round, proposal=proposal, finding=finding, tree=tree)
        refusal = await self._gate.refusal(proposal, candidate, parent) if self._gate is not None else None
        if refusal is not None:
            return Checked(round=self._round, proposal=proposal, finding=f"{refusal}.", tree=tree)
        trace = await trace_once(history, self._executor, candidate, tree)
        nonce = secrets.token_hex(8) if self._nonce is None else self._nonce
        finding = _finding(history, trace, nonce)
        if finding is None and isinstance(trace, TracedCandidate):
            baseline = self._workspace.candidate(self._workspace.resolve("baseline"))
            broken = broken_by_trace(history.config.constraints, trace, code_size(candidate, baseline))
            finding = None if broken is None else f"It would be discarded: {broken}."
        return Checked(round=self._round, proposal=proposal, finding=finding, tree=tree, trace=trace, nonce=nonce)


async def trace_once(history: History, executor: Executor, candidate: Candidate, tree: str) -> TraceOutcome:
    """What tracing `candidate` gives, from the history when it was done before. Our own failures become values."""
    if tree in history.traces:
        return history.traces[tree]
    try:
        return await executor.trace(candidate)
    except ExecutorLostError:
        raise
    except Exception as error:
        if is_full(error):
            raise DiskFullError(error) from None
        why = str(error) if isinstance(error, JaxresearchError) else repr(error)
        return TraceFailure(verdict=Verdict.INFRASTRUCTURE, reason=f"tracing failed on our side: {why}")


def proposal_error(history: History, proposal: Proposal) -> str | None:
    """Why `proposal` cannot become an experiment at all, or None."""
    if not 0 <= proposal.parent < len(history.entries):
        return f"There is no experiment {proposal.parent} to build on. Use 0 to {len(history.entries) - 1}."
    if not history.entries[proposal.parent].experiment.commit:
        return f"Experiment {proposal.parent} is not ready to be built on. Use the incumbent."
    if proposal.repairs is not None and not 0 < proposal.repairs < len(history.entries):
        return f"There is no experiment {proposal.repairs} to repair."
    try:
        decode(encode(Proposed(round=0, number=0, proposal=proposal)))
    except ValueError as error:
        return f"The proposal cannot be written down: {error}."
    wrong = config_problem(proposal.config)
    return None if wrong is None else f"The proposal cannot be an experiment: {wrong}."


def _finding(history: History, trace: TraceOutcome, nonce: str) -> str | None:
    """nonce: of the fence around what the candidate printed. Ledgers from before there were fences have none."""
    if isinstance(trace, TraceFailure):
        if not nonce:
            tail = "\n".join(trace.traceback.splitlines()[-15:])
            return f"{trace.verdict}: {trace.reason}" + (f"\n{tail}" if tail else "")
        if trace.verdict is not Verdict.CRASH and not trace.traceback:
            return f"{trace.verdict}: {trace.reason}"
        printed = (
            f"{trace.traceback.rstrip()}\n{trace.reason}" if trace.reason not in trace.traceback else trace.traceback
        )
        return f"{trace.verdict}: it gave no program. " + fenced(printed, nonce, "What it said")
    key = identity_of(trace, history.created, ANY_SEED)
    known = history.same_as(tree="", key=key, before=len(history.entries))
    return None if known is None else _tried("program and values", known)


def _tried(what: str, entry: Entry) -> str:
    return f"Same {what} as experiment {entry.number} ({entry.verdict or 'pending'}): it would be a duplicate."

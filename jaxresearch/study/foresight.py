"""Foresight: what the experiments that wait in a round will need next, were the history to go on as it looks now.

A supposed history is walked, experiment by experiment, with the very rules that the driver obeys (`steps`, `judging`,
`requests`) and with what is already known ahead of it. A prediction may turn out wrong; then it only cost time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from jaxresearch.execution.base import RunRequest, TracedCandidate, TraceFailure
from jaxresearch.experiment import CompletedRun, Experiment, FailedRun, RunOutcome, Verdict
from jaxresearch.proposal import Candidate, EditError, apply
from jaxresearch.statistics.acceptance import Acceptance
from jaxresearch.study.entry import Entry
from jaxresearch.study.events import Event, RunFinished, Traced, TraceOutcome
from jaxresearch.study.history import History
from jaxresearch.study.identity import candidate_fingerprint, run_seeds
from jaxresearch.study.ledger import StoredEvent
from jaxresearch.study.requests import search_request
from jaxresearch.study.size import CodeSize, code_size
from jaxresearch.study.steps import Decide, Isolate, RunCandidate, TraceCandidate, contender_step
from jaxresearch.study.workspace import Workspace


@dataclass(frozen=True)
class TraceNeed:
    """Experiment `number` needs `candidate`, of fingerprint `tree`, to be traced."""

    number: int
    candidate: Candidate
    tree: str

    @property
    def key(self) -> str:
        return trace_key(self.tree)


@dataclass(frozen=True)
class RunNeed:
    """Experiment `number` needs a run of experiment `runner`: of itself, or another one of what it is compared with."""

    number: int
    runner: int
    request: RunRequest

    @property
    def key(self) -> str:
        return run_key(self.request)


Need = TraceNeed | RunNeed


@dataclass
class Needs:
    """What is needed, in the order in which the driver will ask; what is answered already is there too.

    unclear: experiments whose needs cannot be told yet. What was begun for them stays.
    """

    wanted: list[Need] = field(default_factory=list)
    unclear: set[int] = field(default_factory=set)


def trace_key(tree: str) -> str:
    return f"trace {tree}"


def run_key(request: RunRequest) -> str:
    """Equal for requests that are equal in everything, the audit's reference and the limits of a cut included."""
    return request.model_dump_json()


@dataclass(frozen=True)
class _Applied:
    """A proposal applied to its parent; without a candidate it does not apply."""

    candidate: Candidate | None
    tree: str
    size: CodeSize | None


class Foresight:
    """Predicts needs from a history and the results that are known ahead of it.

    may_trace: whether nobody need be asked before a candidate is traced. keeps_state: whether the next run of an
    experiment keeps its final state.
    """

    def __init__(
        self,
        workspace: Workspace,
        acceptance: Acceptance,
        *,
        may_trace: Callable[[Candidate], bool],
        keeps_state: Callable[[Experiment], bool],
    ) -> None:
        self._workspace, self._acceptance = workspace, acceptance
        self._may_trace, self._keeps_state = may_trace, keeps_state
        self._applied: dict[str, _Applied] = {}

    def needs(self, history: History, known: Mapping[str, TraceOutcome | RunOutcome]) -> Needs:
        """known: results by the key of a need. Nothing is needed where the driver has nothing to do."""
        found = Needs()
        waiting = [entry.number for entry in history.entries if entry.verdict is None]
        if waiting == [0]:
            self._of_baseline(history, known, found)
        if not waiting or waiting[0] == 0 or history.baseline.verdict is not Verdict.KEEP:
            return found
        anchors = {history.entries[number].anchor for number in waiting}
        self._applied = {anchor: each for anchor, each in self._applied.items() if anchor in anchors}
        supposed, all_traced = history, True
        for number in waiting:
            supposed = self._walk(supposed, number, known, found, may_run=all_traced)
            all_traced = all_traced and supposed.entries[number].trace is not None
        return found

    def _of_baseline(self, history: History, known: Mapping[str, TraceOutcome | RunOutcome], found: Needs) -> None:
        """All its seeds will run, unless one fails."""
        if not isinstance(history.baseline.trace, TracedCandidate):
            return
        supposed, first = history, True
        for seed in run_seeds(history.config):
            entry = supposed.baseline
            if any(run.seed == seed for run in entry.experiment.runs):
                continue
            keeps = first and self._keeps_state(entry.experiment)  # the first that comes through
            request = search_request(supposed, entry, seed, keep_state=keeps)
            need = RunNeed(0, 0, request)
            found.wanted.append(need)
            outcome = known.get(need.key)
            if isinstance(outcome, CompletedRun):
                supposed = _suppose(supposed, RunFinished(number=0, outcome=outcome))
                first = first and not outcome.checkpoint
            elif outcome is not None:
                return
            else:
                first = False

    def _walk(
        self,
        supposed: History,
        number: int,
        known: Mapping[str, TraceOutcome | RunOutcome],
        found: Needs,
        *,
        may_run: bool,
    ) -> History:
        """The history as far as experiment `number` gets in it: to its verdict, or to something not known yet.

        may_run: not while an earlier one is not traced: this may be a duplicate of it.
        """
        while True:
            entry = supposed.entries[number]
            event: Event | None = None
            match contender_step(supposed, entry, self._acceptance):
                case TraceCandidate():
                    event = self._traced(supposed, entry, known, found)
                case RunCandidate(number=runner, seed=seed) if may_run:
                    event = self._ran(supposed, entry, supposed.entries[runner], seed, known, found)
                    if event is None:  # it takes its place before those of later experiments, whatever comes of it
                        return replace(supposed, trained=supposed.trained + 1)
                case RunCandidate():
                    found.unclear.add(number)
                case Isolate(event=quarantined):
                    event = quarantined
                case Decide(decision=decision):
                    return _suppose(supposed, decision)
                case _:
                    pass
            if event is None:
                return supposed
            supposed = _suppose(supposed, event)

    def _traced(
        self, supposed: History, entry: Entry, known: Mapping[str, TraceOutcome | RunOutcome], found: Needs
    ) -> Event | None:
        applied = self._candidate(supposed, entry)
        if applied.candidate is None:
            outcome: TraceOutcome = TraceFailure(verdict=Verdict.CRASH, reason="the proposal does not apply")
        elif applied.tree in supposed.traces:
            outcome = supposed.traces[applied.tree]
        else:
            if not self._may_trace(applied.candidate):
                found.unclear.add(entry.number)
                return None
            need = TraceNeed(entry.number, applied.candidate, applied.tree)
            found.wanted.append(need)
            result = known.get(need.key)
            if not isinstance(result, TracedCandidate | TraceFailure) or _lost(result):
                found.unclear.add(entry.number)
                return None
            outcome = result
        return Traced(number=entry.number, commit="ahead", tree=applied.tree, outcome=outcome, size=applied.size)

    def _ran(
        self,
        supposed: History,
        entry: Entry,
        runner: Entry,
        seed: int,
        known: Mapping[str, TraceOutcome | RunOutcome],
        found: Needs,
    ) -> Event | None:
        request = search_request(supposed, runner, seed, keep_state=self._keeps_state(runner.experiment))
        shared = supposed.known_run(request.identity)
        if shared is not None:
            return RunFinished(number=runner.number, outcome=shared[1], shared_from=shared[0])
        need = RunNeed(entry.number, runner.number, request)
        found.wanted.append(need)
        outcome = known.get(need.key)
        if not isinstance(outcome, CompletedRun | FailedRun) or _lost(outcome):
            return None
        return RunFinished(number=runner.number, outcome=outcome)

    def _candidate(self, history: History, entry: Entry) -> _Applied:
        if entry.anchor not in self._applied:
            self._applied[entry.anchor] = self._apply(history, entry)
        return self._applied[entry.anchor]

    def _apply(self, history: History, entry: Entry) -> _Applied:
        proposal = entry.experiment.proposal
        assert proposal is not None, "the baseline is never traced ahead"
        parent = self._workspace.candidate(history.entries[proposal.parent].experiment.commit)
        try:
            candidate = apply(proposal, parent)
        except EditError:
            return _Applied(None, "", None)
        baseline = self._workspace.candidate(self._workspace.resolve("baseline"))
        return _Applied(candidate, candidate_fingerprint(candidate), code_size(candidate, baseline))


def _lost(outcome: TraceOutcome | RunOutcome) -> bool:
    """Whether it will be tried again, so that nothing follows from it."""
    return isinstance(outcome, TraceFailure | FailedRun) and outcome.verdict is Verdict.INFRASTRUCTURE


def _suppose(history: History, event: Event) -> History:
    return history.apply(StoredEvent(seq=history.seq + 1, time=history.time, hash="", event=event))

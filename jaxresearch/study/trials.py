"""What ablation and transfer share: tracing an arm, running it on the trial's seeds, and fresh seeds for it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import (
    Executor,
    RunProgress,
    RunRequest,
    TracedCandidate,
    TraceFailure,
    run_identity,
)
from jaxresearch.experiment import FailedRun, Verdict
from jaxresearch.proposal import Candidate
from jaxresearch.study.events import TraceOutcome, TrialTraced
from jaxresearch.study.events import TrialRun as TrialRunEvent
from jaxresearch.study.history import History
from jaxresearch.study.identity import candidate_fingerprint
from jaxresearch.study.journal import Journal
from jaxresearch.study.requests import attempt
from jaxresearch.study.steps import MAX_FAULTS
from jaxresearch.study.stopping import Interrupted, Stop
from jaxresearch.study.trial import Trial
from jaxresearch.study.view import trace_once
from jaxresearch.study.workspace import Workspace

DEFAULT_SEEDS = 5


class Bench:
    """The means of a trial: the study's journal and workspace, an executor, and a stop."""

    def __init__(self, journal: Journal, workspace: Workspace, executor: Executor, stop: Stop) -> None:
        self.journal, self.workspace, self.executor, self.stop = journal, workspace, executor, stop

    @property
    def history(self) -> History:
        return self.journal.history

    @property
    def trial(self) -> Trial:
        """The trial that is under way."""
        return self.journal.history.trials[-1]

    async def trace(self, arm: str, candidate: Candidate, message: str) -> TraceOutcome:
        """What tracing `candidate` gives. It is committed, and both are recorded once."""
        known = self.trial.traces.get(arm)
        if known is not None and not _lost(known):
            return known
        self._heed()
        commit = self.commit(arm, candidate, message)
        work = trace_once(self.history, self.executor, candidate, candidate_fingerprint(candidate))
        outcome = await self.stop.obey(work, requests=2)
        self.journal.record(TrialTraced(arm=arm, commit=commit, outcome=outcome))
        if isinstance(outcome, TraceFailure) and _lost(outcome):
            raise JaxresearchError(f"Tracing {arm} was lost: {outcome.reason}.", fix="Repair that, then run it again.")
        return outcome

    def commit(self, arm: str, candidate: Candidate, message: str) -> str:
        """The commit of an arm on a branch of its own, on top of the baseline."""
        baseline = self.history.baseline.experiment.commit
        branch = f"trial-{self.trial.event.trial}-{arm.replace(' ', '-')}"
        return self.workspace.commit_to(branch, candidate, baseline, message, when=self.history.time)

    async def run(self, *arms: str) -> None:
        """Run the arms on every seed of the trial, seed by seed, so that drift of the machine hits all alike."""
        for seed in self.trial.event.seeds:
            for arm in arms:
                faults: list[str] = []
                while self.trial.run(arm, seed) is None:
                    await self._run(arm, seed, faults)

    async def _run(self, arm: str, seed: int, faults: list[str]) -> None:
        self._heed()
        number = self.trial.event.experiment

        def on_progress(progress: RunProgress) -> None:
            self.journal.reporter.on_progress(number, seed, progress)

        request = request_of_arm(self.history, self.trial, arm, seed)
        outcome = await self.stop.obey(attempt(self.executor, request, on_progress), requests=2)
        self.journal.record(TrialRunEvent(arm=arm, outcome=outcome))
        if isinstance(outcome, FailedRun) and outcome.verdict is Verdict.INFRASTRUCTURE:
            faults.append(outcome.reason)
        if len(faults) >= MAX_FAULTS:
            raise JaxresearchError(
                f"A run of {arm} was lost {MAX_FAULTS} times: {faults[-1]}.", fix="Repair that, then run it again."
            )

    def _heed(self) -> None:
        if self.stop.requested:
            raise Interrupted


def request_of_arm(history: History, trial: Trial, arm: str, seed: int) -> RunRequest:
    """The run of an arm with `seed` under the trial's budget, scored as the study scores its runs."""
    trace, config = trial.traces[arm], history.config
    assert isinstance(trace, TracedCandidate), "only traced arms run"
    return RunRequest(
        identity=run_identity(
            program=trace.program,
            traced=trace.traced,
            phases=trace.phases,
            budget=trial.event.budget,
            corpus=history.created.corpus,
            tokenizer=history.created.tokenizer,
            evaluation=config.evaluation_text,
            seed=seed,
        ),
        program=trace.program,
        traced=trace.traced,
        seed=seed,
        budget=trial.event.budget,
        wall_cap_seconds=config.limits.train_seconds,
        trace_seconds=trace.trace_seconds,
        verify_seconds=trace.verify_seconds,
        sandbox=trace.sandbox,
    )


def last_trial(history: History, purpose: str, scale: dict[str, str] | None = None) -> Trial | None:
    """The last trial of that purpose (and scale) of the present incumbent; None when there is none."""
    for trial in reversed(history.trials):
        event = trial.event
        if (event.purpose, event.scale, event.experiment) == (purpose, scale or {}, history.incumbent_number):
            return trial
    return None


def refuse_without_winner(history: History) -> None:
    if history.baseline.verdict is not Verdict.KEEP:
        raise JaxresearchError(
            "The study's baseline has no score.", fix="`jaxresearch status STUDY` says why, and what to do."
        )
    if history.incumbent_number == 0:
        raise JaxresearchError(
            "Nothing was kept, so there is no winner to look into.", fix="Go on: `jaxresearch resume STUDY`."
        )
    if history.pending is not None:
        raise JaxresearchError(
            f"Experiment {history.pending.number} is not decided yet.", fix="Finish it: `jaxresearch resume STUDY`."
        )


def mean_scores(scores: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, standard error and count, as tables show them."""
    sem = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else None
    return {"val_bpb": statistics.fmean(scores) if scores else None, "sem": sem, "runs": len(scores)}


def _lost(outcome: TraceOutcome) -> bool:
    return isinstance(outcome, TraceFailure) and outcome.verdict is Verdict.INFRASTRUCTURE

"""Trial: runs of a study beside its search. An ablation takes the winner apart; a transfer trains it at another scale.

A trial has arms, each a candidate that runs on the same fresh seeds. Its runs and its time are not the study's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from jaxresearch.execution.base import TracedCandidate
from jaxresearch.experiment import CompletedRun, FailedRun, RunOutcome, Verdict
from jaxresearch.study.events import TraceOutcome, TrialClosed, TrialJudged, TrialOpened, TrialRun, TrialTraced

TrialEvent = TrialTraced | TrialRun | TrialJudged | TrialClosed


@dataclass(frozen=True)
class Trial:
    """One trial up to one event. traces, commits, outcomes: by arm. judgements: of an ablation's arms, in order."""

    event: TrialOpened
    traces: Mapping[str, TraceOutcome] = field(default_factory=dict)
    commits: Mapping[str, str] = field(default_factory=dict)
    outcomes: tuple[tuple[str, RunOutcome], ...] = ()
    judgements: tuple[TrialJudged, ...] = ()
    closed: TrialClosed | None = None

    def apply(self, event: TrialEvent) -> Trial:
        match event:
            case TrialTraced(arm=arm):
                return replace(
                    self,
                    traces={**self.traces, arm: event.outcome},
                    commits={**self.commits, arm: event.commit},
                )
            case TrialRun(arm=arm):
                return replace(self, outcomes=(*self.outcomes, (arm, event.outcome)))
            case TrialJudged():
                return replace(self, judgements=(*self.judgements, event))
            case TrialClosed():
                return replace(self, closed=event)

    def run(self, arm: str, seed: int) -> RunOutcome | None:
        """The last outcome of `arm` with `seed`; infrastructure failures do not count."""
        for at, outcome in reversed(self.outcomes):
            lost = isinstance(outcome, FailedRun) and outcome.verdict is Verdict.INFRASTRUCTURE
            if at == arm and outcome.seed == seed and not lost:
                return outcome
        return None

    def scores(self, arm: str) -> dict[int, float]:
        """val_bpb by seed of the runs that came through."""
        runs = {seed: self.run(arm, seed) for seed in self.event.seeds}
        return {seed: run.val_bpb for seed, run in runs.items() if isinstance(run, CompletedRun)}

    def failures(self, arm: str) -> list[str]:
        """Why `arm` gave no program, or runs no score."""
        trace = self.traces.get(arm)
        if trace is not None and not isinstance(trace, TracedCandidate):
            return [trace.reason]
        runs = (self.run(arm, seed) for seed in self.event.seeds)
        return [f"{run.reason} (seed {run.seed})" for run in runs if isinstance(run, FailedRun)]

    @property
    def seconds(self) -> float:
        """Of training in all its runs."""
        return sum(outcome.train_seconds for _, outcome in self.outcomes)

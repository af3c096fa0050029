"""What to do next: a pure function of the history. To resume a study is to ask it again.

The life of an experiment: proposed -> traced -> one run after another, as acceptance asks -> decided.
The baseline is experiment 0; it runs with all seeds, and without a score of it there is no study.
An incumbent runs again when a contender's next pair needs it; one that fails there only loses that seed. One that fails on
seed after seed is not asked for ever: the contender is discarded, for what pairs there are did not show that it is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from jaxresearch.execution.base import TraceFailure
from jaxresearch.experiment import FailedRun, Verdict
from jaxresearch.statistics.acceptance import Acceptance
from jaxresearch.study.constraints import broken_by_trace
from jaxresearch.study.entry import Entry
from jaxresearch.study.events import Decided, Quarantined
from jaxresearch.study.history import History
from jaxresearch.study.identity import run_seeds
from jaxresearch.study.judging import RunOf, judge
from jaxresearch.text import clean

MAX_FAULTS = 3
"""Attempts at a step that the infrastructure may lose: the first, and two retries."""
MAX_FAILED_PAIRS = 3
"""Runs of an incumbent in one contest that may give no score, in a row, before the contest ends."""
MAX_LOST_EXPERIMENTS = 3
"""Experiments in a row lost to infrastructure before the study stops."""
MAX_FAILED_PROPOSALS = 5
"""Rounds in a row without a proposal before the study stops."""


@dataclass(frozen=True)
class TraceCandidate:
    """Commit and trace the candidate of experiment `number`."""

    number: int


@dataclass(frozen=True)
class RunCandidate:
    """Run experiment `number` with `seed`."""

    number: int
    seed: int


@dataclass(frozen=True)
class Decide:
    """Record a verdict."""

    decision: Decided


@dataclass(frozen=True)
class Isolate:
    """Put an experiment with an implausible gain into quarantine."""

    event: Quarantined


@dataclass(frozen=True)
class AskStrategy:
    """Begin round `round`, or take it up again, for at most `slots` proposals."""

    round: int
    slots: int


@dataclass(frozen=True)
class Finish:
    """The study has reached its end."""

    reason: str


@dataclass(frozen=True)
class GiveUp:
    """The study cannot go on; `fix` says what a person may do before resuming."""

    reason: str
    fix: str


Step = TraceCandidate | RunCandidate | Decide | Isolate | AskStrategy | Finish | GiveUp


def next_step(history: History, acceptance: Acceptance, *, wall_seconds: float) -> Step:
    """The one thing to do next. `wall_seconds` is what the study has used until now.

    Once `max_seconds` are used nothing is begun any more, in the middle of an experiment neither; only a verdict that is
    due is given.
    """
    step = _step_in_time(history, acceptance, wall_seconds)
    if isinstance(step, TraceCandidate | RunCandidate) and out_of_time(history, wall_seconds):
        return _time_is_used(history)
    return step


def out_of_time(history: History, wall_seconds: float) -> bool:
    """Whether the study has used its `max_seconds`."""
    return history.max_seconds is not None and wall_seconds >= history.max_seconds


def _time_is_used(history: History) -> Finish:
    return Finish(f"max_seconds: {history.max_seconds:g} s are used")


def _step_in_time(history: History, acceptance: Acceptance, wall_seconds: float) -> Step:
    entry = history.pending
    if entry is not None and entry.number == 0:
        return _baseline_step(history, entry)
    if history.hopeless:
        return _hopeless(
            f"The baseline gave no score ({history.baseline.verdict}): {history.baseline.experiment.reason}"
        )
    if entry is not None:
        return contender_step(history, entry, acceptance)
    return _round_step(history, wall_seconds)


def _baseline_step(history: History, entry: Entry) -> Step:
    if len(entry.faults) >= MAX_FAULTS:
        return GiveUp(f"The baseline could not be run: {entry.faults[-1]}", "Repair that, then resume the study.")
    if entry.trace is None:
        return TraceCandidate(0)
    if isinstance(entry.trace, TraceFailure):
        return _verdict(entry, entry.trace.verdict, entry.trace.reason)
    failed = _failed_run(entry)
    if failed is not None:
        return _verdict(entry, failed.verdict, _run_reason(failed))
    missing = [seed for seed in run_seeds(history.config) if seed not in entry.experiment.scores]
    if missing:
        return RunCandidate(0, missing[0])
    experiment = entry.experiment
    broken = broken_by_trace(history.config.constraints, entry.trace, entry.size)
    itself = f"; {broken}: only what keeps to it can be kept" if broken is not None else ""
    spread = f" ± {experiment.sem:.4f}" if experiment.sem is not None else ""
    return _verdict(
        entry, Verdict.KEEP, f"the baseline: {experiment.val_bpb:.4f}{spread} bpb, {len(experiment.runs)} seeds{itself}"
    )


def contender_step(history: History, entry: Entry, acceptance: Acceptance) -> Step:
    """What experiment `entry`, which is no baseline and has no verdict, needs next."""
    if len(entry.faults) >= MAX_FAULTS:
        return _verdict(entry, Verdict.INFRASTRUCTURE, f"lost {MAX_FAULTS} times: {entry.faults[-1]}")
    if entry.trace is None:
        return TraceCandidate(entry.number)
    original = history.same_as(tree=entry.tree, key=entry.key, before=entry.number)
    if original is not None:
        return _duplicate(entry, original)
    if isinstance(entry.trace, TraceFailure):
        return _verdict(entry, entry.trace.verdict, entry.trace.reason)
    broken = broken_by_trace(history.config.constraints, entry.trace, entry.size)
    if broken is not None:
        return _verdict(entry, Verdict.DISCARD, f"{broken}; it was not trained")
    failed = _failed_run(entry)
    if failed is not None:
        return _verdict(entry, failed.verdict, _run_reason(failed))
    return _judged(history, entry, acceptance)


def _judged(history: History, entry: Entry, acceptance: Acceptance) -> Step:
    for rival in (history.incumbent, history.reference):
        if len(rival.faults) >= MAX_FAULTS:
            reason = f"the incumbent's run for its next pair was lost {MAX_FAULTS} times: {rival.faults[-1]}"
            return _verdict(entry, Verdict.INFRASTRUCTURE, reason)
    judgement = judge(history, entry, acceptance)
    match judgement:
        case RunOf(number=number, seed=seed):
            rival = history.entries[number]
            if rival is not entry and _fails_on_and_on(rival, since=min(entry.places, default=0)):
                lacking = (
                    f"no pair more can be had: experiment {number} gave no score {MAX_FAILED_PAIRS} times in a row"
                )
                return _verdict(entry, Verdict.DISCARD, f"{lacking}; a person should look at that one")
            return RunCandidate(number, seed)
        case Quarantined():
            return Isolate(judgement)
        case Decided():
            return Decide(judgement)
        case _:
            assert_never(judgement)


def _round_step(history: History, wall_seconds: float) -> Step:
    if history.infrastructure_streak >= MAX_LOST_EXPERIMENTS:
        lost = history.entries[-1].experiment.reason
        return GiveUp(f"{MAX_LOST_EXPERIMENTS} experiments in a row were lost: {lost}", "Repair that, then resume.")
    if history.proposal_streak >= MAX_FAILED_PROPOSALS:
        reason = f"{MAX_FAILED_PROPOSALS} rounds in a row gave no proposal: {history.last_failure}"
        return GiveUp(reason, "Check the model and the strategy, then resume.")
    config, remaining = history.config, history.planned - len(history.contenders)
    if remaining <= 0:
        return Finish(f"all {history.planned} experiments are done")
    if out_of_time(history, wall_seconds):
        return _time_is_used(history)
    if history.stop_after_no_gain is not None and history.without_gain >= history.stop_after_no_gain:
        return Finish(f"stop_after_no_gain: {history.without_gain} experiments in a row improved nothing")
    cost, tokens = history.costs.capped_cost_usd, history.costs.capped_tokens
    if history.max_cost is not None and cost > 0 and cost >= history.max_cost:
        return Finish(f"max_cost: ${cost:.4f} of ${history.max_cost:g} are used")
    if history.max_tokens is not None and tokens >= history.max_tokens:
        return Finish(f"max_tokens: {tokens:,} of {history.max_tokens:,} are used")
    return AskStrategy(history.rounds, min(config.slots, remaining))


def _verdict(entry: Entry, verdict: Verdict, reason: str) -> Decide:
    return Decide(Decided(number=entry.number, verdict=verdict, reason=clean(reason)))


def _duplicate(entry: Entry, original: Entry) -> Decide:
    what = "sources" if entry.tree == original.tree else "program and values"
    reason = f"same {what} as experiment {original.number} ({original.verdict})"
    return Decide(Decided(number=entry.number, verdict=Verdict.DUPLICATE, reason=reason, same_as=original.number))


def _failed_run(entry: Entry) -> FailedRun | None:
    return next((run for run in entry.experiment.runs if isinstance(run, FailedRun)), None)


def _fails_on_and_on(rival: Entry, *, since: int) -> bool:
    """Whether the last runs of `rival` gave no score, all of them made from place `since` on."""
    last = list(zip(rival.experiment.runs, rival.places, strict=True))[-MAX_FAILED_PAIRS:]
    return len(last) == MAX_FAILED_PAIRS and all(isinstance(run, FailedRun) and at >= since for run, at in last)


def _run_reason(run: FailedRun) -> str:
    at = f" at step {run.step}" if run.step is not None else ""
    return f"{run.reason} (seed {run.seed}{at})"


def _hopeless(reason: str) -> GiveUp:
    return GiveUp(
        reason, "Repair the subject or the settings (try them with `jaxresearch train`), then start a new study."
    )

"""Requests: what a study asks of an executor, and an answer that is always one to the question."""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy import special

from jaxresearch.budget import Budget
from jaxresearch.execution.base import Executor, ExecutorLostError, RunProgress, RunRequest, RunSplit, TracedCandidate
from jaxresearch.experiment import CompletedRun, FailedRun, RunOutcome, Verdict
from jaxresearch.files import DiskFullError, is_full
from jaxresearch.statistics.early import CHECKPOINTS, limits
from jaxresearch.study.entry import Entry
from jaxresearch.study.evidence import study_pair_noise
from jaxresearch.study.history import History
from jaxresearch.study.identity import identity_of
from jaxresearch.study.pairing import search_identity
from jaxresearch.study.simplicity import margin_bpb, simpler_by

MIN_WALL_CAP_SECONDS = 60.0
"""A run's wall cap is never below this."""
MIN_UNTIMED_WALL_CAP_SECONDS = 300.0
"""Nor below this where the budget is not time: slowness buys nothing there, and other work on the machine makes a short
run many times as long."""


def request_of(
    history: History,
    entry: Entry,
    seed: int,
    *,
    identity: str | None = None,
    reference: CompletedRun | None = None,
    split: RunSplit = "validation",
    keep_state: bool = False,
    search: bool = False,
) -> RunRequest:
    """The run of `entry` with `seed`, as this study does its runs. search: it is one of the experiment's own.

    identity: where it is another than that of any such run.
    """
    trace = entry.trace
    assert isinstance(trace, TracedCandidate), "only traced candidates run"
    return RunRequest(
        identity=identity or identity_of(trace, history.created, seed, split),
        program=trace.program,
        traced=trace.traced,
        seed=seed,
        budget=history.config.budget,
        reference=reference.identity if reference is not None else None,
        reference_bpb=reference.val_bpb if reference is not None else None,
        wall_cap_seconds=wall_cap_seconds(history),
        trace_seconds=trace.trace_seconds,
        verify_seconds=trace.verify_seconds,
        sandbox=trace.sandbox,
        keep_state=keep_state,
        split=split,
        thorough=entry.quarantine is not None and split == "validation",
        simpler=search and _may_be_kept_as_simpler(history, entry),
        least_gain_bpb=_least_gain_bpb(history),
        probe_at=CHECKPOINTS if search and _may_cut(history) else (),
        cut_above=cut_limits(history, entry, seed) if search else (),
    )


def search_request(history: History, entry: Entry, seed: int, *, keep_state: bool) -> RunRequest:
    """The request with which the search runs `entry` with `seed`: audited against the incumbent's run with that seed.

    Against its last one, where it ran again.
    """
    runs = history.incumbent.experiment.runs if entry.number != 0 else ()
    scored = [run for run in runs if isinstance(run, CompletedRun)]
    reference = next((run for run in reversed(scored) if run.seed == seed), None)
    identity = search_identity(history, entry, seed)
    return request_of(history, entry, seed, identity=identity, reference=reference, keep_state=keep_state, search=True)


def cut_limits(history: History, entry: Entry, seed: int) -> tuple[tuple[float, float], ...]:
    """Where the run of `entry` with `seed` is cut: only a contender's first run, against the incumbent's on that seed.

    A function of what the ledger holds, so that a study that is resumed cuts as one that was never stopped.
    """
    if not _may_cut(history) or entry.number == history.incumbent_number or entry.experiment.scores:
        return ()
    runs = [run for run in history.incumbent.experiment.runs if isinstance(run, CompletedRun) and run.probes]
    probes = {run.seed: run.probes for run in runs}  # the last, where it ran again with a seed
    return limits(probes.get(seed, ()), list(probes.values()))


def _may_be_kept_as_simpler(history: History, entry: Entry) -> bool:
    if entry.number == history.incumbent_number or margin_bpb(history) is None:
        return False
    return simpler_by(entry, history.incumbent) is not None


def _least_gain_bpb(history: History) -> float:
    """Below every gain that the acceptance test could keep, as far as the noise is known; 0 where any is kept.

    A kept mean is at least t * sd / sqrt(pairs), with t above what a known noise would ask for. Rounded down to a power of
    two: every pair moves the noise a little, and a request that differs is another one to what was begun ahead.
    """
    settings, noise = history.config.acceptance, study_pair_noise(history)
    if settings.rule == "greedy" or noise is None:
        return 0.0
    deviations = min(2.0, float(special.ndtri(1 - settings.alpha)))
    least = deviations * noise.low_bpb / math.sqrt(max(settings.max_runs, settings.runs))
    return 2.0 ** math.floor(math.log2(least)) if least > 0 else 0.0


def _may_cut(history: History) -> bool:
    acceptance = history.config.acceptance
    return acceptance.early_stopping and acceptance.rule != "fixed"


async def attempt(executor: Executor, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
    """The run's outcome; our own failures, and an answer to another question, are `infrastructure`.

    Raises `ExecutorLostError` and `DiskFullError`, at which a study stops: another try, or another experiment, would
    fare no better.
    """
    try:
        outcome = await executor.run(request, on_progress)
    except ExecutorLostError:
        raise
    except Exception as error:
        if is_full(error):
            raise DiskFullError(error) from None
        return _lost(request, f"the executor failed: {error!r}")
    if (outcome.identity, outcome.seed) != (request.identity, request.seed):
        return _lost(request, "the executor answered with another run")
    if isinstance(outcome, CompletedRun) and not math.isfinite(outcome.val_bpb):
        return _failed(request, Verdict.INVALID, "the score is not finite")
    if isinstance(outcome, CompletedRun) and (outcome.test_bpb is not None) != (request.split == "test"):
        return _lost(request, "the executor scored another split than the one asked for")
    return outcome


def wall_cap_seconds(history: History) -> float:
    """How long a run may train: `limits.train_seconds_factor` times what it should take.

    That is the budget itself when the budget is in seconds, else what the baseline took on average; before the baseline
    is known it is `limits.train_seconds`. Never below the minimum for its kind of budget.
    """
    limits, budget = history.config.limits, Budget.parse(history.config.budget)
    runs = [run for run in history.baseline.experiment.runs if isinstance(run, CompletedRun)]
    if budget.unit == "seconds":
        return max(MIN_WALL_CAP_SECONDS, limits.train_seconds_factor * budget.amount)
    if history.baseline.verdict is not None and runs:
        expected = sum(run.train_seconds for run in runs) / len(runs)
        return max(MIN_UNTIMED_WALL_CAP_SECONDS, limits.train_seconds_factor * expected)
    return limits.train_seconds


def _lost(request: RunRequest, reason: str) -> FailedRun:
    return _failed(request, Verdict.INFRASTRUCTURE, reason)


def _failed(request: RunRequest, verdict: Verdict, reason: str) -> FailedRun:
    return FailedRun(
        identity=request.identity,
        verdict=verdict,
        reason=reason,
        seed=request.seed,
        program=request.program,
    )

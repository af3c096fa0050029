"""Simplicity: which of two experiments is the simpler one, and how much of the score that may cost.

Simpler: less code (fewer lines and fewer tokens), or at least 1 % fewer parameters, or at least 1 % fewer FLOPs in a train
step of the same shape, and not more of any of these. A simpler contender that is not better may replace the incumbent when
it is shown to lose less than a margin, against the *reference*: the best incumbent that the study ever had. The reference
moves only to what is shown to be better than it, so losses of simplifications cannot add up beyond the margin.
"""

from __future__ import annotations

import statistics

from jaxresearch.execution.base import TracedCandidate
from jaxresearch.statistics.noninferiority import NonInferiority
from jaxresearch.statistics.rules import STUDY_ALPHA
from jaxresearch.study.entry import Entry
from jaxresearch.study.history import History
from jaxresearch.study.identity import run_seeds

WORTHWHILE = 0.01
"""The share of parameters or FLOPs that must go, so that a trifle is no reason to run six seeds."""


def margin_bpb(history: History) -> float | None:
    """What simplicity may cost, in bits per byte; None where it counts for nothing.

    `acceptance.simplicity` deviations between the seeds of the baseline's first runs: fixed before any contender runs.
    Under `greedy` nothing is tested, so nothing can be shown to be as good.
    """
    settings, scores = history.config.acceptance, history.baseline.experiment.scores
    first = [scores[seed] for seed in run_seeds(history.config) if seed in scores]
    if settings.rule == "greedy" or settings.simplicity == 0 or len(first) < 2:
        return None
    return settings.simplicity * statistics.stdev(first) or None


def non_inferiority(history: History) -> NonInferiority | None:
    """The test of simpler contenders, with the study's own confidence; None where simplicity counts for nothing."""
    settings, margin = history.config.acceptance, margin_bpb(history)
    if margin is None:
        return None
    alpha = STUDY_ALPHA / max(1, history.config.experiments) if settings.control == "study" else settings.alpha
    return NonInferiority(margin, alpha, settings.max_runs if settings.rule == "paired" else settings.runs)


def simpler_by(contender: Entry, incumbent: Entry) -> str | None:
    """What the contender has less of, in words; None when it is not simpler, or that cannot be told."""
    ours, theirs = contender.trace, incumbent.trace
    if not isinstance(ours, TracedCandidate) or not isinstance(theirs, TracedCandidate):
        return None
    if contender.size is None or incumbent.size is None:
        return None
    our_flops, their_flops = _flops_per_token(ours), _flops_per_token(theirs)
    if (our_flops is None) != (their_flops is None):
        return None
    pairs = [
        (contender.size.lines, incumbent.size.lines),
        (contender.size.tokens, incumbent.size.tokens),
        (ours.parameters, theirs.parameters),
        (our_flops or 0.0, their_flops or 0.0),
    ]
    if any(mine > other for mine, other in pairs):
        return None
    reasons = []
    if contender.size.lines < incumbent.size.lines and contender.size.tokens < incumbent.size.tokens:
        fewer = incumbent.size.lines - contender.size.lines
        reasons.append(f"{fewer} line{'s' * (fewer > 1)} of code fewer")
    if ours.parameters <= (1 - WORTHWHILE) * theirs.parameters:
        reasons.append(f"{1 - ours.parameters / theirs.parameters:.1%} fewer parameters")
    if our_flops is None or their_flops is None or ours.phases != theirs.phases:
        return ", ".join(reasons) or None
    if our_flops <= (1 - WORTHWHILE) * their_flops:
        reasons.append(f"{1 - our_flops / their_flops:.1%} fewer FLOPs")
    return ", ".join(reasons) or None


def _flops_per_token(trace: TracedCandidate) -> float | None:
    """Of training, each phase counted by its share of the budget; None where a loop's length is unknown."""
    total, begun = 0.0, 0.0
    for (until, batch, length), flops in zip(trace.phases, trace.step_flops, strict=True):
        if flops is None:
            return None
        total += (until - begun) * flops / (batch * length)
        begun = until
    return total

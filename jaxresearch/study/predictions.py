"""Predictions: what a study's proposals expected, against what came."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from jaxresearch.experiment import Verdict
from jaxresearch.statistics.confirmation import paired_gain
from jaxresearch.study.history import History


@dataclass(frozen=True)
class Predictions:
    """Of experiments that were judged by their score.

    stated: (stated chance to be kept, whether it was). misses_bpb: distance between predicted and measured change.
    """

    stated: tuple[tuple[float, bool], ...]
    misses_bpb: tuple[float, ...]


def predictions(history: History) -> Predictions:
    stated, misses = [], []
    for entry in history.contenders:
        proposal, judged = entry.experiment.proposal, entry.verdict in (Verdict.KEEP, Verdict.DISCARD)
        if proposal is None or not judged:
            continue
        if proposal.confidence is not None:
            stated.append((proposal.confidence, entry.verdict is Verdict.KEEP))
        gain = paired_gain(history.entries[proposal.parent].experiment.scores, entry.experiment.scores)
        if proposal.predicted_bpb is not None and gain is not None:
            misses.append(abs(proposal.predicted_bpb + gain.mean_bpb))
    return Predictions(tuple(stated), tuple(misses))


def calibration(all_of: Sequence[Predictions]) -> dict[str, float | int | None] | None:
    """Brier score (mean squared error of the stated chances) beside that of always stating the share that was kept.

    None without a stated chance.
    """
    stated = [each for found in all_of for each in found.stated]
    if not stated:
        return None
    share = statistics.fmean(kept for _, kept in stated)
    misses = [miss for found in all_of for miss in found.misses_bpb]
    return {
        "predictions": len(stated),
        "mean_confidence": statistics.fmean(chance for chance, _ in stated),
        "kept_share": share,
        "brier": statistics.fmean((chance - kept) ** 2 for chance, kept in stated),
        "brier_of_share": share * (1 - share),
        "median_miss_bpb": statistics.median(misses) if misses else None,
    }

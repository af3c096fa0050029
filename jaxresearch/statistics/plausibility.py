"""Plausibility: is a gain so far outside what a study has seen that it must hold again before it is believed?

A claim is implausible when the score is below half of the baseline's, or, once `MIN_SEEN` contenders were judged, when the
gain exceeds all that they moved the score by a wide margin:

    gain > median(|moves|) + SPREADS * max(1.4826 * MAD(|moves|), deviation of a paired difference)

Median and MAD (median absolute deviation, which 1.4826 makes a standard deviation for normal data) are not moved by a few
large gains, so one jump does not pave the way for the next. Early in a study there is nothing to compare with, and large
gains are common there: only the first test applies. A score below a floor that no model of the text can reach is
impossible, and no re-run makes it possible.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

HALF = 0.5
MIN_SEEN = 5
SPREADS = 10.0
_MAD_TO_SD = 1.4826


@dataclass(frozen=True)
class Suspicion:
    """Why a claim is not believed as it stands. impossible: nothing that is measured again could make it credible."""

    reason: str
    impossible: bool = False


def suspicion(
    *,
    score_bpb: float,
    baseline_bpb: float,
    gain_bpb: float,
    moves_bpb: Sequence[float],
    pair_sd_bpb: float | None,
    floor_bpb: float,
) -> Suspicion | None:
    """What speaks against a claim of `gain_bpb` (above zero is better), or None.

    moves_bpb: by how much each contender so far moved the score, either way. pair_sd_bpb: standard deviation of a paired
    difference, if known. floor_bpb: counts as at most a quarter of the baseline's score, for text that is very regular.
    """
    floor = min(floor_bpb, baseline_bpb / 4)
    if score_bpb < floor:
        return Suspicion(
            f"a val_bpb of {score_bpb:.4f} is below {floor:.2g}, which no model of such text reaches", True
        )
    if score_bpb < HALF * baseline_bpb:
        return Suspicion(f"a val_bpb of {score_bpb:.4f} is below half of the baseline's {baseline_bpb:.4f}")
    usual = usual_gain(moves_bpb, pair_sd_bpb)
    if usual is not None and gain_bpb > usual:
        return Suspicion(
            f"a gain of {gain_bpb:.4f} bpb is far above the {usual:.4f} that {len(moves_bpb)} experiments suggest"
        )
    return None


def usual_gain(moves_bpb: Sequence[float], pair_sd_bpb: float | None) -> float | None:
    """The largest gain that is not implausible after `moves_bpb`; None while they are too few to tell."""
    sizes = [abs(move) for move in moves_bpb if math.isfinite(move)]
    if len(sizes) < MIN_SEEN:
        return None
    middle = statistics.median(sizes)
    spread = _MAD_TO_SD * statistics.median(abs(size - middle) for size in sizes)
    return middle + SPREADS * max(spread, pair_sd_bpb or 0.0)


def holds_again(differences: Sequence[float], claimed: float) -> bool:
    """Whether fresh paired differences bear out the `claimed` one (below zero is better): each better, half on average."""
    return bool(differences) and max(differences) < 0 and statistics.fmean(differences) <= claimed / 2

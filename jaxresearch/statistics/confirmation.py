"""Confirmation: the gain of one program over another on fresh seeds and unseen text, with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Gain:
    """How far the second is below the first, in bits per byte: above zero is better. Paired t over seeds.

    low, high: 95 % interval. p_value: one-sided, that the gain is not above zero. These are None with one pair.
    """

    mean_bpb: float
    low_bpb: float | None
    high_bpb: float | None
    p_value: float | None
    pairs: int


def paired_gain(first: Mapping[int, float], second: Mapping[int, float]) -> Gain | None:
    """The gain over the seeds that both have; None without any."""
    seeds = [seed for seed in first if seed in second]
    if not seeds:
        return None
    differences = np.array([first[seed] - second[seed] for seed in seeds])
    mean = float(differences.mean())
    if len(seeds) == 1:
        return Gain(mean, None, None, None, 1)
    if float(np.ptp(differences)) == 0.0:
        return Gain(mean, mean, mean, 0.0 if mean > 0 else 1.0, len(seeds))
    low, high = stats.t.interval(CONFIDENCE, len(seeds) - 1, loc=mean, scale=stats.sem(differences))
    test = stats.ttest_1samp(differences, 0.0, alternative="greater")
    p_value = float(test.pvalue)  # pyright: ignore[reportAttributeAccessIssue] - scipy makes this class at run time
    return Gain(mean, float(low), float(high), p_value, len(seeds))

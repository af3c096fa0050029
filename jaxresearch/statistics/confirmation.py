"""Confirmation: the gain of one program over another on fresh seeds and unseen text, with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special

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
    degrees, error = len(seeds) - 1, float(np.sqrt(np.var(differences, ddof=1) / len(seeds)))
    reach = float(special.stdtrit(degrees, (1 + CONFIDENCE) / 2)) * error
    return Gain(mean, mean - reach, mean + reach, float(special.stdtr(degrees, -mean / error)), len(seeds))

"""The noise floor: how far val_bpb moves when nothing but the seed changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class NoiseFloor:
    """Standard deviation of val_bpb between seeds, in bits per byte.

    degrees_of_freedom: of the estimate. low, high: its 95 % confidence interval, from the chi-square distribution.
    """

    sd_bpb: float
    degrees_of_freedom: int
    low_bpb: float
    high_bpb: float


def noise_floor(groups: Iterable[Sequence[float]], *, confidence: float = 0.95) -> NoiseFloor | None:
    """Pooled within-group standard deviation; a group holds one experiment's val_bpb over its seeds.

    Assumes that all groups share one variance and that scores are normal. Groups of fewer than two scores say nothing;
    None when no group says anything. Interval: df * s^2 / sigma^2 is chi-square with df degrees of freedom.
    """
    samples = [np.asarray(group, dtype=float) for group in groups if len(group) >= 2]
    degrees = sum(len(sample) - 1 for sample in samples)
    if degrees == 0:
        return None
    squares = sum(float(np.sum((sample - sample.mean()) ** 2)) for sample in samples)
    low, high = stats.chi2.interval(confidence, degrees)
    return NoiseFloor(
        sd_bpb=math.sqrt(squares / degrees),
        degrees_of_freedom=degrees,
        low_bpb=math.sqrt(squares / high),
        high_bpb=math.sqrt(squares / low),
    )

"""Leaving out: whether a winner is shown to be worse without one of its changes, from paired runs of both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy import special

from jaxresearch.statistics.noise import NoiseFloor

LEVEL, CONFIDENCE = 0.05, 0.95


@dataclass(frozen=True)
class Effect:
    """Of leaving a change out, in bits per byte, above zero is worse. low, high: 95 % interval.

    p_value: one-sided, that leaving it out is not worse. matters: it is at most `LEVEL`.
    """

    difference: float
    low: float
    high: float
    p_value: float
    pairs: int

    @property
    def matters(self) -> bool:
        return self.p_value <= LEVEL


def effect_of_leaving_out(
    winner: Mapping[int, float], without: Mapping[int, float], noise: NoiseFloor | None
) -> Effect | None:
    """t-test of the mean paired difference with `noise`, the deviation of one such difference; None without a pair.

    winner, without: val_bpb by seed. noise: pooled, with its degrees of freedom.
    """
    seeds = [seed for seed in winner if seed in without]
    if not seeds or noise is None:
        return None
    mean = math.fsum(without[seed] - winner[seed] for seed in seeds) / len(seeds)
    error = noise.sd_bpb / math.sqrt(len(seeds))
    if error == 0.0:
        return Effect(mean, mean, mean, 0.0 if mean > 0 else 1.0, len(seeds))
    degrees = noise.degrees_of_freedom
    reach = float(special.stdtrit(degrees, (1 + CONFIDENCE) / 2)) * error
    return Effect(mean, mean - reach, mean + reach, float(special.stdtr(degrees, -mean / error)), len(seeds))

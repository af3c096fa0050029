"""Noise: how far val_bpb moves when nothing but the seed changes, between seeds and between pairs on one seed.

The model of a study's scores is a two-way layout: score = experiment + seed + residual. The seed moves all experiments of
one kind together (data order, and the init where shapes are equal); pairing on seeds takes that part out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import linalg, special  # not stats: loading it takes longer than all that a command does here

FEW_PAIRS = 4
"""Of a contest, from which on its own pairs may be taken to spread less than a study's others."""

Scores = Mapping[Any, float]
"""val_bpb of one experiment by block: its seed, or whatever makes scores move together."""


@dataclass(frozen=True)
class NoiseFloor:
    """A standard deviation of val_bpb, in bits per byte.

    degrees_of_freedom: of the estimate. low, high: its 95 % confidence interval, from the chi-square distribution.
    """

    sd_bpb: float
    degrees_of_freedom: float
    low_bpb: float
    high_bpb: float


def noise_floor(groups: Iterable[Sequence[float]], *, confidence: float = 0.95) -> NoiseFloor | None:
    """Pooled within-group standard deviation; a group holds one experiment's val_bpb over its seeds.

    Assumes that all groups share one variance, are independent, and that scores are normal. Groups of fewer than two
    scores say nothing; None when no group says anything.
    """
    samples = [np.asarray(group, dtype=float) for group in groups if len(group) >= 2]
    degrees = sum(len(sample) - 1 for sample in samples)
    if degrees == 0:
        return None
    return _estimate(_within(samples) / degrees, degrees, confidence)


@dataclass(frozen=True)
class Spread:
    """Squares of scores about the mean of their experiment, in squared bits per byte, and their degrees of freedom.

    Those of several experiments add up to what is pooled over them.
    """

    squares: float = 0.0
    degrees_of_freedom: int = 0

    def __add__(self, other: Spread) -> Spread:
        return Spread(self.squares + other.squares, self.degrees_of_freedom + other.degrees_of_freedom)

    def __sub__(self, other: Spread) -> Spread:
        return Spread(self.squares - other.squares, self.degrees_of_freedom - other.degrees_of_freedom)

    @property
    def sd_bpb(self) -> float:
        """The `sd_bpb` of `seed_noise` alone; 0 where nothing ran twice."""
        return math.sqrt(self.squares / self.degrees_of_freedom) if self.degrees_of_freedom else 0.0


def spread(scores: Scores) -> Spread:
    """That of one experiment: of nothing, below two scores."""
    return Spread(_within([np.array(list(scores.values()))]), len(scores) - 1) if len(scores) >= 2 else Spread()


def seed_noise(experiments: Sequence[Mapping[int, float]], *, confidence: float = 0.95) -> NoiseFloor | None:
    """Standard deviation between seeds of one experiment, pooled over all experiments with two scores or more.

    Experiments on equal seeds move together, so they count for less than their number. With correlation r between the
    scores of two experiments on one seed, their sums of squares have correlation r^2 for each shared degree of freedom,
    and the estimate has (sum n)^2 / (sum n + r^2 * sum over pairs of shared n) degrees of freedom (Satterthwaite).
    """
    replicated = [scores for scores in experiments if len(scores) >= 2]
    degrees = [len(scores) - 1 for scores in replicated]
    if not degrees:
        return None
    variance = _within([np.array(list(scores.values())) for scores in replicated]) / sum(degrees)
    squared = correlation(experiments) ** 2
    return _estimate(variance, sum(degrees) ** 2 / (sum(degrees) + 2 * squared * _shared(replicated)), confidence)


def _shared(experiments: Iterable[Mapping[int, float]]) -> int:
    """Degrees of freedom that two experiments share, summed over all pairs of them.

    Experiments are many and sets of seeds few, so it is pairs of sets that are looked at.
    """
    sets = list(Counter(frozenset(scores) for scores in experiments).items())
    alike = sum(count * (count - 1) // 2 * max(0, len(seeds) - 1) for seeds, count in sets)
    unlike = sum(m * n * max(0, len(a & b) - 1) for at, (a, m) in enumerate(sets) for b, n in sets[at + 1 :])
    return alike + unlike


def correlation(experiments: Sequence[Mapping[int, float]]) -> float:
    """Correlation, in [0, 1], of two experiments' scores on one seed: the share of the seed variance that pairing removes.

    1, the cautious value for pooling, where no two experiments share two seeds.
    """
    pairs = pair_noise(experiments)
    replicated = [np.array(list(scores.values())) for scores in experiments if len(scores) >= 2]
    degrees = sum(len(sample) - 1 for sample in replicated)
    total = _within(replicated) / degrees if degrees else 0.0
    if pairs is None or total <= 0:
        return 1.0
    return min(1.0, max(0.0, 1 - pairs.sd_bpb**2 / 2 / total))


def pair_noise(experiments: Iterable[Scores], *, confidence: float = 0.95) -> NoiseFloor | None:
    """Standard deviation of the difference of two experiments' scores in one block, from the residuals of all of them.

    Least squares on experiment + block; the residual variance doubled. None while no two experiments share two blocks.
    Scores that are not finite are left out.
    """
    finite = ({block: value for block, value in scores.items() if math.isfinite(value)} for scores in experiments)
    rows = [scores for scores in finite if len(scores) >= 2]
    values = np.array([value for scores in rows for value in scores.values()])
    if len(values) == 0:
        return None
    blocks = {block: at for at, block in enumerate(dict.fromkeys(block for scores in rows for block in scores))}
    row_of = np.repeat(np.arange(len(rows)), [len(scores) for scores in rows])
    design = np.zeros((len(values), len(blocks)))
    design[np.arange(len(values)), [blocks[block] for scores in rows for block in scores]] = 1.0
    # Experiments are many and blocks few, so the former are projected out by hand (Frisch-Waugh-Lovell).
    basis, left = linalg.orth(_centred(design, row_of)), _centred(values[:, None], row_of)[:, 0]
    degrees = len(values) - len(rows) - basis.shape[1]
    if degrees == 0:
        return None
    squares = float(np.sum((left - basis @ (basis.T @ left)) ** 2))
    return _estimate(2 * squares / degrees, degrees, confidence)


def contest_noise(
    pairs: NoiseFloor | None,
    others: NoiseFloor | None,
    pooled: NoiseFloor | None,
    *,
    level: float = 0.05,
    least_bpb: float = 0.0,
) -> NoiseFloor | None:
    """Which noise a contest goes by. `pairs`: of its own pairs alone; `others`: of a study's other pairs; `pooled`: of all.

    Pooled, unless its own pairs spread more than the others' variance explains, or, with `FEW_PAIRS` or more of them, less
    (F-tests at `level`; at 0 always pooled). Near copies of an incumbent move by next to nothing: pooled with them, noise
    would pass for a gain. Changes that move all seeds alike are quiet: pooled with others, a gain would pass for noise.
    These go by `least_bpb` at least: audits look for leaks of what such noise lets be kept, and no closer.
    """
    if level == 0.0 or pairs is None or others is None:
        return pooled
    if others.sd_bpb == 0.0:
        return pairs if pairs.sd_bpb > 0.0 else pooled
    degrees, ratio = (pairs.degrees_of_freedom, others.degrees_of_freedom), (pairs.sd_bpb / others.sd_bpb) ** 2
    if special.fdtrc(*degrees, ratio) < level:
        return pairs
    if degrees[0] >= FEW_PAIRS - 1 and special.fdtr(*degrees, ratio) < level:
        return replace(pairs, sd_bpb=max(pairs.sd_bpb, least_bpb))
    return pooled


def _centred(columns: np.ndarray, row_of: np.ndarray) -> np.ndarray:
    """`columns` (value, column) less their means over each row's values. row_of: of each value, ascending from 0."""
    counts = np.bincount(row_of)
    sums = np.add.reduceat(columns, np.concatenate([[0], np.cumsum(counts)[:-1]]), axis=0)
    return columns - (sums / counts[:, None])[row_of]


def _within(samples: Iterable[np.ndarray]) -> float:
    return sum(float(np.sum((sample - sample.mean()) ** 2)) for sample in samples)


def _estimate(variance: float, degrees: float, confidence: float) -> NoiseFloor:
    """df * s^2 / sigma^2 is chi-square with df degrees of freedom. What rounding leaves of equal scores is none."""
    sd = math.sqrt(variance) if variance > 1e-24 else 0.0
    low, high = (2 * float(special.gammaincinv(degrees / 2, (1 + side) / 2)) for side in (-confidence, confidence))
    return NoiseFloor(sd, degrees, sd * math.sqrt(degrees / high), sd * math.sqrt(degrees / low))

"""The rules of acceptance: `paired` (the default), `fixed` and `greedy`. `make_rule` chooses by the configuration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import assert_never

import numpy as np
from scipy import special

from jaxresearch.config import StudyConfig
from jaxresearch.statistics.acceptance import Acceptance, Answer, Discard, Keep, RunIncumbent, RunSeed
from jaxresearch.statistics.noise import NoiseFloor, pair_noise

STUDY_ALPHA = 0.05
"""Under `control: study`, the probability of any false keep in a study is at most this."""

Scores = Mapping[int, float]


@dataclass(frozen=True)
class Paired:
    """A sequential test on paired seeds, with the variance pooled over the study.

    The contender runs on the incumbent's seeds, one at a time, and where those end the incumbent runs on new ones. After
    every pair from the second on, a one-sided t-test asks whether the mean paired difference is below zero:

        t = mean / (noise.sd / sqrt(pairs)), with the noise's degrees of freedom

    Keep: its p-value is at most the part of `alpha` that this look may spend. All parts add up to `alpha`, so by the
    union bound a contender of no effect is kept with probability at most `alpha`, however many looks it gets.
    Discard: an estimate better by one standard error would not pass the last look either. On one seed: a difference
    that is not below zero, or too little below it. Giving up early adds no false keeps.

    Assumes normal residuals of one variance over the experiments that `noise` is pooled over, and an incumbent whose
    scores were not selected. A kept incumbent's are (they are too good), which makes the test stricter, never laxer.
    """

    alpha: float = 0.01
    max_runs: int = 6

    @property
    def false_keep_rate(self) -> float:
        return self.alpha

    def share(self, pairs: int) -> float:
        """The part of alpha that the look after so many pairs may spend. The look after two has the least to go by."""
        looks = [2.0 if at > 2 or self.max_runs == 2 else 1.0 for at in range(2, self.max_runs + 1)]
        return looks[pairs - 2] / sum(looks) if pairs >= 2 else 0.0

    def decide(
        self,
        contender: Scores,
        incumbent: Scores,
        noise: NoiseFloor | None,
        unusable: AbstractSet[int] = frozenset(),
    ) -> Answer:
        seeds = pair_seeds(incumbent, self.max_runs, unusable)
        paired = [seed for seed in seeds if seed in contender and seed in incumbent]
        differences = np.array([contender[seed] - incumbent[seed] for seed in paired])
        if not np.isfinite(differences).all():
            return Discard("not a finite score", math.inf)
        answer = self._look(differences, noise) if paired else None
        answer = answer or next_pair(contender, incumbent, seeds)
        assert answer is not None, "the last look decides"
        return answer

    def _look(self, differences: np.ndarray, noise: NoiseFloor | None) -> Keep | Discard | None:
        pairs, mean = len(differences), float(differences.mean())
        if mean >= 0:
            return Discard(_no_gain(differences), mean)
        if noise is None:
            return None
        p_value = self._p(mean, pairs, noise) if pairs >= 2 else None
        reason = _compared(differences, noise)
        if p_value is not None and p_value <= self.alpha:
            return Keep(f"{reason}, p {_p_text(p_value)}", mean, p_value)
        if pairs == self.max_runs:
            assert p_value is not None
            return Discard(
                f"{reason}, p {_p_text(p_value)}: not below {self.alpha:g}, so it may be seed noise", mean, p_value
            )
        hopeful = mean - noise.sd_bpb / math.sqrt(pairs)
        later = NoiseFloor(noise.sd_bpb, noise.degrees_of_freedom + self.max_runs - pairs, 0.0, math.inf)
        if self._p(hopeful, self.max_runs, later) > self.alpha:
            return Discard(f"{reason}: too little for {self.max_runs} runs to tell from seed noise", mean, p_value)
        return None

    def _p(self, mean: float, pairs: int, noise: NoiseFloor) -> float:
        """p of the look, corrected for all looks: to be compared with alpha."""
        if noise.sd_bpb == 0.0:
            return 0.0 if mean < 0 else 1.0
        t = mean / (noise.sd_bpb / math.sqrt(pairs))
        return min(1.0, float(special.stdtr(noise.degrees_of_freedom, t)) / self.share(pairs))


@dataclass(frozen=True)
class Fixed:
    """`runs` pairs for every contender, then one paired t-test on them alone. No early looks, no pooling."""

    runs: int = 3
    alpha: float = 0.01

    @property
    def false_keep_rate(self) -> float:
        return self.alpha

    def decide(
        self,
        contender: Scores,
        incumbent: Scores,
        noise: NoiseFloor | None,
        unusable: AbstractSet[int] = frozenset(),
    ) -> Answer:
        del noise
        seeds = pair_seeds(incumbent, self.runs, unusable)
        wanted = next_pair(contender, incumbent, seeds)
        if wanted is not None:
            return wanted
        differences = np.array([contender[seed] - incumbent[seed] for seed in seeds])
        if not np.isfinite(differences).all():
            return Discard("not a finite score", math.inf)
        mean, p_value = float(differences.mean()), _one_sided_p(differences)
        own = pair_noise([{seed: contender[seed] for seed in seeds}, {seed: incumbent[seed] for seed in seeds}])
        reason = f"{_compared(differences, own)}, p {_p_text(p_value)}"
        if p_value <= self.alpha:
            return Keep(reason, mean, p_value)
        return Discard(f"{reason}: not below {self.alpha:g}, so it may be seed noise", mean, p_value)


@dataclass(frozen=True)
class Greedy:
    """autoresearch's rule, for comparison: one run each, and any decrease is kept."""

    @property
    def false_keep_rate(self) -> float:
        return 0.5

    def decide(
        self,
        contender: Scores,
        incumbent: Scores,
        noise: NoiseFloor | None,
        unusable: AbstractSet[int] = frozenset(),
    ) -> Answer:
        del noise
        seeds = pair_seeds(incumbent, 1, unusable)
        wanted = next_pair(contender, incumbent, seeds)
        if wanted is not None:
            return wanted
        difference = contender[seeds[0]] - incumbent[seeds[0]]
        if not math.isfinite(difference):
            return Discard("not a finite score", math.inf)
        if difference < 0:
            return Keep(f"lower on one seed by {-difference:.4f} bpb; not tested against noise", difference, None)
        return Discard(f"not lower on one seed: {difference:+.4f} bpb", difference)


def make_rule(config: StudyConfig) -> Acceptance:
    """The rule that `acceptance.rule` names. Under `control: study` its alpha is the study's, shared out evenly."""
    settings = config.acceptance
    alpha = STUDY_ALPHA / max(1, config.experiments) if settings.control == "study" else settings.alpha
    match settings.rule:
        case "paired":
            return Paired(alpha=alpha, max_runs=settings.max_runs)
        case "fixed":
            return Fixed(runs=settings.runs, alpha=alpha)
        case "greedy":
            return Greedy()
        case _:
            assert_never(settings.rule)


def pair_seeds(incumbent: Scores, count: int, unusable: AbstractSet[int]) -> list[int]:
    """The seeds of a comparison, in order: from the incumbent's lowest on, without the unusable."""
    counted = (seed for seed in itertools.count(min(incumbent)) if seed not in unusable)
    return list(itertools.islice(counted, count))


def next_pair(contender: Scores, incumbent: Scores, seeds: list[int]) -> RunSeed | RunIncumbent | None:
    """The run that the first incomplete pair wants, None when all are complete."""
    for seed in seeds:
        if seed not in incumbent:
            return RunIncumbent(seed)
        if seed not in contender:
            return RunSeed(seed)
    return None


def _one_sided_p(differences: np.ndarray) -> float:
    """p of the t-test that the mean difference is below zero; differences without any spread leave no doubt."""
    if len(differences) < 2:
        return 1.0
    if float(np.ptp(differences)) == 0.0:
        return 0.0 if differences[0] < 0 else 1.0
    count, mean = len(differences), differences.mean()
    # In scipy.stats.ttest_1samp's own order of operations: bit by bit what it gives, as ledgers of old have it.
    variance = np.mean((differences - mean) ** 2) * (count / (count - 1))
    return float(special.stdtr(count - 1, mean / np.sqrt(variance / count)))


def _no_gain(differences: np.ndarray) -> str:
    if len(differences) == 1:
        return f"not better on the first seed: {float(differences[0]):+.4f} bpb against the incumbent"
    return f"{_compared(differences, None)}: no gain on average, so other seeds were spared"


def _compared(differences: np.ndarray, noise: NoiseFloor | None) -> str:
    count, better, mean = len(differences), int(np.sum(differences < 0)), float(differences.mean())
    word = "by" if mean < 0 else "yet worse by"
    spread = f" ± {noise.sd_bpb / math.sqrt(count):.4f}" if noise is not None else ""
    return f"better on {better} of {count} seed{'s' * (count > 1)} {word} {abs(mean):.4f}{spread} bpb"


def _p_text(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"= {value:.4f}" if value < 0.1 else f"= {value:.2f}"

"""Acceptance: is a contender better than the incumbent? A rule sees scores only, and answers with a reason in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import stats

from jaxresearch.statistics.noise import NoiseFloor


@dataclass(frozen=True)
class RunSeed:
    """Not known yet: run the contender with `seed` too."""

    seed: int


@dataclass(frozen=True)
class Keep:
    """The contender is better. `difference`: mean paired difference in bits per byte, below zero is better."""

    reason: str
    difference: float
    p_value: float


@dataclass(frozen=True)
class Discard:
    """The contender is not shown to be better. `p_value` is None when it was given up before the test."""

    reason: str
    difference: float
    p_value: float | None = None


Answer = RunSeed | Keep | Discard


class Acceptance(Protocol):
    """Decides on a contender, one run at a time. Match the answer with `assert_never`."""

    def decide(
        self, contender: Mapping[int, float], incumbent: Mapping[int, float], noise: NoiseFloor | None
    ) -> Answer:
        """The next thing to do, from val_bpb by seed of both.

        contender: the runs so far, empty at first. incumbent: all of its runs. noise: the laboratory's noise floor, or
        None before it is known. A pure function: asked again with the same scores, it answers the same.
        """
        ...


@dataclass(frozen=True)
class ReplicatedPairs:
    """The plain rule: a contender must win on the first seed, then over all seeds by a paired t-test.

    1. Screen. The contender runs with the incumbent's first seed. Not better there: `Discard` after one run.
    2. Replicate. It runs with the incumbent's other seeds, one at a time. As soon as its mean paired difference is not
       below zero: `Discard`.
    3. Test. When `runs` pairs are there: `Keep` if the mean paired difference is below zero and a one-sided paired
       t-test gives p <= `alpha`; else `Discard`.

    What it promises. One contender of no true effect, compared with an incumbent whose scores were not selected, is
    kept with probability at most `alpha`. The early looks can only discard: whoever is kept has also passed the test on
    all pairs, a test whose level is `alpha` by itself. Looking early therefore costs power, and never adds false keeps.
    The paired differences are assumed to be independent and normal.

    What it does not promise. There is no early keep, so it spends all `runs` on each winner. `alpha` is for each
    contender: over a study of k null contenders expect up to k * alpha false keeps, and these are not independent,
    since all meet the same incumbent's scores. The variance is estimated from few pairs (`runs` - 1 degrees of freedom)
    rather than pooled with `noise`, so it misses small effects that a pooled test would find. A sequential test that
    spends its error over the early looks, keeps early and pools the variance takes this seat later.
    """

    runs: int = 3
    alpha: float = 0.05

    def decide(
        self, contender: Mapping[int, float], incumbent: Mapping[int, float], noise: NoiseFloor | None
    ) -> Answer:
        del noise  # this rule uses the pairs alone
        seeds = list(incumbent)[: self.runs]
        missing = [seed for seed in seeds if seed not in contender]
        if len(missing) == len(seeds):
            return RunSeed(seeds[0])
        differences = np.array([contender[seed] - incumbent[seed] for seed in seeds if seed in contender])
        mean = float(differences.mean())
        if not np.isfinite(differences).all():
            return Discard("not a finite score", float("inf"))
        if mean >= 0:
            return Discard(_gave_up(differences), mean)
        if missing:
            return RunSeed(missing[0])
        return self._test(differences)

    def _test(self, differences: np.ndarray) -> Keep | Discard:
        p_value = _one_sided_p(differences)
        reason = f"{_compared(differences)}, p {_p(p_value)}"
        mean = float(differences.mean())
        if p_value <= self.alpha:
            return Keep(reason, mean, p_value)
        return Discard(f"{reason}: not below {self.alpha:g}, so it may be seed noise", mean, p_value)


def _one_sided_p(differences: np.ndarray) -> float:
    """p of the t-test that the mean difference is below zero; differences without any spread leave no doubt."""
    if len(differences) < 2:
        return 1.0
    if float(np.ptp(differences)) == 0.0:
        return 0.0 if differences[0] < 0 else 1.0
    test = stats.ttest_1samp(differences, 0.0, alternative="less")
    return float(test.pvalue)  # pyright: ignore[reportAttributeAccessIssue] - scipy makes this class at run time


def _gave_up(differences: np.ndarray) -> str:
    if len(differences) == 1:
        return f"not better on the first seed: {float(differences[0]):+.4f} bpb against the incumbent"
    return f"{_compared(differences)}: no gain on average, so the other seeds were spared"


def _compared(differences: np.ndarray) -> str:
    count, better, mean = len(differences), int(np.sum(differences < 0)), float(differences.mean())
    word = "by" if mean < 0 else "yet worse by"
    spread = f" ± {float(stats.sem(differences)):.4f}" if count > 1 else ""
    return f"better on {better} of {count} seeds {word} {abs(mean):.4f}{spread} bpb"


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"= {value:.4f}" if value < 0.1 else f"= {value:.2f}"

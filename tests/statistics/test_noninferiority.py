"""Non-inferiority: what loses the margin is seldom kept, what loses nothing mostly is."""

from __future__ import annotations

import numpy as np
from scipy import stats

from jaxresearch.statistics.acceptance import Discard, Keep, RunIncumbent, RunSeed
from jaxresearch.statistics.noise import pair_noise
from jaxresearch.statistics.noninferiority import NonInferiority

SD = 0.003
"""Standard deviation of a paired difference."""


def contest(rule: NonInferiority, effect: float, randomness: np.random.Generator) -> tuple[bool, int]:
    """Whether a contender of that effect is kept, and its runs. Two other pairs of the study lend degrees of freedom."""

    def score(seed: int, offset: float) -> float:
        return 1.5 + seeds[seed] + offset + float(randomness.normal(0, SD / np.sqrt(2)))

    seeds = randomness.normal(0, 0.01, size=rule.max_runs)
    known = {seed: score(seed, 0.0) for seed in range(3)}
    other = {seed: score(seed, 0.02) for seed in range(3)}
    contender: dict[int, float] = {}
    while True:
        answer = rule.decide(contender, known, pair_noise([known, other, contender]))
        match answer:
            case RunSeed(seed=seed):
                contender[seed] = score(seed, effect)
            case RunIncumbent(seed=seed):
                known[seed] = score(seed, 0.0)
            case Keep() | Discard():
                return isinstance(answer, Keep), len(contender)


def kept_share(effect: float, studies: int, seed: int = 0) -> float:
    rule, randomness = NonInferiority(margin_bpb=3 * SD, alpha=0.05, max_runs=6), np.random.default_rng(seed)
    return sum(contest(rule, effect, randomness)[0] for _ in range(studies)) / studies


def test_what_loses_the_margin_is_kept_no_more_often_than_alpha_says():
    studies = 600
    share = kept_share(3 * SD, studies)
    assert share * studies <= stats.binom.ppf(0.999, studies, 0.05)
    assert kept_share(4 * SD, 200) <= 0.03


def test_what_loses_nothing_is_mostly_kept():
    assert kept_share(0.0, 200) > 0.6


def test_it_gives_up_early_and_says_what_it_saw():
    rule = NonInferiority(margin_bpb=0.005, alpha=0.01, max_runs=6)
    answer = rule.decide({0: 1.6}, {0: 1.5, 1: 1.5}, None)
    assert isinstance(answer, Discard)
    assert abs(answer.difference - 0.1) < 1e-9
    assert "+0.1000 bpb" in answer.reason
    kept = rule.decide({0: 1.501, 1: 1.501}, {0: 1.5, 1: 1.5}, pair_noise([{0: 1.501, 1: 1.501}, {0: 1.5, 1: 1.5}]))
    assert isinstance(kept, Keep)
    assert abs(kept.difference - 0.001) < 1e-9

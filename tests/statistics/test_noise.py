"""Noise: estimates against what is known, and against the truth in simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from jaxresearch.statistics.noise import (
    Spread,
    _estimate,
    _shared,
    contest_noise,
    correlation,
    noise_floor,
    pair_noise,
    seed_noise,
    spread,
)


def test_the_noise_floor_is_the_pooled_deviation_with_its_interval():
    floor = noise_floor([[1.0, 1.02, 1.01], [2.0], [1.5, 1.52]])
    assert floor is not None
    assert floor.degrees_of_freedom == 3
    assert floor.sd_bpb == pytest.approx(np.sqrt((2 * np.var([1.0, 1.02, 1.01], ddof=1) + 0.0002) / 3))
    assert floor.low_bpb < floor.sd_bpb < floor.high_bpb


def test_one_run_says_nothing_about_noise():
    assert noise_floor([[1.0], []]) is None
    assert seed_noise([{0: 1.0}]) is None
    assert pair_noise([{0: 1.0, 1: 2.0}, {0: 1.0}, {}]) is None


def test_of_two_experiments_the_pair_noise_is_that_of_the_differences():
    ours, theirs = {0: 1.50, 1: 1.52, 2: 1.57}, {0: 1.48, 1: 1.51, 2: 1.53}
    noise = pair_noise([ours, theirs])
    assert noise is not None
    assert noise.degrees_of_freedom == 2
    assert noise.sd_bpb == pytest.approx(np.std([0.02, 0.01, 0.04], ddof=1))


def test_experiments_without_a_common_seed_give_no_pairs():
    assert pair_noise([{0: 1.0, 1: 1.1}, {2: 1.0, 3: 1.1}]) is None


def test_equal_scores_have_no_noise():
    noise = pair_noise([{0: 1.5, 1: 1.7, 2: 1.1}, {0: 1.4, 1: 1.6, 2: 1.0}])
    assert noise is not None
    assert noise.sd_bpb == 0.0


def study(generator: np.random.Generator, seed_sd: float, residual_sd: float) -> list[dict[int, float]]:
    """Six experiments, the first with five seeds and the others with fewer."""
    effects = generator.normal(0, seed_sd, 5)
    return [
        {seed: 1.5 + 0.1 * at + effects[seed] + generator.normal(0, residual_sd) for seed in range(count)}
        for at, count in enumerate((5, 3, 1, 3, 2, 5))
    ]


def test_pair_noise_is_unbiased_and_its_interval_covers():
    generator, variances, covered = np.random.default_rng(1), [], 0
    for _ in range(600):
        noise = pair_noise(study(generator, 0.012, 0.004))
        assert noise is not None
        variances.append(noise.sd_bpb**2)
        covered += noise.low_bpb <= 0.004 * np.sqrt(2) <= noise.high_bpb
    assert np.mean(variances) == pytest.approx(2 * 0.004**2, rel=0.06)
    assert 0.92 < covered / 600 < 0.98


@pytest.mark.parametrize(("seed_sd", "residual_sd"), [(0.012, 0.002), (0.0, 0.01), (0.008, 0.008)])
def test_the_seed_noises_interval_covers_although_seeds_are_shared(seed_sd: float, residual_sd: float):
    generator, covered, total = np.random.default_rng(2), 0, np.hypot(seed_sd, residual_sd)
    for _ in range(600):
        noise = seed_noise(study(generator, seed_sd, residual_sd))
        assert noise is not None
        covered += noise.low_bpb <= total <= noise.high_bpb
    assert 0.91 < covered / 600 < 0.99


def test_shared_seeds_count_for_less():
    generator = np.random.default_rng(4)
    paired, independent = seed_noise(study(generator, 0.02, 1e-4)), seed_noise(study(generator, 0.0, 0.02))
    assert paired is not None
    assert independent is not None
    assert paired.degrees_of_freedom < 5 < 10 < independent.degrees_of_freedom <= 13


def test_the_correlation_of_pairs():
    generator = np.random.default_rng(5)
    found = [correlation(study(generator, 0.01, 0.01)) for _ in range(300)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.12)
    assert correlation([{0: 1.0, 1: 1.2}]) == 1.0


def test_shared_degrees_of_freedom_are_those_of_all_pairs():
    generator = np.random.default_rng(5)
    rows = [
        dict.fromkeys(generator.choice(6, generator.integers(2, 6), replace=False).tolist(), 1.0) for _ in range(40)
    ]
    pairs = [(a, b) for at, a in enumerate(rows) for b in rows[at + 1 :]]
    assert _shared(rows) == sum(max(0, len(a.keys() & b.keys()) - 1) for a, b in pairs) > 0


def test_the_quick_deviation_is_that_of_the_noise():
    rows = study(np.random.default_rng(6), 0.01, 0.002)
    noise = seed_noise(rows)
    assert noise is not None
    assert sum(map(spread, rows), Spread()).sd_bpb == pytest.approx(noise.sd_bpb, rel=1e-12)
    assert Spread().sd_bpb == spread({0: 1.0}).sd_bpb == 0.0


def test_the_interval_is_that_of_the_chi_square_distribution():
    for degrees in (1.0, 2.5, 17.0):
        floor = _estimate(4.0, degrees, 0.9)
        low, high = stats.chi2.interval(0.9, degrees)
        assert (floor.low_bpb, floor.high_bpb) == (2 * np.sqrt(degrees / high), 2 * np.sqrt(degrees / low))


def test_a_contest_whose_own_pairs_spread_more_goes_by_these_alone():
    incumbent, generator = {0: 1.50, 1: 1.52, 2: 1.57}, np.random.default_rng(7)
    copies = [{seed: score + generator.normal(0, 1e-6) for seed, score in incumbent.items()} for _ in range(4)]
    alike = [{seed: score + generator.normal(0, 0.01) for seed, score in incumbent.items()} for _ in range(4)]
    contender = {0: 1.48, 1: 1.51, 2: 1.53}
    own = pair_noise([contender, incumbent])
    for others, by in ((copies, own), (alike, pair_noise([contender, incumbent, *alike]))):
        pooled = pair_noise([contender, incumbent, *others])
        assert contest_noise(own, pair_noise([incumbent, *others]), pooled) == by
    assert contest_noise(own, None, own) == own
    assert contest_noise(None, own, own) == own
    equal = pair_noise([incumbent, incumbent])
    assert equal is not None
    assert contest_noise(own, equal, equal) == own, "and where others do not move at all"


def test_a_quiet_contest_of_four_pairs_goes_by_its_own_pairs_and_never_below_the_least():
    generator, incumbent = np.random.default_rng(8), {seed: 1.5 + seed / 100 for seed in range(6)}
    others = [{seed: score + generator.normal(0, 0.02) for seed, score in incumbent.items()} for _ in range(4)]
    contender = {seed: score - 0.01 + generator.normal(0, 0.0005) for seed, score in incumbent.items()}
    for count, own in ((6, True), (4, True), (3, False)):
        rows = [{seed: score for seed, score in row.items() if seed < count} for row in (contender, incumbent, *others)]
        pairs, pooled = pair_noise(rows[:2]), pair_noise(rows)
        assert pairs is not None
        found = contest_noise(pairs, pair_noise(rows[1:]), pooled)
        assert found == (pairs if own else pooled), count
    pairs = pair_noise([contender, incumbent])
    found = contest_noise(pairs, pair_noise([incumbent, *others]), None, least_bpb=0.003)
    assert found is not None
    assert (found.sd_bpb, found.degrees_of_freedom) == (0.003, 5)
    assert contest_noise(pairs, pair_noise([incumbent, *others]), None, level=0.0) is None

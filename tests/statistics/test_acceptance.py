"""The acceptance rule: what it asks for, what it says, and how often it is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from jaxresearch.statistics.acceptance import Answer, Discard, Keep, ReplicatedPairs, RunSeed
from jaxresearch.statistics.noise import noise_floor

INCUMBENT = {0: 1.50, 1: 1.52, 2: 1.51}


def decide(contender: dict[int, float], rule: ReplicatedPairs | None = None) -> Answer:
    return (rule or ReplicatedPairs()).decide(contender, INCUMBENT, None)


def test_it_begins_with_the_incumbents_first_seed():
    assert decide({}) == RunSeed(0)


def test_a_loser_on_the_first_seed_is_discarded_after_one_run():
    answer = decide({0: 1.53})
    assert isinstance(answer, Discard)
    assert answer.reason == "not better on the first seed: +0.0300 bpb against the incumbent"
    assert answer.p_value is None


def test_a_tie_is_no_gain():
    assert isinstance(decide({0: 1.50}), Discard)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_never_wins(score: float):
    assert isinstance(decide({0: score}), Discard)


def test_a_winner_on_the_first_seed_is_replicated_one_seed_at_a_time():
    assert decide({0: 1.49}) == RunSeed(1)
    assert decide({0: 1.49, 1: 1.51}) == RunSeed(2)


def test_it_gives_up_when_the_mean_of_two_is_worse():
    answer = decide({0: 1.49, 1: 1.55})
    assert isinstance(answer, Discard)
    assert answer.reason.startswith("better on 1 of 2 seeds yet worse by 0.0100 ±")


def test_a_steady_gain_is_kept_with_scipys_p_value():
    answer = decide({0: 1.488, 1: 1.506, 2: 1.498})
    assert isinstance(answer, Keep)
    expected = stats.ttest_rel([1.488, 1.506, 1.498], [1.50, 1.52, 1.51], alternative="less")
    assert answer.p_value == pytest.approx(expected.pvalue)
    assert answer.difference == pytest.approx(-0.0126667, abs=1e-6)
    assert answer.reason == "better on 3 of 3 seeds by 0.0127 ± 0.0007 bpb, p = 0.0014"


def test_an_unsteady_gain_may_be_noise():
    answer = decide({0: 1.40, 1: 1.519, 2: 1.509})
    assert isinstance(answer, Discard)
    assert "not below 0.05, so it may be seed noise" in answer.reason
    assert answer.p_value is not None
    assert answer.p_value > 0.05


def test_differences_without_spread_leave_no_doubt():
    incumbent = {0: 1.0, 1: 1.0, 2: 1.0}
    answer = ReplicatedPairs().decide({0: 0.5, 1: 0.5, 2: 0.5}, incumbent, None)
    assert isinstance(answer, Keep)
    assert answer.p_value == 0.0


def play(rule: ReplicatedPairs, contender: np.ndarray, incumbent: np.ndarray) -> tuple[Answer, int]:
    """Run the rule to its end; its answer and how many runs it took."""
    known: dict[int, float] = {}
    while True:
        answer = rule.decide(known, dict(enumerate(incumbent)), None)
        if not isinstance(answer, RunSeed):
            return answer, len(known)
        known[answer.seed] = float(contender[answer.seed])


@pytest.mark.parametrize("runs", [3, 5])
def test_false_keeps_stay_below_alpha(runs: int):
    """4,000 contenders of no effect: the rate of keeps is not above alpha by more than sampling explains.

    That it cannot be above: whatever is kept, the full test on all pairs would keep too, and its level is alpha.
    """
    generator, rule, kept, used = np.random.default_rng(20260), ReplicatedPairs(runs=runs), 0, 0
    for _ in range(4000):
        seed_effect = generator.normal(0, 0.012, runs)
        incumbent = 1.5 + seed_effect + generator.normal(0, 0.002, runs)
        contender = 1.5 + seed_effect + generator.normal(0, 0.002, runs)
        answer, taken = play(rule, contender, incumbent)
        used += taken
        if isinstance(answer, Keep):
            kept += 1
            assert stats.ttest_rel(contender, incumbent, alternative="less").pvalue <= rule.alpha
    assert stats.binomtest(kept, 4000, rule.alpha, alternative="greater").pvalue > 0.01
    assert used / 4000 < runs * 0.75, "screening saves runs"


def test_a_real_gain_is_found():
    generator, kept = np.random.default_rng(7), 0
    for _ in range(200):
        incumbent = generator.normal(1.5, 0.002, 3)
        answer, _ = play(ReplicatedPairs(), generator.normal(1.48, 0.002, 3), incumbent)
        kept += isinstance(answer, Keep)
    assert kept >= 190


def test_the_noise_floor_is_the_pooled_deviation_with_its_interval():
    floor = noise_floor([[1.0, 1.02, 1.01], [2.0], [1.5, 1.52]])
    assert floor is not None
    assert floor.degrees_of_freedom == 3
    assert floor.sd_bpb == pytest.approx(np.sqrt((2 * np.var([1.0, 1.02, 1.01], ddof=1) + 0.0002) / 3))
    assert floor.low_bpb < floor.sd_bpb < floor.high_bpb


def test_one_run_says_nothing_about_noise():
    assert noise_floor([[1.0], []]) is None


def test_the_interval_covers_the_truth():
    generator, covered = np.random.default_rng(3), 0
    for _ in range(500):
        floor = noise_floor([generator.normal(0, 0.01, 3)])
        assert floor is not None
        covered += floor.low_bpb <= 0.01 <= floor.high_bpb
    assert 0.92 < covered / 500 < 0.98

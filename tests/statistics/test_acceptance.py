"""The acceptance rules: what they ask for, what they say, and how often they are wrong."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from jaxresearch.config import validate_config
from jaxresearch.statistics.acceptance import Acceptance, Answer, Discard, Keep, RunIncumbent, RunSeed
from jaxresearch.statistics.noise import pair_noise
from jaxresearch.statistics.rules import Fixed, Greedy, Paired, make_rule

_ROOT = Path(__file__).parents[2]
_BENCHMARK, _INTEGRITY = _ROOT / "benchmarks" / "acceptance.py", (_ROOT / "docs" / "integrity.md").read_text("utf-8")
_spec = importlib.util.spec_from_file_location("acceptance_benchmark", _BENCHMARK)
assert _spec is not None
assert _spec.loader is not None
benchmark = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = benchmark
_spec.loader.exec_module(benchmark)

INCUMBENT = {0: 1.50, 1: 1.52, 2: 1.51}


def decide(
    contender: dict[int, float], rule: Acceptance | None = None, incumbent: dict[int, float] = INCUMBENT, **extra
) -> Answer:
    return (rule or Paired()).decide(contender, incumbent, pair_noise([contender, incumbent]), **extra)


def test_it_begins_with_the_incumbents_first_seed():
    assert decide({}) == RunSeed(0)


def test_a_loser_on_the_first_seed_is_discarded_after_one_run():
    answer = decide({0: 1.53})
    assert isinstance(answer, Discard)
    assert answer.reason == "not better on the first seed: +0.0300 bpb against the incumbent"
    assert answer.p_value is None


def test_a_tie_is_no_gain():
    assert isinstance(decide({0: 1.50}), Discard)


@pytest.mark.parametrize("rule", [Paired(), Fixed(), Greedy()])
@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_never_wins(rule: Acceptance, score: float):
    assert isinstance(decide({0: score, 1: score, 2: score}, rule), Discard)


def test_a_winner_on_the_first_seed_is_replicated_one_seed_at_a_time():
    assert decide({0: 1.49}) == RunSeed(1)
    assert decide({0: 1.49, 1: 1.511}) == RunSeed(2)


def test_beyond_the_incumbents_seeds_both_run():
    contender = {0: 1.49, 1: 1.515, 2: 1.50}
    assert decide(contender) == RunIncumbent(3)
    assert decide(contender, incumbent={**INCUMBENT, 3: 1.5}) == RunSeed(3)


def test_a_seed_that_the_incumbent_fails_on_is_passed_over():
    assert decide({0: 1.49, 1: 1.515, 2: 1.50}, unusable={3}) == RunIncumbent(4)


def test_it_gives_up_when_the_mean_of_two_is_worse():
    answer = decide({0: 1.49, 1: 1.55})
    assert isinstance(answer, Discard)
    assert answer.reason.startswith("better on 1 of 2 seeds yet worse by 0.0100 bpb")


def test_a_steady_gain_is_kept_after_three_runs():
    answer = decide({0: 1.488, 1: 1.506, 2: 1.498})
    assert isinstance(answer, Keep)
    test = stats.ttest_rel([1.488, 1.506, 1.498], [1.50, 1.52, 1.51], alternative="less")
    assert answer.p_value == pytest.approx(test.pvalue * 9 / 2), "corrected for the looks"
    assert answer.difference == pytest.approx(-0.0126667, abs=1e-6)
    assert answer.reason == "better on 3 of 3 seeds by 0.0127 ± 0.0007 bpb, p = 0.0062"


def test_an_unsteady_gain_may_be_noise():
    incumbent = dict.fromkeys(range(6), 1.5)
    contender = {0: 1.40, 1: 1.499, 2: 1.51, 3: 1.498, 4: 1.48, 5: 1.51}
    answer = Paired().decide(contender, incumbent, pair_noise([contender, incumbent]))
    assert isinstance(answer, Discard)
    assert answer.p_value is not None
    assert answer.p_value > 0.01


def test_other_pairs_of_the_study_sharpen_the_test():
    contender, history = {0: 1.47, 1: 1.495}, [INCUMBENT, {0: 1.502, 1: 1.523, 2: 1.511}, {0: 1.499, 1: 1.52, 2: 1.512}]
    assert decide(contender) == RunSeed(2)
    answer = Paired().decide(contender, INCUMBENT, pair_noise([contender, *history]))
    assert isinstance(answer, Keep)


def test_differences_without_spread_leave_no_doubt():
    incumbent = {0: 1.0, 1: 1.0, 2: 1.0}
    answer = decide({0: 0.5, 1: 0.5}, incumbent=incumbent)
    assert isinstance(answer, Keep)
    assert answer.p_value == 0.0


@pytest.mark.parametrize("max_runs", [2, 3, 6, 20])
def test_the_looks_share_out_alpha_and_no_more(max_runs: int):
    rule = Paired(max_runs=max_runs)
    assert sum(rule.share(pairs) for pairs in range(1, max_runs + 1)) == pytest.approx(1.0)


def test_fixed_runs_all_its_pairs_then_tests_them_alone():
    rule = Fixed(runs=3, alpha=0.01)
    assert decide({0: 1.6}, rule) == RunSeed(1)
    assert decide({0: 1.6, 1: 1.6, 2: 1.6}, Fixed(runs=4)) == RunIncumbent(3)
    contender = {0: 1.488, 1: 1.506, 2: 1.498}
    answer = decide(contender, rule)
    assert isinstance(answer, Keep)
    test = stats.ttest_rel(list(contender.values()), list(INCUMBENT.values()), alternative="less")
    assert answer.p_value == pytest.approx(test.pvalue)
    assert isinstance(decide({0: 1.40, 1: 1.519, 2: 1.509}, rule), Discard)


def test_greedy_keeps_any_decrease():
    assert isinstance(decide({0: 1.4999}, Greedy()), Keep)
    assert isinstance(decide({0: 1.5}, Greedy()), Discard)


def test_the_configuration_chooses_the_rule():
    assert make_rule(validate_config({})) == Paired(alpha=0.01, max_runs=6)
    assert make_rule(validate_config({"acceptance": {"rule": "greedy"}})) == Greedy()
    fixed = validate_config({"acceptance": {"rule": "fixed", "runs": 5, "alpha": 0.02}})
    assert make_rule(fixed) == Fixed(runs=5, alpha=0.02)
    study = validate_config({"experiments": 20, "acceptance": {"control": "study"}})
    assert make_rule(study) == Paired(alpha=0.0025, max_runs=6)


# By simulation. `python benchmarks/acceptance.py` prints the figures in docs/integrity.md.


@pytest.mark.parametrize(
    ("rule", "studies"), [(Paired(), 300), (Paired(max_runs=3), 300), (Fixed(), 300), (Paired(alpha=0.1), 300)]
)
def test_false_keeps_stay_below_alpha(rule: Acceptance, studies: int):
    """2,400 contenders of no effect, in studies of 8: not more keeps than alpha by more than sampling explains."""
    tally = benchmark.play(rule, 0.0, studies, seed=20260)
    assert stats.binomtest(sum(tally.kept), len(tally.kept), rule.false_keep_rate, alternative="greater").pvalue > 0.01
    if isinstance(rule, Paired):
        assert tally.runs_each < 2.0, "most are given up after one run or two"


def test_the_study_wide_control_holds():
    rule = make_rule(validate_config({"experiments": 8, "acceptance": {"control": "study"}}))
    tally = benchmark.play(rule, 0.0, 200, seed=3)
    assert tally.studies_with_keep / tally.studies <= 0.05


@pytest.mark.parametrize(
    ("effect", "power", "runs"), [(0.5, 0.03, 2.00), (1.0, 0.12, 2.73), (2.0, 0.75, 3.41), (4.0, 0.995, 2.47)]
)
def test_power_and_runs_are_as_documented(effect: float, power: float, runs: float):
    found = benchmark.play(Paired(), effect, 120)
    assert found.keep_rate == pytest.approx(power, abs=0.04)
    assert found.runs_each == pytest.approx(runs, rel=0.06)
    row = next(line for line in _INTEGRITY.splitlines() if line.startswith(f"| paired | {effect:g} sigma"))
    documented = [float(cell.strip(" %")) for cell in (row.split("|")[3], row.split("|")[5])]
    assert documented == pytest.approx([100 * power, runs], rel=0.02)


def test_a_real_win_is_kept_with_about_three_runs_even_as_the_first_of_a_study():
    """0.05 bpb at a paired deviation of 0.005: in the middle of what the default study's true wins are worth."""
    tally = benchmark.first_win(10.0, 300)
    assert tally.keep_rate > 0.97
    assert tally.runs_of_kept < 3.6


def test_where_pairing_does_not_help_false_keeps_stay_below_alpha_too():
    tally, generator = benchmark.Tally(), np.random.default_rng(8)
    for _ in range(250):
        benchmark.play_study(Paired(), [0.0] * 8, generator, tally, seed_sd=0.0)
    assert stats.binomtest(sum(tally.kept), len(tally.kept), 0.01, alternative="greater").pvalue > 0.01


def test_near_copies_of_the_incumbent_do_not_make_noise_a_gain():
    """Were all pooled, 6.7 % of what has no effect would be kept after five, 9.8 % after twenty."""
    assert benchmark.after_copies(5, 120).keep_rate < 0.04
    assert benchmark.after_copies(20, 120).keep_rate < 0.065

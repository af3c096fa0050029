"""Comparison: known answers, and error rates in simulation."""

from __future__ import annotations

import numpy as np
import pytest

from jaxresearch.statistics.comparison import (
    contrasts,
    holm,
    interval,
    planned,
    repeats_needed,
    sentence,
    smallest_p,
    warning,
)


def test_holm_is_the_textbooks():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_intervals():
    assert interval([1.5]).low is None
    assert interval([1.5, 1.5]).low == 1.5
    found = interval([1.0, 1.1, 1.2, 1.3, 1.4])
    assert found.low is not None
    assert found.high is not None
    assert 1.0 < found.low < 1.2 < found.high < 1.4


@pytest.mark.parametrize("repeats", [3, 5, 8])
def test_95_percent_of_the_intervals_hold_what_they_are_of(repeats: int):
    generator = np.random.default_rng(14)
    found = [interval(list(generator.normal(0, 1, repeats))) for _ in range(2000)]
    assert all(each.low is not None and each.high is not None for each in found)
    assert 0.935 < np.mean([each.low <= 0 <= each.high for each in found]) < 0.965


def test_planned_contrasts():
    assert planned(["greedy", "beam", "random_search"], "random_search") == [
        ("greedy", "random_search"),
        ("beam", "random_search"),
        ("greedy", "beam"),
    ]
    assert planned(["greedy", "random_search"], "random_search") == [("greedy", "random_search")]
    assert planned(["a", "b"], None) == [("a", "b")]
    assert planned(["a"], None) == []


def test_how_few_repeats_are_too_few():
    assert smallest_p(3) == pytest.approx(0.1)
    assert warning(3, 1) is not None
    assert warning(8, 5) is None
    assert warning(1, 0) is None


@pytest.mark.parametrize("repeats", [4, 6])
def test_of_equal_arms_one_in_twenty_tournaments_claims_a_difference_at_most(repeats: int):
    """Three arms and a control, one shared shift a repeat: any claim at all is a false one."""
    generator, claims, names = np.random.default_rng(11), 0, ["a", "b", "c", "control"]
    for _ in range(200):
        shared = generator.normal(0, 0.004, repeats)
        scores = {name: list(shared + generator.normal(0, 0.01, repeats)) for name in names}
        found = contrasts(scores, planned(names, "control"))
        claims += sentence(found, scores).find(" beat ") >= 0
    assert claims / 200 <= 0.08


def test_a_difference_of_two_deviations_is_found_in_eight_repeats():
    generator, found = np.random.default_rng(12), 0
    for _ in range(60):
        scores = {"a": list(generator.normal(-0.02, 0.01, 8)), "b": list(generator.normal(0, 0.01, 8))}
        found += contrasts(scores, [("a", "b")])[0].p_value <= 0.05
    assert found / 60 > 0.9


def test_the_repeats_that_would_be_needed():
    generator = np.random.default_rng(13)
    a, b = list(generator.normal(0.003, 0.01, 4000)), list(generator.normal(0, 0.01, 4000))
    needed = repeats_needed(a, b)
    assert needed is not None
    assert 140 < needed < 220, "2 (1.96 + 0.84)^2 (0.01 / 0.003)^2 = 174"
    assert repeats_needed([1.0, 1.0], [1.0, 1.0]) is None
    several = repeats_needed(a, b, 5)
    assert several is not None
    assert several > 1.4 * needed, "each of five contrasts is held to 1 %"


@pytest.mark.parametrize("count", [1, 6])
def test_never_fewer_repeats_are_asked_for_than_could_show_anything(count: int):
    """However far apart three repeats are, three show nothing, and the warning says how many could."""
    a, b = [0.0, 0.001, 0.002], [1.0, 1.001, 1.002]
    needed = repeats_needed(a, b, count)
    assert f"at least {needed} repeats" in str(warning(3, count))

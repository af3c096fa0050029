"""Shrinkage: chosen effects flatter, and what is left of them does so no more."""

from __future__ import annotations

import numpy as np
import pytest

from jaxresearch.statistics.selection import shrink


def chosen(chance: np.random.Generator, count: int) -> tuple[list[float], list[float]]:
    """Of one study: by how much the gains that were chosen flatter, as measured and as shrunk."""
    true = chance.normal(0, chance.choice([0.0, 0.004, 0.04], size=count, p=[0.6, 0.3, 0.1]))
    errors = 0.004 / np.sqrt(chance.integers(1, 5, size=count))
    measured = chance.normal(true, errors)
    left = np.array(shrink(list(measured), list(errors)))
    kept = measured < -2.3 * errors
    return list((true - measured)[kept]), list((true - left)[kept])


@pytest.mark.parametrize("count", [30, 200])
def test_what_is_left_of_chosen_gains_flatters_no_more(count: int):
    chance = np.random.default_rng(0)
    studies = [chosen(chance, count) for _ in range(200)]
    measured, left = (np.concatenate([study[side] for study in studies]) for side in (0, 1))
    assert measured.mean() > 0.0005
    assert -0.4 * measured.mean() < left.mean() < 0.4 * measured.mean()
    assert np.sqrt(np.mean(left**2)) < 1.05 * np.sqrt(np.mean(measured**2))


def test_where_nothing_works_little_is_left():
    chance = np.random.default_rng(1)
    measured = list(chance.normal(0, 0.004, size=100))
    left = shrink(measured, [0.004] * 100)
    assert abs(min(left)) < 0.15 * abs(min(measured))


def test_what_stands_far_out_of_the_noise_stays():
    effects = [-0.17, 0.001, -0.003, 0.004, 0.11, -0.002]
    left = shrink(effects, [0.004] * 6)
    assert left[0] == pytest.approx(-0.17, rel=0.01)
    assert abs(left[2]) < 0.002
    assert [np.sign(each) for each in left] == [np.sign(each) for each in effects]


def test_edges():
    assert shrink([], []) == []
    assert shrink([0.0], [0.004]) == [0.0]
    assert shrink([-1e-9, 5.0], [1e-6, 1.0])[1] < 5.0

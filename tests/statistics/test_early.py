"""The rule of early stopping: what is far behind is cut, what may still win is not."""

from __future__ import annotations

import numpy as np
import pytest

from jaxresearch.statistics.early import CHECKPOINTS, DEVIATIONS, MARGIN, cut_at, limits

INCUMBENT = [(0.3, 2.4), (0.6, 2.0), (0.9, 1.8), (1.0, 1.75)]
OTHER = [(at, value + 0.02) for at, value in INCUMBENT]


def test_the_limit_is_what_the_incumbent_had_left_to_gain_and_the_noise():
    found = dict(limits(INCUMBENT, [INCUMBENT, OTHER]))
    noise = DEVIATIONS * 0.02 / np.sqrt(2)
    assert found == pytest.approx({at: value + MARGIN * (value - 1.75) + noise for at, value in INCUMBENT[:-1]})


def test_without_noise_or_an_end_nothing_is_judged():
    assert limits(INCUMBENT, [INCUMBENT]) == ()
    assert limits((), [INCUMBENT, OTHER]) == ()
    assert limits(INCUMBENT[:-1], [INCUMBENT, OTHER]) == ()


def test_a_run_is_cut_at_the_first_checkpoint_where_it_is_hopeless():
    above = limits(INCUMBENT, [INCUMBENT, OTHER])
    assert cut_at(INCUMBENT, above) is None
    assert cut_at([(0.3, 2.5), (0.6, 2.2), (0.9, 1.85)], above) is None, "behind, but not hopeless"
    assert cut_at([(0.3, 2.5), (0.6, 3.0), (0.9, 1.0)], above) == 0.6
    assert cut_at([(0.3, 9.0)], above) == 0.3


def falling(progress: float, scale: float, decay_from: float, level: float) -> float:
    """A training whose schedule gains `scale` after `decay_from`, on a power law that ends at `level`."""
    fall = max(0.0, progress - decay_from) / (1 - decay_from)
    return level + scale * (1 - fall) + 0.5 * (progress**-0.5 - 1)


def test_late_schedules_of_equal_runs_are_not_cut():
    """The incumbent's learning rate falls from 40 % on, the contender's from 80 %: behind at 75 %, level at the end."""
    rng = np.random.default_rng(0)

    def curve(decay_from: float) -> list[tuple[float, float]]:
        return [(at, falling(at, 0.15, decay_from, 1.7) + rng.normal(0, 0.01)) for at in (*CHECKPOINTS, 1.0)]

    cuts = 0
    for _ in range(500):
        incumbent = [curve(0.4) for _ in range(3)]
        cuts += cut_at(curve(0.8), limits(incumbent[0], incumbent)) is not None
    assert cuts <= 5

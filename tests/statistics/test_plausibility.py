"""Plausibility: what a study has seen, and what it has not."""

from __future__ import annotations

import numpy as np
import pytest

from jaxresearch.statistics.plausibility import MIN_SEEN, holds_again, suspicion, usual_gain

SMALL = (0.004, -0.002, 0.006, -0.001, 0.003)


def doubt(score: float, gain: float, moves: tuple[float, ...] = SMALL, **changes: float):
    facts = {"baseline_bpb": 1.77, "pair_sd_bpb": 0.002, "floor_bpb": 0.3, **changes}
    return suspicion(score_bpb=score, gain_bpb=gain, moves_bpb=moves, **facts)


def test_large_gains_early_in_a_study_are_believed():
    for seen in range(MIN_SEEN):
        assert doubt(1.45, 0.32, moves=SMALL[:seen]) is None


def test_a_study_of_large_moves_believes_large_moves():
    assert doubt(1.45, 0.15, moves=(0.32, -0.05, 0.2, 0.1, -0.15, 0.08)) is None


def test_a_jump_far_above_what_was_seen_is_not_believed_as_it_stands():
    found = doubt(1.60, 0.16)
    assert found is not None
    assert not found.impossible
    assert "far above" in found.reason
    assert doubt(1.75, 0.015) is None


def test_noise_alone_is_no_reason_to_doubt():
    """Moves that happen to be equal have no spread; the noise of a pair stands in for it."""
    assert doubt(1.76, 0.019, moves=(0.001,) * 6) is None
    assert doubt(1.74, 0.03, moves=(0.001,) * 6) is not None


@pytest.mark.parametrize(("score", "impossible"), [(0.88, False), (0.31, False), (0.29, True), (0.0018, True)])
def test_a_forged_score_is_never_believed_however_early(score: float, impossible: bool):
    found = doubt(score, 1.77 - score, moves=())
    assert found is not None
    assert found.impossible is impossible


def test_text_that_is_very_regular_may_score_below_the_floor():
    assert doubt(0.2, 0.05, moves=(), baseline_bpb=0.25) is None
    assert doubt(0.05, 0.2, moves=(), baseline_bpb=0.25).impossible


def test_one_jump_does_not_pave_the_way_for_the_next():
    before = usual_gain((*SMALL, *SMALL), 0.002)
    assert usual_gain((*SMALL, *SMALL, -1.2), 0.002) < 1.5 * before


def test_what_holds_again():
    assert holds_again([-0.3, -0.2], -0.3)
    assert not holds_again([-0.3, 0.001], -0.3)
    assert not holds_again([-0.1, -0.1], -0.3)
    assert not holds_again([], -0.3)


def test_honest_studies_are_seldom_quarantined():
    """Gains drawn as searches give them (heavy tails, a few large ones early): below 1 % of keeps."""
    randomness = np.random.default_rng(0)
    quarantined = kept = 0
    for _ in range(200):
        moves: list[float] = []
        score = 1.77
        for at in range(30):
            move = float(randomness.standard_t(3) * 0.02 / (1 + at / 10))
            gain = -move
            if gain > 0.005:
                kept += 1
                score = max(1.0, score - gain)
                quarantined += doubt(score, gain, moves=tuple(moves)) is not None
            moves.append(move)
    assert kept > 1000
    assert quarantined / kept < 0.01

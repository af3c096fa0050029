"""Probes: they score states on the way, change nothing, stop the clock, and end a hopeless training."""

from __future__ import annotations

import numpy as np
import pytest

from jaxresearch.experiment import Audit
from jaxresearch.training.probing import Probing
from jaxresearch.training.trainer import TrainingFailedError
from tests.training.test_meter import Clock
from tests.training.test_trainer import compiled, run

__all__ = ["compiled"]


def passing(leaves) -> Audit:
    return Audit(name="causality at a probe", passed=True, probes=1, max_deviation=0.0)


def weights(limits=None, checkpoints=(0.3, 0.5, 0.9)) -> Probing:
    return Probing(lambda leaves: float(leaves[0]), checkpoints, limits or {}, passing)


def test_a_probe_sees_the_state_after_so_many_steps_and_changes_nothing(compiled):
    probing = weights()
    probed, plain = run(compiled(), "10steps", probing=probing), run(compiled(), "10steps")
    assert [at for at, _ in probing.points] == [0.3, 0.5, 0.9]
    for (at, value), steps in zip(probing.points, (3, 5, 9), strict=True):
        assert value == float(run(compiled(), f"{steps}steps").leaves[0]), at
    assert np.array_equal(probed.leaves[0], plain.leaves[0])
    assert (probed.loss, probed.curve) == (plain.loss, plain.curve)


def test_a_hopeless_training_ends_there_and_says_what_it_spent(compiled):
    probing = weights({0.3: 100.0, 0.5: -1.0})
    with pytest.raises(TrainingFailedError) as caught:
        run(compiled(), "10steps", probing=probing)
    error = caught.value
    assert error.hopeless
    assert not error.timeout
    assert error.reason.startswith("cut at 50% of its budget: ")
    assert (error.step, len(error.curve)) == (5, 3), "two steps may still be in flight"
    assert error.flops > 0
    assert [at for at, _ in probing.points] == [0.3, 0.5]


def test_a_step_that_passes_several_checkpoints_is_probed_once(compiled):
    probing = weights(checkpoints=(0.3, 0.4, 0.45, 0.9))
    run(compiled(), "2steps", probing=probing)
    assert [at for at, _ in probing.points] == [0.45]


def test_a_state_without_a_score_is_not_judged(compiled):
    probing = Probing(lambda leaves: None, (0.3, 0.5), {0.3: -1.0}, passing)
    assert run(compiled(), "10steps", probing=probing).steps == 10
    assert probing.points == []


def test_the_clock_stands_still_meanwhile(compiled):
    clock = Clock()

    def slow(leaves) -> float:
        clock.now += 1000.0
        return 0.0

    def slow_audit(leaves) -> Audit:
        clock.now += 1000.0
        return passing(leaves)

    trained = run(compiled(), "10steps", clock=clock, probing=Probing(slow, (0.3, 0.5), {}, slow_audit))
    assert trained.train_seconds == run(compiled(), "10steps", clock=Clock()).train_seconds


def test_a_state_that_fails_its_audit_ends_the_training_and_leaves_no_point(compiled):
    """It would be a limit for others."""
    broken = passing([]).model_copy(update={"passed": False, "detail": "it peeks"})
    probing = Probing(lambda leaves: 1.0, (0.3, 0.5), {}, lambda leaves: broken)
    with pytest.raises(TrainingFailedError, match="causality at a probe: it peeks"):
        run(compiled(), "10steps", probing=probing)
    assert (probing.broken, probing.points) == (broken, [])

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxresearch.budget import Budget
from jaxresearch.training.meter import BudgetTooSmallError, Meter


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def spend_all(meter: Meter, *, tokens: int = 64, flops: float | None = 1000.0, limit: int = 10_000) -> Meter:
    meter.start()
    while meter.fits(tokens=tokens, flops=flops):
        meter.spend(tokens=tokens, flops=flops)
        assert meter.steps <= limit
    return meter


@given(st.integers(1, 500))
def test_steps_are_spent_exactly(amount):
    assert spend_all(Meter(Budget(amount, "steps"))).steps == amount


@given(st.integers(1, 20_000), st.integers(1, 300))
def test_tokens_are_never_exceeded_and_no_whole_step_is_left(amount, tokens):
    meter = spend_all(Meter(Budget(amount, "tokens")), tokens=tokens, limit=20_000)
    assert meter.tokens <= amount < meter.tokens + tokens


@given(st.floats(1, 1e6), st.floats(100, 1e5))
def test_flops_are_never_exceeded_and_no_whole_step_is_left(amount, flops):
    meter = spend_all(Meter(Budget(amount, "flops")), flops=flops)
    assert meter.flops <= amount < meter.flops + flops


def test_seconds_are_our_clocks_from_the_start():
    clock = Clock()
    meter = Meter(Budget(10, "seconds"), clock)
    clock.now += 500
    assert meter.seconds == 0
    meter.start()
    clock.now += 9.5
    assert meter.fits(tokens=1, flops=None)
    assert meter.progress == 0.95
    clock.now += 0.5
    assert not meter.fits(tokens=1, flops=None)
    clock.now += 90
    assert meter.progress == 1.0


def test_unknown_flops_cannot_be_metered_in_flops_and_do_not_matter_elsewhere():
    with pytest.raises(BudgetTooSmallError, match="trip count is unknown"):
        Meter(Budget(1e9, "flops")).fits(tokens=1, flops=None)
    assert spend_all(Meter(Budget(3, "steps")), flops=None).steps == 3

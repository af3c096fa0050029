"""The clock that all processes of a run go by, with the devices' broadcast played by hand."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxresearch.data.batches import Batches
from jaxresearch.program.mesh import make_placement
from jaxresearch.training.hosts import IN_FLIGHT, ToldClock, draw, make_clock
from tests.training.test_meter import Clock


class Wire:
    """What process 0 tells, in order; another process hears the same, whatever its own clock says."""

    def __init__(self) -> None:
        self.told: list[np.float32] = []
        self.heard = 0

    def tell(self, value: float) -> np.float32:
        self.told.append(np.float32(value))
        return self.told[-1]

    def hear(self, _: float) -> np.float32:
        self.heard += 1
        return self.told[self.heard - 1]


def test_every_process_reads_process_0_s_seconds_at_each_step():
    wire, fast, slow = Wire(), Clock(), Clock()
    slow.now = 10_000.0
    first, second = ToldClock(wire.tell, fast), ToldClock(wire.hear, slow)
    readings = []
    for each in (first, second):
        each.agree()
    for step in range(12):
        fast.now += 0.5 if step % 3 else 1.5
        slow.now += 7.0
        first.tick()
        second.tick()
        readings.append((first(), second()))
    assert all(one == other for one, other in readings)
    assert [one for one, _ in readings[:IN_FLIGHT]] == [0.0] * IN_FLIGHT
    seconds = [one for one, _ in readings]
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(fast.now - 1000, abs=1.0)


def test_nothing_younger_than_the_steps_in_flight_is_read():
    """Reading a value waits for the step before it."""
    read: list[int] = []

    class Value:
        def __init__(self, number: int) -> None:
            self.number = number

        def __float__(self) -> float:
            read.append(self.number)
            return float(self.number)

    numbers = iter(range(100))
    clock = ToldClock(lambda _: Value(next(numbers)), Clock())
    for ticks in range(1, 8):
        clock.tick()
        assert all(number <= ticks - 1 - IN_FLIGHT for number in read)
    assert read


def test_agreeing_takes_the_clock_as_it_is_now():
    wire, clock = Wire(), Clock()
    told = ToldClock(wire.tell, clock)
    told.tick()
    clock.now += 3.25
    told.agree()
    assert told() == 3.25


def test_one_process_reads_its_own_clock_and_all_rows():
    placement, clock = make_placement(jax.devices()[:1], fsdp=1, state_bytes=0), Clock()
    own = make_clock(placement, clock)
    clock.now += 2.0
    own.tick()
    assert own() == clock()
    rows = np.arange(60, dtype=np.uint16).reshape(12, 5)
    tokens, cursor = draw(placement, Batches(rows, 1, 0), 3, 4)
    expected, after = Batches(rows, 1, 0).take(3, 4)
    assert np.array_equal(tokens, expected)
    assert cursor == after

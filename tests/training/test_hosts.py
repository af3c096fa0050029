"""The clock that all processes of a run go by, with the devices' broadcast played by hand."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxresearch.data.batches import Batches
from jaxresearch.program.mesh import make_placement
from jaxresearch.training.hosts import IN_FLIGHT, ToldClock, Wish, draw, make_clock
from tests.training.test_meter import Clock


class Wire:
    """What process 0 tells, in order; another process hears the same, whatever its own clock says."""

    def __init__(self) -> None:
        self.told: list[np.ndarray] = []
        self.heard = 0

    def tell(self, seconds: float, wish: Wish) -> np.ndarray:
        self.told.append(np.array([seconds, wish], np.float32))
        return self.told[-1]

    def hear(self, _: float, __: Wish) -> np.ndarray:
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

        def __array__(self, dtype=None, copy=None) -> np.ndarray:
            read.append(self.number)
            return np.array([self.number, Wish.NOTHING], np.float32)

    numbers = iter(range(100))
    clock = ToldClock(lambda *_: Value(next(numbers)), Clock())
    for ticks in range(1, 8):
        clock.tick()
        assert all(number <= ticks - 1 - IN_FLIGHT for number in read)
    assert read


def test_what_process_0_wishes_is_done_by_all_after_one_and_the_same_step():
    """Another process's own wish is nobody's; what was wished before all agreed is done."""
    wire, clock = Wire(), Clock()
    first, second = ToldClock(wire.tell, clock), ToldClock(wire.hear, clock)
    heard = []
    for step in range(10):
        first.tick()
        second.tick()
        heard.append((first.hear(Wish.SAVE if step >= 3 else Wish.NOTHING), second.hear(Wish.LEAVE)))
        assert heard[-1][0] is heard[-1][1]
        if heard[-1][0] is Wish.SAVE:
            break
    assert len(heard) == 3 + IN_FLIGHT + 2
    for each in (first, second):
        each.agree()
        assert each.hear(Wish.NOTHING) is Wish.NOTHING
    for _ in range(IN_FLIGHT + 1):
        first.tick()
        second.tick()
    assert second.hear(Wish.NOTHING) is Wish.NOTHING


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

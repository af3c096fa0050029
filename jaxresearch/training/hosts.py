"""Training over several processes: each feeds its own rows, and all go by the clock of process 0.

Every process dispatches the same steps. What differs between hosts, their clocks, must not decide anything: process 0's
is told to all, through the devices, behind the steps in flight. So no step waits for it. With it goes what process 0
wishes to be done between two steps, so that all do it between the same two.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from jaxresearch.program.mesh import Placement

IN_FLIGHT = 2
"""Steps that may be queued on the device while the host goes on: no host sync per step, yet a bounded overrun."""


class BatchSource(Protocol):
    """Rows of one length, in an order that is a function of the seed."""

    def take(self, cursor: int, batch: int) -> tuple[np.ndarray, int]:
        """i32[batch, length + 1] from row number `cursor` of the stream on, and the cursor after it."""
        ...


def draw(placement: Placement, source: BatchSource, cursor: int, batch: int) -> tuple[np.ndarray | jax.Array, int]:
    """The `batch` rows from `cursor` on, as an executable takes them, and the cursor after. Only our own are read."""
    own = placement.own_rows(batch)
    rows, _ = source.take(cursor + own.start, own.stop - own.start)
    return placement.put_rows(rows, batch), cursor + batch


class Wish(IntEnum):
    """What a training is to do between two steps: go on, write a checkpoint, or write one and end there."""

    NOTHING = 0
    SAVE = 1
    LEAVE = 2


class SharedClock(Protocol):
    """Seconds that are the same on every process at the same step, and what process 0 wishes there."""

    def __call__(self) -> float: ...

    def tick(self) -> None:
        """A step was dispatched. Never waits for one that is less than `IN_FLIGHT` steps back."""
        ...

    def agree(self) -> None:
        """Wait for all processes, and for process 0's clock as it is now. What was wished before is done."""
        ...

    def hear(self, wish: Wish) -> Wish:
        """What all are to do after this step. `wish` is ours; only process 0's is told, at its next `tick`."""
        ...


def make_clock(placement: Placement, clock: Callable[[], float]) -> SharedClock:
    """`clock` itself for one process; for several, process 0's."""
    if not placement.spans_processes:
        return _OwnClock(clock)
    return ToldClock(_teller(placement.mesh), clock)


class _OwnClock:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def __call__(self) -> float:
        return self._clock()

    def tick(self) -> None:
        pass

    def agree(self) -> None:
        pass

    def hear(self, wish: Wish) -> Wish:
        return wish


class ToldClock:
    """Process 0's seconds since it was made, as last told and carried on at the pace of the steps since.

    tell: process 0's (seconds, wish), on every process: queued, and read when it is asked for.
    What is read was told `IN_FLIGHT` steps ago, so a budget in seconds overruns by at most one such window.
    """

    def __init__(self, tell: Callable[[float, Wish], ArrayLike], clock: Callable[[], float]) -> None:
        self._tell, self._clock, self._origin = tell, clock, clock()
        self._queued: deque[ArrayLike] = deque()
        self._now = self._agreed = 0.0
        self._ticks = 0
        self._ours = self._heard = Wish.NOTHING

    def __call__(self) -> float:
        return self._now

    def tick(self) -> None:
        self._queued.append(self._tell(self._clock() - self._origin, self._ours))
        self._ticks += 1
        if len(self._queued) > IN_FLIGHT:
            told, self._heard = self._read(self._queued.popleft())
            behind = len(self._queued)
            pace = max(0.0, told - self._agreed) / (self._ticks - behind)
            self._now = max(self._now, told + behind * pace)

    def agree(self) -> None:
        self._queued.clear()
        self._now, _ = self._read(self._tell(self._clock() - self._origin, Wish.NOTHING))
        self._agreed, self._ticks = self._now, 0
        self._ours = self._heard = Wish.NOTHING

    def hear(self, wish: Wish) -> Wish:
        self._ours = wish
        return self._heard

    @staticmethod
    def _read(told: ArrayLike) -> tuple[float, Wish]:
        seconds, wish = np.asarray(told)
        return float(seconds), Wish(int(wish))


@functools.lru_cache(maxsize=4)
def _teller(mesh: Mesh) -> Callable[[float, Wish], jax.Array]:
    """A function of seconds and a wish that gives process 0's on every process, when it is read."""
    devices = list(mesh.devices.flat)
    leader = next(index for index, device in enumerate(devices) if device.process_index == 0)
    spread, everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names)), NamedSharding(mesh, PartitionSpec())
    pick = jax.jit(lambda values: values[leader], out_shardings=everywhere)

    def tell(seconds: float, wish: Wish) -> jax.Array:
        own = np.array([[seconds, wish]], np.float32)
        return pick(jax.make_array_from_callback((len(devices), 2), spread, lambda _: own))

    return tell

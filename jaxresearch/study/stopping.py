"""Stop: how a person, a machine that goes away, or the clock ends a session.

A person (SIGINT, `jaxresearch stop`), once: finish the run at hand, then stop. Twice: stop now, with a checkpoint.
A machine that goes away (SIGTERM): end within the seconds of grace, with the run finished if it will be by then.
The clock (`max_seconds`): likewise, with more patience.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from jaxresearch.config import ExecutionConfig

Result = TypeVar("Result")

FINISHING_SHARE = 0.5
"""Of the seconds of grace, for the run at hand to end by itself."""
_AFTER_THE_RUN = "Stopping after the run at hand; Ctrl-C again stops now, with a checkpoint of it."
_AT_ONCE = "Stopping now."
UNHEARD_SECONDS = 5.0
"""After which a signal that a session did not hear is not waited for any more."""
_TIDY_SECONDS = 5.0
"""How long cancelled work may take besides that."""


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """The work at hand was given up because the session is to stop."""


class Stop:
    """Requests to stop, and how work obeys them.

    execution: its `grace_seconds` are those after SIGTERM. remaining_seconds: until the runs at hand have ended, None
    when nobody knows or none is going; the study's driver sets it. out_of_time: the clock gave up the run at hand.
    tell: hears what a request will lead to, for a run may take long to end.
    """

    def __init__(
        self, execution: ExecutionConfig | None = None, tell: Callable[[str], None] = lambda said: None
    ) -> None:
        self._execution = execution or ExecutionConfig()
        self._tell = tell
        self.remaining_seconds: Callable[[], float | None] = lambda: None
        self.out_of_time = False
        self._events = (asyncio.Event(), asyncio.Event())
        self._timers: list[asyncio.TimerHandle] = []

    @property
    def requested(self) -> bool:
        return self._events[0].is_set()

    def request(self) -> None:
        """Ask to stop; a second request means at once."""
        event, said = (self._events[1], _AT_ONCE) if self.requested else (self._events[0], _AFTER_THE_RUN)
        event.set()
        self._tell(said)

    def terminate(self) -> None:
        """Ask to have stopped when the seconds of grace are over. Call it where a loop is running."""
        self._events[0].set()
        self._give_up_after(FINISHING_SHARE * self._execution.grace_seconds, self._events[1].set)
        self._tell(f"Asked to end (SIGTERM): it stops within {self._execution.grace_seconds:g} s.")

    def wind_down(self, patience_seconds: float) -> None:
        """The study's time is used: give up a run at hand that will not have ended after `patience_seconds`."""
        self._give_up_after(patience_seconds, self._run_out)

    def _run_out(self) -> None:
        self.out_of_time = not self.requested
        for event in self._events:
            event.set()

    def _give_up_after(self, seconds: float, give_up: Callable[[], None]) -> None:
        remaining = self.remaining_seconds()
        if remaining is None or remaining > seconds:
            give_up()
        else:
            self._timers.append(asyncio.get_running_loop().call_later(seconds, give_up))

    def forget(self) -> None:
        """What would still have come with time comes no more."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    async def obey(self, work: Coroutine[Any, Any, Result], *, requests: int) -> Result:
        """The result of `work`. At that many `requests` (1 or 2) it is cancelled, and `Interrupted` raised."""
        task = asyncio.ensure_future(work)
        signalled = asyncio.ensure_future(self._events[requests - 1].wait())
        try:
            await asyncio.wait({task, signalled}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Interrupted
        finally:
            signalled.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=self._execution.saving_seconds + _TIDY_SECONDS)
            elif not task.cancelled():
                task.exception()  # else asyncio prints what ended the loop, a KeyboardInterrupt, with its traceback


@contextmanager
def stop_on_signals(stop: Stop) -> Iterator[None]:
    """Turn SIGINT into `stop.request()` and SIGTERM into `stop.terminate()` while a loop runs in this, the main thread.

    A loop that is held, by a strategy that computes without end, hears neither. Another signal `UNHEARD_SECONDS` later
    then raises KeyboardInterrupt wherever it is.
    """
    loop = asyncio.get_running_loop()
    obeyed = {signal.SIGINT: stop.request, signal.SIGTERM: stop.terminate}
    unheard: list[float] = []

    def obey(number: int) -> None:
        unheard.clear()
        obeyed[signal.Signals(number)]()

    def handle(number: int, frame: FrameType | None) -> None:
        if unheard and time.monotonic() - unheard[0] > UNHEARD_SECONDS:
            raise KeyboardInterrupt
        unheard.append(time.monotonic())
        loop.call_soon_threadsafe(obey, number)

    before = {each: signal.signal(each, handle) for each in obeyed}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)  # None: it was not Python's

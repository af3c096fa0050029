"""Stop: how a person ends a session. Once: finish the run at hand, then stop. Twice: stop now."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Result = TypeVar("Result")


CANCEL_SECONDS = 15.0
"""How long cancelled work may take to tidy up."""


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """The work at hand was given up because the session is to stop."""


class Stop:
    """Requests to stop, and how work obeys them."""

    def __init__(self) -> None:
        self._events = (asyncio.Event(), asyncio.Event())

    @property
    def requested(self) -> bool:
        return self._events[0].is_set()

    def request(self) -> None:
        """Ask to stop; a second request means at once."""
        self._events[1 if self.requested else 0].set()

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
                await asyncio.wait({task}, timeout=CANCEL_SECONDS)


@contextmanager
def stop_on_signals(stop: Stop) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `stop.request()` while a loop runs in this, the main thread."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for each in signals:
        loop.add_signal_handler(each, stop.request)
    try:
        yield
    finally:
        for each in signals:
            loop.remove_signal_handler(each)

"""Watch: all who follow a session: the display, the heartbeat, the pace of its runs, and the hooks."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import RunProgress
from jaxresearch.study.heartbeat import BEAT_SECONDS, Heartbeat
from jaxresearch.study.history import History
from jaxresearch.study.hooks import Hooks
from jaxresearch.study.layout import StudyLayout
from jaxresearch.study.ledger import StoredEvent
from jaxresearch.study.pace import Pace
from jaxresearch.study.reporter import Reporter
from jaxresearch.study.stopping import Interrupted, Stop


class Watch:
    """`reporter` sees what happens while in this. Entering it starts the heartbeat; leaving sends what is left to tell."""

    def __init__(
        self, layout: StudyLayout, stop: Stop, reporter: Reporter | None = None, hooks: Hooks | None = None
    ) -> None:
        pace = Pace()
        stop.remaining_seconds = pace.remaining_seconds
        self._heartbeat, self._hooks = Heartbeat(layout), hooks
        others = [each for each in (reporter, hooks) if each is not None]
        self.reporter = Together(pace, self._heartbeat, *others)
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._beating = asyncio.ensure_future(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._beating is not None:
            self._beating.cancel()
        history = self.reporter.history
        expected = not isinstance(error, Exception) or isinstance(error, JaxresearchError | Interrupted)
        if self._hooks is not None:
            if error is not None and not expected and history is not None:
                self._hooks.failed(error, history)
            await asyncio.to_thread(self._hooks.close)
        self._heartbeat.beat(self._hooks and self._hooks.state)

    async def _beat(self) -> None:
        while True:
            self._heartbeat.beat(self._hooks and self._hooks.state)
            await asyncio.sleep(BEAT_SECONDS)


class Together:
    """Several reporters as one. history: the last that they saw."""

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = reporters
        self.history: History | None = None

    def on_event(self, stored: StoredEvent, history: History) -> None:
        self.history = history
        for each in self._reporters:
            each.on_event(stored, history)

    def on_progress(self, number: int, seed: int, progress: RunProgress) -> None:
        for each in self._reporters:
            each.on_progress(number, seed, progress)

"""Asking a person on the terminal whether a change of the sources may be traced."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

from jaxresearch.cli.live import Display
from jaxresearch.config import StudyConfig
from jaxresearch.errors import ConfigurationError
from jaxresearch.report.record import revealed
from jaxresearch.study.approval import Answer, Approver, CodeChange
from jaxresearch.text import one_line


def approver_for(config: StudyConfig) -> Callable[[Display], Approver] | None:
    """What makes the approver that `config` wants; None when it wants none. Raises when there is no terminal to ask on."""
    if config.oversight.approve == "none":
        return None
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigurationError(
            "oversight.approve (--approve): `code` asks a person about each change, and this is no terminal.",
            fix="Run it on a terminal, or with --approve none.",
        )
    return TerminalApprover


class TerminalApprover:
    """Shows the diff, hidden characters spelled out, and reads y, n or q. Nothing but a plain y approves."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._console: Console = display.console

    async def __call__(self, change: CodeChange) -> Answer:
        with self._display.silent():
            self._show(change)
            while True:
                self._say("Trace this change? y: yes, n: no, q: stop here ")
                word = (await _line()).strip().lower()
                if word in ("y", "yes"):
                    return Answer(True)
                if word in ("n", "no"):
                    self._say("Why not? The researcher is told; Enter for no reason: ")
                    return Answer(False, one_line((await _line()), 300))
                if word in ("q", "quit"):
                    return Answer(None)

    def _show(self, change: CodeChange) -> None:
        self._console.print()
        self._console.print(Text(f"A change of experiment {change.parent}: {one_line(change.hypothesis, 500)}", "bold"))
        diff = revealed(change.diff)
        self._console.print(Syntax(diff, "diff", theme="ansi_dark", word_wrap=True, background_color="default"))

    def _say(self, text: str) -> None:
        self._console.print(text, end="", markup=False)


async def _line() -> str:
    """A line from standard input, without a thread that could not be given up. The end of it says q."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        if not ready.done():
            ready.set_result(None)

    with _reading(loop, readable):
        await ready
    return os.read(sys.stdin.fileno(), 4096).decode(errors="replace") or "q"  # a terminal gives one line at a time


@contextlib.contextmanager
def _reading(loop: asyncio.AbstractEventLoop, readable: Callable[[], None]) -> Iterator[None]:
    loop.add_reader(sys.stdin.fileno(), readable)
    try:
        yield
    finally:
        loop.remove_reader(sys.stdin.fileno())

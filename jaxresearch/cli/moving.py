"""What is redrawn in place on a terminal, below lines that stay."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live

_BETWEEN_SECONDS = 0.25


class TurnConsole(Console):
    """A console on which threads print in turn.

    rich looks up how many lines it will erase, and writes later, when another thread may have drawn another number of
    them; then lines are erased that were to stay. `turn` is held from the one to the other.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.turn = threading.RLock()

    def print(self, *objects: Any, **options: Any) -> None:
        with self.turn:
            super().print(*objects, **options)


class Moving:
    """Draws `what()` on `console` four times a second, from `start` to `stop`, and leaves nothing of it."""

    def __init__(self, console: TurnConsole, what: Callable[[], RenderableType]) -> None:
        self._console = console
        self._live = Live(
            get_renderable=what, console=console, transient=True, auto_refresh=False, vertical_overflow="crop"
        )
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        with self._console.turn:
            self._live.start(refresh=True)
        self._ended.clear()
        self._thread = threading.Thread(target=self._draw_on, name="moving", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Nothing happens where it was not started."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()  # without the turn, which it may be waiting for
            self._thread = None
        with self._console.turn:
            self._live.stop()

    def draw(self) -> None:
        with self._console.turn:  # before rich's own lock, as in every print
            self._live.refresh()

    def _draw_on(self) -> None:
        while not self._ended.wait(_BETWEEN_SECONDS):
            self.draw()

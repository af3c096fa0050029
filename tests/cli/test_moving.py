"""Lines that stay, printed while something is redrawn below them from another thread."""

from __future__ import annotations

import io
import re
import threading
import time

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from jaxresearch.cli.moving import Moving, TurnConsole


class Growing:
    """One to four lines, another number each time that a line was printed, and slow to draw: as a board is."""

    lines = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = 1 + self.lines % 4
        time.sleep(0.001)
        yield from [Text("moving")] * height


def test_no_line_that_stays_is_erased():
    out, growing, ended = io.StringIO(), Growing(), threading.Event()
    console = TurnConsole(file=out, force_terminal=True, width=80, height=50, color_system=None)
    moving = Moving(console, lambda: growing)

    def draw() -> None:
        while not ended.is_set():
            moving.draw()

    moving.start()
    drawing = threading.Thread(target=draw)
    drawing.start()
    for number in range(100):
        growing.lines = number
        console.print(f"line {number}")
    ended.set()
    drawing.join()
    moving.stop()
    shown = [line for line in _screen(out.getvalue()) if line]
    assert shown == [f"line {number}" for number in range(100)]


def _screen(written: str) -> list[str]:
    """What a terminal without an end shows of that."""
    rows, at = [""], 0
    for token in re.findall(r"\x1b\[\??\d*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if token == "\n":
            at += 1
            rows += [""] * (at + 1 - len(rows))
        elif token.startswith("\x1b") and token.endswith("A"):
            at -= int(token[2:-1] or 1)
        elif token == "\x1b[2K":
            rows[at] = ""
        elif not token.startswith(("\x1b", "\r")):
            rows[at] += token
    return rows

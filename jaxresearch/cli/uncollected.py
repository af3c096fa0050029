"""Python's search for objects that hold each other in a circle, put off where nearly all that is made stays."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """For imports, and for commands that read a study and end: the search finds nothing there, and looks through it all.

    It took a tenth of the time of a report.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

"""Control: how a person, from another terminal, has a running study pause or stop.

A request is a file in the study's folder. `pause`: the driver gives the experiment at hand its verdict and ends before the
next round. `stop`: it ends after the run at hand, as after one Ctrl-C. `resume` goes on after both. What runs beside the
search (`confirm`, `ablate`) has no rounds: there both mean `stop`, and the same command goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Literal

from jaxresearch.errors import JaxresearchError
from jaxresearch.study.layout import StudyLayout
from jaxresearch.study.lock import holder_of
from jaxresearch.study.stopping import Stop
from jaxresearch.text import quoted

Wish = Literal["pause", "stop"]
POLL_SECONDS = 0.25


def request(layout: StudyLayout, wish: Wish) -> str:
    """Ask the process that drives the study; returns who that is. Raises `JaxresearchError` when nobody does."""
    if not layout.exists:
        raise JaxresearchError(f"{layout.folder} holds no study.", fix="Give the folder of a study.")
    driver = driver_of(layout.lock)
    if driver is None:
        raise JaxresearchError(
            f"Nobody drives {layout.folder}: there is nothing to {wish}.",
            fix=f"See `jaxresearch status {quoted(layout.folder)}`.",
        )
    draft = layout.control.with_name(f".control-{os.getpid()}")
    draft.write_text(wish, "utf-8")
    draft.rename(layout.control)
    return driver


def wish_of(layout: StudyLayout) -> Wish | None:
    """What a person asks for, if anything."""
    try:
        text = layout.control.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return "pause" if text == "pause" else "stop" if text == "stop" else None


def driver_of(lock: Path) -> str | None:
    """Who drives the study, or None."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder_of(descriptor)
    finally:
        os.close(descriptor)
    return None


@contextlib.asynccontextmanager
async def obeyed(layout: StudyLayout, stop: Stop, *, stopping: Collection[Wish] = ("stop",)) -> AsyncIterator[None]:
    """While in this, a wish that is in `stopping` becomes `stop.request()`. Wishes from before, and after, are void."""
    layout.control.unlink(missing_ok=True)
    watching = asyncio.ensure_future(_watch(layout, stop, stopping))
    try:
        yield
    finally:
        watching.cancel()
        layout.control.unlink(missing_ok=True)


async def _watch(layout: StudyLayout, stop: Stop, stopping: Collection[Wish]) -> None:
    while wish_of(layout) not in stopping:
        await asyncio.sleep(POLL_SECONDS)
    if not stop.requested:
        stop.request()

"""Following: what a process other than 0 does for a whole command. It keeps a worker alive until process 0 is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from jaxresearch.data import default_cache_root, prepare
from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.hosts import Hosts
from jaxresearch.execution.process import WorkerProcess

FIRST_JOIN_FACTOR = 6
"""How much longer the first join may take: process 0 prepares its corpus before."""
_PAUSE_SECONDS = 1.0


async def follow(
    hosts: Hosts,
    on_preparation: Callable[[str, float], None],
    note: Callable[[str], None],
    on_join: Callable[[], None] = lambda: None,
) -> None:
    """Do the runs that process 0 asks for, until it says that it is done. `on_join`: it was found.

    A worker that ends early is started again, and joins whatever process 0 started again. Raises `JaxresearchError`
    when process 0 does not come back within `hosts.join_seconds`.
    """

    def joined_now() -> None:
        note("joined; doing the runs of process 0")
        on_join()

    loop = asyncio.get_running_loop()
    patience = FIRST_JOIN_FACTOR * hosts.join_seconds
    last_joined = loop.time()
    while True:
        left = last_joined + patience - loop.time()
        asked = hosts.model_copy(update={"join_seconds": max(1, int(left))})
        worker = await WorkerProcess.launch("jaxresearch.execution.follower", asked)
        try:
            joined, done, problem = await _attend(worker, on_preparation, joined_now)
            if done:
                return
            problem = problem or await worker.epitaph()
        finally:
            await worker.kill()
        if joined:
            last_joined, patience = loop.time(), hosts.join_seconds
            note(f"cut off from process 0 ({problem}); waiting up to {patience} s for it")
        elif loop.time() > last_joined + patience:
            raise JaxresearchError(
                f"{problem}.", fix="See what process 0 says, then start the same command on all hosts."
            )
        await asyncio.sleep(_PAUSE_SECONDS)


async def _attend(
    worker: WorkerProcess, on_preparation: Callable[[str, float], None], on_join: Callable[[], None]
) -> tuple[bool, bool, str]:
    """Whether the worker joined, whether it came to the end, and what it complained of."""
    joined, done, problem = False, False, ""
    while (message := await worker.hear()) is not None:
        match message:
            case {"joined": True}:
                joined = True
                on_join()
            case {"prepare": wanted}:
                await worker.say(**_prepare(wanted, on_preparation))
            case {"error": why}:
                problem = why
            case {"done": True}:
                done = True
    return joined, done, problem


def _prepare(wanted: dict[str, Any], on_preparation: Callable[[str, float], None]) -> dict[str, str]:
    try:
        corpus = prepare(on_progress=on_preparation, **wanted)
    except JaxresearchError as error:
        return {"error": str(error)}
    return {"folder": str(corpus.folder), "cache": str(default_cache_root() / "xla")}

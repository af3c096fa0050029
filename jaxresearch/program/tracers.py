"""Tracers: processes in the sandbox, one for each trace. One may wait, with all imported, for the next candidate."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from jaxresearch.sandbox import Isolated, Sandbox

_SCRIPT = Path(__file__).with_name("tracer.py")


@dataclass(frozen=True)
class Tracer:
    """One process, which has read no candidate yet, and the folder that it will read one from, under `seen_as`."""

    process: Isolated
    tree: Path
    seen_as: str

    async def end(self) -> None:
        await self.process.end()
        shutil.rmtree(self.tree, ignore_errors=True)


class Tracers:
    """Starts them. No two candidates share one.

    folder: where their trees are made.
    """

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self._sandbox, self._folder = sandbox, folder
        self._next: asyncio.Task[Tracer] | None = None

    def expect_another(self) -> None:
        """Start the next one's tracer by now, if it has none: importing takes seconds."""
        if self._next is None:
            self._next = asyncio.create_task(self._start())

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[Tracer]:
        """A tracer, for one candidate."""
        tracer = await self._waiting() or await self._start()
        try:
            yield tracer
        finally:
            await tracer.end()

    async def close(self) -> None:
        tracer = await self._waiting()
        if tracer is not None:
            await tracer.end()

    async def _waiting(self) -> Tracer | None:
        """The one that was started before, if it lives."""
        task, self._next = self._next, None
        if task is None:
            return None
        try:
            tracer = await task
        except OSError:
            return None  # the next start says it again, to somebody who waits for it
        if tracer.process.alive:
            return tracer
        await tracer.end()
        return None

    async def _start(self) -> Tracer:
        tree = Path(tempfile.mkdtemp(prefix="tree-", dir=self._folder))
        tree.chmod(0o755)
        try:
            process = await self._sandbox.start_python(_SCRIPT, tree=tree)
        except BaseException:
            shutil.rmtree(tree, ignore_errors=True)
            raise
        return Tracer(process, tree, self._sandbox.tree_path(tree))

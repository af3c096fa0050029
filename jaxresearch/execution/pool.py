"""WorkerPool: several LocalExecutors on this machine, each pinned to its own devices or cores, as one executor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxresearch.config import StudyConfig
from jaxresearch.data import Corpus
from jaxresearch.errors import ConfigurationError
from jaxresearch.execution.base import RunProgress, RunRequest, TracedCandidate, TraceFailure
from jaxresearch.execution.hosts import hosts_here
from jaxresearch.execution.local import LocalExecutor
from jaxresearch.execution.pins import Pin, count_workers, make_pins
from jaxresearch.experiment import RunOutcome
from jaxresearch.proposal import Candidate
from jaxresearch.sandbox import Sandbox


def local_executor(
    config: StudyConfig,
    corpus: Corpus,
    sandbox: Sandbox,
    *,
    programs: Path,
    runs: Path,
    checkpoint_seconds: float | None = None,
) -> LocalExecutor | WorkerPool:
    """The executor of this machine that `config` asks for: one worker, or a pool of them.

    Raises `ConfigurationError` when there are not enough devices or cores for them.
    """

    def member(pin: Pin) -> LocalExecutor:
        return LocalExecutor.create(
            config, corpus, sandbox, programs=programs, runs=runs, checkpoint_seconds=checkpoint_seconds, pin=pin
        )

    execution = config.execution
    if hosts_here() is not None:
        if (execution.workers or 1) > 1:
            raise ConfigurationError("execution.workers: over several hosts there is one worker on each.")
        return member(Pin())
    workers = count_workers(execution.workers, config.slots, execution.devices)
    if workers == 1:
        return member(Pin())
    return WorkerPool([member(pin) for pin in make_pins(workers, devices=execution.devices, threads=execution.threads)])


class WorkerPool:
    """Does as many runs at once as it has members. A run goes to a free one, best to one that knows its program."""

    def __init__(self, members: Sequence[LocalExecutor]) -> None:
        self._members, self._free = list(members), list(members)
        self._freed = asyncio.Condition()
        self.workers = len(self._members)
        for member in self._members[1:]:
            member.share_with(self._members[0])

    async def trace(self, candidate: Candidate) -> TracedCandidate | TraceFailure:
        """Traced and verified in the name of all: a program and its name are the same on each."""
        return await self._members[0].trace(candidate)

    async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
        member = await self._take(request.program)
        try:
            return await member.run(request, on_progress)
        finally:
            async with self._freed:
                self._free.append(member)
                self._freed.notify()

    async def _take(self, program: str) -> LocalExecutor:
        async with self._freed:
            await self._freed.wait_for(lambda: self._free)
            best = next((member for member in self._free if member.knows(program)), self._free[0])
            self._free.remove(best)
            return best

    async def facts(self) -> dict[str, str | int]:
        """device, platform, threads and jax of a worker; they are alike."""
        return await self._members[0].facts()

    async def close(self) -> None:
        await asyncio.gather(*(member.close() for member in self._members))

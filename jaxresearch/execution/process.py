"""WorkerProcess: the driver's end of one worker. It starts it, talks to it, and ends it without asking."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Self

from pydantic import BaseModel

from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import ExecutorLostError, RunProgress
from jaxresearch.execution.hosts import CLUSTER_PREFIXES, CLUSTER_VARIABLES
from jaxresearch.execution.worker import WorkerSettings
from jaxresearch.levels import Tier
from jaxresearch.sandbox.confinement import Box, confined
from jaxresearch.sandbox.isolation import end_process

_START_SECONDS = 300.0
_OTHERS_PREPARE_SECONDS = 3600.0
"""How long other hosts may take to fetch and prepare the corpus."""
_LEAVE_SECONDS = 10.0
_START_ALL = "Start the command on all hosts again; a study goes on with `jaxresearch resume`."
_LINE_BYTES = 64 * 2**20
_PASSED_ON = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "XLA_FLAGS",
    "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "JAX_PLATFORMS", "JAX_ENABLE_COMPILATION_CACHE",
    "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION", "NPROC", "GLIBC_TUNABLES", *CLUSTER_VARIABLES,
)  # fmt: skip
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Ask Linux for huge pages behind malloc. XLA's CPU backend takes fresh buffers for every step; with small pages a third
of a step goes into page faults (docs/performance.md). Same numbers, and ignored by other systems."""
_PASSED_ON_PREFIXES = ("TPU_", "LIBTPU_", "JAX_TRACEBACK", "OPENBLAS_", *CLUSTER_PREFIXES)


class WorkerDiedError(Exception):
    """The worker ended without an answer. The message holds the last lines of its log.

    killed: by SIGKILL, which no program sends itself: a person, or a machine that is short of memory.
    """

    killed = False


class WorkerOutgrownError(WorkerDiedError):
    """The worker ended itself: it held more memory than there is for it. The message says how much."""


class WorkerFailedError(Exception):
    """The worker answered that it failed: a fault of ours or of the machine, not of the program."""


class StageTimeoutError(Exception):
    """A stage outlasted its limit; the worker was killed."""

    def __init__(self, stage: str, seconds: float) -> None:
        super().__init__(f"{stage} took longer than {seconds:g} s")
        self.stage, self.seconds = stage, seconds


def worker_environment() -> dict[str, str]:
    """What a worker inherits: what finds Python and devices. Never a key."""
    kept = {name: value for name, value in os.environ.items() if name in _PASSED_ON}
    kept |= {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON_PREFIXES)}
    return {**_HUGE_PAGES, **kept, "TF_CPP_MIN_LOG_LEVEL": "3"}


@dataclass(frozen=True)
class Confinement:
    """The tier that a worker is started in, and what it is given there."""

    tier: Tier
    box: Box


class WorkerProcess:
    """One running worker. `facts` says device, platform, threads and the version of jax.

    programs: that it was asked to run. leaks: it said, after a run or as a verifier, that it holds more and more memory.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, log: IO[bytes], facts: dict[str, Any], *, reaped: bool
    ) -> None:
        self._process, self._log, self.facts, self._reaped = process, log, facts, reaped
        self.programs: set[str] = set()
        self.leaks = False
        self._stage = ""

    @classmethod
    async def start(cls, settings: WorkerSettings, confinement: Confinement | None = None) -> Self:
        """A worker that has said its facts; confined, or with our rights. Raises `JaxresearchError`."""
        worker = await cls.launch("jaxresearch.execution.worker", settings, confinement)
        hosts = settings.hosts
        patience = _START_SECONDS if hosts is None else hosts.join_seconds + _OTHERS_PREPARE_SECONDS
        try:
            worker.facts = await worker._answer({"start": patience}, "start", lambda _: None)
        except (WorkerDiedError, WorkerFailedError, StageTimeoutError) as error:
            await worker.kill()
            if hosts is not None:
                raise ExecutorLostError(f"the worker did not start: {error}.", fix=_START_ALL) from None
            raise JaxresearchError(f"the worker did not start: {error}", fix="Run `jaxresearch doctor`.") from None
        except BaseException:
            await worker.kill()
            raise
        return worker

    @classmethod
    async def launch(cls, module: str, settings: BaseModel, confinement: Confinement | None = None) -> Self:
        """A process of ours that runs `module`, which has said nothing yet."""
        command = [sys.executable, "-m", module, settings.model_dump_json()]
        log = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the worker
        with contextlib.ExitStack() as stack:
            descriptors, environment = (), worker_environment()
            if confinement is not None:
                command.insert(1, "-P")
                environment = dict(confinement.box.environment)
                command, descriptors = stack.enter_context(confined(confinement.tier, confinement.box, command))
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd=None if confinement is None else "/",
                start_new_session=True,
                pass_fds=descriptors,
                limit=_LINE_BYTES,
            )
        reaped = confinement is not None and confinement.tier == "landlock" and confinement.box.accelerators
        return cls(process, log, {}, reaped=reaped)

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def ask(
        self,
        do: str,
        request: dict[str, Any],
        *,
        limits: dict[str, float],
        first_stage: str,
        on_progress: Callable[[RunProgress], None] = lambda _: None,
        parting_seconds: float = 0.0,
    ) -> dict[str, Any]:
        """The worker's answer. limits: seconds of each stage. Raises the errors of this module; a late worker is killed.

        When this is cancelled the worker is killed too; a training may first write its checkpoint in `parting_seconds`.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, "request": request}).encode() + b"\n")
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise await self._death() from None
        try:
            return await self._answer(limits, first_stage, on_progress)
        except StageTimeoutError:
            await self.kill()
            raise
        except asyncio.CancelledError:
            if self._stage == "train" and parting_seconds > 0:
                await self._part(parting_seconds)
            await self.kill()
            raise

    async def _part(self, seconds: float) -> None:
        """Let a training that is given up write its checkpoint: it says something when it has."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(seconds):
                await self.say(do="give up")
                while (message := await self.hear()) is not None and "progress" in message:
                    pass

    async def _answer(
        self, limits: dict[str, float], stage: str, on_progress: Callable[[RunProgress], None]
    ) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        deadline, self._stage = loop.time() + limits[stage], stage
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    message = await self.hear()
            except TimeoutError:
                raise StageTimeoutError(stage, limits[stage]) from None
            if message is None:
                raise await self._death()
            if "result" in message:
                self.leaks = self.leaks or message.get("leaks", False)
                return message["result"]
            if "outgrown" in message:
                await self.kill()
                raise WorkerOutgrownError(message["outgrown"])
            if message.get("stop"):
                raise ExecutorLostError(message["stop"])
            if "error" in message:
                raise WorkerFailedError(message["error"])
            progress = RunProgress(**message["progress"])
            if progress.stage != stage:
                stage = self._stage = progress.stage
                deadline = loop.time() + limits[stage]
            on_progress(progress)

    async def say(self, **message: Any) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            await self._process.stdin.drain()

    async def hear(self) -> dict[str, Any] | None:
        """The next message; None when the process has ended, be it in the middle of one."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    async def status(self) -> int:
        """The exit status of a process that has ended or is about to."""
        return await self._process.wait()

    async def end(self) -> None:
        """Let the worker take leave of its peers, then end it."""
        await self.say(do="end")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self._process.wait()
        await self.kill()

    async def _death(self) -> WorkerDiedError:
        died = WorkerDiedError(await self.epitaph())
        died.killed = self._process.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
        return died

    async def epitaph(self) -> str:
        status = await self._process.wait()
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 4096))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        killer = -status if status < 0 else status - 128  # bubblewrap and the reaper pass it on as shells do
        killed = killer in {each.value for each in signal.Signals}
        how = f"killed by {signal.Signals(killer).name}" if killed else f"exit status {status}"
        return f"{how}{'; ' + lines[-1][:300] if lines else ''}"

    async def kill(self) -> None:
        """End the worker and all that it started, now."""
        await end_process(self._process, reaped=self._reaped)
        self._log.close()

"""Running one Python file on a read-only tree, isolated: the one function behind which the tiers sit.

`bubblewrap`: new user, mount, network, pid, ipc and uts namespaces; a read-only root with nothing but the Python
installation and the tree; no capabilities; a system-call filter (seccomp.py). `landlock`: the same files and nothing to
write, by Landlock; no sockets, processes or signals, by a stricter filter (landlock.py); it needs no namespace.
`subprocess`: a scrubbed environment, rlimits and the end of what it started; it keeps honest candidates tidy and stops no
attacker. How each becomes a command line is in confinement.py, which also confines the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxresearch.errors import JaxresearchError
from jaxresearch.levels import Tier
from jaxresearch.sandbox.confinement import Box, confined, installation

LOG_BYTES = 65_536
_TREE = "/candidate"
_SCRIPT = "/tracer.py"
_READ_BYTES = 65_536
_SCRATCH_BYTES = 64 * 2**20
_REAP_SECONDS = 6.0
"""A reaper gives up after five."""


@dataclass(frozen=True)
class SandboxOutcome:
    """How an isolated process ended. `output` is attacker-made; `log` is the tail of its standard error."""

    returncode: int
    output: bytes
    output_truncated: bool
    log: str
    timed_out: bool
    seconds: float


@dataclass(frozen=True)
class Sandbox:
    """One isolation tier. network, accelerators: only to examine what a worker's tier holds that is given these."""

    tier: Tier
    network: bool = False
    accelerators: bool = False

    def tree_path(self, tree: Path) -> str:
        """Where the isolated process sees `tree`."""
        return _TREE if self.tier == "bubblewrap" else str(tree)

    async def run_python(
        self, script: Path, *, tree: Path, stdin: bytes, timeout_seconds: float, output_bytes: int
    ) -> SandboxOutcome:
        """Run `script` with nothing readable but Python's installation and `tree`. Leaves no process behind."""
        isolated = await self.start_python(script, tree=tree)
        return await isolated.finish(stdin, timeout_seconds=timeout_seconds, output_bytes=output_bytes)

    async def start_python(self, script: Path, *, tree: Path) -> Isolated:
        """Start `script` without its standard input yet. What is put into `tree` later is seen there, too."""
        python = [sys.executable, "-I", "-B", _SCRIPT if self.tier == "bubblewrap" else str(script)]
        with confined(self.tier, self._box(script, tree), python) as (command, descriptors):
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=_environment(),
                cwd="/",
                start_new_session=True,
                pass_fds=descriptors,
            )
        return Isolated(process, reaped=self.tier == "subprocess")

    def _box(self, script: Path, tree: Path) -> Box:
        placed = self.tier == "bubblewrap"
        readable = [*installation(), *([] if placed else [tree, script])]
        return Box(
            readable=tuple(readable),
            placed=((tree, _TREE), (script, _SCRIPT)) if placed else (),
            environment=_environment(),
            scratch_bytes=_SCRATCH_BYTES,
            network=self.network,
            accelerators=self.accelerators,
        )


class Isolated:
    """A process that was started in a sandbox. It must be finished or ended."""

    def __init__(self, process: asyncio.subprocess.Process, *, reaped: bool) -> None:
        self._process, self._reaped = process, reaped

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def finish(self, stdin: bytes, *, timeout_seconds: float, output_bytes: int) -> SandboxOutcome:
        """Give it its standard input, wait for its end, and see to it that nothing of it is left."""
        process, started = self._process, time.monotonic()
        assert process.stdout is not None
        assert process.stderr is not None
        output, log = _Head(output_bytes), _Tail(LOG_BYTES)
        timed_out = False
        try:
            async with asyncio.timeout(timeout_seconds):
                await asyncio.gather(
                    _feed(process, stdin), _drain(process.stdout, output), _drain(process.stderr, log), process.wait()
                )
        except TimeoutError:
            timed_out = True
        finally:
            await self.end()
        return SandboxOutcome(
            returncode=process.returncode if process.returncode is not None else -signal.SIGKILL,
            output=bytes(output.data),
            output_truncated=output.truncated,
            log=log.data.decode(errors="replace"),
            timed_out=timed_out,
            seconds=time.monotonic() - started,
        )

    async def end(self) -> None:
        """End it, whatever it does."""
        await end_process(self._process, reaped=self._reaped)


def _environment() -> dict[str, str]:
    """All that the isolated process sees of the environment. Tracing needs no accelerator and few threads."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "JAX_PLATFORMS": "cpu",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONHASHSEED": "0",
    }


class _Head:
    """Keeps the first `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.data, self.truncated = limit, bytearray(), False

    def add(self, chunk: bytes) -> None:
        room = self.limit - len(self.data)
        self.data += chunk[:room]
        self.truncated |= len(chunk) > room


class _Tail:
    """Keeps the last `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.data = limit, bytearray()

    def add(self, chunk: bytes) -> None:
        self.data += chunk
        del self.data[: -self.limit]


async def _feed(process: asyncio.subprocess.Process, data: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # ended unread: its exit status says why
        process.stdin.write(data)
        await process.stdin.drain()
        process.stdin.close()


async def _drain(stream: asyncio.StreamReader, kept: _Head | _Tail) -> None:
    while chunk := await stream.read(_READ_BYTES):
        kept.add(chunk)


async def end_process(process: asyncio.subprocess.Process, *, reaped: bool) -> None:
    """End a process and its group; with `reaped` also what left the group, by the reaper that stands above it.

    bubblewrap's pid namespace dies with its first process.
    """
    if reaped and process.returncode is None:
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            process.terminate()
            async with asyncio.timeout(_REAP_SECONDS):
                await process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def write_tree(folder: Path, files: Mapping[str, str]) -> None:
    """Write a candidate's files below `folder`, which must be new or empty. Refuses paths that lead out of it."""
    for path, text in files.items():
        target = folder / path
        if ".." in target.parts or not target.is_relative_to(folder):
            raise JaxresearchError(f"{path!r} is not a path inside a candidate.")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    folder.chmod(0o755)

"""Running one Python file on a read-only tree, isolated: the one function behind which the tiers sit.

`bubblewrap`: new user, mount, network, pid, ipc and uts namespaces; a read-only root with nothing but the Python
installation and the tree; no capabilities; a system-call filter (seccomp.py). `subprocess`: a scrubbed environment,
rlimits and a process group only; it keeps honest candidates tidy and stops no attacker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxresearch.errors import JaxresearchError
from jaxresearch.sandbox.seccomp import system_call_filter

Tier = Literal["bubblewrap", "subprocess"]
LOG_BYTES = 65_536
_TREE = "/candidate"
_SCRIPT = "/tracer.py"
_READ_BYTES = 65_536


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
    """One isolation tier."""

    tier: Tier

    def tree_path(self, tree: Path) -> str:
        """Where the isolated process sees `tree`."""
        return _TREE if self.tier == "bubblewrap" else str(tree)

    async def run_python(
        self, script: Path, *, tree: Path, stdin: bytes, timeout_seconds: float, output_bytes: int
    ) -> SandboxOutcome:
        """Run `script` with nothing readable but Python's installation and `tree`. Leaves no process behind."""
        started = time.monotonic()
        with _filter_file() as filter_file:
            process = await asyncio.create_subprocess_exec(
                *self._command(script, tree, filter_file),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=_environment(),
                cwd="/",
                start_new_session=True,
                pass_fds=() if filter_file is None else (filter_file,),
            )
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
            await _kill_group(process)
        return SandboxOutcome(
            returncode=process.returncode if process.returncode is not None else -signal.SIGKILL,
            output=bytes(output.data),
            output_truncated=output.truncated,
            log=log.data.decode(errors="replace"),
            timed_out=timed_out,
            seconds=time.monotonic() - started,
        )

    def _command(self, script: Path, tree: Path, filter_file: int | None) -> list[str]:
        python = [sys.executable, "-I", "-B"]
        if self.tier == "subprocess":
            return [*python, str(script)]
        return [*_bubblewrap(script, tree, filter_file), *python, _SCRIPT]


@contextlib.contextmanager
def _filter_file() -> Iterator[int | None]:
    """A descriptor to read the system-call filter from; None where there is no filter."""
    program = system_call_filter()
    if program is None:
        yield None
        return
    with tempfile.TemporaryFile() as file:
        file.write(program)
        file.seek(0)
        yield file.fileno()


def _bubblewrap(script: Path, tree: Path, filter_file: int | None) -> list[str]:
    program = shutil.which("bwrap")
    if program is None:
        raise JaxresearchError("bwrap is not installed.", fix="Install the package bubblewrap.")
    command = [program, "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
    command += ["--cap-drop", "ALL", "--hostname", "candidate", "--clearenv"]
    for name, value in _environment().items():
        command += ["--setenv", name, value]
    if filter_file is not None:
        command += ["--seccomp", str(filter_file)]
    # For root, /proc/sys is its own to write, without any capability; and an unsized /dev/shm holds half the memory.
    command += ["--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev"]
    for folder in ("/dev/shm", "/tmp"):
        command += ["--size", str(64 * 2**20), "--tmpfs", folder]
    command += ["--remount-ro", "/dev"]
    command += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        path = Path("/", name)
        if path.is_symlink():
            command += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            command += ["--ro-bind", str(path), str(path)]
    for folder in python_folders():
        command += ["--ro-bind", folder, folder]
    command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    command += ["--ro-bind", str(tree), _TREE, "--ro-bind", str(script), _SCRIPT]
    return [*command, "--remount-ro", "/", "--chdir", "/tmp", "--"]


def python_folders() -> list[str]:
    """The folders that the running Python needs, outermost only, those under /usr left out."""
    folders = {str(Path(p).resolve()) for p in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)}
    folders |= {sys.prefix, str(Path(sys.executable).resolve().parent.parent)}
    kept = [f for f in folders if f != "/usr" and not f.startswith("/usr/")]
    return sorted(f for f in kept if not any(f != other and f.startswith(other + "/") for other in kept))


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


async def _kill_group(process: asyncio.subprocess.Process) -> None:
    """Kill whatever is left of the process group. bubblewrap's pid namespace dies with its first process."""
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

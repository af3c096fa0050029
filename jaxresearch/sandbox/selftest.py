"""Choosing a tier by what it does here, not by what is installed: it must trace nothing but Python, and hold."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxresearch.errors import JaxresearchError
from jaxresearch.levels import TIERS, Tier, meets
from jaxresearch.sandbox.isolation import Sandbox
from jaxresearch.scratch import Scratch

_PROBE = Path(__file__).with_name("probe.py")
_PATIENCE_SECONDS = 120.0
"""A probe takes one or two; but a busy machine must not be taken for one whose tiers do not hold."""
_HELD_BY_ALL = (
    *("read_secret", "read_environment", "tcp", "udp", "unix_socket", "signal_parent", "limit_parent", "write_root"),
    *("write_secret", "see_processes", "write_kernel_settings", "change_device", "make_process", "leave_orphan"),
)
_MUST_FAIL: dict[Tier, tuple[str, ...]] = {
    "bubblewrap": (*_HELD_BY_ALL, "fill_memory_by_files"),
    "landlock": (*_HELD_BY_ALL, "fill_memory_by_files", "fill_disk"),
    "subprocess": ("read_environment",),
}
_OF_NETWORK = {"tcp", "udp", "unix_socket"}
_OF_ACCELERATORS = {"make_process", "fill_memory_by_files", "leave_orphan"}
_DETAIL: dict[Tier, str] = {
    "bubblewrap": "holds: no files, network, environment or processes of the host",
    "landlock": "holds: no files, network, environment or signals of the host; names and sizes of its files can be seen",
    "subprocess": "weak: a scrubbed environment and limits only; candidates can read your files and reach the network",
}
_USERNS_FIX = (
    "Allow user namespaces: sysctl kernel.unprivileged_userns_clone=1 and, on Ubuntu, "
    "kernel.apparmor_restrict_unprivileged_userns=0; in a container, its seccomp profile."
)
_FIX: dict[Tier, str] = {
    "bubblewrap": _USERNS_FIX,
    "landlock": "Linux 6.2 or newer with `landlock` in /sys/kernel/security/lsm (boot with lsm=landlock,...).",
    "subprocess": "",
}
INSTALL_BUBBLEWRAP = "Install it, e.g. apt-get install bubblewrap."


@dataclass(frozen=True)
class TierReport:
    """Whether a tier works here, and if not, what it lacks and what would give it."""

    tier: Tier
    works: bool
    detail: str
    fix: str = ""


async def examine_tiers() -> list[TierReport]:
    """Self-test every tier, strongest first."""
    return [await examine(tier) for tier in TIERS]


async def choose_sandbox(require: str | None = None) -> Sandbox:
    """The strongest tier that passes its self-test. Raises `JaxresearchError` when that is below `require`."""
    failures = []
    for tier in TIERS:
        if not meets(tier, require):
            break
        report = await examine(tier)
        if report.works:
            return Sandbox(tier)
        failures.append(report)
    raise unmet(require, failures)


def unmet(require: str | None, failures: Sequence[TierReport], *, what: str = "tracing") -> JaxresearchError:
    """One line: what was required, and what the strongest tier that would do lacks; its fix."""
    lacks = "; ".join(f"{failure.tier}: {failure.detail}" for failure in failures)
    fix = next((failure.fix for failure in failures if failure.fix), "")
    if not lacks:
        lacks, fix = "it needs the network, and that is a weaker tier", f"Require {require}+network."
    if require is None:
        return JaxresearchError(f"There is no sandbox here, not even the weakest, for {what}: {lacks}.", fix=fix)
    return JaxresearchError(
        f"sandbox.require: {require} is required, and {what} would not have it here: {lacks}.", fix=fix
    )


async def examine(tier: Tier, *, network: bool = False, accelerators: bool = False) -> TierReport:
    """Self-test one tier. network, accelerators: of a worker that is given these, and may do what they need."""
    if tier == "bubblewrap" and shutil.which("bwrap") is None:
        return TierReport(tier, False, "bwrap is not installed", INSTALL_BUBBLEWRAP)
    outcome, token = None, secrets.token_hex(16)
    os.environ["JAXRESEARCH_SELFTEST"] = token
    try:
        with Scratch("jaxresearch-selftest-") as folder, _listeners(folder) as listeners:
            (folder / "secret").write_text(token)
            tree = folder / "tree"
            tree.mkdir()
            question = {
                "secret": str(folder / "secret"),
                "port": listeners.tcp.getsockname()[1],
                "udp_port": listeners.udp.getsockname()[1],
                "socket": str(folder / "socket"),
                "parent": os.getpid(),
                "token": token,
            }
            asked, patience = json.dumps(question).encode(), _PATIENCE_SECONDS
            outcome = await Sandbox(tier, network=network, accelerators=accelerators).run_python(
                _PROBE, tree=tree, stdin=asked, timeout_seconds=patience, output_bytes=10_000
            )
            done = json.loads(outcome.output)
            done["udp"] = _received(listeners.udp, token)
            done["leave_orphan"] = _end_survivors(token)
    except (OSError, JaxresearchError) as error:
        return TierReport(tier, False, f"it does not start: {error}", _FIX[tier])
    except ValueError:
        lines = outcome.log.strip().splitlines() if outcome is not None else []
        last = lines[-1][:200] if lines else "it said nothing"
        return TierReport(tier, False, f"it does not start: {last}", _FIX[tier])
    finally:
        del os.environ["JAXRESEARCH_SELFTEST"]
    excused = (_OF_NETWORK if network else set()) | (_OF_ACCELERATORS if accelerators else set())
    leaks = [name for name in _MUST_FAIL[tier] if name not in excused and done.get(name, True)]
    if leaks:
        return TierReport(tier, False, f"its self-test got out by: {', '.join(leaks)}", _FIX[tier])
    return TierReport(tier, True, _DETAIL[tier])


class _Listeners(NamedTuple):
    tcp: socket.socket
    udp: socket.socket


@contextlib.contextmanager
def _listeners(folder: Path) -> Iterator[_Listeners]:
    """What a tier must not reach: TCP and UDP on the loopback, and a socket among the files."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp, socket.socket(socket.AF_UNIX) as path:
        tcp.bind(("127.0.0.1", 0))
        udp.bind(("127.0.0.1", 0))
        udp.setblocking(False)
        path.bind(str(folder / "socket"))
        for server in (tcp, path):
            server.listen()
        yield _Listeners(tcp, udp)


def _received(udp: socket.socket, token: str) -> bool:
    try:
        return udp.recv(1000) == token.encode()
    except BlockingIOError:
        return False


def _end_survivors(token: str) -> bool:
    """Whether a process that names the token is still there; it is killed."""
    survivors = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if token.encode() in path.read_bytes():
                survivors.append(int(path.parent.name))
    for process in survivors:
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)
    return bool(survivors)

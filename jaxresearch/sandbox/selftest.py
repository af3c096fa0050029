"""Choosing a tier by what it does here, not by what is installed: it must trace nothing but Python, and hold."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jaxresearch.errors import JaxresearchError
from jaxresearch.sandbox.isolation import Sandbox, Tier

_ORDER: tuple[Tier, ...] = ("bubblewrap", "subprocess")
_PROBE = Path(__file__).with_name("probe.py")
_MUST_FAIL = {
    "bubblewrap": (
        *("read_secret", "read_environment", "tcp", "udp", "signal_parent", "write_root", "see_processes"),
        *("write_kernel_settings", "change_device", "make_process", "fill_memory_by_files"),
    ),
    "subprocess": ("read_environment",),
}


_USERNS_FIX = "Allow user namespaces: sysctl kernel.unprivileged_userns_clone=1, or the container's seccomp profile."


@dataclass(frozen=True)
class TierReport:
    """Whether a tier works here, and if not, what it lacks and what would give it."""

    tier: Tier
    works: bool
    detail: str
    fix: str = ""


async def examine_tiers() -> list[TierReport]:
    """Self-test every tier, strongest first."""
    return [await _examine(tier) for tier in _ORDER]


async def choose_sandbox(require: str | None = None) -> Sandbox:
    """The strongest tier that passes its self-test. Raises `JaxresearchError` when that is below `require`."""
    acceptable = _ORDER if require is None else _ORDER[: _ORDER.index(require) + 1]
    failures = []
    for tier in acceptable:
        report = await _examine(tier)
        if report.works:
            return Sandbox(tier)
        failures.append(report)
    worst = failures[-1]
    raise JaxresearchError(f"sandbox.require: tier {require} does not work here: {worst.detail}.", fix=worst.fix)


async def _examine(tier: Tier) -> TierReport:
    if tier == "bubblewrap" and shutil.which("bwrap") is None:
        return TierReport(tier, False, "bwrap is not installed", "Install it, e.g. apt-get install bubblewrap.")
    token = secrets.token_hex(16)
    os.environ["JAXRESEARCH_SELFTEST"] = token
    try:
        with tempfile.TemporaryDirectory(prefix="jaxresearch-selftest-") as name, _listener() as server:
            folder = Path(name)
            (folder / "secret").write_text(token)
            tree = folder / "tree"
            tree.mkdir()
            question = {
                "secret": str(folder / "secret"),
                "port": server.getsockname()[1],
                "parent": os.getpid(),
                "token": token,
            }
            outcome = await Sandbox(tier).run_python(
                _PROBE, tree=tree, stdin=json.dumps(question).encode(), timeout_seconds=30, output_bytes=10_000
            )
    except OSError as error:
        return TierReport(tier, False, f"it does not start: {error}", _USERNS_FIX)
    finally:
        del os.environ["JAXRESEARCH_SELFTEST"]
    try:
        done = json.loads(outcome.output)
    except ValueError:
        lines = outcome.log.strip().splitlines() or [f"exit status {outcome.returncode}"]
        return TierReport(tier, False, f"it does not start: {lines[-1][:200]}", _USERNS_FIX)
    leaks = [name for name in _MUST_FAIL[tier] if done.get(name, True)]
    if leaks:
        return TierReport(tier, False, f"its self-test got out by: {', '.join(leaks)}", _USERNS_FIX)
    detail = (
        "holds: no files, network, environment or processes of the host"
        if tier == "bubblewrap"
        else ("weak: a scrubbed environment and limits only; candidates can read your files and reach the network")
    )
    return TierReport(tier, True, detail)


def _listener() -> socket.socket:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    return server

"""`doctor`: what this machine has, and what would make it better."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click
from rich.console import Console

from jaxresearch.cli.common import Output, default_config_file, output_options
from jaxresearch.cli.hosts import place_options
from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.hosts import hosts_here

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "pydantic-ai-slim", "tokenizers")
_EXTRAS = {
    "openai": "openai",
    "anthropic": "anthropic",
    "google": "google.genai",
    "hub": "huggingface_hub",
    "dashboard": "uvicorn",
    "ray": "ray",
}
_KEY = re.compile(r"[A-Z0-9_]+_API_KEY")


@click.command(epilog="Example: jaxresearch doctor --json")
@output_options
@place_options
def doctor(output: Output) -> None:
    """Check devices, sandbox tiers, caches, versions and provider keys (names only).

    A worker is started for trial. On every host of a job (`srun jaxresearch doctor`) it shows whether they find each other.
    """
    from jaxresearch.data import default_cache_root
    from jaxresearch.execution.housing import has_accelerators
    from jaxresearch.sandbox import choose_worker_tier, examine_tiers

    cache = default_cache_root()
    facts: dict[str, Any] = {
        "jaxresearch": version("jaxresearch"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "devices": _devices(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "sandbox": [vars(report) for report in asyncio.run(examine_tiers())],
        "cache": {"folder": str(cache), "writable": _writable(cache), "bytes": _size(cache)},
        "extras": {name: _importable(module) for name, module in _EXTRAS.items()},
        "provider_keys": sorted(name for name in os.environ if _KEY.fullmatch(name) and os.environ[name]),
        "default_config": str(default_config_file()),
    }
    hosts = hosts_here()
    facts["processes"], facts["process_id"] = (1, 0) if hosts is None else (hosts.processes, hosts.process_id)
    tier = next((report["tier"] for report in facts["sandbox"] if report["works"]), None)
    facts["sandbox_tier"] = tier
    facts["worker_tier"] = asyncio.run(_worker_tier())
    networked = asyncio.run(choose_worker_tier(network=True, accelerators=has_accelerators()))
    facts["worker_tier_with_network"] = str(networked)
    output.result(facts, lambda console: _show(console, facts))


def _show(console: Console, facts: dict[str, Any]) -> None:
    def line(key: str, text: str) -> None:
        console.print(f"{key:14}{text}", markup=False)

    line("jaxresearch", f"{facts['jaxresearch']}, Python {facts['python']}")
    line("versions", ", ".join(f"{name} {found or 'missing'}" for name, found in facts["versions"].items()))
    line("devices", f"{facts['devices']}; {facts['cores']} CPU cores")
    for report in facts["sandbox"]:
        mark = "works" if report["works"] else "fails"
        line("sandbox", f"{report['tier']}: {mark}; {report['detail']}. {report['fix']}".rstrip())
    line("", f"candidates will be traced in: {facts['sandbox_tier']}")
    line("", f"programs will run in: {facts['worker_tier']}; on several machines: {facts['worker_tier_with_network']}")
    cache = facts["cache"]
    state = "writable" if cache["writable"] else "NOT writable; point JAXRESEARCH_CACHE elsewhere"
    line("cache", f"{cache['folder']} ({cache['bytes'] / 1e6:,.0f} MB, {state})")
    line("extras", ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in facts["extras"].items()))
    line("provider keys", ", ".join(facts["provider_keys"]) or "none set; --llm builtin needs none")
    line("config", facts["default_config"])


async def _worker_tier() -> str:
    """Of a worker that has started; its own words where none starts."""
    from jaxresearch.execution.trial import try_worker

    try:
        return str(await try_worker())
    except JaxresearchError as error:
        return f"none ({error.message.rstrip('.')})"
    except OSError as error:  # nowhere to put its folders
        return f"none ({error.strerror or error}: {tempfile.gettempdir()})"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


_LOOK = """
import sys, jax
from jaxresearch.execution.hosts import Hosts
from jaxresearch.execution.peers import join
if len(sys.argv) > 1:
    join(Hosts.model_validate_json(sys.argv[1]), lambda why: (print("late", why, flush=True), __import__("os")._exit(1)))
d = jax.devices()
print("found", len(d), d[0].device_kind, d[0].platform)
print("place", jax.process_index(), jax.process_count(), jax.local_device_count())
"""


def _devices() -> str:
    """Asked of another process, so that this one holds no accelerator. Over several hosts, of all of them together."""
    hosts = hosts_here()
    command = [sys.executable, "-c", _LOOK, *([] if hosts is None else [hosts.model_dump_json()])]
    patience = 120 + (0 if hosts is None else hosts.join_seconds)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience, check=False)
    except subprocess.TimeoutExpired:
        return f"jax did not answer within {patience} s"
    told = {first: rest for first, _, rest in (line.partition(" ") for line in done.stdout.splitlines())}
    if "late" in told:
        return f"jax fails: {told['late']}"
    if done.returncode or "found" not in told:
        return f"jax fails: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
    count, *kind, name = told["found"].split()
    number, processes, own = told["place"].split()
    place = f"; process {number} of {processes}, {own} of them here" if processes != "1" else ""
    return f"{count} x {' '.join(kind)} ({name}){place}"


def _writable(folder: os.PathLike) -> bool:
    path = os.fspath(folder)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return os.access(path, os.W_OK)


def _size(folder: os.PathLike) -> int:
    return sum(os.lstat(os.path.join(root, name)).st_size for root, _, names in os.walk(folder) for name in names)


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False

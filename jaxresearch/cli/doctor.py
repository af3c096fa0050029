"""`doctor`: what this machine has, and what would make it better."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click
from rich.console import Console

from jaxresearch.cli.common import Output, default_config_file, output_options

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "pydantic-ai-slim", "tokenizers")
_EXTRAS = {"openai": "openai", "anthropic": "anthropic", "google": "google.genai"}
_KEY = re.compile(r"[A-Z0-9_]+_API_KEY")


@click.command(epilog="Example: jaxresearch doctor --json")
@output_options
def doctor(output: Output) -> None:
    """Check devices, sandbox tiers, caches, versions and provider keys (names only)."""
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
    tier = next((report["tier"] for report in facts["sandbox"] if report["works"]), None)
    facts["sandbox_tier"] = tier
    for key, network in (("worker_tier", False), ("worker_tier_with_network", True)):
        facts[key] = str(asyncio.run(choose_worker_tier(network=network, accelerators=has_accelerators())))
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


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> str:
    """Asked of another process, so that this one holds no accelerator."""
    code = "import jax; d = jax.devices(); print(len(d), d[0].device_kind, d[0].platform)"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return "jax did not answer within 120 s"
    if done.returncode:
        return f"jax fails: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
    count, *kind, name = done.stdout.split()
    return f"{count} x {' '.join(kind)} ({name})"


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

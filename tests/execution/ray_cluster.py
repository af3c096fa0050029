"""A Ray cluster of real processes on loopback, in miniature: a head without room for runs, and two nodes."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_worker_niceness": "0",
    "RAY_gcs_server_request_timeout_seconds": "600",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "600",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
"""Loopback only, and all that join must know the token. For a machine that does other things beside: no niceness of 15, and
patience. Ray reads this when it is imported."""

KEY = "sk-of-the-shell-that-started-the-cluster"


class SmallCluster:
    """Nodes have room for two runs each, and a cache each, as machines of their own would."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets lie there: a short path
        # not the head's temp_dir: Ray notes the address of the newest cluster in the default folder all the same, and
        # that folder need not be there, or may be that of a cluster in use
        os.environ["RAY_TMPDIR"] = str(self.folder)
        (self.folder / "ray").mkdir()
        head = {"num_cpus": 0, "include_dashboard": False, **_SMALL}
        self._cluster = started(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.address: str = self._cluster.address
        self._nodes: list = []
        self.caches: list[Path] = []

    def add_node(self) -> int:
        """Its number."""
        cache = self.folder / f"cache-{len(self._nodes)}"
        env = {"JAXRESEARCH_CACHE": str(cache), "ANTHROPIC_API_KEY": KEY}
        self._nodes.append(started(lambda: self._cluster.add_node(num_cpus=2, env_vars=env, **_SMALL)))
        self.caches.append(cache)
        return len(self._nodes) - 1

    def remove_node(self, number: int) -> None:
        """As if its power were cut."""
        self._cluster.remove_node(self._nodes[number], allow_graceful=False)

    def keepers(self, number: int) -> list[int]:
        """Process ids of the keepers on a node."""
        raylet = self._nodes[number].all_processes["raylet"][0].process.pid
        return [pid for pid in children(raylet) if command(pid).startswith("ray::Keeper")]

    def processes(self) -> list[int]:
        """Process ids of all that runs for the cluster: Ray's own, keepers, and their workers."""
        return [pid for pid in everything() if pid != os.getpid() and mentions(pid, str(self.folder))]

    def close(self) -> None:
        """Raises AssertionError when something of it runs on."""
        self._cluster.shutdown()
        os.environ.pop("RAY_TMPDIR", None)
        assert wait_for(lambda: not self.processes()), [command(pid) for pid in self.processes()]
        shutil.rmtree(self.folder, ignore_errors=True)


_SMALL = {"node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20}


def started(start: Callable[[], Any], attempts: int = 20) -> Any:
    """What `start` returns once it succeeds. A node whose agents need more than 15 s to start dies of it, and that limit
    cannot be set (ray-project/ray#65983); on a busy machine it takes several attempts."""
    for _ in range(attempts - 1):
        before = children(os.getpid())
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            for pid in set(children(os.getpid())) - set(before):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    return start()


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def mentions(pid: int, folder: str) -> bool:
    """Whether a process is told of `folder`, or has a file open there: Ray renames its own, so the names say little."""
    opened = Path(f"/proc/{pid}/fd")
    try:
        return folder in command(pid) or any(os.readlink(each).startswith(folder) for each in opened.iterdir())
    except OSError:
        return False


def everything() -> list[int]:
    """Process ids of all that runs on this machine."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def children(pid: int) -> list[int]:
    found = []
    for each in everything():
        try:
            if int(Path(f"/proc/{each}/stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(each)
        except OSError:
            continue
    return found


def workers_of(keeper: int) -> list[int]:
    """The processes that run our worker below a keeper, those of its sandbox included."""
    below, found = [keeper], []
    while below:
        below += (more := children(below.pop()))
        found += [pid for pid in more if "jaxresearch.execution.worker" in command(pid)]
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], object], seconds: float = 900.0) -> bool:
    """Whether it came true. The limit is for what never will: on a busy machine all of this takes minutes."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())

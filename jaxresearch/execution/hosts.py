"""Hosts: where this process stands among those that train together, told by flags or found out as jax does.

A job over several hosts is one process on each (one for each GPU under Slurm), all started with the same command.
Process 0 drives: ledger, strategy, LLM, tracing, verification. The others follow it: see `jaxresearch.execution.follow`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from jaxresearch.errors import ConfigurationError, JaxresearchError

JOIN_SECONDS = 300
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
CLUSTER_VARIABLES = (
    *_SLURM, "JAX_COORDINATOR_BIND_ADDRESS", "JAX_LOCAL_DEVICE_IDS", "GCE_METADATA_IP", "GLOO_SOCKET_IFNAME",
)  # fmt: skip
"""What jax reads to find its peers: no secrets among them. Slurm's others (a token, paths) stay behind."""
CLUSTER_PREFIXES = ("MEGASCALE_", "NCCL_")


class Hosts(BaseModel):
    """This process among all of a job.

    coordinator: "HOST:PORT" of process 0, a free port there; None where jax finds it by itself (Slurm, TPU pods).
    join_seconds: how long processes wait for each other, at the start and after a failure.
    """

    model_config = ConfigDict(frozen=True)

    coordinator: str | None
    processes: int
    process_id: int
    join_seconds: int = JOIN_SECONDS

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port of the coordinator, where they are known."""
        if self.coordinator is None:
            return None
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


_HERE: ContextVar[Hosts | None] = ContextVar("hosts", default=None)


def hosts_here() -> Hosts | None:
    """The job that the running command is a part of; None when it trains alone."""
    return _HERE.get()


@contextmanager
def placed(hosts: Hosts | None) -> Iterator[None]:
    """Inside, `hosts_here()` is `hosts`."""
    token = _HERE.set(hosts)
    try:
        yield
    finally:
        _HERE.reset(token)


def find_hosts(
    coordinator: str | None,
    processes: int | None,
    process_id: int | None,
    *,
    join_seconds: int = JOIN_SECONDS,
    environment: Mapping[str, str] = os.environ,
) -> Hosts | None:
    """Where this process stands: as the flags say, else as Slurm or a TPU pod says; None when it is alone.

    Raises `ConfigurationError` for flags that do not belong together.
    """
    if processes == 1:
        return None
    if (coordinator, processes, process_id) != (None, None, None):
        return _by_flags(coordinator, processes, process_id, join_seconds)
    if all(environment.get(name) for name in _SLURM) and int(environment["SLURM_NTASKS"]) > 1:
        count, number = int(environment["SLURM_NTASKS"]), int(environment["SLURM_PROCID"])
        return Hosts(coordinator=None, processes=count, process_id=number, join_seconds=join_seconds)
    if has_tpu() and environment.get("JAX_PLATFORMS", "tpu").startswith("tpu"):
        return ask_jax(join_seconds, environment)
    return None


def has_tpu() -> bool:
    return any(Path("/dev").glob("accel*")) or Path("/dev/vfio/0").exists()


def _by_flags(coordinator: str | None, processes: int | None, process_id: int | None, join_seconds: int) -> Hosts:
    if coordinator is None or processes is None or process_id is None:
        raise ConfigurationError(
            "--coordinator, --processes and --process-id belong together.",
            fix="For example, on the second of two hosts: --coordinator 10.0.0.1:9911 --processes 2 --process-id 1.",
        )
    host, colon, port = coordinator.rpartition(":")
    if not (colon and host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigurationError(
            f"--coordinator: {coordinator!r} is not HOST:PORT.", fix="Write it like 10.0.0.1:9911."
        )
    if process_id >= processes:
        raise ConfigurationError(f"--process-id: {process_id} is not below --processes {processes}.")
    return Hosts(coordinator=coordinator, processes=processes, process_id=process_id, join_seconds=join_seconds)


_QUESTION = """
import sys, jax
try:
    jax.distributed.initialize(initialization_timeout=int(sys.argv[1]))
except ValueError:  # jax found no cluster
    print("place", 0, 1)
else:
    print("place", jax.process_index(), jax.process_count())
"""


def ask_jax(join_seconds: int, environment: Mapping[str, str] = os.environ) -> Hosts | None:
    """What `jax.distributed` finds with no argument, asked of another process: this one must hold no accelerator."""
    command = [sys.executable, "-c", _QUESTION, str(join_seconds)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=join_seconds + 120, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        raise JaxresearchError("the hosts of this pod did not find each other.", fix=_START_ALL) from None
    place = next((line.split()[1:] for line in done.stdout.splitlines() if line.startswith("place ")), None)
    if done.returncode or place is None:
        last = (done.stderr.strip().splitlines() or ["?"])[-1]
        raise JaxresearchError(f"the hosts of this pod did not find each other: {last[:300]}.", fix=_START_ALL)
    number, count = map(int, place)
    if count == 1:
        return None
    return Hosts(coordinator=None, processes=count, process_id=number, join_seconds=join_seconds)


_START_ALL = "Start the same command on every host, or give --processes 1 to use this one alone."

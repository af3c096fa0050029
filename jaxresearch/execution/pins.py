"""Pins: which devices or cores of this machine each worker has for itself. All workers of a study have equally many."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from jaxresearch.errors import ConfigurationError

_TPU_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1"}
"""Chips of one process -> how they lie in a TPU host's grid (TPU_CHIPS_PER_PROCESS_BOUNDS)."""


class Pin(BaseModel):
    """What one worker has for itself.

    cores: CPU cores that it runs on; empty for all. environment: what makes it see its devices and no others.
    share: its part of the machine's memory.
    """

    model_config = ConfigDict(frozen=True)

    cores: tuple[int, ...] = ()
    environment: dict[str, str] = {}
    share: float = 1.0


def count_workers(workers: int | None, slots: int, devices_each: int) -> int:
    """How many workers there are: as many as were asked for, else one for each slot that has devices; 1 on a CPU."""
    if workers is not None:
        return workers
    return max(1, min(slots, len(accelerators_here()[1]) // devices_each))


def make_pins(workers: int, *, devices: int, threads: int | None) -> list[Pin]:
    """A pin for each of `workers`, with `devices` accelerators or `threads` cores (None: an equal part of all).

    Raises `ConfigurationError` when there are not enough.
    """
    kind, names = accelerators_here()
    cores = _cores(workers, threads) if threads is not None or kind == "cpu" else [()] * workers
    if kind == "cpu":
        return [Pin(cores=each, share=1 / workers) for each in cores]
    if workers * devices > len(names):
        raise ConfigurationError(
            f"execution.workers: {workers} workers of {devices} devices need {workers * devices}, and there are "
            f"{len(names)} here."
        )
    return [
        Pin(cores=cores[at], environment=_seeing(kind, names[at * devices : (at + 1) * devices]), share=1 / workers)
        for at in range(workers)
    ]


def run_on_own_cores(pin: Pin, threads: int | None) -> None:
    """Keep this process to its pin's cores, or to `threads` of those that it has; before jax counts them.

    Raises `ConfigurationError` when there are not so many.
    """
    if pin.cores or threads is not None:
        cores = pin.cores or _cores(1, threads)[0]
        os.sched_setaffinity(0, cores)


def _cores(workers: int, threads: int | None) -> list[tuple[int, ...]]:
    setting = "execution.workers" if threads is None else "execution.threads"
    there = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not there:
        raise ConfigurationError(f"{setting}: this system cannot give a worker cores of its own.")
    each = threads or len(there) // workers
    if each * workers > len(there) or each == 0:
        wanted = f"{workers} workers of {max(each, 1)} threads" if workers > 1 else f"{each} threads"
        raise ConfigurationError(
            f"{setting}: {wanted} need {workers * max(each, 1)} cores, and there are {len(there)} here."
        )
    return [tuple(there[at * each : (at + 1) * each]) for at in range(workers)]


def accelerators_here(environment: Mapping[str, str] = os.environ, dev: Path = Path("/dev")) -> tuple[str, list[str]]:
    """("cuda", "tpu" or "cpu", names of its devices), without starting jax; no names on a CPU.

    What the environment already hides stays hidden.
    """
    platforms = environment.get("JAX_PLATFORMS", "").split(",")[0]
    if platforms == "cpu":
        return "cpu", []
    gpus = _numbered(dev, "nvidia")
    if gpus and platforms in ("", "cuda", "gpu"):
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        return "cuda", gpus if visible is None else [name.strip() for name in visible.split(",") if name.strip()]
    chips = _numbered(dev, "accel") or _numbered(dev / "vfio", "")
    if chips and platforms in ("", "tpu"):
        visible = environment.get("TPU_VISIBLE_CHIPS") or environment.get("TPU_VISIBLE_DEVICES")
        count = [str(at) for at in range(len(chips))]
        return "tpu", count if not visible else [name.strip() for name in visible.split(",")]
    return "cpu", []


def _numbered(folder: Path, prefix: str) -> list[str]:
    """The numbers of the device nodes below `folder` that are called `prefix` and a number."""
    found = (re.fullmatch(rf"{prefix}(\d+)", path.name) for path in folder.glob(f"{prefix}*"))
    return sorted((match[1] for match in found if match is not None), key=int)


def _seeing(kind: str, names: list[str]) -> dict[str, str]:
    """libtpu reads the topology of one process from its environment; jax documents no other way for several on a host."""
    if kind == "cuda":
        return {"CUDA_VISIBLE_DEVICES": ",".join(names)}
    if len(names) not in _TPU_BOUNDS:
        raise ConfigurationError(
            f"execution.devices: workers beside each other on a TPU host have 1, 2 or 4 chips each, not {len(names)}."
        )
    return {
        "TPU_VISIBLE_CHIPS": ",".join(names),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": _TPU_BOUNDS[len(names)],
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }

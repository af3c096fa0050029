"""The mesh that one run is spread over: rows of a batch over all devices, the state over the `fsdp` axis.

A program is traced for one device. XLA partitions it when we say where its arguments and results lie: data parallel
when every device holds the whole state, fully sharded (FSDP, https://arxiv.org/abs/2304.11277) when each holds a part.
A step that does microbatches one after the other gets each of them spread over all devices.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxresearch.errors import ConfigurationError

_STATE_SHARE = 0.25
"""Share of a device's memory above which a state is sharded rather than copied to every device."""


COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {
    "cpu": {"xla_backend_optimization_level": "2", "xla_cpu_use_fusion_emitters": False},
    "cuda": {"xla_gpu_enable_triton_gemm": False},
}
"""What XLA is told for every executable of a program, by platform; what XLA_FLAGS says goes first.

On a CPU: LLVM's second level, and XLA's older generator of code for fusions where it has it still: as fast programs, and
in the default study's sizes two thirds of the time to compile. On a GPU: matrix products by cuBLAS alone. XLA would write
kernels of its own for each and try out dozens: half as long again to compile, for no speed. All measured
(docs/performance.md)."""


@dataclass(frozen=True)
class Placement:
    """Where arrays lie on a mesh with the axes `data` and `fsdp`."""

    mesh: Mesh

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def leaf(self, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        """A leaf of the state: its longest axis that `fsdp` divides is split; vectors and scalars are copied."""
        size = self.mesh.shape["fsdp"]
        axes = [axis for axis, length in enumerate(leaf.shape) if length % size == 0]
        if size == 1 or len(leaf.shape) < 2 or not axes:
            return self.replicated
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(self.mesh, PartitionSpec(*[None] * longest, "fsdp"))

    def rows(self, count: int) -> NamedSharding:
        """A batch of `count` rows: over all devices, or over as many axes of the mesh as divide it."""
        for axes in (("data", "fsdp"), ("data",), ("fsdp",)):
            if count % int(np.prod([self.mesh.shape[axis] for axis in axes])) == 0:
                return NamedSharding(self.mesh, PartitionSpec(axes))
        return self.replicated

    def microbatches(self, count: int) -> NamedSharding:
        """Microbatches of `count` rows, one after the other: [parts, count, ...], each over the devices as `rows` says."""
        return NamedSharding(self.mesh, PartitionSpec(None, *self.rows(count).spec))

    @property
    def compiler_options(self) -> dict[str, str | bool]:
        """XLA's, for the mesh's devices."""
        platform = self.mesh.devices.flat[0].platform
        return compiler_options("cuda" if platform == "gpu" else platform)

    @property
    def spans_processes(self) -> bool:
        """Whether other processes hold a part of the mesh, as over several hosts."""
        return self.mesh.is_multi_process

    def own_rows(self, count: int) -> slice:
        """The rows of a batch of `count` that this process's devices hold, with what lies between them."""
        if not self.spans_processes:
            return slice(0, count)
        indices = self.rows(count).addressable_devices_indices_map((count,)).values()
        held = [index[0].indices(count) for index in indices if index is not None]
        return slice(min(start for start, _, _ in held), max(stop for _, stop, _ in held))

    def put_rows(self, own: np.ndarray, count: int) -> np.ndarray | jax.Array:
        """A batch of `count` rows for an executable, from the rows `own_rows(count)` of it."""
        if not self.spans_processes:
            return own
        first, shape = self.own_rows(count).start, (count, *own.shape[1:])

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # it is for the mesh of a process without devices
            start, stop, _ = index[0].indices(count)
            return own[start - first : stop - first]

        return jax.make_array_from_callback(shape, self.rows(count), part)


def make_placement(
    devices: Sequence[Any], *, fsdp: int | None, state_bytes: int, device_bytes: int | None = None
) -> Placement:
    """A mesh of all `devices` (jax's): `fsdp` of them hold one state together; None chooses by the state's size.

    state_bytes: of the whole state. device_bytes: memory of one device, 0 if unknown; None asks the first, which must
    be this process's own. Raises `ConfigurationError` when `fsdp` does not divide the number of devices.
    """
    count = len(devices)
    if fsdp is None:
        memory = (devices[0].memory_stats() or {}).get("bytes_limit", 0) if device_bytes is None else device_bytes
        fsdp = count if memory and state_bytes > _STATE_SHARE * memory else 1
    if count % fsdp:
        raise ConfigurationError(f"execution.fsdp: {fsdp} does not divide {count} devices.")
    return Placement(Mesh(np.array(devices).reshape(count // fsdp, fsdp), ("data", "fsdp")))


def one_device() -> Placement:
    """Everything on the first device."""
    return make_placement(jax.devices()[:1], fsdp=1, state_bytes=0)


def compiler_options(platform: str) -> dict[str, str | bool]:
    """COMPILER_OPTIONS of a program's platform, without what XLA_FLAGS says and what this release does not have."""
    flags, options = os.environ.get("XLA_FLAGS", ""), COMPILER_OPTIONS.get(platform, {})
    said = {flag.lstrip("-").split("=")[0] for flag in flags.split()}
    return {name: value for name, value in options.items() if name not in said and _knows(name, value)}


@cache
def _knows(name: str, value: str | bool) -> bool:
    """Whether the XLA that is installed has an option. It has no list of them."""
    try:
        jax.jit(lambda: 0).lower().compile({name: value})
    except Exception as error:
        if "No such compile option" in str(error):
            return False
        raise
    return True

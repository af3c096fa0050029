"""What a worker keeps of a program: trainer and scorer, compiled for its devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxresearch.program.fused import Kernel
from jaxresearch.program.mesh import make_placement
from jaxresearch.program.program import load
from jaxresearch.program.verifier import VerifiedModules
from jaxresearch.scoring.scorer import CompiledScorer, compile_scorer
from jaxresearch.text import one_line
from jaxresearch.training.trainer import CompiledProgram, compile_program


def compile_executables(
    programs: Path,
    program: str,
    devices: Sequence[Any],
    *,
    fsdp: int | None,
    device_bytes: int | None = None,
    kernel: Kernel | None,
    plainly: str = "xla",
    verified: VerifiedModules | None = None,
) -> tuple[CompiledProgram, CompiledScorer]:
    """A stored program over jax's `devices`, its attention by `kernel`; without one if it does not compile with it.

    fsdp, device_bytes: as in `make_placement`. verified: as in `load`.
    plainly: how attention is recorded when there is no kernel. Raises what XLA does for a program that it refuses.
    """
    loaded = load(programs, program, kernel, verified)
    if kernel is None:
        loaded = replace(loaded, attention=plainly)
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in loaded.state)
    placement = make_placement(devices, fsdp=fsdp, state_bytes=size, device_bytes=device_bytes)
    try:
        return compile_program(loaded, placement), compile_scorer(loaded, placement)
    except Exception as error:
        if kernel is None or not loaded.attention.startswith(kernel.name):
            raise
        why_not = one_line(f"{kernel.name} does not compile: {type(error).__name__}: {error}", 200)
        mesh = {"fsdp": fsdp, "device_bytes": device_bytes}
        plainly = f"xla ({why_not})"
        return compile_executables(programs, program, devices, **mesh, kernel=None, plainly=plainly, verified=verified)

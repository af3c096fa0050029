"""Accelerators as SkyPilot names them, and what each asks of us: a build of jax, and how many chips a host has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from jaxresearch.errors import ConfigurationError

GPUS = (
    "T4", "V100", "V100-32GB", "P100", "A10", "A10G", "L4", "L40", "L40S", "A100", "A100-80GB", "H100", "H200", "GH200",
    "B200", "B300", "GB200", "RTX3090", "RTX4090", "RTX5090", "RTX6000-Ada", "RTXPRO6000", "RTXA4000", "RTXA5000",
    "RTXA6000",
)  # fmt: skip
_TPU = re.compile(r"tpu-(v2|v3|v4|v5e|v5litepod|v5p|v6e)-([1-9]\d*)")
_MAX_GPUS = 16


@dataclass(frozen=True)
class Accelerator:
    """sky: the value of `resources.accelerators`. devices: that jax sees, over all `hosts` of one node."""

    kind: Literal["gpu", "tpu"]
    sky: str
    devices: int
    hosts: int


def parse_accelerator(text: str) -> Accelerator:
    """`H100:8` or `tpu-v5e-8`. Raises `ConfigurationError` for what is not known."""
    tpu = _TPU.fullmatch(text.lower())
    if tpu is not None:
        return _tpu(text, tpu[1], int(tpu[2]))
    name, colon, count = text.partition(":")
    known = {gpu.lower(): gpu for gpu in GPUS}.get(name.lower())
    if known is None:
        raise ConfigurationError(
            f"--accelerator: {text} is not known.",
            fix=f"A GPU such as H100:1 ({', '.join(GPUS)}), or a TPU such as tpu-v5e-8 or tpu-v5p-32.",
        )
    if colon and not (count.isdigit() and 1 <= int(count) <= _MAX_GPUS):
        raise ConfigurationError(
            f"--accelerator: {text}: expected 1 to {_MAX_GPUS} GPUs of a node.", fix="More come with --nodes."
        )
    number = int(count or 1)
    return Accelerator("gpu", f"{known}:{number}", number, hosts=1)


def _tpu(text: str, version: str, size: int) -> Accelerator:
    """Sizes are chips for v5e and v6e, and cores, two a chip, for the others. v2 and v3 show jax each core."""
    by_chip = version in ("v5e", "v5litepod", "v6e")
    if not by_chip and (size % 8 or size < 8):
        raise ConfigurationError(f"--accelerator: {text}: a {version} slice has 8, 16, 32 ... cores.")
    if by_chip and size not in (1, 4, 8, 16, 32, 64, 128, 256):
        raise ConfigurationError(f"--accelerator: {text}: a {version} slice has 1, 4, 8, 16, 32, 64, 128 or 256 chips.")
    if by_chip:
        hosts = 1 if size <= 8 else size // 4
    else:
        hosts = size // 8
    devices = size if by_chip or version in ("v2", "v3") else size // 2
    name = "v5litepod" if version == "v5e" else version  # v5e is how people call it, v5litepod how the cloud does
    return Accelerator("tpu", f"tpu-{name}-{size}", devices, hosts)

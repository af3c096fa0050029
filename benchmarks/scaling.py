"""How step time and memory grow with depth, width, context and devices, of the default subject.

    python benchmarks/scaling.py [--json FILE] [--depths 1 2 4] [--devices 1 2 4 8] ...

One axis is changed at a time. Every program goes the way of a candidate: traced in the sandbox, verified, stored, loaded,
compiled, its steps fed as in training. Within an axis the variants take turns, round after round, so that a slow spell of
the machine hits all of them; a figure is the median of the rounds. Memory is XLA's own plan of one device.

On a CPU the devices are fake: they share the machine's cores, so their times show what the machinery costs, and only the
memory shows what they gain. On accelerators leave --devices to what is there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np

from jaxresearch.config import LimitsConfig
from jaxresearch.program.mesh import make_placement
from jaxresearch.program.program import LoadedProgram, load, store
from jaxresearch.program.tracers import Tracers
from jaxresearch.program.tracing import TracedModules, trace
from jaxresearch.program.verifier import ProgramLimits, Signature, verify
from jaxresearch.proposal import Scalar
from jaxresearch.sandbox import Sandbox, choose_sandbox
from jaxresearch.subjects import load_subject
from jaxresearch.training.hosts import draw
from jaxresearch.training.trainer import CompiledProgram, compile_program

VOCAB_SIZE, EVALUATION_BATCH = 2048, 8


@dataclass(frozen=True)
class Shape:
    """What is varied. fsdp: devices that hold one state together."""

    depth: int
    width: int
    context: int
    devices: int = 1
    fsdp: int = 1


@dataclass(frozen=True)
class Row:
    """One line of the table. Seconds are medians over rounds, of one step; bytes are of one device."""

    axis: str
    shape: Shape
    parameters: int
    step_seconds: float
    fastest_seconds: float
    slowest_seconds: float
    tokens_per_second: float
    memory_bytes: int
    compile_seconds: float


class Rows:
    """Tokens at random: a step's time does not depend on them."""

    def __init__(self, length: int) -> None:
        self._rows = np.random.default_rng(0).integers(0, VOCAB_SIZE, (64, length + 1), dtype=np.int32)

    def take(self, cursor: int, batch: int) -> tuple[np.ndarray, int]:
        return self._rows[np.arange(cursor, cursor + batch) % len(self._rows)], cursor + batch


class Variant:
    """A compiled program at work: `seconds(steps)` does that many more."""

    def __init__(self, program: LoadedProgram, values: list[np.float32], shape: Shape) -> None:
        placement = make_placement(jax.devices()[: shape.devices], fsdp=shape.fsdp, state_bytes=0)
        self.program: CompiledProgram = compile_program(program, placement)
        _, self.batch, length = program.manifest.phases[0]
        self.tokens, self._values, self._rows, self._cursor = self.batch * length, values, Rows(length), 0
        self._leaves = list(self.program.init(np.uint32(0), values))
        self.seconds(1)

    def seconds(self, steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            tokens, self._cursor = draw(self.program.placement, self._rows, self._cursor, self.batch)
            self._leaves, _ = self.program.steps[0](self._leaves, tokens, np.float32(0), self._values)
        jax.block_until_ready(self._leaves)
        return (time.perf_counter() - started) / steps


class Programs:
    """Programs by shape, each traced once."""

    def __init__(self, sandbox: Sandbox, batch: int, root: Path) -> None:
        self._tracers, self._batch, self._root = Tracers(sandbox, root), batch, root
        self._known: dict[tuple[int, int, int], tuple[LoadedProgram, list[np.float32]]] = {}

    async def of(self, shape: Shape) -> tuple[LoadedProgram, list[np.float32]]:
        key = shape.depth, shape.width, shape.context
        if key not in self._known:
            self._known[key] = await self._make(shape)
        return self._known[key]

    async def _make(self, shape: Shape) -> tuple[LoadedProgram, list[np.float32]]:
        platform, limits = "cuda" if jax.default_backend() == "gpu" else jax.default_backend(), LimitsConfig()
        config: dict[str, Scalar] = {"depth": shape.depth, "width": shape.width, "batch": self._batch}
        traced = await trace(
            load_subject("gpt", config),
            laboratory={"vocab_size": VOCAB_SIZE, "context": shape.context},
            evaluation_batch=EVALUATION_BATCH,
            platform=platform,
            tracers=self._tracers,
            limits=limits,
        )
        if not isinstance(traced, TracedModules):
            raise SystemExit(f"{shape}: {traced.reason}")
        names, signature = tuple(sorted(traced.values)), (EVALUATION_BATCH, shape.context, VOCAB_SIZE)
        facts = {"traced": names, "phases": traced.phases, "metrics": traced.metrics}
        caps = ProgramLimits(limits.program_bytes, limits.constant_bytes, limits.parameters)
        verified = verify(traced.blobs, **facts, wanted=Signature(*signature), limits=caps)
        manifest = store(self._root, verified, platform=platform, leaves=traced.leaves, signature=signature, **facts)
        values = [np.float32(traced.values[name]) for name in manifest.traced]
        return load(self._root, manifest.program), values


def axes(options: argparse.Namespace) -> Iterator[tuple[str, list[Shape]]]:
    """Each axis with its variants, around the middle of the others."""
    depth, width, context = (values[len(values) // 2] for values in (options.depths, options.widths, options.contexts))
    yield "depth", [Shape(each, width, context) for each in options.depths]
    yield "width", [Shape(depth, each, context) for each in options.widths]
    yield "context", [Shape(depth, width, each) for each in options.contexts]
    yield "devices", [Shape(depth, width, context, each) for each in options.devices]
    several = [each for each in options.devices if each > 1]
    yield "devices, sharded", [Shape(depth, width, context, each, each) for each in several]


async def measure(options: argparse.Namespace, root: Path) -> list[Row]:
    sandbox, table = await choose_sandbox(), []
    programs = Programs(sandbox, options.batch, root)
    known: dict[Shape, Variant] = {}
    for axis, shapes in axes(options):
        for shape in shapes:
            known[shape] = known.get(shape) or Variant(*await programs.of(shape), shape)
        variants = [known[shape] for shape in shapes]
        times: list[list[float]] = [[] for _ in shapes]
        for _ in range(options.rounds):
            for variant, seconds in zip(variants, times, strict=True):
                seconds.append(variant.seconds(options.steps))
        for shape, variant, seconds in zip(shapes, variants, times, strict=True):
            median = statistics.median(seconds)
            table.append(
                Row(
                    axis=axis,
                    shape=shape,
                    parameters=variant.program.program.manifest.parameters,
                    step_seconds=median,
                    fastest_seconds=min(seconds),
                    slowest_seconds=max(seconds),
                    tokens_per_second=variant.tokens / median,
                    memory_bytes=variant.program.peak_memory_bytes,
                    compile_seconds=variant.program.compile_seconds,
                )
            )
            print(_line(table[-1]), flush=True)
    return table


_HEADER = (
    "| axis | depth | width | context | devices | fsdp | parameters | step, ms | range, ms | tokens/s | memory, MB "
    "| compile, s |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def _line(row: Row) -> str:
    shape, span = row.shape, f"{row.fastest_seconds * 1e3:.1f} to {row.slowest_seconds * 1e3:.1f}"
    cells = [row.axis, shape.depth, shape.width, shape.context, shape.devices, shape.fsdp, f"{row.parameters:,}"]
    cells += [f"{row.step_seconds * 1e3:.1f}", span, f"{row.tokens_per_second:,.0f}", f"{row.memory_bytes / 1e6:.1f}"]
    return "| " + " | ".join(map(str, [*cells, f"{row.compile_seconds:.1f}"])) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--devices", type=int, nargs="+", default=None, help="1 2 4 8 fake ones on a CPU")
    parser.add_argument("--batch", type=int, default=8, help="rows of one step")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each variant")
    parser.add_argument("--steps", type=int, default=3, help="in one turn")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    options = parser.parse_args()
    if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu":
        jax.config.update("jax_num_cpu_devices", max(options.devices or [8]))
    fake, there = jax.default_backend() == "cpu", len(jax.devices())
    options.devices = options.devices or [each for each in (1, 2, 4, 8) if each <= there]
    if max(options.devices) > there:
        raise SystemExit(f"--devices {max(options.devices)}: jax sees {there}.")
    kind = (
        f"{there} fake CPU devices on {os.cpu_count()} cores" if fake else f"{there} x {jax.devices()[0].device_kind}"
    )
    head = f"jax {jax.__version__}, {kind}, batch {options.batch}; medians of {options.rounds} alternating rounds"
    print(f"{head}\n\n{_HEADER}", flush=True)
    with tempfile.TemporaryDirectory(prefix="jaxresearch-scaling-") as root:
        table = asyncio.run(measure(options, Path(root)))
    if options.json is not None:
        facts = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "fake_devices": fake}
        facts |= {"cores": os.cpu_count(), "batch": options.batch, "rounds": options.rounds, "steps": options.steps}
        options.json.write_text(json.dumps({**facts, "rows": [asdict(row) for row in table]}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Tokens per second and MFU of the default subject on the accelerator that is here, and where a step's time goes.

    python benchmarks/accelerator.py                                        # the sizes of configs/gpu.yaml
    python benchmarks/accelerator.py --variants attention=auto attention=xla microbatch=32
    python benchmarks/accelerator.py --rounds 0 --profile                   # kernels by the device's time

A variant is hyperparameters, comma-separated, on top of the common ones, and two words that are none: `attention`, as in
`execution.attention`, and `tree`, a folder with another `models/`. All are traced, verified, loaded and compiled by the
project's own code, and train in the project's own trainer, in turns, on one process's device; figures are medians over the
rounds. Two utilisations are given, both of the bfloat16 peak: `mfu` counts the matrix products that the model needs, by
the usual formula (6 FLOPs for each token and each weight of a matrix product, 12 for each pair of tokens in a window and
each channel of the heads, causal masks not taken off), as autoresearch does; `counted` is that of run records.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.rows import Rows  # noqa: E402
from benchmarks.subject import prepare_subject  # noqa: E402
from jaxresearch.budget import Budget  # noqa: E402
from jaxresearch.execution.utilisation import PEAK_FLOPS_PER_SECOND, model_flops_utilisation  # noqa: E402
from jaxresearch.program.fused import choose_kernel  # noqa: E402
from jaxresearch.training.trainer import CompiledProgram, compile_program, train  # noqa: E402

SIZES = {
    "depth": 8, "width": 512, "head_size": 128, "vocab_size": 8192, "context": 2048,
    "batch": 256, "microbatch": 64, "dtype": "bfloat16",
}  # fmt: skip
"""Of configs/gpu.yaml."""


def parse(text: str) -> dict[str, Any]:
    """`microbatch=32,attention=xla` -> {"microbatch": 32, "attention": "xla"}."""
    pairs = (part.split("=", 1) for part in text.split(",") if part)
    return {name: _number(value) for name, value in pairs}


def _number(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def formula_flops(h: Any) -> float:
    """FLOPs of training one token: forward and backward, matrix products only."""
    per_block = h.width * (2 * h.heads + 2 * h.kv_heads) * h.head_size + 2 * h.width * h.mlp_ratio * h.width
    weights = h.depth * per_block + h.width * h.vocab_size
    return 6 * weights + 12 * h.heads * h.head_size * sum(_window(h, layer) for layer in range(h.depth))


def _window(h: Any, layer: int) -> int:
    from models.gpt import attention_window

    return attention_window(h, layer)


class Variant:
    """A compiled subject; `turn` trains it for a while."""

    def __init__(self, asked: dict[str, Any], compilers: Executor) -> None:
        from models.recipe import hyperparameters

        words = {**SIZES, **asked}
        tree, setting = ROOT / str(words.pop("tree", ".")), words.pop("attention", "auto")
        self.h, device = hyperparameters(words), jax.devices()[0]
        platform = "cuda" if device.platform == "gpu" else device.platform
        kernel, self.attention = choose_kernel(setting, platform, 1)
        self.seconds_to_prepare = -time.monotonic()
        loaded, self.values = prepare_subject(words, platform, kernel=kernel, tree=tree)
        self.seconds_to_prepare += time.monotonic()
        if kernel is not None:
            self.attention = loaded.attention
        self._compiled = compilers.submit(compile_program, loaded)
        self.rows, self.kind = Rows(self.h.vocab_size, self.h.context), device.device_kind

    @property
    def compiled(self) -> CompiledProgram:
        return self._compiled.result()

    def turn(self, steps: int) -> Any:
        budget = Budget.parse(f"{steps}steps")
        return train(
            self.compiled, traced=self.values, budget=budget, seed=0, batches=lambda _: self.rows,
            wall_cap_seconds=math.inf,
        )  # fmt: skip

    def utilisation(self, tokens_per_second: float) -> tuple[float | None, float | None]:
        """By formula, and as run records count."""
        peak, counted = PEAK_FLOPS_PER_SECOND.get(self.kind), self.compiled.program.manifest.step_flops[0]
        per_token = (counted or 0.0) / (self.h.batch * self.h.context)
        formula = formula_flops(self.h) * tokens_per_second / peak if peak else None
        return formula, model_flops_utilisation(self.kind, 1, per_token * tokens_per_second, 1.0)

    def profile(self, top: int) -> list[tuple[str, int, float]]:
        """(kernel, times, milliseconds) of one training step, the longest first."""
        self.turn(1)
        leaves = list(self.compiled.init(np.uint32(0), list(map(np.float32, self.values.values()))))
        values = [np.float32(self.values[name]) for name in self.compiled.program.manifest.traced]
        batch = self.rows.take(0, self.h.batch)[0]
        leaves, _ = self.compiled.steps[0](leaves, batch, np.float32(0.1), values)
        jax.block_until_ready(leaves)
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                leaves, _ = self.compiled.steps[0](leaves, batch, np.float32(0.1), values)
                jax.block_until_ready(leaves)
            files = sorted(Path(folder).rglob("*.xplane.pb"))
            data = jax.profiler.ProfileData.from_file(str(files[-1]))
        times: dict[str, list[float]] = defaultdict(list)
        for plane in data.planes:
            if not plane.name.startswith("/device:"):
                continue
            for line in plane.lines:
                if line.name.startswith("Stream"):
                    for event in line.events:
                        times[event.name].append(event.duration_ns / 1e6)
        found = sorted(((name, len(each), sum(each)) for name, each in times.items()), key=lambda row: -row[2])
        return [("all", sum(row[1] for row in found), sum(row[2] for row in found)), *found[:top]]


def race(variants: dict[str, Variant], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A row of figures for each variant; they take turns."""
    steps, found = {}, {name: [] for name in variants}
    for name, variant in variants.items():
        trained = variant.turn(3)
        steps[name] = max(4, round(3 * seconds / trained.train_seconds))
    for _ in range(rounds):
        for name, variant in variants.items():
            trained = variant.turn(steps[name])
            found[name].append((trained.tokens / trained.train_seconds, trained.loss))
    table = []
    for name, variant in variants.items():
        speeds = [speed for speed, _ in found[name]]
        mfu, counted = variant.utilisation(statistics.median(speeds))
        table.append(
            {
                "variant": name,
                "tokens_per_second": statistics.median(speeds),
                "lowest": min(speeds),
                "highest": max(speeds),
                "mfu": mfu,
                "counted": counted,
                "memory_bytes": variant.compiled.peak_memory_bytes,
                "prepare_seconds": variant.seconds_to_prepare,
                "compile_seconds": variant.compiled.compile_seconds,
                "attention": variant.attention,
                "steps": steps[name],
                "loss": found[name][-1][1],
            }
        )
    return table


def show(table: list[dict[str, Any]]) -> None:
    print("| variant | tokens/s | range | mfu | counted | memory, GB | to prepare, compile, s | loss | attention |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in table:
        shares = ["-" if row[name] is None else f"{row[name]:.1%}" for name in ("mfu", "counted")]
        seconds = f"{row['prepare_seconds']:.1f}, {row['compile_seconds']:.1f}"
        cells = [
            row["variant"], f"{row['tokens_per_second']:,.0f}", f"{row['lowest']:,.0f} to {row['highest']:,.0f}", *shares,
            f"{row['memory_bytes'] / 1e9:.1f}", seconds, f"{row['loss']:.4f}", row["attention"],
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["attention=auto", "attention=xla"])
    parser.add_argument("--common", default="", help="hyperparameters of every variant")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each variant; 0: only --profile")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn")
    parser.add_argument(
        "--profile", type=int, nargs="?", const=25, default=0, metavar="N", help="the N longest kernels"
    )
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    asked = parser.parse_args()
    device = jax.devices()[0]
    print(f"jax {jax.__version__}, {device.device_kind}; medians of {asked.rounds} alternating rounds", flush=True)
    with ThreadPoolExecutor() as compilers:  # while one compiles the next is traced
        variants = {text: Variant(parse(asked.common) | parse(text), compilers) for text in asked.variants}
    found: dict[str, Any] = {"jax": jax.__version__, "device": device.device_kind}
    if asked.rounds:
        found["race"] = race(variants, asked.rounds, asked.seconds)
        show(found["race"])
    for name, variant in variants.items() if asked.profile else ():
        found.setdefault("profile", {})[name] = rows = variant.profile(asked.profile)
        print(f"\none step of {name}, kernels by the device's time\n{'ms':>9} {'times':>6}")
        for kernel, times, milliseconds in rows:
            print(f"{milliseconds:9.2f} {times:6} {kernel[:110]}")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

"""Our training step against a plain PyTorch version of the same model, optimiser and schedules.

    pip install 'jaxresearch[bench]'
    python benchmarks/throughput.py                       # loss agreement, steady state, 60 seconds from a cold start
    python benchmarks/throughput.py --only steady --depth 2 --width 128

- sides: ours takes a batch in passes that fit a CPU's cache, as configs/cpu.yaml has it, but for jax-whole-batch; PyTorch
  takes all at once, but for torch-passes.
- agreement: equal weights, equal batches, 8 steps; the largest difference of the losses.
- steady: every side warms up in a process of its own, then they take turns; while one trains, the others wait.
- cold: tokens that a fresh process has trained `--cold-seconds` after it was started; imports, tracing and compilation
  count, and no compilation cache of an earlier process is used.

Our side is what the laboratory runs: the traced, verified and reloaded program in the project's own trainer. Ratios are to
PyTorch eager in float32 (or to the better of eager and compiled, where so said), medians over the rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
SIDES = (
    "jax", "jax-whole-batch", "jax-small-pages", "jax-bf16",
    "torch", "torch-passes", "torch-compile", "torch-bf16", "torch-compile-bf16",
)  # fmt: skip
SIZES = {
    "depth": 4, "width": 256, "vocab_size": 2048, "context": 256, "batch": 16, "head_size": 64, "pass_size": 2**18,
}  # fmt: skip
DERIVED = ("heads", "kv_heads", "rows_of_a_pass", "polar_express", "scalar_eps")


def numbers(sizes: dict[str, int]) -> SimpleNamespace:
    """Every hyperparameter and constant by name, without importing JAX into a PyTorch process: asked of another one."""
    script = (
        "import dataclasses, json, sys; from models.recipe import hyperparameters, rows_at_a_time;"
        "from models import optimizer as o; h = hyperparameters(json.loads(sys.argv[1]));"
        "print(json.dumps({**dataclasses.asdict(h), 'heads': h.heads, 'kv_heads': h.kv_heads,"
        "'rows_of_a_pass': rows_at_a_time(h.batch, h.context, h),"
        "'polar_express': o.POLAR_EXPRESS, 'scalar_eps': o.SCALAR_EPS}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, json.dumps(sizes)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return SimpleNamespace(**json.loads(found.stdout))


Train = Callable[..., tuple[int, float]]
"""train(steps=n) or train(until=unix time) -> tokens trained, seconds that took."""


def torch_side(name: str, h: SimpleNamespace) -> Train:
    sys.path.insert(0, str(ROOT))
    import torch

    from benchmarks.rows import Rows
    from benchmarks.torch_reference import Trainer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    at_a_time = h.rows_of_a_pass if "passes" in name else h.batch
    trainer = Trainer(h, compiled="compile" in name, bfloat16="bf16" in name, rows_of_a_pass=at_a_time)
    rows = Rows(h.vocab_size, h.context)

    def train(steps: float = math.inf, until: float = math.inf) -> tuple[int, float]:
        done, cursor, started = 0, 0, time.monotonic()
        while done < steps and time.time() < until:
            batch, cursor = rows.take(cursor, h.batch)
            trainer.step(batch, progress=0.25)
            done += 1
        return done * h.batch * h.context, time.monotonic() - started

    return train


def jax_side(h: SimpleNamespace) -> Train:
    """Traced, verified, stored, loaded and run by the project's own code; the sandbox alone is left out."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.rows import Rows
    from benchmarks.subject import compile_subject
    from jaxresearch.budget import Budget
    from jaxresearch.training import trainer

    fields = {name: value for name, value in vars(h).items() if name not in DERIVED}
    compiled, values = compile_subject(fields, "cpu")
    rows = Rows(h.vocab_size, h.context)

    def train(steps: int | None = None, until: float = 0.0) -> tuple[int, float]:
        budget = Budget.parse(f"{steps}steps" if steps else f"{max(0.001, until - time.time()):.3f}s")
        trained = trainer.train(
            compiled, traced=values, budget=budget, seed=0, batches=lambda _: rows, wall_cap_seconds=math.inf
        )
        return trained.tokens, trained.train_seconds

    return train


def serve(name: str, h: SimpleNamespace) -> None:
    """A side in its own process: one line of JSON in, one line out, waiting in between."""
    train = jax_side(h) if name.startswith("jax") else torch_side(name, h)
    for line in sys.stdin:
        tokens, seconds = train(**json.loads(line))
        print(json.dumps({"tokens": tokens, "seconds": seconds}), flush=True)


class Side:
    """The parent's end of `serve`. Sides wait without spinning, and allocate on huge pages, as our worker does; but one."""

    def __init__(self, name: str, h: SimpleNamespace) -> None:
        self.name, self.started = name, time.time()
        pages = {} if name.endswith("small-pages") else HUGE_PAGES
        changes = {"dtype": "bfloat16" if "bf16" in name else "float32"} | ({"pass_size": 0} if "whole" in name else {})
        h = SimpleNamespace(**{**vars(h), **changes})
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name, json.dumps(vars(h))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "OMP_WAIT_POLICY": "passive", **pages},
        )  # fmt: skip

    def train(self, **how: float) -> tuple[int, float]:
        self.process.stdin.write(json.dumps(how) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: the process ended with {self.process.wait()}; its output is above.")
        answer = json.loads(line)
        return answer["tokens"], answer["seconds"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def steady(names: list[str], h: SimpleNamespace, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Tokens per second of each side, round by round, taking turns."""
    sides, steps, speeds = [Side(name, h) for name in names], {}, {name: [] for name in names}
    for side in sides:
        side.train(steps=3)  # compiles
        tokens, took = side.train(steps=5)
        steps[side.name] = max(5, round(seconds / (took / 5)))
    for _ in range(rounds):
        for side in sides:
            tokens, took = side.train(steps=steps[side.name])
            speeds[side.name].append(tokens / took)
    for side in sides:
        side.close()
    return speeds


def cold(names: list[str], h: SimpleNamespace, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Tokens that a fresh process has trained `seconds` after its start."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            with tempfile.TemporaryDirectory() as empty:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty  # as on a new machine; ours writes no cache here
                side = Side(name, h)
                tokens, _ = side.train(until=side.started + seconds)
                side.close()
            found[name].append(tokens)
            print(f"cold, {name}: {tokens:,} tokens", file=sys.stderr, flush=True)
    return found


def agreement(h: SimpleNamespace, steps: int = 8) -> list[tuple[float, float]]:
    """(our loss, PyTorch's) of each step from equal weights on equal batches, float32."""
    sys.path.insert(0, str(ROOT))
    import jax
    import jax.numpy as jnp

    from benchmarks.rows import Rows
    from benchmarks.torch_reference import Trainer
    from models import recipe

    ours = recipe.hyperparameters({name: value for name, value in vars(h).items() if name not in DERIVED})
    subject = recipe.build(ours)
    traced = {f.name: jnp.float32(getattr(ours, f.name)) for f in dataclasses.fields(ours) if f.metadata["traced"]}
    state = jax.jit(subject.init)(jnp.uint32(0), traced)
    named = jax.tree_util.tree_leaves_with_path(state["params"])
    weights = {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in named}
    theirs, step, rows = (
        Trainer(h, compiled=False, weights=weights),
        jax.jit(subject.train_step),
        Rows(h.vocab_size, h.context),
    )
    losses, cursor = [], 0
    for i in range(steps):
        batch, cursor = rows.take(cursor, h.batch)
        state, reported = step(state, batch, jnp.float32(i / steps), traced)
        losses.append((float(reported["loss"]), theirs.step(batch, i / steps)))
    return losses


def table(title: str, found: dict[str, list[float]], reference: Callable[[dict[str, float]], float]) -> None:
    """Medians, ranges, and the median over rounds of each round's ratio to the reference of that round."""
    print(f"\n{title}\n{'':20}{'median':>12}{'lowest':>12}{'highest':>12}{'ratio':>8}")
    by_round = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
    for name, values in found.items():
        ratio = statistics.median(one[name] / reference(one) for one in by_round)
        print(f"{name:20}{statistics.median(values):12,.0f}{min(values):12,.0f}{max(values):12,.0f}{ratio:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--only", choices=("agreement", "steady", "cold"))
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, help="default: all; from a cold start only float32 on huge pages"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn in the steady state")
    parser.add_argument("--cold-seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    asked = parser.parse_args()
    h = numbers({name: getattr(asked, name) for name in SIZES})
    print(", ".join(f"{name} {getattr(asked, name)}" for name in SIZES), f"; {len(os.sched_getaffinity(0))} cores")
    found: dict[str, Any] = {"sizes": {name: getattr(asked, name) for name in SIZES}}
    if asked.only in (None, "agreement"):
        losses = found["agreement"] = agreement(h)
        print(f"\nlargest difference of {len(losses)} losses: {max(abs(a - b) for a, b in losses):.1e} nats per token")
    if asked.only in (None, "steady"):
        sides = list(asked.sides or SIDES)
        speeds = found["steady"] = steady(sides, h, asked.rounds, asked.seconds)
        reference = "torch" if "torch" in sides else sides[0]
        table(f"steady state, tokens per second; ratio to {reference}", speeds, lambda one: one[reference])
    if asked.only in (None, "cold"):
        sides = list(asked.sides or ("jax", "torch", "torch-compile"))
        trained = found["cold"] = cold(sides, h, asked.rounds, asked.cold_seconds)
        title = f"tokens trained {asked.cold_seconds:.0f} s after a cold start; ratio to the better PyTorch side"
        references = [name for name in sides if name.startswith("torch")] or sides[:1]
        table(title, trained, lambda one: max(one[name] for name in references))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], SimpleNamespace(**json.loads(sys.argv[3])))
    else:
        main()

"""Compiling and running the default subject at LLVM's optimisation levels: seconds to compile, time of a step, equal bits?

    python benchmarks/compiling.py [--levels 3 2 1 0] [--rounds 5] [--steps 20]

Levels take turns, so that whatever else the machine does hits all alike. Each compiles init, train step and scorer of the
subject in its default sizes anew, without a cache, and takes so many steps of 16 x 256 tokens. Level 3 is XLA's own choice.
Prints, for each: seconds of compiling and milliseconds of a step, median and range over the rounds; the median of each
round's ratio to the first level; and whether the state after the steps and the scored tokens are the first level's, bit
for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import time
from dataclasses import dataclass, field

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from rows import text_rows
from subject import prepare_subject

from jaxresearch.program.mesh import COMPILER_OPTIONS
from jaxresearch.program.program import LoadedProgram
from jaxresearch.scoring.scorer import compile_scorer
from jaxresearch.training.trainer import compile_program

CONFIG = {"vocab_size": 2048, "context": 256}


@dataclass
class Level:
    """What was measured of one level, a figure a round. bits: SHA-256 of each round's results."""

    compile_seconds: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    bits: set[str] = field(default_factory=set)

    def measure(self, program: LoadedProgram, traced: dict[str, float], level: int, steps: int) -> None:
        COMPILER_OPTIONS["cpu"] = {"xla_backend_optimization_level": str(level)}
        started = time.monotonic()
        compiled, scorer = compile_program(program), compile_scorer(program)
        self.compile_seconds.append(time.monotonic() - started)
        _, batch, length = program.manifest.phases[0]
        tokens = text_rows(CONFIG["vocab_size"], length, batch)
        values = [np.float32(traced[name]) for name in program.manifest.traced]
        leaves, taken = compiled.init(np.uint32(0), values), []
        for _ in range(steps):
            started = time.monotonic()
            leaves, _ = compiled.steps[0](leaves, tokens, np.float32(0.1), values)
            jax.block_until_ready(leaves)
            taken.append(time.monotonic() - started)
        self.step_seconds.append(statistics.median(taken))
        rows = text_rows(CONFIG["vocab_size"], scorer.context, scorer.batch)
        nats, _, _ = scorer(leaves, rows[:, :-1], rows[:, 1:], np.zeros(CONFIG["vocab_size"], np.float32))
        content = b"".join(np.asarray(each).tobytes() for each in (*leaves, nats))
        self.bits.add(hashlib.sha256(content).hexdigest())


def main() -> None:
    parser = argparse.ArgumentParser(description="LLVM's optimisation levels.")
    parser.add_argument("--levels", type=int, nargs="+", default=[3, 2, 1, 0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    program, traced = prepare_subject(CONFIG, "cpu")
    found = {level: Level() for level in options.levels}
    for _ in range(options.rounds):
        for level, measured in found.items():
            measured.measure(program, traced, level, options.steps)
    first = found[options.levels[0]]
    for level, measured in found.items():
        compiling, steps = measured.compile_seconds, [1000 * each for each in measured.step_seconds]
        ratios = [
            statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            for ours, theirs in (
                (measured.compile_seconds, first.compile_seconds),
                (measured.step_seconds, first.step_seconds),
            )
        ]
        print(
            f"level {level}  compile {statistics.median(compiling):.2f} s ({min(compiling):.2f} to {max(compiling):.2f}), "
            f"ratio {ratios[0]:.2f}  step {statistics.median(steps):.1f} ms ({min(steps):.1f} to {max(steps):.1f}), "
            f"ratio {ratios[1]:.2f}  {'equal bits' if measured.bits == first.bits else 'other bits'}"
        )


if __name__ == "__main__":
    main()

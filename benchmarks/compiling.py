"""Compiling and running the subject under different options of XLA's: seconds to compile, time of a step, the same results?

    python benchmarks/compiling.py [--sides xla xla_backend_optimization_level=2 ours] [--ideas] [--rounds 5] [--steps 20]

A side is options NAME=VALUE with commas between them; `xla` is none, `ours` is what programs get (COMPILER_OPTIONS). Sides
take turns, so that whatever else the machine does hits all alike. Each compiles init, train step and scorer anew, without a
cache, and takes so many steps on equal batches: of the default subject in the default study's sizes and, with --ideas, of
that with each edit of the builtin model's library, too.
Prints for each side: seconds of compiling and milliseconds of a step, median and range over subjects and rounds; the median
of each one's ratio to the first side; on how many subjects the state and the scored tokens are the first side's, bit for
bit; and how far the last step's loss is from it at most, in nats.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from rows import text_rows
from subject import prepare_subject

from agents.library import LIBRARY
from jaxresearch.program.mesh import COMPILER_OPTIONS
from jaxresearch.program.program import LoadedProgram
from jaxresearch.proposal import Proposal, apply
from jaxresearch.sandbox import write_tree
from jaxresearch.scoring.scorer import compile_scorer
from jaxresearch.subjects import load_subject
from jaxresearch.training.trainer import compile_program

CONFIG = {"vocab_size": 2048, "context": 256, "batch": 8}
OURS = dict(COMPILER_OPTIONS["cpu"])


@dataclass
class Side:
    """What was measured under one choice of options, a figure for each subject and round."""

    options: dict[str, str | bool]
    compile_seconds: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def measure(self, program: LoadedProgram, traced: dict[str, float], steps: int) -> None:
        COMPILER_OPTIONS["cpu"] = self.options
        started = time.monotonic()
        compiled, scorer = compile_program(program), compile_scorer(program)
        self.compile_seconds.append(time.monotonic() - started)
        _, batch, length = program.manifest.phases[0]
        tokens = text_rows(CONFIG["vocab_size"], length, batch)
        values = [np.float32(traced[name]) for name in program.manifest.traced]
        leaves, taken, loss = compiled.init(np.uint32(0), values), [], float("nan")
        for _ in range(steps):
            started = time.monotonic()
            leaves, reported = compiled.steps[0](leaves, tokens, np.float32(0.1), values)
            loss = float(reported)
            taken.append(time.monotonic() - started)
        self.step_seconds.append(statistics.median(taken))
        self.losses.append(loss)
        rows = text_rows(CONFIG["vocab_size"], scorer.context, scorer.batch)
        nats, _, _ = scorer(leaves, rows[:, :-1], rows[:, 1:], np.zeros(CONFIG["vocab_size"], np.float32))
        content = b"".join(np.asarray(each).tobytes() for each in (*leaves, nats))
        self.results.append(hashlib.sha256(content).hexdigest())


def parsed(side: str) -> dict[str, str | bool]:
    """`a=1,b=true` as options; XLA takes truth values as such, and everything else as text."""
    if side in ("xla", "ours"):
        return OURS if side == "ours" else {}
    pairs = [option.partition("=") for option in side.split(",")]
    return {name: {"true": True, "false": False}.get(value, value) for name, _, value in pairs}


def subjects(with_ideas: bool) -> Iterator[tuple[LoadedProgram, dict[str, float]]]:
    """The default subject, and that with each of the library's edits."""
    yield prepare_subject(CONFIG, "cpu")
    original = load_subject("gpt", {})
    for idea in LIBRARY if with_ideas else ():
        edited = apply(Proposal(parent=0, hypothesis="", edits=tuple(idea.edits(original.files) or ())), original)
        with tempfile.TemporaryDirectory() as tree:
            write_tree(Path(tree), edited.files)
            yield prepare_subject(CONFIG, "cpu", tree=Path(tree))


def main() -> None:
    parser = argparse.ArgumentParser(description="XLA's options on a CPU.")
    parser.add_argument("--sides", nargs="+", default=["xla", "xla_backend_optimization_level=2", "ours"])
    parser.add_argument("--ideas", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    found = {side: Side(parsed(side)) for side in options.sides}
    for number, (program, traced) in enumerate(subjects(options.ideas)):
        if number == 0:
            Side({}).measure(program, traced, 1)  # jax's own first steps
        for _ in range(options.rounds):
            for side in found.values():
                jax.clear_caches()
                side.measure(program, traced, options.steps)
    first = found[options.sides[0]]
    for name, side in found.items():
        print(f"{name}\n  {figures(side.compile_seconds, first.compile_seconds, 's')} to compile")
        print(
            f"  {figures([1000 * s for s in side.step_seconds], [1000 * s for s in first.step_seconds], 'ms')} a step"
        )
        equal = sum(a == b for a, b in zip(side.results, first.results, strict=True))
        apart = max(abs(a - b) for a, b in zip(side.losses, first.losses, strict=True))
        print(f"  equal bits in {equal} of {len(side.results)}, losses {apart:.1e} nats apart at most")


def figures(ours: list[float], theirs: list[float], unit: str) -> str:
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return f"{statistics.median(ours):.2f} {unit} ({min(ours):.2f} to {max(ours):.2f}), ratio {ratio:.2f}"


if __name__ == "__main__":
    main()

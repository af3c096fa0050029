"""How often the audits call an honest candidate a cheat: every edit of the builtin library, trained, scored and audited.

    python benchmarks/audits.py [--seeds 3] [--edits 0] [--modes float32,bfloat16,devices8]

Each edit is applied to the default subject, at tiny sizes, and trained with 40 steps against a reference run of 6 steps, so
that it claims a gain and the strong audits are made too. Alarms are runs that end as `invalid` for an audit. Prints one
line for each alarm, then a line for each mode with the alarms, the runs, the rate and its upper 95 % bound (Wilson), and
the largest deviation that any audit saw.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from agents.library import LIBRARY, Idea
from jaxresearch.config import StudyConfig, validate_config
from jaxresearch.data import Corpus, prepare
from jaxresearch.execution.base import RunRequest, TracedCandidate, TraceFailure, run_identity
from jaxresearch.execution.local import LocalExecutor
from jaxresearch.experiment import CompletedRun, RunOutcome, Verdict
from jaxresearch.proposal import Candidate, Proposal, apply
from jaxresearch.sandbox import choose_sandbox
from jaxresearch.subjects import load_subject

TINY = {"depth": 2, "width": 48, "head_size": 16, "batch": 8}
MODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "float32": ({}, {}),
    "bfloat16": ({"dtype": "bfloat16"}, {}),
    "devices8": ({}, {"devices": 8, "fsdp": 2}),
}


@dataclass
class Count:
    """alarms: runs that an audit refused. runs: those that were audited. deviation: the largest of any audit."""

    alarms: int = 0
    runs: int = 0
    failed: int = 0
    deviation: float = 0.0

    def add(self, outcome: RunOutcome) -> bool:
        """Counts a run; whether it is an alarm."""
        if not outcome.audits:
            self.failed += 1
            return False
        alarm = not isinstance(outcome, CompletedRun) and outcome.verdict is Verdict.INVALID
        self.runs += 1
        self.alarms += alarm
        self.deviation = max(self.deviation, *(audit.max_deviation for audit in outcome.audits))
        return alarm

    @property
    def upper(self) -> float:
        """The upper end of Wilson's 95 % interval of the rate."""
        n, z = self.runs, 1.96
        if n == 0:
            return 1.0
        rate = self.alarms / n
        half = z * (rate * (1 - rate) / n + z * z / (4 * n * n)) ** 0.5
        return (rate + z * z / (2 * n) + half) / (1 + z * z / n)


def settings(mode: str) -> StudyConfig:
    hyperparameters, execution = MODES[mode]
    return validate_config(
        {
            "context": 32,
            "evaluation": {"tokens": 8192, "batch": 8},
            "corpus": {"vocab_size": 512},
            "subject": {"hyperparameters": {**TINY, **hyperparameters}},
            "execution": execution,
        }
    )


async def measure(mode: str, ideas: Sequence[Idea], seeds: int, corpus: Corpus, root: Path) -> Count:
    """Alarms over `ideas` and `seeds` in one mode."""
    config, count = settings(mode), Count()
    baseline = load_subject(config.subject.source, config.subject.hyperparameters)
    executor = LocalExecutor.create(
        config, corpus, await choose_sandbox(), programs=root / "programs", runs=root / mode
    )

    async def run(traced: TracedCandidate, seed: int, steps: int, reference: str | None) -> RunOutcome:
        identity = run_identity(
            program=traced.program, traced=traced.traced, phases=traced.phases, budget=f"{steps}steps",
            corpus=corpus.fingerprint, tokenizer=corpus.tokenizer_fingerprint, evaluation=mode, seed=seed,
        )  # fmt: skip
        request = RunRequest(
            identity=identity, program=traced.program, traced=traced.traced, seed=seed, budget=f"{steps}steps",
            reference=reference, wall_cap_seconds=600,
        )  # fmt: skip
        return await executor.run(request, lambda _: None)

    async def trace(candidate: Candidate) -> TracedCandidate | None:
        traced = await executor.trace(candidate)
        if isinstance(traced, TraceFailure):
            print(f"{mode}: not traced: {traced.reason}")
            return None
        return traced

    try:
        first = await trace(baseline)
        assert first is not None
        references = [await run(first, seed, 6, None) for seed in range(seeds)]
        for idea in ideas:
            edits = tuple(idea.edits(baseline.files) or ())
            traced = await trace(apply(Proposal(parent=0, hypothesis=idea.hypothesis, edits=edits), baseline))
            for seed in range(seeds) if traced is not None else ():
                outcome = await run(traced, seed, 40, references[seed].identity)
                if count.add(outcome):
                    print(f"ALARM {mode}: {idea.tag}, seed {seed}: {getattr(outcome, 'reason', '')}", flush=True)
    finally:
        await executor.close()
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description="False alarms of the audits.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--edits", type=int, default=0, help="the first so many; 0: all")
    parser.add_argument("--modes", default=",".join(MODES))
    options = parser.parse_args()
    ideas = LIBRARY[: options.edits or None]
    corpus = prepare("python-stdlib", 512)
    with tempfile.TemporaryDirectory() as folder:
        for mode in options.modes.split(","):
            count = asyncio.run(measure(mode, ideas, options.seeds, corpus, Path(folder)))
            print(
                f"{mode}: {count.alarms} alarms in {count.runs} runs ({count.failed} failed otherwise), upper bound "
                f"{count.upper:.2%}; largest deviation {count.deviation:.3g}",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""What a run costs on a Ray cluster beyond the same run on this machine.

    ray start --head --num-cpus 2
    python benchmarks/cluster_overhead.py --address auto --runs 20

Prints seconds from request to outcome, median of warm runs of one tiny program, here and there, and the difference.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

from jaxresearch.config import StudyConfig, validate_config
from jaxresearch.data import prepare_corpus
from jaxresearch.execution.base import Executor, RunRequest, TracedCandidate, run_identity
from jaxresearch.execution.cluster.executor import RayExecutor
from jaxresearch.execution.local import LocalExecutor
from jaxresearch.experiment import CompletedRun
from jaxresearch.sandbox import choose_sandbox
from jaxresearch.subjects import load_subject


async def seconds_of_runs(executor: Executor, config: StudyConfig, runs: int) -> list[float]:
    """Of each run, after one that compiles."""
    candidate = load_subject(config.subject.source, config.subject.hyperparameters)
    traced = await executor.trace(candidate)
    assert isinstance(traced, TracedCandidate), traced
    taken = []
    for seed in range(runs + 1):
        facts = {"program": traced.program, "traced": traced.traced, "budget": config.budget, "seed": seed}
        identity = run_identity(**facts, phases=traced.phases, corpus="", tokenizer="", evaluation="")
        started = time.monotonic()
        outcome = await executor.run(
            RunRequest(identity=identity, **facts, wall_cap_seconds=600, sandbox=traced.sandbox), lambda _: None
        )
        taken.append(time.monotonic() - started)
        assert isinstance(outcome, CompletedRun), outcome
    return taken[1:]


async def measure(config: StudyConfig, runs: int) -> dict[str, float]:
    corpus, sandbox = prepare_corpus(config, lambda stage, done: None), await choose_sandbox()
    medians = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in (("local", LocalExecutor.create), ("ray", RayExecutor)):
            executor = make(config, corpus, sandbox, programs=Path(folder, "programs"), runs=Path(folder, name))
            try:
                medians[name] = statistics.median(await seconds_of_runs(executor, config, runs))
            finally:
                await executor.close()
    return {**medians, "overhead": medians["ray"] - medians["local"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="auto")
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    tiny = {"depth": 1, "width": 32, "head_size": 16, "batch": 4}
    config = validate_config(
        {
            "context": 64,
            "budget": "20steps",
            "evaluation": {"tokens": 4096, "batch": 4},
            "subject": {"hyperparameters": tiny},
            "execution": {"executor": "ray", "ray_address": options.address, "threads": 1},
        }
    )
    print(json.dumps(asyncio.run(measure(config, options.runs))))


if __name__ == "__main__":
    main()

"""What a run costs on a Ray cluster beyond the same run on this machine.

    export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0
    ray start --head --num-cpus 2 --node-ip-address 127.0.0.1 --include-dashboard false
    python benchmarks/cluster_overhead.py --address 127.0.0.1:6379 --runs 20
    ray stop

Warm runs of one tiny program, here and there in turns, so that whatever else the machine does meets both. Prints medians,
in seconds:

local, ray                      from request to outcome
local_overhead, ray_overhead    the part of it that the worker did not count as its run's own
overhead                        of each pair of runs, ray's part less local's: what the cluster costs
worst                           the largest of those, which is no median
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from jaxresearch.config import StudyConfig, validate_config
from jaxresearch.data import prepare_corpus
from jaxresearch.execution.base import Executor, RunRequest, TracedCandidate, run_identity
from jaxresearch.execution.cluster.executor import RayExecutor
from jaxresearch.execution.local import LocalExecutor
from jaxresearch.experiment import CompletedRun
from jaxresearch.sandbox import choose_sandbox
from jaxresearch.subjects import load_subject


@dataclass(frozen=True)
class Seconds:
    """Of one run. overhead: beyond what the worker counted as its own."""

    all_told: float
    overhead: float


async def seconds_of_run(executor: Executor, traced: TracedCandidate, config: StudyConfig, seed: int) -> Seconds:
    facts = {"program": traced.program, "traced": traced.traced, "budget": config.budget, "seed": seed}
    identity = run_identity(**facts, phases=traced.phases, corpus="", tokenizer="", evaluation="")
    request = RunRequest(identity=identity, **facts, wall_cap_seconds=600, sandbox=traced.sandbox)
    started = time.monotonic()
    outcome = await executor.run(request, lambda _: None)
    taken = time.monotonic() - started
    assert isinstance(outcome, CompletedRun), outcome
    return Seconds(taken, taken - outcome.total_seconds)


async def measure(config: StudyConfig, runs: int) -> dict[str, float]:
    corpus, sandbox = prepare_corpus(config, lambda stage, done: None), await choose_sandbox()
    with tempfile.TemporaryDirectory() as folder:
        local, ray = (
            make(config, corpus, sandbox, programs=Path(folder, "programs"), runs=Path(folder, name))
            for name, make in (("local", LocalExecutor.create), ("ray", RayExecutor))
        )
        try:
            traced = await local.trace(load_subject(config.subject.source, config.subject.hyperparameters))
            assert isinstance(traced, TracedCandidate), traced
            for executor in (local, ray):  # the first run compiles
                await seconds_of_run(executor, traced, config, runs)
            pairs = [
                (await seconds_of_run(local, traced, config, seed), await seconds_of_run(ray, traced, config, seed))
                for seed in range(runs)
            ]
        finally:
            await ray.close()
            await local.close()
    more = [there.overhead - here.overhead for here, there in pairs]
    return {
        "local": statistics.median(here.all_told for here, _ in pairs),
        "ray": statistics.median(there.all_told for _, there in pairs),
        "local_overhead": statistics.median(here.overhead for here, _ in pairs),
        "ray_overhead": statistics.median(there.overhead for _, there in pairs),
        "overhead": statistics.median(more),
        "worst": max(more),
    }


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

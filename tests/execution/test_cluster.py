"""Runs on a real Ray cluster on loopback: the same scores as here, and nothing lost when parts of it go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from jaxresearch.data.manifest import SEALED
from jaxresearch.execution.base import RunRequest
from jaxresearch.execution.cluster.executor import RayExecutor
from jaxresearch.experiment import CompletedRun, FailedRun, RunOutcome, Verdict
from jaxresearch.training.seal import checkpoint_folder, find_named, read_seal
from tests.execution.ray_cluster import KEY, SmallCluster, alive, wait_for, workers_of
from tests.laboratory import BASELINE, Laboratory, tiny_config, with_logits

pytest.importorskip("ray", reason="Ray is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

LONG = "10000000steps"
FOREVER = "honest + jax.lax.while_loop(lambda x: x > -1.0, lambda x: x * 0.5, 1.0)"


@pytest.fixture(scope="module")
def cluster(cache_root) -> Iterator[SmallCluster]:
    cluster = SmallCluster()
    cluster.add_node()
    cluster.add_node()
    yield cluster
    cluster.close()


class Bench(Laboratory):
    """A laboratory whose runs happen on the cluster."""

    def __init__(self, runner, config, corpus, sandbox, root: Path):
        self.runner, self.config, self.corpus, self.sandbox, self.root = runner, config, corpus, sandbox, root
        self.executor = RayExecutor(config, corpus, sandbox, programs=root / "programs", runs=root / "runs")  # type: ignore[assignment]

    def request(self, traced, **settings) -> RunRequest:
        """With time enough on a machine that does other things beside."""
        return super().request(traced, **{"wall_cap_seconds": 3000.0, **settings})

    def begun(self, count: int, **settings) -> list[Begun]:
        """So many runs, all of them training."""

        async def begin() -> list[Begun]:
            runs = []
            for seed in range(count):
                steps: set[int] = set()
                run = self.executor.run(
                    self.request(seed=seed, **settings), lambda progress, s=steps: s.add(progress.step)
                )
                runs.append(Begun(seed, asyncio.create_task(run), steps))
            await further(runs)
            return runs

        return self.runner.run(begin())


@dataclass(frozen=True)
class Begun:
    """A run that goes on. steps: where it has been seen."""

    seed: int
    task: asyncio.Task
    steps: set[int]


async def further(runs: list[Begun]) -> None:
    """Until each has been seen at two more steps, or has ended."""
    before = [len(run.steps) for run in runs]
    while not all(run.task.done() or len(run.steps) > seen + 1 for run, seen in zip(runs, before, strict=True)):
        await asyncio.sleep(0.05)


async def cancel(runs: list[Begun]) -> None:
    for run in runs:
        run.task.cancel()
    await asyncio.wait([run.task for run in runs])


async def ended(runs: list[Begun], count: int) -> list[Begun]:
    """The first so many that have ended."""
    while sum(run.task.done() for run in runs) < count:
        await asyncio.wait([run.task for run in runs], timeout=1.0)
    return [run for run in runs if run.task.done()]


@pytest.fixture(scope="module")
def bench(cluster, runner, tiny_corpus, sandbox, tmp_path_factory) -> Iterator[Bench]:
    execution = {"executor": "ray", "ray_address": cluster.address, "threads": 1}
    config = tiny_config(execution=execution, slots=4, limits={"evaluation_seconds": 60.0})
    bench = Bench(runner, config, tiny_corpus, sandbox, tmp_path_factory.mktemp("cluster"))
    yield bench
    bench.close()


@pytest.fixture(scope="module")
def here(make_laboratory) -> Laboratory:
    return make_laboratory(execution={"threads": 1})


def keepers(cluster: SmallCluster) -> list[int]:
    return [pid for number in (0, 1) for pid in cluster.keepers(number)]


def test_scores_files_and_audits_are_those_of_this_machine(bench, here, cluster):
    there, local = bench.traced(BASELINE), here.traced(BASELINE)
    assert there.program == local.program
    first, reference = bench.run(there, seed=3, keep_state=True), bench.request(there, seed=3, budget="2steps")
    assert first.val_bpb.hex() == here.run(local, seed=3).val_bpb.hex()
    nats = np.load(bench.root / "runs" / first.identity / "nats.npy")
    assert np.isfinite(nats).all()
    state = find_named(checkpoint_folder(bench.root / "runs", first.identity), first.checkpoint)
    assert state is not None
    assert read_seal(state, name=first.checkpoint).position.steps == first.steps
    assert isinstance(bench.runner.run(bench.executor.run(reference, lambda _: None)), CompletedRun)
    better = bench.run(there, seed=3, reference=reference.identity)
    assert better.val_bpb == first.val_bpb
    assert len(better.audits) > len(first.audits), "a gain over the reference is audited where it is claimed"
    sent = [path for cache in cluster.caches for path in cache.glob("shipped/*/corpus.json")]
    assert sent, "the corpus went to a node"
    assert not [path for path in sent if (path.parent / SEALED).exists()], "the sealed test did not"
    tested = bench.run(there, seed=3, split="test")
    assert tested.test_bpb == here.run(local, seed=3, split="test").test_bpb


def test_no_key_of_a_node_reaches_a_worker(bench, cluster):
    bench.run(bench.traced(BASELINE))
    found = [Path(f"/proc/{pid}/environ").read_text() for keeper in keepers(cluster) for pid in workers_of(keeper)]
    assert found
    assert not any(KEY in environment or "RAY_AUTH" in environment for environment in found)


def test_of_four_runs_one_whose_keeper_is_killed_is_lost_and_the_others_go_on_until_they_are_cancelled(
    bench, here, cluster
):
    traced = bench.traced(BASELINE)
    assert bench.executor.workers == 4
    runs = bench.begun(4, traced=traced, budget=LONG)
    at_work = {keeper: workers_of(keeper) for keeper in keepers(cluster)}
    assert len(at_work) == 4
    victim = next(iter(at_work))
    os.kill(victim, signal.SIGKILL)
    (lost,) = bench.runner.run(ended(runs, 1))
    assert lost.task.result().verdict is Verdict.INFRASTRUCTURE
    assert wait_for(lambda: not any(map(alive, at_work[victim]))), "its worker ended with it"
    others = [run for run in runs if run is not lost]
    bench.runner.run(further(others))
    assert not any(run.task.done() for run in others)
    bench.runner.run(cancel(others))
    assert all(run.task.cancelled() for run in others)
    everyone = [pid for keeper, workers in at_work.items() for pid in (keeper, *workers)]
    assert wait_for(lambda: not any(map(alive, everyone))), "keepers and workers ended"
    again = bench.run(traced, seed=lost.seed, budget="300steps")
    assert again.val_bpb == here.run(here.traced(BASELINE), seed=lost.seed, budget="300steps").val_bpb


def test_a_run_that_costs_two_workers_their_lives_is_a_crash(bench, cluster):
    request, seen, killed = bench.request(bench.traced(BASELINE), budget=LONG), [], set()

    def workers() -> set[int]:
        return {pid for keeper in keepers(cluster) for pid in workers_of(keeper)} - killed

    async def kill_twice() -> RunOutcome:
        run = asyncio.create_task(bench.executor.run(request, seen.append))
        for _ in range(2):
            while not (run.done() or workers()):
                await asyncio.sleep(0.05)
            before = len(seen)  # a keeper repeats the last word of a dead worker until the next one speaks
            while not (run.done() or (len(set(seen[before:])) > 1 and seen[-1].stage == "train")):
                await asyncio.sleep(0.05)
            for pid in (now := workers()):
                with contextlib.suppress(ProcessLookupError):  # what contained it took it along
                    os.kill(pid, signal.SIGKILL)
            killed.update(now)
        return await run

    outcome = bench.runner.run(kill_twice())
    assert (outcome.verdict, "the worker died while it did train" in outcome.reason) == (Verdict.CRASH, True)


def test_a_time_limit_kills_what_does_not_return(bench):
    outcome = bench.run(bench.traced(with_logits(FOREVER)), budget="2steps")
    assert (outcome.verdict, "the worker was killed" in outcome.reason) == (Verdict.TIMEOUT, True)
    assert isinstance(bench.run(bench.traced(BASELINE)), CompletedRun)


def test_a_node_that_goes_loses_its_runs_and_another_takes_them(bench, cluster):
    traced = bench.traced(BASELINE)
    runs = bench.begun(4, traced=traced, budget=LONG)
    cluster.remove_node(1)
    lost = bench.runner.run(ended(runs, 2))
    bench.runner.run(cancel([run for run in runs if run not in lost]))
    assert [run.task.result().verdict for run in lost] == [Verdict.INFRASTRUCTURE] * 2
    outcome = bench.run(traced)
    if isinstance(outcome, FailedRun):  # it was sent to the node that is gone, as the study would learn too
        assert outcome.verdict is Verdict.INFRASTRUCTURE, outcome.reason
        outcome = bench.run(traced)
    assert isinstance(outcome, CompletedRun), outcome.reason
    assert wait_for(lambda: bench.executor.workers == 2), "Ray's own word on a silent node takes a minute"
    cluster.add_node()
    assert bench.executor.workers == 4


def test_an_executor_that_is_closed_leaves_no_process_behind(bench, cluster):
    assert isinstance(bench.run(bench.traced(BASELINE)), CompletedRun)
    there = [pid for number in (0, 2) for pid in cluster.keepers(number)]
    workers = [pid for keeper in there for pid in workers_of(keeper)]
    assert workers
    bench.close()
    assert wait_for(lambda: not any(map(alive, [*there, *workers])))

"""Runs on a real Ray cluster on loopback: the same scores as here, and nothing lost when parts of it go."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jaxresearch.data.manifest import SEALED
from jaxresearch.execution.cluster.executor import RayExecutor
from jaxresearch.experiment import CompletedRun, FailedRun, Verdict
from jaxresearch.training.seal import checkpoint_folder, find_named, read_seal
from tests.execution.ray_cluster import KEY, SmallCluster, alive, wait_for, workers_of
from tests.laboratory import BASELINE, Laboratory, tiny_config, with_logits

pytest.importorskip("ray", reason="Ray is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

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

    def start(self, traced, **settings) -> asyncio.Task:
        return self.runner.get_loop().create_task(self.executor.run(self.request(traced, **settings), lambda _: None))

    def begun(self, count: int, **settings) -> list[asyncio.Task]:
        """So many runs, all of them training."""
        steps: list[set[int]] = [set() for _ in range(count)]

        async def begin() -> list[asyncio.Task]:
            tasks = []
            for seed, seen in enumerate(steps):
                request = self.request(seed=seed, **settings)
                run = self.executor.run(request, lambda progress, seen=seen: seen.add(progress.step))
                tasks.append(asyncio.create_task(run))
            while not all(len(seen) > 1 or task.done() for seen, task in zip(steps, tasks, strict=True)):
                await asyncio.sleep(0.05)
            return tasks

        return self.runner.run(begin())

    def results(self, tasks: list[asyncio.Task]) -> list:
        return self.runner.run(_all(tasks))


async def _all(tasks: list[asyncio.Task]) -> list:
    return await asyncio.gather(*tasks)


@pytest.fixture(scope="module")
def bench(cluster, runner, tiny_corpus, sandbox, tmp_path_factory) -> Iterator[Bench]:
    execution = {"executor": "ray", "ray_address": cluster.address, "threads": 1}
    config = tiny_config(execution=execution, slots=4, limits={"evaluation_seconds": 20.0})
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


def test_of_four_runs_one_whose_keeper_is_killed_is_lost_and_the_others_are_not(bench, here, cluster):
    traced = bench.traced(BASELINE)
    assert bench.executor.workers == 4
    tasks = bench.begun(4, traced=traced, budget="3000steps")
    at_work = keepers(cluster)
    assert len(at_work) == 4
    victim = at_work[0]
    workers = workers_of(victim)
    os.kill(victim, signal.SIGKILL)
    outcomes = bench.results(tasks)
    lost = [outcome for outcome in outcomes if isinstance(outcome, FailedRun)]
    assert [outcome.verdict for outcome in lost] == [Verdict.INFRASTRUCTURE]
    assert wait_for(lambda: not any(map(alive, workers)), 10), "its worker ended with it"
    done = [outcome for outcome in outcomes if isinstance(outcome, CompletedRun)]
    assert len(done) == 3
    local = here.run(here.traced(BASELINE), seed=done[0].seed, budget="3000steps")
    assert local.val_bpb == done[0].val_bpb
    again = bench.run(traced, seed=lost[0].seed, budget="3000steps")
    assert isinstance(again, CompletedRun)


def test_a_program_that_costs_its_worker_the_life_is_a_crash(bench, cluster):
    (task,) = bench.begun(1, traced=bench.traced(BASELINE), budget=LONG)
    busy = [pid for keeper in keepers(cluster) for pid in workers_of(keeper)]
    for pid in busy:
        os.kill(pid, signal.SIGKILL)
    (outcome,) = bench.results([task])
    assert (outcome.verdict, "the worker died while it did train" in outcome.reason) == (Verdict.CRASH, True)


def test_a_cancelled_run_ends_now(bench, cluster):
    tasks = bench.begun(1, traced=bench.traced(BASELINE), budget=LONG)
    before = {keeper: workers_of(keeper) for keeper in keepers(cluster)}

    async def cancel() -> None:
        tasks[0].cancel()
        await asyncio.wait(tasks)

    bench.runner.run(cancel())
    assert tasks[0].cancelled()
    assert wait_for(lambda: any(not alive(keeper) for keeper in before), 10)
    ended = [pid for keeper, workers in before.items() if not alive(keeper) for pid in workers]
    assert ended
    assert wait_for(lambda: not any(map(alive, ended)), 10)


def test_a_time_limit_kills_what_does_not_return(bench):
    outcome = bench.run(bench.traced(with_logits(FOREVER)), budget="2steps")
    assert (outcome.verdict, "the worker was killed" in outcome.reason) == (Verdict.TIMEOUT, True)
    assert isinstance(bench.run(bench.traced(BASELINE)), CompletedRun)


def test_a_node_that_goes_loses_its_runs_and_another_takes_them(bench, cluster):
    traced = bench.traced(BASELINE)
    tasks = bench.begun(4, traced=traced, budget=LONG)
    cluster.remove_node(1)

    async def look() -> list[asyncio.Task]:
        done: set[asyncio.Task] = set()
        while len(done) < 2:
            done, _ = await asyncio.wait(tasks, timeout=1.0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return list(done)

    lost = bench.results(bench.runner.run(look()))
    assert [outcome.verdict for outcome in lost] == [Verdict.INFRASTRUCTURE] * 2
    assert isinstance(bench.run(traced), CompletedRun)
    assert wait_for(lambda: bench.executor.workers == 2, 120), "Ray's own word on a silent node takes a minute"
    cluster.add_node()
    assert bench.executor.workers == 4

"""Tracers: one may wait for a candidate that will come; it serves one, and none is left."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from jaxresearch.config import LimitsConfig
from jaxresearch.program.tracers import Tracers
from jaxresearch.program.tracing import TracedModules, trace
from jaxresearch.program.verifier import ProgramLimits, Signature, VerifiedModules, verify
from jaxresearch.sandbox import Sandbox
from tests.laboratory import BASELINE, CONTEXT, EVALUATION_BATCH, VOCAB_SIZE
from tests.sandbox.test_tiers import skip_without


async def traced(tracers: Tracers, platform: str = "cpu") -> TracedModules:
    found = await trace(
        BASELINE,
        laboratory={"vocab_size": VOCAB_SIZE, "context": CONTEXT},
        evaluation_batch=EVALUATION_BATCH,
        platform=platform,
        tracers=tracers,
        limits=LimitsConfig(),
    )
    assert isinstance(found, TracedModules), found
    return found


def judged(found: TracedModules) -> VerifiedModules:
    """As the laboratory would, with its own limits."""
    limits = LimitsConfig()
    return verify(
        found.blobs,
        traced=tuple(sorted(found.values)),
        phases=found.phases,
        metrics=found.metrics,
        wanted=Signature(EVALUATION_BATCH, CONTEXT, VOCAB_SIZE),
        limits=ProgramLimits(limits.program_bytes, limits.constant_bytes, limits.parameters),
    )


def program(found: TracedModules) -> list[str]:
    """Its modules' text. The modules themselves name the folder of their sources."""
    return [module.text for module in judged(found).modules]


async def taken(tracers: Tracers) -> int:
    """The process that one candidate gets."""
    async with tracers.one() as tracer:
        return tracer.process._process.pid


@pytest.mark.parametrize("tier", ["bubblewrap", "landlock", "subprocess"])
def test_one_that_has_waited_traces_what_a_fresh_one_does(tmp_path: Path, tier, runner):
    skip_without(runner, tier)

    async def both() -> None:
        tracers = Tracers(Sandbox(tier), tmp_path)
        fresh = await traced(tracers)
        tracers.expect_another()
        waiting = await tracers._next
        assert waiting.process.alive
        assert program(await traced(tracers)) == program(fresh)
        assert not waiting.process.alive
        assert list(tmp_path.iterdir()) == []

    runner.run(both())


def test_the_default_subject_is_traced_and_passes_for_every_platform_and_counts_the_same(
    tmp_path: Path, sandbox, runner
):
    """init, train step and logits, without such devices."""
    tracers = Tracers(sandbox, tmp_path)
    cpu, cuda, tpu = (judged(runner.run(traced(tracers, platform))) for platform in ("cpu", "cuda", "tpu"))
    assert len(cpu.modules) == 3
    assert cpu.state == cuda.state == tpu.state
    assert cpu.step_flops == cuda.step_flops == tpu.step_flops > (1e6,)
    assert cpu.logits_flops == cuda.logits_flops == tpu.logits_flops > 1e6
    assert cpu.parameters == cuda.parameters == tpu.parameters


def test_the_next_one_waits_and_no_two_candidates_share_it(tmp_path: Path, runner):
    async def play() -> None:
        tracers = Tracers(Sandbox("subprocess"), tmp_path)
        tracers.expect_another()
        waiting = await tracers._next
        tracers.expect_another()
        pids = await asyncio.gather(taken(tracers), taken(tracers))
        assert pids.count(waiting.process._process.pid) == 1
        assert len(set(pids)) == 2
        await tracers.close()
        assert list(tmp_path.iterdir()) == []

    runner.run(play())


def test_one_that_died_while_it_waited_is_replaced_and_one_that_is_not_needed_is_ended(tmp_path: Path, runner):
    async def play() -> None:
        tracers = Tracers(Sandbox("subprocess"), tmp_path)
        tracers.expect_another()
        dead = (await tracers._next).process._process
        os.killpg(dead.pid, signal.SIGKILL)
        await dead.wait()
        assert await taken(tracers) != dead.pid
        tracers.expect_another()
        idle = await tracers._next
        await tracers.close()
        assert not idle.process.alive
        assert list(tmp_path.iterdir()) == []

    runner.run(play())


def test_a_study_has_the_next_tracer_started_while_it_scores(laboratory, baseline, monkeypatch):
    """Not while it trains: under a budget in seconds that would take time from the run."""
    stages: list[str] = []
    tracers, stage = laboratory.executor._tracers, [""]
    monkeypatch.setattr(tracers, "expect_another", lambda: stages.append(stage[0]))

    def watch(progress) -> None:
        stage[0] = progress.stage

    runner = laboratory.runner
    monkeypatch.setattr(laboratory.executor, "_begun", 0)
    monkeypatch.setattr(laboratory.executor, "_has_traced", True)
    runner.run(laboratory.executor.run(laboratory.request(baseline), watch))
    assert stages == [], "who has run once may never trace again"
    monkeypatch.setattr(laboratory.executor, "_has_traced", False)
    runner.run(laboratory.executor.run(laboratory.request(baseline), watch))
    assert stages == [], "nor may one of a pool, whose first member traces for all"
    monkeypatch.setattr(laboratory.executor, "_has_traced", True)
    runner.run(laboratory.executor.run(laboratory.request(baseline), watch))
    assert stages
    assert set(stages) <= {"train", "score"}
    assert stage[0] == "score"

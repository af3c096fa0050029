"""Acceptance inside a study: incumbents run again for fair pairs, and experiments of two kinds are not pooled as one."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import Bench, FakeExecutor, FakeModel, Scripted, completed, config, gain

from jaxresearch.execution.base import RunProgress, RunRequest, TracedCandidate
from jaxresearch.experiment import CompletedRun, FailedRun, RunOutcome, Verdict
from jaxresearch.statistics.noise import pair_noise, seed_noise
from jaxresearch.study.evidence import contest_noise, study_pair_noise
from jaxresearch.study.study import Study


class Noisy(FakeExecutor):
    """Residual noise so large that a gain of 0.02 needs more pairs than the baseline has seeds."""

    def __init__(self, *, bad_seed: int | None = None, lost_seed: int | None = None) -> None:
        super().__init__()
        self.bad_seed, self.lost_seed = bad_seed, lost_seed

    async def run(self, request: RunRequest, on_progress) -> RunOutcome:
        self.requests.append(request)
        on_progress(RunProgress("train", 1.0))
        value = float(request.program.split(":")[1])
        if request.seed == self.lost_seed and value == 0:
            raise ConnectionError("gone")
        if request.seed == self.bad_seed and value == 0:
            return FailedRun(identity=request.identity, verdict=Verdict.CRASH, reason="diverged", seed=request.seed)
        wobble = (0.005 if request.seed % 2 else -0.005) * (1 if value else -1)
        return completed(request, 1.5 - value + wobble + random.Random(request.identity).gauss(0, 0.001))


def study_of(tmp_path: Path, executor: FakeExecutor, experiments: int = 1) -> Study:
    script = [gain(0.03 + at / 1000) for at in range(experiments)]
    bench = Bench(tmp_path / "study", config(experiments))
    return bench.run(script, executor=executor)


def test_the_incumbent_runs_again_where_pairs_need_it(tmp_path: Path):
    study = study_of(tmp_path, Noisy())
    baseline, contender = study.history.experiments
    assert contender.verdict is Verdict.KEEP
    assert len(contender.runs) > 3
    assert list(baseline.scores) == list(contender.scores)
    assert study.verify() == study.history.seq
    pooled = seed_noise([experiment.scores for experiment in study.history.experiments])
    assert study.history.spread.sd_bpb == pytest.approx(pooled.sd_bpb), "with what it ran after its verdict"


def test_a_seed_on_which_the_incumbent_fails_is_passed_over(tmp_path: Path):
    study = study_of(tmp_path, Noisy(bad_seed=3))
    baseline, contender = study.history.experiments
    assert 3 not in contender.scores
    assert 4 in contender.scores
    assert 4 in baseline.scores
    assert contender.verdict is Verdict.KEEP
    assert study.history.baseline.verdict is Verdict.KEEP


def test_an_incumbents_run_that_is_always_lost_ends_the_contest_not_the_study(tmp_path: Path):
    executor = Noisy(lost_seed=3)
    study = study_of(tmp_path, executor, experiments=2)
    assert [entry.verdict for entry in study.history.contenders] == [Verdict.INFRASTRUCTURE, Verdict.KEEP]
    assert "the incumbent's run for its next pair was lost 3 times" in study.history.experiments[1].reason
    assert sum(request.seed == 3 for request in executor.requests) == 3, "the next contest has more to go by"


class Unassailable(FakeExecutor):
    """An incumbent, of gain 0.05, that gives no score on seeds that it was not kept on."""

    async def run(self, request: RunRequest, on_progress) -> RunOutcome:
        assert len(self.requests) < 100, "it would go on for ever"
        if request.seed > 2 and ":0.05:" in request.program:
            self.requests.append(request)
            return FailedRun(identity=request.identity, verdict=Verdict.CRASH, reason="diverged", seed=request.seed)
        outcome = await super().run(request, on_progress)
        assert isinstance(outcome, CompletedRun)
        wobble = (0.009 if request.seed % 2 else -0.009) * (":0.06" in request.program)
        return outcome.model_copy(update={"val_bpb": outcome.val_bpb + wobble})


def test_an_incumbent_that_fails_on_every_new_seed_is_not_asked_for_ever(tmp_path: Path):
    executor = Unassailable()
    bench = Bench(tmp_path / "study", config(3))
    study = bench.run([gain(0.05), gain(0.069), gain(0.068)], executor=executor)
    kept, *others = study.history.contenders
    assert kept.verdict is Verdict.KEEP
    assert [entry.verdict for entry in others] == [Verdict.DISCARD] * 2
    assert all("gave no score 3 times in a row" in entry.experiment.reason for entry in others)
    assert sum(isinstance(run, FailedRun) for run in kept.experiment.runs) == 6, "each contest may ask anew"


@pytest.mark.parametrize(("rule", "runs"), [("greedy", 1), ("fixed", 3)])
def test_the_rule_is_the_configurations(tmp_path: Path, rule: str, runs: int):
    bench = Bench(tmp_path / "study", config(2, acceptance={"rule": rule}))
    study = bench.run([gain(0.1), gain(-0.1)])
    assert [len(experiment.runs) for experiment in study.history.experiments[1:]] == [runs, runs]
    assert [entry.verdict for entry in study.history.contenders] == [Verdict.KEEP, Verdict.DISCARD]


class Shapes(FakeExecutor):
    """Candidates with a gain above 0.5 have another parameter count, hence another init."""

    async def trace(self, candidate):
        traced = await super().trace(candidate)
        assert isinstance(traced, TracedCandidate)
        larger = float(traced.program.split(":")[1]) > 0.5
        return traced.model_copy(update={"parameters": 2000 if larger else 1000})


def test_pairs_of_two_kinds_are_judged_by_pairs_of_two_kinds(tmp_path: Path):
    bench = Bench(tmp_path / "study", config(3))
    study = bench.create()
    asyncio.run(study.run(Shapes(), Scripted([gain(0.01), gain(0.02), gain(0.6)]), FakeModel))
    history = study.history
    baseline, first, second, larger = history.entries
    assert contest_noise(history, second, first) == study_pair_noise(history)
    across = contest_noise(history, larger, baseline)
    own = pair_noise([larger.experiment.scores, baseline.experiment.scores])
    assert across is not None
    assert own is not None
    assert across.sd_bpb == pytest.approx(own.sd_bpb)
    assert across.degrees_of_freedom == own.degrees_of_freedom
    assert across != contest_noise(history, second, baseline)


class Loud(FakeExecutor):
    """Gains below 0.001 come without noise, others with much of it."""

    async def run(self, request: RunRequest, on_progress) -> RunOutcome:
        on_progress(RunProgress("train", 1.0))
        value = float(request.program.split(":")[1])
        noise = 0.01 if value > 0.001 else 1e-7
        return completed(request, 1.5 - value + random.Random(request.identity).gauss(0, noise))


def test_noise_is_not_measured_against_near_copies(tmp_path: Path):
    bench = Bench(tmp_path / "study", config(4))
    study = bench.run([gain(0.0001), gain(0.0002), gain(0.0003), gain(0.04)], executor=Loud())
    history, loud = study.history, study.history.entries[-1]
    assert loud.decision is not None
    assert loud.decision.incumbent is not None
    incumbent = history.entries[loud.decision.incumbent]
    own = pair_noise([loud.experiment.scores, incumbent.experiment.scores])
    assert own is not None
    assert contest_noise(history, loud, incumbent) == own
    acceptance = history.config.acceptance.model_copy(update={"own_spread": 0.0})
    without = history.created.model_copy(
        update={"config": history.config.model_copy(update={"acceptance": acceptance})}
    )
    pooled = contest_noise(replace(history, created=without), loud, incumbent)
    assert pooled is not None
    assert pooled.sd_bpb < own.sd_bpb
    assert pooled.degrees_of_freedom > own.degrees_of_freedom

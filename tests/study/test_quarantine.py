"""Quarantine: an implausible gain must hold on fresh seeds before anything is built on it."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

from fakes import Bench, FakeExecutor, completed, config, gain

from jaxresearch.execution.base import RunRequest
from jaxresearch.experiment import FailedRun, RunOutcome, Verdict
from jaxresearch.study.events import Quarantined
from jaxresearch.study.study import Study
from jaxresearch.study.summary import status_object


class Forged(FakeExecutor):
    """A gain of 0.9 on the seeds that a search uses; on others what `elsewhere` says: a gain, or a failed audit."""

    def __init__(self, elsewhere: float | None) -> None:
        super().__init__()
        self.elsewhere = elsewhere

    async def run(self, request: RunRequest, on_progress) -> RunOutcome:
        self.requests.append(request)
        value = float(request.program.split(":")[1])
        if value == 0.9 and request.seed > 2:
            if self.elsewhere is None:
                return FailedRun(
                    identity=request.identity, verdict=Verdict.INVALID, reason="causality: moved", seed=request.seed
                )
            value = self.elsewhere
        noise = random.Random(request.identity).gauss(0, 0.001) + random.Random(request.seed).gauss(0, 0.01)
        return completed(request, 1.5 - value + noise)


def run(tmp_path: Path, executor: FakeExecutor, **settings: object) -> Study:
    script = [gain(0.9), gain(0.1)]
    return Bench(tmp_path / "study", config(2, **settings)).run(script, executor=executor)


def test_a_gain_that_holds_on_fresh_seeds_is_kept_and_marked(tmp_path: Path):
    executor = Forged(0.9)
    study = run(tmp_path, executor)
    entry = study.history.entries[1]
    assert entry.verdict is Verdict.KEEP
    assert entry.quarantine is not None
    assert "quarantined, for a val_bpb of" in entry.experiment.reason
    fresh = entry.quarantine.seeds
    assert len(fresh) == 2
    before = {run.seed for run in study.history.baseline.experiment.runs} - set(fresh)
    assert min(fresh) > max(before)
    again = [r for r in executor.requests if r.seed in fresh and ":0.9:" in r.program]
    assert [r.seed for r in again] == list(fresh)
    assert all(r.thorough and r.reference is not None for r in again), "audited at the highest power, against a pair"
    assert not any(r.thorough for r in executor.requests if r.seed not in fresh)
    facts = status_object(study.history, "study")
    assert facts["quarantined"] == [1]
    assert facts["incidents"]["by_kind"] == {"implausible score": 1}


def test_a_gain_that_does_not_hold_is_not_built_upon(tmp_path: Path):
    study = run(tmp_path, Forged(0.05))
    entry, later = study.history.contenders
    assert entry.verdict is Verdict.DISCARD
    assert "it does not hold; a person should look at it" in entry.experiment.reason
    assert later.verdict is Verdict.KEEP
    assert later.decision.incumbent == 0


def test_an_audit_that_fails_in_quarantine_makes_it_invalid(tmp_path: Path):
    study = run(tmp_path, Forged(None))
    assert study.history.entries[1].verdict is Verdict.INVALID
    assert {str(each.kind) for each in study.history.incidents} == {"implausible score", "failed audit"}


def test_an_impossible_score_is_invalid_at_once(tmp_path: Path):
    study = Bench(tmp_path / "study", config(1)).run([gain(1.4)])
    entry = study.history.entries[1]
    assert entry.verdict is Verdict.INVALID
    assert "which no model of such text reaches" in entry.experiment.reason
    assert study.history.incumbent_number == 0


def test_the_incumbent_s_fresh_run_may_fail_without_hurting_anyone(tmp_path: Path):
    class Unlucky(Forged):
        async def run(self, request: RunRequest, on_progress) -> RunOutcome:
            if request.seed == 3 and ":0.0:" in request.program:
                self.requests.append(request)
                return FailedRun(identity=request.identity, verdict=Verdict.CRASH, reason="diverged", seed=request.seed)
            return await super().run(request, on_progress)

    study = run(tmp_path, Unlucky(0.9))
    assert study.history.entries[1].verdict is Verdict.KEEP
    assert study.history.baseline.verdict is Verdict.KEEP


def test_a_study_cut_off_in_quarantine_goes_on_where_it_was(tmp_path: Path):
    class Cut(Forged):
        async def run(self, request: RunRequest, on_progress) -> RunOutcome:
            if request.thorough and not self.gone:
                self.gone = True
                raise SystemExit
            return await super().run(request, on_progress)

        gone = False

    executor, bench = Cut(0.9), Bench(tmp_path / "study", config(2))
    with contextlib.suppress(SystemExit):
        bench.run([gain(0.9), gain(0.1)], executor=executor)
    study = bench.run([gain(0.9), gain(0.1)], executor=executor)
    assert study.history.entries[1].verdict is Verdict.KEEP
    assert sum(isinstance(stored.event, Quarantined) for stored in study.events()) == 1


def test_it_can_be_turned_off(tmp_path: Path):
    study = run(tmp_path, Forged(0.05), oversight={"quarantine": False})
    assert study.history.entries[1].verdict is Verdict.KEEP
    assert study.history.entries[1].quarantine is None


def test_a_jump_late_in_a_study_is_quarantined_and_a_steady_one_is_not(tmp_path: Path):
    script = [gain(value) for value in (0.01, 0.011, -0.01, -0.012, 0.012, -0.02, 0.3)]
    study = Bench(tmp_path / "study", config(len(script))).run(script)
    held = [entry.number for entry in study.history.entries if entry.quarantine is not None]
    assert held == [7]
    assert study.history.entries[7].verdict is Verdict.KEEP

"""Drift: a machine that slows down is noticed, a steady one is not blamed."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import Bench, FakeExecutor, config, gain

from jaxresearch.execution.base import RunRequest
from jaxresearch.experiment import RunOutcome
from jaxresearch.study.drift import drift, drift_warning
from jaxresearch.study.history import History
from jaxresearch.study.summary import status_object


class Throttling(FakeExecutor):
    """Every run is slower than the one before, by `share` of the first."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    async def run(self, request: RunRequest, on_progress) -> RunOutcome:
        outcome = await super().run(request, on_progress)
        return outcome.model_copy(update={"tokens_per_second": 100 * (1 - self.share * (len(self.requests) - 1))})


def played(folder: Path, share: float, budget: str = "600ktok") -> History:
    study = Bench(folder, config(1, budget=budget)).run([gain(0.1)], executor=Throttling(share))
    return study.history


def test_a_steady_machine_is_not_blamed(tmp_path: Path):
    history = played(tmp_path / "study", 0.01)
    found = drift(history)
    assert found is not None
    assert found.steady
    assert found.runs == sum(len(each.runs) for each in history.experiments)
    assert drift_warning(history) is None
    assert status_object(history, "s")["machine"]["warning"] is None


@pytest.mark.parametrize(("budget", "said"), [("600ktok", "scores are not"), ("300s", "do not compare")])
def test_one_that_throttles_is_named_and_what_it_means_depends_on_the_budget(tmp_path: Path, budget: str, said: str):
    history = played(tmp_path / "study", 0.15, budget)
    found = drift(history)
    assert found is not None
    assert not found.steady
    warning = drift_warning(history)
    assert warning is not None
    assert said in warning
    assert status_object(history, "s")["machine"]["warning"] == warning


def test_before_two_runs_of_a_program_nothing_is_said(tmp_path: Path):
    study = Bench(tmp_path / "study", config(0)).create()
    assert drift(study.history) is None
    assert drift_warning(study.history) is None


class Moving(FakeExecutor):
    """From the fourth run on, it is a machine of other threads and another jax."""

    async def run(self, request: RunRequest, on_progress) -> RunOutcome:
        outcome = await super().run(request, on_progress)
        return outcome.model_copy(update={"threads": 7, "jax": "0.99"} if len(self.requests) > 3 else {})


def test_runs_of_different_machines_are_named(tmp_path: Path):
    study = Bench(tmp_path / "study", config(1)).run([gain(0.1)], executor=Moving())
    warning = drift_warning(study.history)
    assert warning is not None
    assert "runs differ in threads (" in warning
    assert ", 7) and jax (" in warning
    assert status_object(study.history, "s")["machine"]["warning"] == warning

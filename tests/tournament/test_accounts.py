"""Accounts: calibration, repairs and bands, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import Bench, Call, config, gain

from jaxresearch.strategy import StrategyOptions, StudyView
from jaxresearch.study.predictions import Predictions, calibration
from jaxresearch.study.summary import status_object
from jaxresearch.tournament.accounts import Account, account, band, repair_rate
from jaxresearch.tournament.results import Point


class Foreseeing:
    """Says what it expects; its first answer had to be repaired."""

    Options = StrategyOptions

    async def propose(self, view: StudyView, slots: int):
        first = len(view.experiments) == 1

        class Repaired(Call):
            request: str = '[{"part_kind":"retry-prompt"}]' if first else "[]"

        view.model.on_call(Repaired(prompt="p"))
        proposal = gain(0.1) if first else gain(-0.1)
        return [proposal.model_copy(update={"confidence": 0.9 if first else 0.2, "predicted_bpb": -0.08})]


def test_the_account_of_a_study(tmp_path: Path):
    study = Bench(tmp_path / "study", config(2)).run(strategy=Foreseeing())
    found = account(study.history, study.events())
    assert found.predictions.stated == ((0.9, True), (0.2, False))
    assert found.predictions.misses_bpb == pytest.approx((0.02, 0.18), abs=0.004)
    assert (found.rounds, found.repaired) == (2, 1)
    assert repair_rate([found]) == 0.5
    scored = calibration([found.predictions])
    assert scored is not None
    assert scored["brier"] == pytest.approx((0.01 + 0.04) / 2)
    assert scored["brier_of_share"] == 0.25
    assert status_object(study.history, "")["calibration"] == scored


def test_an_arm_that_foresees_nothing_has_no_calibration():
    empty = Account(Predictions((), ()), 0, 0)
    assert calibration([empty.predictions]) is None
    assert repair_rate([empty]) is None


def test_the_band_is_a_step_function_with_its_spread():
    curves = [[Point(0, 1.0, 1.0, 0.0, 2.0), Point(4, 5.0, 5.0, 0.0, level)] for level in (1.0, 1.5)]
    points = band(curves, "experiments")
    assert points[0] == {"experiments": 0.0, "mean": 2.0, "low": 2.0, "high": 2.0}
    assert points[-1] == {"experiments": 4.0, "mean": 1.25, "low": 1.0, "high": 1.5}
    assert points[-2]["mean"] == 2.0, "level until the next verdict"
    assert band([], "experiments") == []

"""The record: what a study comes to, in figures that add up."""

from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path

import pytest
from synthetic import StudyMaker, append, make_study

from jaxresearch.experiment import Verdict
from jaxresearch.report.build import StudyReader, read_record
from jaxresearch.report.record import RunRecord, StudyRecord
from jaxresearch.study.events import Decided
from jaxresearch.study.study import Study
from jaxresearch.study.summary import status_object


@pytest.fixture(scope="module")
def record(study: Path) -> StudyRecord:
    return read_record(study)


def test_it_agrees_with_status(record: StudyRecord, study: Path):
    opened = Study.open(study)
    status = status_object(opened.history, str(study))
    opened.close()
    assert record.incumbent == status["incumbent"]["experiment"]
    assert record.verdicts == status["verdicts"]
    assert record.accelerator_seconds == status["accelerator_seconds"]
    assert record.llm_tokens == status["llm_tokens"]
    assert record.integrity.head == status["head"]
    assert record.calibration == status["calibration"]
    assert record.calibration is not None
    assert record.calibration["mean_confidence"] == pytest.approx(0.4)


def test_time_and_money_add_up(record: StudyRecord):
    assert sum(phase.seconds for phase in record.phases) == pytest.approx(record.wall_seconds)
    assert sum(each.llm_cost_usd for each in record.experiments) == pytest.approx(record.llm_cost_usd)
    assert sum(each.accelerator_seconds for each in record.experiments) == pytest.approx(record.accelerator_seconds)


def test_effects_carry_intervals_that_hold_them(record: StudyRecord):
    kept = [each for each in record.experiments if each.verdict is Verdict.KEEP and each.number]
    assert kept
    for each in kept:
        assert each.difference is not None
        assert each.difference_low is not None
        assert each.difference_high is not None
        assert each.difference_low < each.difference < each.difference_high
    best, base = record.experiments[record.incumbent], record.experiments[0]
    assert best.val_bpb is not None
    assert base.val_bpb is not None
    assert record.gain == pytest.approx(base.val_bpb - best.val_bpb)


def test_json_reads_back_and_has_only_finite_numbers(record: StudyRecord):
    text = record.to_json()
    assert StudyRecord.model_validate_json(text) == record
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert json.loads(text)["schema"] == "jaxresearch.study/1"


def test_what_is_not_finite_is_null(tmp_path: Path):
    folder = make_study(tmp_path / "s", 2, seed=9)
    at = StudyReader(folder).history.time + 1
    append(folder, [(at, Decided(number=2, verdict=Verdict.DISCARD, reason="not a finite score", difference=math.inf))])
    assert read_record(folder).experiments[2].difference is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_so_are_single_points_of_a_curve(bad: float | None):
    run = RunRecord(status="failed", seed=0, identity="r", curve=((0.1, 6.0), (0.2, bad), (0.3, math.inf)))
    assert run.curve == ((0.1, 6.0), (0.2, None), (0.3, None))


def test_the_outside_anchors_are_compared(record: StudyRecord, tmp_path: Path):
    assert record.integrity.anchored is True
    folder = make_study(tmp_path / "s", 2)
    connection = sqlite3.connect(folder / "ledger.sqlite")
    connection.execute("DROP TRIGGER events_are_not_updated")
    connection.execute("UPDATE events SET hash = ? WHERE seq = (SELECT MAX(seq) FROM events)", ("0" * 64,))
    connection.commit()
    connection.close()
    with pytest.raises(Exception, match="was changed"):
        read_record(folder)


def test_reading_changes_nothing(study: Path):
    def snapshot() -> dict:
        return {
            path: path.read_bytes()
            for path in study.rglob("*")
            if path.is_file() and path.suffix not in (".sqlite-shm", ".sqlite-wal")
        }

    before = snapshot()
    read_record(study)
    assert {path: content for path, content in snapshot().items() if path in before} == before


def test_refreshing_is_reading_anew(tmp_path: Path):
    events = StudyMaker(tmp_path / "s", 12, seed=3).create()
    reader = StudyReader(tmp_path / "s")
    for start in range(0, len(events), 7):
        append(tmp_path / "s", events[start : start + 7])
        assert reader.refresh()
    assert not reader.refresh()
    assert reader.record() == read_record(tmp_path / "s")
    assert len(reader.history.entries) == 13

"""What people and scripts read of a study."""

from __future__ import annotations

import csv
import io
import json

import pytest
from fakes import SCRIPT, Bench, config, gain, mode

from jaxresearch.proposal import Proposal
from jaxresearch.study.study import Study
from jaxresearch.study.summary import TSV_COLUMNS, status_object, tsv

STATUS_KEYS = {
    "study",
    "strategy",
    "llm",
    "experiments",
    "verdicts",
    "baseline",
    "incumbent",
    "noise_floor",
    "accelerator_seconds",
    "wall_seconds",
    "utilisation",
    "llm_cost_usd",
    "llm_tokens",
    "finished",
}


@pytest.fixture
def study(bench: Bench) -> Study:
    return bench.run()


def test_the_status_object_is_as_documented(study: Study):
    status = json.loads(json.dumps(status_object(study.history, "studies/a"), allow_nan=False))
    assert set(status) >= STATUS_KEYS
    assert status["study"] == "studies/a"
    assert status["experiments"] == len(SCRIPT)
    assert status["verdicts"] == {
        "keep": 2,
        "discard": 1,
        "crash": 2,
        "invalid": 1,
        "duplicate": 1,
        "timeout": 1,
        "infrastructure": 0,
    }
    assert set(status["baseline"]) == {"val_bpb", "sem", "runs"}
    assert status["baseline"]["runs"] == 3
    assert status["incumbent"]["experiment"] == 6
    assert set(status["incumbent"]) == {"experiment", "val_bpb", "sem", "runs", "p_value"}
    assert 0 < status["incumbent"]["p_value"] <= 0.01
    assert status["llm_cost_usd"] == 0.25 * len(SCRIPT)
    assert status["llm_tokens"] == 110 * len(SCRIPT)
    assert status["accelerator_seconds"] == 10.0 * 9
    assert 0 < status["utilisation"] < 1
    assert status["finished"] is True
    assert status["expected_false_keeps"] == pytest.approx(3 * 0.01), "three contenders were judged"
    assert status["noise_floor"] == status["noise"]["sd_bpb"]
    assert status["noise"]["low_bpb"] < status["noise_floor"] < status["noise"]["high_bpb"]
    assert status["pair_noise"]["degrees_of_freedom"] >= 2


def test_a_study_that_has_not_run_has_a_status(bench: Bench):
    status = status_object(bench.create().history, "new")
    assert status["baseline"] == {"val_bpb": None, "sem": None, "runs": 0}
    assert status["noise_floor"] is None
    assert status["utilisation"] is None
    assert status["finished"] is False
    assert tsv(bench.open().history) == "\t".join(TSV_COLUMNS) + "\n"


def test_the_log_is_autoresearchs(study: Study):
    rows = list(csv.DictReader(io.StringIO(tsv(study.history)), delimiter="\t"))
    assert tuple(rows[0]) == ("commit", "val_bpb", "memory_gb", "status", "description")
    statuses = [row["status"] for row in rows]
    assert statuses == ["keep", "keep", "discard", "crash", "discard", "crash", "keep", "crash", "crash"]
    assert rows[0]["description"] == "baseline"
    assert rows[1]["val_bpb"] == f"{study.history.entries[1].experiment.val_bpb:.6f}"
    assert rows[1]["memory_gb"] == "3.0"
    assert rows[3]["val_bpb"] == "0.000000"
    assert rows[4]["val_bpb"] == rows[1]["val_bpb"], "a duplicate shows what it repeats"
    assert all(len(row["commit"]) == 7 for row in rows)
    assert all((float(row["val_bpb"]) == 0) == (row["status"] == "crash") for row in rows)


def test_a_duplicate_of_a_crash_is_a_crash(bench: Bench):
    bench.config = config(2)
    study = bench.run([mode("syntax"), mode("syntax")])
    assert [str(entry.verdict) for entry in study.history.contenders] == ["crash", "duplicate"]
    assert [line.split("\t")[3] for line in tsv(study.history).splitlines()[1:]] == ["keep", "crash", "crash"]


@pytest.mark.parametrize(
    ("hypothesis", "description"),
    [
        ("a\tb\tc\r\nsecond line", "a b c"),
        ("\x1b[31mred\x1b[0m \u202eltr\u200b", "[31mred[0m ltr"),
        ("\x00\x07", "no description"),
        ("", "no hypothesis"),
        ("one\x0btwo\u2028three", "one"),
        ('"all that follows is one field', "'all that follows is one field"),
        ("=cmd|'/C calc'!A0", "'=cmd|'/C calc'!A0"),
        ("\u202e@SUM(1+1)", "'@SUM(1+1)"),
    ],
)
def test_hostile_descriptions_stay_on_their_line(bench: Bench, hypothesis: str, description: str):
    bench.config = config(1)
    study = bench.run([Proposal(parent=0, hypothesis=hypothesis, config=gain(0.1).config, edits=gain(0.1).edits)])
    lines = tsv(study.history).split("\n")
    assert len(lines) == 4
    assert lines[2].split("\t")[4] == description
    assert len(list(csv.reader(io.StringIO(tsv(study.history)), delimiter="\t"))) == 3

"""The heartbeat says what goes on, and whether anything does: here, on another host, on a copy."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from fakes import SCRIPT, Bench, config, gain
from test_durability import drive, wait_for

from jaxresearch.execution.base import RunProgress
from jaxresearch.study import heartbeat
from jaxresearch.study.events import RunStarted
from jaxresearch.study.heartbeat import liveness, runs_on_their_way
from jaxresearch.study.layout import StudyLayout
from jaxresearch.study.study import Study


def beat(study: Study, **changes: object) -> None:
    facts = json.loads(study.layout.heartbeat.read_text())
    study.layout.heartbeat.write_text(json.dumps({**facts, **changes}))


def test_running_then_killed_then_stopped(tmp_path: Path):
    bench = Bench(tmp_path / "study", config(4))
    study = bench.create()
    assert liveness(study.layout, study.history).facts["alive"] == "unstarted"
    process = drive(bench.folder)
    wait_for(study, RunStarted, 3)
    running = liveness(study.layout, study.refresh())
    assert running.facts["alive"] == "running"
    assert f"process {process.pid} on" in running.said
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = liveness(study.layout, study.refresh())
    assert killed.facts["alive"] == "killed"
    assert "no heartbeat since 20" in killed.said
    assert f"jaxresearch resume {bench.folder}" in killed.said
    copy = Study.open(shutil.copytree(bench.folder, tmp_path / "copy"))
    beat(copy, host="elsewhere", time=killed.facts["heartbeat"]["time"] - 600)
    assert liveness(copy.layout, copy.history).said.startswith("killed on elsewhere: no heartbeat since 20")
    now = json.loads(copy.layout.heartbeat.read_text())["time"] + 30
    far = liveness(copy.layout, copy.history, now=now)
    assert far.facts["alive"] == "running"
    assert far.said.startswith("running on elsewhere, as of 30 s ago")


def test_what_a_run_is_doing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = Bench(tmp_path / "study", config(1)).create()
    seen = []

    class Looking(heartbeat.Heartbeat):
        def on_progress(self, number, seed, progress):
            super().on_progress(number, seed, progress)
            self.beat(None)
            seen.append(liveness(study.layout, study.history))

    monkeypatch.setattr("jaxresearch.study.watch.Heartbeat", Looking)
    Bench(study.layout.folder).run([gain(0.1)])
    assert seen[0].said.startswith("running: experiment 0, seed ")
    assert ": train 50%" in seen[0].said
    (run,) = seen[0].facts["heartbeat"]["runs"]
    assert (run["experiment"], run["stage"], run["progress"]) == (0, "train", 0.5)


def test_finished_and_stopped_say_why(tmp_path: Path):
    study = Bench(tmp_path / "study", config(2)).run([gain(0.1), gain(0.2)])
    assert liveness(study.layout, study.history).said == "finished: all 2 experiments are done"
    study = Bench(tmp_path / "other", config(8)).run(SCRIPT, pause=lambda history: "enough")
    said = liveness(study.layout, study.history).said
    assert said == f"stopped: enough; go on with: jaxresearch resume {study.layout.folder}"


def test_a_driver_that_was_silent_for_a_minute(tmp_path: Path):
    bench = Bench(tmp_path / "study", config(4))
    study = bench.create()
    process = drive(bench.folder)
    try:
        wait_for(study, RunStarted, 3)
        later = json.loads(study.layout.heartbeat.read_text())["time"] + 120
        silent = liveness(study.layout, study.refresh(), now=later)
    finally:
        process.kill()
        process.wait()
    assert silent.facts["alive"] == "silent"
    assert "holds the lock but was last heard of 20" in silent.said


@pytest.mark.parametrize("text", ["", "nonsense", "[]", '{"time": "x"}', '{"time": 1}'])
def test_a_heartbeat_that_is_no_heartbeat_is_none(tmp_path: Path, text: str):
    study = Bench(tmp_path / "study", config(1)).create()
    study.layout.heartbeat.write_text(text)
    assert liveness(study.layout, study.history).facts["heartbeat"] is None


def test_runs_are_told_apart_by_experiment_and_go_with_the_session(tmp_path: Path):
    layout = StudyLayout(tmp_path)
    driver = heartbeat.Heartbeat(layout)
    for step in range(1, 1000):
        driver.on_progress(4, 0, RunProgress("train", step / 1000, 5.0 - step / 1000, step))
        driver.on_progress(5, 0, RunProgress("compile"))
    driver.beat(None)
    first, second = runs_on_their_way(layout)
    assert (first.experiment, second.experiment, second.stage) == (4, 5, "compile")
    assert 100 < len(first.curve) < 240
    assert first.curve[0][0] < 0.02 < 0.95 < first.curve[-1][0]
    assert runs_on_their_way(layout, now=time.time() + 3600) == [], "what a killed session left is not believed"
    study = Bench(tmp_path / "study", config(1)).run([gain(0.1)])
    assert study.layout.heartbeat.exists()
    assert runs_on_their_way(study.layout) == []

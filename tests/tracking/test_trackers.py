"""Trackers: metrics.jsonl through crashes, TensorBoard's files, and one of somebody else's."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "report"))

from synthetic import StudyMaker, append, make_study

from jaxresearch.cli.app import _status
from jaxresearch.errors import ConfigurationError
from jaxresearch.study.reporter import NullReporter
from jaxresearch.study.study import Study
from jaxresearch.tracking import JsonLines, Trackers, metrics_lines, trackers


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("tracked") / "study", 12, seed=4, commits=False)


@pytest.fixture
def study(study_folder: Path):
    opened = Study.open(study_folder)
    yield opened
    opened.close()


def test_lines_tell_every_run_and_verdict_with_totals(study: Study, capsys: pytest.CaptureFixture):
    lines = [json.loads(line) for line in metrics_lines(study.events())]
    decided = [line for line in lines if line["kind"] == "decided"]
    assert [line["experiment"] for line in decided] == list(range(13))
    assert decided[-1]["best_val_bpb"] == study.history.incumbent.experiment.val_bpb
    assert decided[-1]["llm_cost_usd"] == pytest.approx(study.history.costs.llm_cost_usd)
    assert _status(["export", str(study.layout.folder), "--format", "jsonl"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == lines


@pytest.mark.parametrize("damage", ["none", "absent", "cut", "behind", "garbage"])
def test_the_file_is_whole_again_after_any_end(study: Study, tmp_path: Path, damage: str):
    whole = "".join(metrics_lines(study.events()))
    path = tmp_path / "metrics.jsonl"
    left = {"none": whole, "cut": whole[:-30], "behind": "".join(whole.splitlines(True)[:7]), "garbage": "no json\n"}
    if damage in left:
        path.write_text(left[damage])
    JsonLines(tmp_path, study.events(), study.history.seq)
    assert path.read_text() == whole


def test_it_grows_with_the_ledger(tmp_path: Path):
    events = StudyMaker(tmp_path / "study", 4, seed=4, commits=False).create()
    study = Study.open(tmp_path / "study")
    with Trackers(study, NullReporter(), (), pytest.fail) as tracked:
        append(tmp_path / "study", events)
        history = study.history
        for stored in list(study.events())[1:]:
            history = history.apply(stored)
            tracked.on_event(stored, history)
    assert (tmp_path / "study" / "metrics.jsonl").read_text() == "".join(metrics_lines(study.events()))
    study.close()


def test_tensorboard_files_hold_the_scores(study: Study, tmp_path: Path):
    pytest.importorskip("tensorboardX", reason="the extra [tracking] is not installed")
    from tensorboardX.proto.event_pb2 import Event

    from jaxresearch.tracking.tensorboard import TensorBoard

    board = TensorBoard(tmp_path)
    assert board.wants_past
    trackers._tell_all(board, study.events())
    board.close()

    def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
        found: dict[str, list[tuple[int, float]]] = {}
        for file in sorted(folder.iterdir()):
            data, at = file.read_bytes(), 0
            while at < len(data):  # TFRecord: length, its checksum, the event, its checksum
                length = int.from_bytes(data[at : at + 8], "little")
                event = Event.FromString(data[at + 12 : at + 12 + length])
                at += length + 16
                for value in event.summary.value:
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
        return found

    of_study = scalars(tmp_path / "tensorboard" / "study")
    scored = [entry for entry in study.history.entries if entry.experiment.val_bpb is not None]
    assert [step for step, _ in of_study["study/val_bpb"]] == [entry.number for entry in scored]
    assert of_study["study/val_bpb"][0][1] == pytest.approx(scored[0].experiment.val_bpb)
    run = scalars(tmp_path / "tensorboard" / "experiment-0000-seed-0")
    assert len(run["run/loss"]) == 200
    assert not TensorBoard(tmp_path).wants_past, "what is there is not told twice"


class Broken:
    """Somebody's tracker, which fails at the second event."""

    def __init__(self, folder: Path) -> None:
        self.seen = 0

    def on_event(self, stored, history) -> None:
        self.seen += 1
        if self.seen == 2:
            raise ConnectionError("no such host")

    def on_progress(self, number, seed, progress) -> None:
        pass


def test_a_tracker_that_fails_is_named_and_left_out(study: Study, monkeypatch: pytest.MonkeyPatch):
    point = EntryPoint("mine", f"{__name__}:Broken", trackers.ENTRY_POINT_GROUP)
    monkeypatch.setattr(trackers, "entry_points", lambda group: [point] if group == point.group else [])
    monkeypatch.setattr(EntryPoint, "load", lambda self: Broken)
    said: list[str] = []
    with Trackers(study, NullReporter(), ["mine"], said.append) as tracked:
        for stored in study.events():
            tracked.on_event(stored, study.history)
    assert len(said) == 1
    assert "mine" in said[0]
    assert "no such host" in said[0]


def test_one_that_is_not_installed_is_refused(study: Study):
    with pytest.raises(ConfigurationError, match="tensorboard"):
        trackers.check_trackers(["wandbb"])

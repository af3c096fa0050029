"""A sample of the fault injection; `python -m tests.faults` does all of it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxresearch.files import DRAFT, is_full, sweep_drafts, write_whole
from tests.faults.points import POINTS
from tests.laboratory import ROOT


def test_a_sample_of_faults_loses_nothing():
    seed = os.environ.get("JAXRESEARCH_FAULTS_SEED", "0")
    command = [sys.executable, "-m", "tests.faults", "--sample", "--seed", seed]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    facts = json.loads(done.stdout)
    assert facts["kills"] >= 4  # a random moment may come when the study has ended
    assert facts["full_disks"] == facts["damaged"] == 2


def test_there_are_enough_points():
    assert len(POINTS) >= 25


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "report.html"
    write_whole(path, b"one")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        write_whole(path, b"two")
    assert is_full(caught.value)
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["report.html"]


def test_drafts_of_killed_processes_are_swept(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f"{DRAFT}1").write_text("half")
    (tmp_path / f"{DRAFT}2").mkdir()
    (tmp_path / "run" / "nats.npy").write_text("whole")
    sweep_drafts(tmp_path, depth=2)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["run", "run/nats.npy"]

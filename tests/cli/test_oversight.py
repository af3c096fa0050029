"""The person's commands: approve on a terminal, pause, stop, and a head that was noted."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Result

ASK = """
import asyncio, sys
from jaxresearch.cli.approval import approver_for
from jaxresearch.cli.common import Output
from jaxresearch.cli.live import StudyDisplay
from jaxresearch.config import validate_config
from jaxresearch.study.approval import CodeChange
make = approver_for(validate_config({"oversight": {"approve": "code"}}))
with StudyDisplay(Output(as_json=False, quiet=False)) as display:
    answer = asyncio.run(make(display)(CodeChange(0, "an idea", "-a = 1\\n+a = 2\\u202e\\n")))
print("ANSWER", answer.approved, answer.reason)
"""


def on_terminal(typed: bytes) -> str:
    """What a terminal shows while `typed` is answered."""
    master, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", ASK], stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    seen, sent, deadline = b"", False, time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            chunk = os.read(master, 4096)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
        if not sent and b"stop here" in seen:
            os.write(master, typed)
            sent = True
    process.wait(timeout=60)
    os.close(master)
    return seen.decode(errors="replace")


def test_a_person_answers_on_the_terminal_and_sees_hidden_characters():
    shown = on_terminal(b"maybe\ny\n")
    assert "ANSWER True" in shown
    assert "\\u202e" in shown
    assert "\u202e" not in shown
    assert "ANSWER False too bold" in on_terminal(b"n\ntoo bold\n")
    assert "ANSWER None" in on_terminal(b"q\n")


def test_without_a_terminal_it_refuses_before_anything_is_made(
    command: Callable[..., Result], config_file: Path, tmp_path: Path
):
    result = command("run", "--config", config_file, "--approve", "code", "--study", tmp_path / "study")
    assert result.status == 2
    assert "oversight.approve (--approve)" in result.stderr
    assert "this is no terminal" in result.stderr
    assert not (tmp_path / "study").exists()


def test_a_sandbox_that_is_required_and_not_there_refuses_before_anything_is_made(
    command: Callable[..., Result], config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    study = tmp_path / "study"
    result = command("run", "--config", config_file, "--require-sandbox", "bubblewrap", "--study", study)
    assert result.status == 1
    assert "sandbox.require: bubblewrap is required" in result.stderr
    assert not study.exists()


def test_pause_and_stop_need_a_running_study(command: Callable[..., Result], tmp_path: Path):
    for name in ("pause", "stop"):
        result = command(name, tmp_path)
        assert result.status == 1
        assert "holds no study" in result.stderr
        assert f"Example: jaxresearch {name}" in command(name, "--help").stdout

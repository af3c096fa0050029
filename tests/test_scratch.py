"""Scratch folders: there as long as their owner, and no longer than until the next one is made."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxresearch.scratch import Scratch

OWNER = """
import sys, time
from jaxresearch.scratch import Scratch
scratch = Scratch("test-scratch-")
(scratch.folder / "something").write_text("x")
print(scratch.folder, flush=True)
time.sleep(600)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files, for this process and for those that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def test_a_folder_goes_with_its_owner(temporary: Path):
    with Scratch("test-scratch-") as folder:
        assert folder.parent == temporary
        (folder / "sub").mkdir()
    assert not list(temporary.iterdir())
    scratch = Scratch("test-scratch-")
    scratch.close()
    scratch.close()
    assert not list(temporary.iterdir())


def test_what_a_killed_owner_left_is_removed_and_nothing_else(temporary: Path):
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    left = Path(owner.stdout.readline().strip())
    others = temporary / "test-scratch-of-another-program"
    others.mkdir()
    aimed_at = temporary / "aimed-at"
    aimed_at.mkdir()
    (aimed_at / ".lock").write_text("")
    (temporary / "test-scratch-link").symlink_to(aimed_at)
    Scratch("test-scratch-").close()
    assert (left / "something").exists(), "its owner lives"
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    Scratch("test-other-").close()
    assert left.exists(), "another prefix is another kind"
    Scratch("test-scratch-").close()
    assert not left.exists()
    assert others.exists()
    assert (aimed_at / ".lock").exists()

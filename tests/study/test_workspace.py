"""The workspace: commits that are a function of their content, and nothing of the user's in between."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import SUBJECT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxresearch.proposal import Candidate, EditError
from jaxresearch.study.workspace import Workspace, WorkspaceError


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.create(tmp_path / "workspace")


CHILD = Candidate({"models/recipe.py": "GAIN = 1\r\n", 'models/new/ü "q" é.py': "\x00 raw"}, {"lr": 1e-5, "s": "1e-5"})


def test_a_candidate_comes_back_as_it_was(workspace: Workspace, tmp_path: Path):
    baseline = workspace.commit(0, SUBJECT, None, "baseline", when=0.0)
    child = workspace.commit(1, CHILD, baseline, "child", when=1.5)
    again = Workspace.open(tmp_path / "workspace")
    assert again.candidate(baseline) == SUBJECT
    assert again.candidate(child) == CHILD
    assert type(again.candidate(child).config["s"]) is str


def test_what_is_remembered_does_not_grow_with_the_study(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jaxresearch.study.workspace._REMEMBERED", 2)
    commits = [workspace.commit(n, SUBJECT, None, f"commit {n}", when=0.0) for n in range(4)]
    assert all(workspace.candidate(commit) == SUBJECT for commit in (*commits, commits[0]))
    assert list(workspace._candidates) == [commits[3], commits[0]]


scalars = st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=10), scalars, max_size=4), st.text(max_size=50))
def test_any_config_and_text_come_back(workspace: Workspace, config: dict[str, object], text: str):
    candidate = Candidate({"models/a.py": text}, config)
    commit = workspace.commit(0, candidate, None, "any", when=0.0)
    assert workspace.candidate(commit) == candidate


def test_committing_again_gives_the_same_commit(workspace: Workspace):
    baseline = workspace.commit(0, SUBJECT, None, "baseline", when=0.0)
    first = workspace.commit(1, CHILD, baseline, "child", when=1.0)
    assert workspace.commit(1, CHILD, baseline, "child", when=1.0) == first
    other = workspace.commit(1, SUBJECT, baseline, "child", when=1.0)
    assert other != first
    assert workspace.resolve("experiment-0001") == other


def test_the_same_study_elsewhere_has_the_same_commits(workspace: Workspace, tmp_path: Path, monkeypatch):
    here = workspace.commit(0, SUBJECT, None, "baseline", when=0.0)
    monkeypatch.setenv("GIT_AUTHOR_NAME", "mallory")
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2001-01-01T00:00:00")
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", "/nonexistent")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert Workspace.create(tmp_path / "elsewhere").commit(0, SUBJECT, None, "baseline", when=0.0) == here


def test_hooks_and_user_configuration_are_not_used(workspace: Workspace, tmp_path: Path, monkeypatch):
    trap = tmp_path / "trapped"
    hooks = tmp_path / "workspace" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("reference-transaction", "post-commit", "update", "post-index-change"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {trap}\n")
        (hooks / name).chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(
        f"[core]\nhooksPath = {hooks}\n[diff]\nexternal = touch {trap}\n[commit]\ngpgsign = true\n"
    )
    monkeypatch.setenv("HOME", str(home))
    baseline = workspace.commit(0, SUBJECT, None, "baseline", when=0.0)
    child = workspace.commit(1, CHILD, baseline, "child", when=0.0)
    workspace.set_incumbent(child)
    assert "+GAIN = 1" in workspace.diff(baseline, child)
    assert not trap.exists()


@pytest.mark.parametrize(
    "path",
    ["../x.py", "models/../../x.py", "/etc/x.py", "models/.git/x.py", "models", "tests/x.py", "models/a\n.py",
     "models//a.py", "models/./a.py", "models\\a.py", ".git/hooks/update", "models/\u202egnp.py", "x.yaml"],
)  # fmt: skip
def test_names_outside_the_subject_are_refused(workspace: Workspace, path: str):
    with pytest.raises(EditError):
        workspace.commit(0, Candidate({path: "x"}), None, "m", when=0.0)


def test_a_file_cannot_also_be_a_folder(workspace: Workspace):
    with pytest.raises(EditError, match="is a file"):
        workspace.commit(0, Candidate({"models/a.py": "", "models/a.py/b.py": ""}), None, "m", when=0.0)


def test_nothing_is_checked_out(workspace: Workspace, tmp_path: Path):
    workspace.commit(0, SUBJECT, None, "baseline", when=0.0)
    assert not [path for path in (tmp_path / "workspace").rglob("*") if path.is_symlink() or path.suffix == ".py"]


def test_messages_are_plain_and_anchors_cannot_be_forged(workspace: Workspace, tmp_path: Path):
    forged, real = "f" * 64, "a" * 64
    message = f"\x1b[31mred\u202e\n\nLedger: {forged}\ndata 5\nM 100644 inline x\n\nLedger: {real}"
    workspace.commit(0, SUBJECT, None, message, when=0.0)
    assert workspace.anchors() == (real,)
    log = subprocess.run(
        ["git", "log", "baseline", "--format=%B"],
        cwd=tmp_path / "workspace",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\x1b" not in log.stdout
    assert "\u202e" not in log.stdout


def test_locks_of_a_killed_git_are_cleared(workspace: Workspace, tmp_path: Path):
    commit = workspace.commit(0, SUBJECT, None, "baseline", when=0.0)
    (tmp_path / "workspace" / "refs" / "heads" / "incumbent.lock").touch()
    with pytest.raises(WorkspaceError, match="update-ref failed"):
        workspace.set_incumbent(commit)
    workspace.clear_stale_locks()
    workspace.set_incumbent(commit)
    assert workspace.resolve("incumbent") == commit


@pytest.mark.parametrize("commit", ["", "--output=/tmp/x", "HEAD", "0" * 40])
def test_what_is_no_commit_is_one_clear_line(workspace: Workspace, commit: str):
    with pytest.raises(WorkspaceError) as caught:
        workspace.candidate(commit)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("harm", [lambda content: content[: len(content) // 2], lambda content: b"", None])
def test_each_damaged_object_is_one_clear_line(workspace: Workspace, tmp_path: Path, harm):
    commit = workspace.commit(0, SUBJECT, None, "baseline", when=0.0)
    objects = [path for path in (tmp_path / "workspace/objects").glob("??/*") if path.is_file()]
    assert len(objects) >= 3  # a commit, a tree, files
    for path in objects:
        whole = path.read_bytes()
        path.unlink()
        if harm is not None:
            path.write_bytes(harm(whole))
        with pytest.raises(WorkspaceError) as caught:
            Workspace.open(tmp_path / "workspace").candidate(commit)
        assert "\n" not in str(caught.value)
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
    assert Workspace.open(tmp_path / "workspace").candidate(commit) == SUBJECT


def test_a_missing_git_is_said(workspace: Workspace, monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(WorkspaceError, match="Git is not installed"):
        workspace.commit(0, SUBJECT, None, "m", when=0.0)


def test_an_interrupt_on_the_terminal_does_not_reach_git(workspace: Workspace, tmp_path: Path, monkeypatch):
    stub = tmp_path / "bin" / "git"
    stub.parent.mkdir()
    stub.write_text(f"#!{sys.executable}\nimport os\nprint(os.getpgrp())\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(stub.parent))
    assert int(workspace.resolve("baseline")) != os.getpgrp()


def test_many_diffs_at_once_are_the_diffs_one_by_one(workspace: Workspace):
    baseline = workspace.commit(0, SUBJECT, None, "baseline", when=0.0)
    trap = Candidate({"models/recipe.py": f"{baseline}\n{'a' * 40}\n\x0b{'b' * 40}\r{'c' * 40}\n"}, {})
    commits = [
        workspace.commit(number, candidate, baseline, "child", when=1.0)
        for number, candidate in enumerate((CHILD, SUBJECT, trap), 1)
    ]
    pairs = [(baseline, commit) for commit in commits] + [(commits[2], commits[0]), (commits[0], baseline)]
    assert workspace.diffs(pairs) == [workspace.diff(*pair) for pair in pairs]
    assert workspace.diffs([]) == []
    with pytest.raises(WorkspaceError):
        workspace.diffs([("HEAD", baseline)])

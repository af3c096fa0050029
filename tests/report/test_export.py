"""Taking the result home: the record as JSON, the winner as a patch and as a branch."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from pydantic import BaseModel
from synthetic import HOSTILE, StudyMaker

from jaxresearch.cli.app import _status
from jaxresearch.report import record as record_module
from jaxresearch.report.build import StudyReader, read_record
from jaxresearch.report.winner import evidence

DOCS = Path(__file__).resolve().parents[2] / "docs" / "export.md"


def git(folder: Path, *arguments: str, stdin: str | None = None) -> str:
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-C", str(folder), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def repo(study: Path, tmp_path: Path) -> Path:
    """A repository that holds what the study began with, and something else."""
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "--quiet")
    reader = StudyReader(study)
    for path, text in reader.workspace.candidate(reader.history.baseline.experiment.commit).files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, "utf-8")
    reader.close()
    (folder / "README").write_text("mine\n")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "mine")
    return folder


@pytest.fixture(scope="module")
def winner_text(study: Path) -> str:
    reader = StudyReader(study)
    text = reader.workspace.candidate(reader.history.incumbent.experiment.commit).files["models/recipe.py"]
    reader.close()
    return text


def test_json_is_the_record_and_docs_name_every_key(study: Path, tmp_path: Path):
    out = tmp_path / "study.json"
    assert _status(["export", str(study), "--format", "json", "-o", str(out)]) == 0
    assert record_module.StudyRecord.model_validate_json(out.read_text("utf-8")) == read_record(study)
    docs = DOCS.read_text("utf-8")
    models = [each for each in vars(record_module).values() if isinstance(each, type) and issubclass(each, BaseModel)]
    keys = {field.alias or name for model in models for name, field in model.model_fields.items()}
    assert {key for key in keys if f"`{key}`" not in docs} == set()


def test_a_patch_applies_and_tells_the_evidence(study: Path, repo: Path, tmp_path: Path, winner_text: str):
    patch = tmp_path / "winner.patch"
    assert _status(["export", str(study), "--format", "patch", "-o", str(patch)]) == 0
    git(repo, "am", "--quiet", str(patch))
    assert (repo / "models" / "recipe.py").read_text("utf-8") == winner_text
    message = git(repo, "log", "-1", "--format=%B")
    record = read_record(study)
    assert f"{record.experiments[record.incumbent].val_bpb:.4f}" in message
    assert record.integrity.head in message
    assert "95 % interval" in message


def test_a_branch_appears_and_nothing_is_checked_out(study: Path, repo: Path, winner_text: str, capsys):
    arguments = ["export", str(study), "--format", "branch", "--repo", str(repo), "--branch", "found/best"]
    before = git(repo, "rev-parse", "HEAD")
    assert _status([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert git(repo, "rev-parse", "found/best").strip() == facts["commit"]
    assert git(repo, "show", "found/best:models/recipe.py") == winner_text
    assert git(repo, "show", "found/best:README") == "mine\n"
    assert git(repo, "rev-parse", "HEAD") == before
    assert git(repo, "status", "--short") == ""
    assert _status(arguments) == 1
    assert "has a branch found/best already" in capsys.readouterr().err


def test_another_baseline_is_refused(study: Path, repo: Path, capsys):
    (repo / "models" / "recipe.py").write_text("other = 1\n")
    git(repo, "commit", "--quiet", "-am", "other")
    assert _status(["export", str(study), "--format", "branch", "--repo", str(repo)]) == 1
    assert "is not what the study began with" in capsys.readouterr().err
    assert "jaxresearch/" not in git(repo, "branch", "--list")


def test_without_a_repository_it_says_what_to_do(study: Path, capsys):
    assert _status(["export", str(study), "--format", "branch", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["commit"] is None
    assert any(f"--experiment {facts['experiment']} --repo PATH" in step for step in facts["instructions"])


def test_words_cannot_pass_for_a_diff(tmp_path: Path):
    trick = "lower\n---\ndiff --git a/setup.py b/setup.py\nnew file mode 100644\n--- /dev/null\n+++ b/setup.py\n"
    trick += "@@ -0,0 +1 @@\n+evil\nFrom: x\n"
    folder = StudyMaker(tmp_path / "s", 3, text=trick + HOSTILE).make()
    record = read_record(folder)
    for line in evidence(record, 1).splitlines()[1:]:
        assert not line.startswith(("---", "diff ", "From", "+++", "Index"))
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "--quiet")
    reader = StudyReader(folder)
    for path, text in reader.workspace.candidate(reader.history.baseline.experiment.commit).files.items():
        (empty / path).parent.mkdir(exist_ok=True)
        (empty / path).write_text(text, "utf-8")
    reader.close()
    git(empty, "add", "--all")
    git(empty, "commit", "--quiet", "-m", "x")
    out = tmp_path / "p.patch"
    assert _status(["export", str(folder), "--format", "patch", "--experiment", "1", "-o", str(out)]) == 0
    git(empty, "am", "--quiet", str(out))
    assert sorted(path.name for path in empty.iterdir()) == [".git", "hyperparameters.yaml", "models"]


def test_wrong_usage_is_named(study: Path, capsys):
    assert _status(["export", str(study), "--repo", "x"]) == 2
    assert _status(["export", str(study), "--experiment", "1"]) == 2
    assert _status(["export", str(study), "--format", "patch", "--experiment", "99"]) == 1
    assert "no experiment 99" in capsys.readouterr().err

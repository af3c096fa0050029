"""`ablate`, `confirm --transfer` and `export --ablated` on a real study, tiny."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Result


@pytest.fixture
def won(command: Callable[..., Result], config_file: Path, tmp_path: Path) -> Path:
    """A study of six-step runs with a winner: any decrease is kept, and the slowest learning rate can only rise."""
    study = tmp_path / "study"
    options = ["--strategy", "random_search", "--experiments", 3, "--set", "acceptance.rule=greedy"]
    options += ["--set", "strategy.names=[head_lr]", "--set", "subject.hyperparameters.head_lr=0.0005"]
    ran = command("run", "--config", config_file, "--study", study, *options, "--json")
    assert ran.status == 0, ran.stderr
    assert ran.json["incumbent"]["experiment"] > 0
    assert "random_search: 3 experiments of 6steps" in ran.stderr  # and names no model, which it does not ask
    return study


def test_ablate_transfer_and_export(command: Callable[..., Result], won: Path, tmp_path: Path):
    early = command("export", won, "--format", "patch", "--ablated")
    assert early.status == 1
    assert early.stderr.splitlines()[-1].endswith(f"Run it: jaxresearch ablate {won}")
    done = command("ablate", won, "--seeds", 2, "--json")
    assert done.status == 0, done.stderr
    assert done.json["finished"]
    assert {each["number"] for each in done.json["changes"]} >= set(done.json["dropped"])
    assert "was ablated before" in command("ablate", won).stderr
    assert command("ablate", won).stdout.rstrip().splitlines()
    exported = command("export", won, "--format", "patch", "--ablated", "-o", tmp_path / "minimal.patch")
    assert exported.status == 0, exported.stderr
    assert "Ablated: this is not the whole experiment." in (tmp_path / "minimal.patch").read_text()
    steps = command("export", won, "--format", "branch", "--ablated", "--json").json["instructions"]
    folder, branch = steps[-1].split()[2:]
    found = subprocess.run(["git", "rev-parse", branch], cwd=folder, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == done.json["minimal"]["commit"]

    moved = command("confirm", won, "--transfer", "depth=2x,budget=2x", "--seeds", 2, "--json")
    assert moved.status == 0, moved.stderr
    assert (moved.json["budget"], moved.json["baseline"]["runs"]) == ("12steps", 2)
    assert moved.json["conclusion"].startswith("At 2x budget and 2x depth")
    status = command("status", won, "--json").json
    assert [said.split(" of ")[0] for said in status["trials"]] == ["ablation", "transfer"]
    assert "beside" in command("status", won).stdout
    assert command("replay", won).status == 0
    assert command("verify", won).status == 0


def test_impossible_scales_are_usage_errors(command: Callable[..., Result], won: Path):
    for text, said in (("depth=99x", "out of bounds"), ("nothing=2x", "no hyperparameter"), ("depth", "NAME=FACTORx")):
        refused = command("confirm", won, "--transfer", text)
        assert refused.status == 2
        assert said in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
    wrong = command("export", won, "--ablated")
    assert wrong.status == 2

"""The race against PyTorch: both sides compute the same thing, and the race can be run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--depth", "2", "--width", "64", "--vocab-size", "128", "--context", "64", "--batch", "4", "--head-size", "32"]


def race(*arguments: str) -> str:
    command = [sys.executable, ROOT / "benchmarks" / "throughput.py", *TINY, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_our_losses_and_pytorchs_agree_from_equal_weights(tmp_path):
    pytest.importorskip("torch", reason="the comparison needs the [bench] extra")
    race("--only", "agreement", "--json", str(tmp_path / "found.json"))
    losses = json.loads((tmp_path / "found.json").read_text())["agreement"]
    assert len(losses) == 8
    assert losses[0][0] - losses[-1][0] > 0.1, "nothing was learned, so agreement would mean little"
    assert max(abs(ours - theirs) for ours, theirs in losses) < 1e-4


def test_our_side_runs(tmp_path):
    race("--sides", "jax", "--only", "steady", "--rounds", "1", "--seconds", "0.1", "--json", str(tmp_path / "s.json"))
    assert json.loads((tmp_path / "s.json").read_text())["steady"]["jax"][0] > 0

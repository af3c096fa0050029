"""The wheel alone, away from the clone: configurations, subject, strategies and prompts ship in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytest.importorskip("hatchling")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def _run(installed: Path, cache_root: Path, *arguments: object) -> dict:
    """`jaxresearch ARGUMENTS` of the wheel, in a folder that holds nothing of the clone."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "JAXRESEARCH_CACHE": str(cache_root)}
    command = [sys.executable, "-P", "-m", "jaxresearch", *map(str, arguments)]
    done = subprocess.run(command, cwd=installed.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_wheel_works_outside_the_clone(installed: Path, cache_root: Path):
    facts = _run(installed, cache_root, "doctor", "--json")
    assert Path(facts["default_config"]).is_relative_to(installed)
    assert {row["name"] for row in _run(installed, cache_root, "strategies", "--json")["strategies"]} >= {"greedy"}
    assert _run(installed, cache_root, "subjects", "--json")["subjects"][0]["name"] == "gpt"
    assert (installed / "agents" / "prompts" / "researcher.md").is_file()


@pytest.mark.slow
def test_a_study_runs_from_the_wheel(installed: Path, cache_root: Path, config_file: Path, tmp_path: Path):
    arguments = ("--config", config_file, "--study", tmp_path / "study", "--experiments", 1, "--json")
    assert _run(installed, cache_root, "run", *arguments)["finished"] is True

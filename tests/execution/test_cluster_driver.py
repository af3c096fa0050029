"""A study on a Ray cluster whose driver is killed while a run goes on there, and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.execution.ray_cluster import SmallCluster, alive, wait_for, workers_of
from tests.laboratory import ROOT

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

COMMAND = [sys.executable, "-m", "jaxresearch"]
ENVIRONMENT = {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def cluster(cache_root) -> Iterator[SmallCluster]:
    cluster = SmallCluster()
    cluster.add_node()
    yield cluster
    cluster.close()


def study(config_file: Path, folder: Path, *options: str) -> list[str]:
    settings = ["--set", "execution.threads=1", "--set", "acceptance.runs=2", "--budget", "1500steps"]
    run = ["run", "--config", str(config_file), "--experiments", "0", "--study", str(folder), "--json", "--quiet"]
    return [*COMMAND, *run, *settings, *options]


def result(command: list[str]) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_killed_driver_leaves_nothing_running_and_its_study_ends_as_it_would_have(cluster, config_file, tmp_path):
    folder = tmp_path / "study"
    command = study(config_file, folder, "--executor", "ray", "--ray-address", cluster.address)
    driver = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, cwd=ROOT, stdout=subprocess.DEVNULL)

    def evaluated() -> list[Path]:
        return list(folder.glob("runs/*/nats.npy"))

    assert wait_for(evaluated), "the first run came back; the second one goes on"
    keepers = cluster.keepers(0)
    workers = [pid for keeper in keepers for pid in workers_of(keeper)]
    assert workers
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert wait_for(lambda: not any(map(alive, [*keepers, *workers]))), "what it started ended with it"
    resumed = result([*COMMAND, "resume", str(folder), "--ray-address", cluster.address, "--json", "--quiet"])
    local = result(study(config_file, tmp_path / "local"))
    assert resumed["finished"]
    assert resumed["baseline"] == local["baseline"]
    assert result([*COMMAND, "verify", str(folder), "--json", "--quiet"])


def test_an_address_without_a_cluster_is_said_in_one_line(config_file, tmp_path):
    command = study(config_file, tmp_path / "none", "--executor", "ray", "--ray-address", "127.0.0.1:9")
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}, cwd=ROOT)
    assert done.returncode == 1
    assert "no Ray cluster at 127.0.0.1:9" in done.stderr
    assert "ray start --head" in done.stderr
    assert "Traceback" not in done.stderr

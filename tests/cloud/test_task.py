"""The task for SkyPilot: read as an operator and a shell would, and by SkyPilot itself where it is installed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jaxresearch.cli.app import cli
from jaxresearch.cloud.accelerators import parse_accelerator
from jaxresearch.cloud.task import Task, render
from jaxresearch.errors import ConfigurationError

CASES = [
    Task(parse_accelerator("H100:1"), "night"),
    Task(parse_accelerator("a100-80gb:8"), "night", ("--budget", "300s"), spot=True, bucket="gs://my-studies"),
    Task(parse_accelerator("H100:8"), "night", nodes=2, bucket="my-studies"),
    Task(parse_accelerator("tpu-v5e-8"), "night", ("--program", "a b's.md"), spot=True, bucket="my-studies"),
    Task(parse_accelerator("tpu-v5p-32"), "night", spot=True, bucket="my-studies"),
    Task(parse_accelerator("tpu-v6e-8"), "night", nodes=2, bucket="my-studies"),
    Task(parse_accelerator("H100:8"), "night", devices_per_run=2),
    Task(parse_accelerator("H100:8"), "night", nodes=2, bucket="my-studies", devices_per_run=1),
    Task(parse_accelerator("tpu-v6e-8"), "night", nodes=4, devices_per_run=8),
]


def name(task: Task) -> str:
    return f"{task.accelerator.sky}x{task.nodes}by{task.per_run}"


@pytest.mark.parametrize(
    ("text", "sky", "devices", "hosts"),
    [
        ("H100", "H100:1", 1, 1),
        ("h100:8", "H100:8", 8, 1),
        ("tpu-v5e-8", "tpu-v5litepod-8", 8, 1),
        ("tpu-v5e-16", "tpu-v5litepod-16", 16, 4),
        ("tpu-v5p-32", "tpu-v5p-32", 16, 4),
        ("TPU-v3-8", "tpu-v3-8", 8, 1),
    ],
)
def test_accelerators(text: str, sky: str, devices: int, hosts: int):
    found = parse_accelerator(text)
    assert (found.sky, found.devices, found.hosts) == (sky, devices, hosts)


@pytest.mark.parametrize("text", ["H1000", "H100:0", "H100:x", "tpu-v5e-7", "tpu-v5p-4", "tpu-v9-8", "", "H100:1; rm"])
def test_an_unknown_accelerator_is_refused_in_one_line(text: str):
    with pytest.raises(ConfigurationError, match="--accelerator") as refused:
        parse_accelerator(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"spot": True},
        {"bucket": "no bucket"},
        {"study": "../x"},
        {"nodes": 2, "accelerator": CASES[4].accelerator},
        {"devices_per_run": 2},
        {"devices_per_run": 3, "accelerator": CASES[2].accelerator},
        {"devices_per_run": 5, "accelerator": CASES[2].accelerator},
        {"devices_per_run": 12, "accelerator": CASES[2].accelerator, "nodes": 2},
        {"devices_per_run": 4, "accelerator": CASES[4].accelerator},
        {"devices_per_run": 12, "accelerator": CASES[4].accelerator},
    ],
)
def test_what_would_lose_or_confuse_a_study_is_refused(wrong: dict):
    with pytest.raises(ConfigurationError):
        Task(**{"accelerator": parse_accelerator("H100:1"), "study": "night", **wrong})


@pytest.mark.parametrize("task", CASES, ids=name)
def test_the_task_is_yaml_whose_scripts_are_shell(task: Task):
    facts = yaml.safe_load(render(task))
    assert facts["resources"]["accelerators"] == task.accelerator.sky
    assert facts["resources"]["use_spot"] is task.spot
    assert facts["resources"]["autostop"] == {"idle_minutes": 10, "down": True}
    assert facts["num_nodes"] == task.nodes
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=facts[part], text=True, check=True)
    assert ("EXTRA=tpu" in facts["setup"]) == (task.accelerator.kind == "tpu")
    assert "--require-hashes -r requirements.lock" in facts["setup"]
    assert ("JAXRESEARCH_COORDINATOR" in facts["run"]) == task.joins
    assert ("ray start" in facts["run"]) == (",ray]" in facts["setup"]) == task.by_ray
    assert ("/bucket" in facts.get("file_mounts", {})) == (task.bucket is not None)


TOOL = """#!/bin/bash
case "$(basename "$0") $*" in
  nvidia-smi*driver_version*) echo "$DRIVER";;
  nvidia-smi*compute_cap*) echo "$CAPABILITY";;
  *" -m venv "*) mkdir -p "$3/bin"; for name in pip python; do cp "$0" "$3/bin/$name"; done;;
  python*" -c "*) echo 0.11.2;;
  pip*) echo "$*" >> "$HOME/log";;
esac
"""


@pytest.mark.parametrize(
    ("driver", "capability", "extra"),
    [
        ("580.65.06", "9.0", "cuda13"),
        ("580.65.06", "12.0", "cuda13"),
        ("580.65.06", "7.5", "cuda13"),
        ("580.65.06", "7.0", "cuda12"),
        ("570.86.15", "9.0", "cuda12"),
    ],
)
def test_the_build_of_jax_is_one_for_this_driver_and_this_gpu(tmp_path: Path, driver: str, capability: str, extra: str):
    for name in ("sudo", "nvidia-smi", "python3.12"):
        (tmp_path / name).write_text(TOOL)
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    environment |= {"DRIVER": driver, "CAPABILITY": capability}
    script = yaml.safe_load(render(CASES[0]))["setup"]
    subprocess.run(["bash", "-c", script], env=environment, check=True, capture_output=True)
    first, second = (tmp_path / "log").read_text().splitlines()
    assert first == "install -q --require-hashes -r requirements.lock"
    assert second == f"install -q jax[{extra}]==0.11.2 .[hub,anthropic,openai,google]"


FAKE = """#!/bin/bash
echo "$JAXRESEARCH_PROCESS_ID/$JAXRESEARCH_PROCESSES@$JAXRESEARCH_COORDINATOR $*" >> "$LOG"
case "$1" in
  run) mkdir -p "$3"; touch "$3/ledger.sqlite"; [ -z "$HANG" ] || {
    trap 'exit 130' TERM; touch "$LOG.up"; while :; do sleep 0.1; done; };;
  cloud) mkdir -p "$4"; cp -r "$3"/. "$4";;
esac
exit ${STATUS:-0}
"""


class Machine:
    """A home with a jaxresearch that only notes how it was called."""

    def __init__(self, home: Path, task: Task) -> None:
        self.home, self.log, self.bucket = home, home / "log", home / "bucket"
        program = home / "jaxresearch-venv/bin/jaxresearch"
        program.parent.mkdir(parents=True)
        program.write_text(FAKE)
        program.chmod(0o755)
        facts = yaml.safe_load(render(task))
        self.script = facts["run"]
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LOG": str(self.log),
            "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
            "SKYPILOT_NODE_RANK": "0",
            **facts["envs"],
            "SAVED": str(self.bucket / "night") if task.bucket else "",
        }

    def start(self, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(["bash", "-c", self.script], env={**self.environment, **environment}, text=True)

    def run(self, **environment: str) -> int:
        return self.start(**environment).wait(60)

    @property
    def calls(self) -> list[str]:
        return [line.replace(str(self.home), "~") for line in self.log.read_text().splitlines()]


def test_it_runs_then_resumes_and_takes_the_study_back_after_a_preemption(tmp_path: Path):
    machine = Machine(tmp_path, CASES[3])
    assert machine.run() == 0
    assert machine.calls == [
        "/@ run --study ~/studies/night --program a b's.md --devices 8",
        "/@ cloud save ~/studies/night ~/bucket/night",
    ]
    (tmp_path / "studies/night/ledger.sqlite").unlink()
    (tmp_path / "studies/night").rmdir()  # another machine
    machine.log.unlink()
    assert machine.run(STATUS="0") == 0
    assert [call.split()[1] for call in machine.calls] == ["cloud", "resume", "cloud"]
    assert "fetch" in machine.calls[0]


def test_a_failed_study_is_saved_and_fails_the_task(tmp_path: Path):
    machine = Machine(tmp_path, CASES[3])
    (tmp_path / "studies/night").mkdir(parents=True)
    (tmp_path / "studies/night/ledger.sqlite").touch()
    fake = tmp_path / "jaxresearch-venv/bin/jaxresearch"
    fake.write_text(FAKE.replace("cloud)", "resume) exit 1;; cloud)"))
    assert machine.run() == 1
    assert "save" in machine.calls[-1]


def test_a_termination_reaches_the_study_and_it_is_saved(tmp_path: Path):
    import time

    machine = Machine(tmp_path, CASES[3])
    running = machine.start(HANG="1")
    deadline = time.monotonic() + 60
    while not Path(f"{machine.log}.up").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.terminate()
    assert running.wait(60) == 130
    assert "save" in machine.calls[-1]


def test_every_host_gets_its_place(tmp_path: Path):
    machine = Machine(tmp_path, CASES[2])
    assert machine.run(SKYPILOT_NODE_RANK="1") == 0
    assert machine.calls == ["1/2@10.0.0.1:9911 run --study ~/studies/night"]
    (tmp_path / "studies/night/ledger.sqlite").unlink()  # only this fake makes one on a host that follows
    assert machine.run() == 0
    assert machine.calls[1:] == [
        "0/2@10.0.0.1:9911 run --study ~/studies/night",
        "0/2@10.0.0.1:9911 cloud save ~/studies/night ~/bucket/night",
    ]


def test_one_machine_does_several_runs_at_once(tmp_path: Path):
    machine = Machine(tmp_path, CASES[6])
    assert machine.run() == 0
    assert machine.calls == ["/@ run --study ~/studies/night --devices 2 --slots 4"]


RAY = """#!/bin/bash
echo "ray $* ${ANTHROPIC_API_KEY:-no key}" >> "$HOME/log"
case "$*" in
  *--head*) exec {python} -c "import socket, time
there = socket.create_server(('127.0.0.1', {port})); time.sleep(60)";;
  *) while (echo > /dev/tcp/127.0.0.1/{port}) 2> /dev/null; do sleep 0.1; done; exit 1;;
esac
"""


def test_the_first_node_drives_a_cluster_without_keys_and_all_end_together(tmp_path: Path):
    machine = Machine(tmp_path, CASES[7])
    port = free_port()
    ray = tmp_path / "jaxresearch-venv/bin/ray"
    ray.write_text(RAY.replace("{python}", sys.executable).replace("{port}", str(port)))
    ray.chmod(0o755)
    machine.script = machine.script.replace("6379", str(port))
    nodes = {"SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2", "ANTHROPIC_API_KEY": "secret"}
    other = machine.start(**nodes, SKYPILOT_NODE_RANK="1")
    assert machine.run(**nodes) == 0
    assert other.wait(60) == 0
    calls = machine.calls
    assert any(
        call == f"ray start --head --node-ip-address 127.0.0.1 --port {port} --include-dashboard false --block no key"
        for call in calls
    )
    assert f"ray start --address 127.0.0.1:{port} --block no key" in calls
    run = f"/@ run --study ~/studies/night --slots 16 --executor ray --ray-address 127.0.0.1:{port}"
    assert run in calls
    of_the_head = [call for call in calls if call.startswith("/@")]  # the other node may join when it is over
    assert of_the_head[-1] == "/@ cloud save ~/studies/night ~/bucket/night"
    assert machine.run(**nodes) == 0  # again: it goes on
    assert f"/@ resume ~/studies/night --ray-address 127.0.0.1:{port}" in machine.calls


def test_a_node_whose_ray_dies_before_the_head_fails(tmp_path: Path):
    machine = Machine(tmp_path, CASES[7])
    ray = tmp_path / "jaxresearch-venv/bin/ray"
    ray.write_text("#!/bin/bash\nexit 1\n")
    ray.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as head:
        machine.script = machine.script.replace("6379", str(head.getsockname()[1]))
        assert machine.run(SKYPILOT_NODE_IPS="127.0.0.1\n127.0.0.2", SKYPILOT_NODE_RANK="1") == 1


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.mark.parametrize("task", CASES, ids=name)
def test_skypilot_accepts_it(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    sky = pytest.importorskip("sky", reason="needs the extra `cloud`")
    file = tmp_path / "task.yaml"
    file.write_text(render(task))
    monkeypatch.chdir(Path(__file__).parents[2])
    found = sky.Task.from_yaml(str(file))
    (resources,) = found.resources
    kind, colon, count = task.accelerator.sky.partition(":")
    assert resources.accelerators == {kind: int(count) if colon else 1}
    assert resources.use_spot is task.spot
    assert found.num_nodes == task.nodes


def test_the_command_refuses_what_run_would_refuse(tmp_path: Path):
    from click.testing import CliRunner

    file = tmp_path / "task.yaml"
    good = ["cloud", "render", "--accelerator", "H100:1", "-o", str(file), "--", "--experiments", "20"]
    result = CliRunner().invoke(cli, good)
    assert result.exit_code == 0, result.output
    assert "--experiments 20" in yaml.safe_load(file.read_text())["run"]
    for wrong in (["--experimnts", "20"], ["--experiments", "many"], ["--study", "x"], ["--executor", "ray"]):
        refused = CliRunner().invoke(cli, [*good[:-2], *wrong])
        assert refused.exit_code == 2, refused.output
        assert wrong[0] in refused.output


def test_devices_a_run_are_said_once():
    from click.testing import CliRunner

    good = ["cloud", "render", "--accelerator", "H100:8", "--devices-per-run", "4", "--json", "--"]
    facts = json.loads(CliRunner().invoke(cli, good).stdout)
    assert (facts["devices"], facts["devices_per_run"], facts["runs_at_once"]) == (8, 4, 2)
    refused = CliRunner().invoke(cli, [*good, "--devices", "2"])
    assert refused.exit_code == 2
    assert "--devices is the task's to give" in refused.output

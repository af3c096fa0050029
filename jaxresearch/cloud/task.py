"""A SkyPilot task for a study: installs, runs or resumes, copies the study into a bucket, stops when it is done.

It is text, written from a template; SkyPilot itself is not needed to write it. See docs/operations.md.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from textwrap import indent
from typing import Any

import yaml

from jaxresearch.cloud.accelerators import Accelerator
from jaxresearch.config import MOST_SLOTS
from jaxresearch.errors import ConfigurationError

PORT = 9911
"""Of process 0, on which hosts find each other."""
RAY_PORT = 6379
"""Of our Ray cluster's head; SkyPilot's own Ray has another."""
_BUCKET = re.compile(r"(?:(?:s3|gs|r2|cos|oci|nebius)://)?[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True)
class Task:
    """What is to run. study: its name, in the cluster's and the bucket's folders. arguments: for `jaxresearch run`.

    devices_per_run: None spreads each run over all devices; fewer do several runs at once, over several nodes by Ray.
    """

    accelerator: Accelerator
    study: str
    arguments: tuple[str, ...] = ()
    spot: bool = False
    nodes: int = 1
    bucket: str | None = None
    save_seconds: int = 60
    idle_minutes: int = 10
    devices_per_run: int | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.study):
            raise ConfigurationError(f"--study: {self.study!r}: expected a name of a-z, 0-9 and -, such as night.")
        if self.bucket is not None and not _BUCKET.fullmatch(self.bucket):
            raise ConfigurationError(f"--bucket: {self.bucket!r}: expected a bucket's name, or gs://NAME, s3://NAME.")
        if self.spot and self.bucket is None:
            raise ConfigurationError(
                "--spot: without a bucket all is lost when the machine is taken away.", fix="Add --bucket NAME."
            )
        if self.nodes > 1 and self.accelerator.hosts > 1:
            raise ConfigurationError("--nodes: one slice of several hosts has all its devices already; leave it out.")
        if self.per_run == self.devices:
            return
        if self.accelerator.hosts > 1:
            raise ConfigurationError(
                f"--devices-per-run: the hosts of {self.accelerator.sky} do each run together.",
                fix="Leave it out, or rent slices of one host, such as --accelerator tpu-v5e-8 --nodes 4.",
            )
        if self.accelerator.devices % self.per_run:
            raise ConfigurationError(
                f"--devices-per-run: {self.per_run} is neither a divisor of a node's {self.accelerator.devices} devices "
                f"nor all {self.devices}."
            )

    @property
    def hosts(self) -> int:
        return self.nodes * self.accelerator.hosts

    @property
    def devices(self) -> int:
        return self.nodes * self.accelerator.devices

    @property
    def per_run(self) -> int:
        """Devices of one run."""
        return self.devices if self.devices_per_run is None else self.devices_per_run

    @property
    def runs_at_once(self) -> int:
        return self.devices // self.per_run

    @property
    def joins(self) -> bool:
        """Do all hosts do each run together?"""
        return self.hosts > 1 and self.runs_at_once == 1

    @property
    def by_ray(self) -> bool:
        return self.hosts > 1 and self.runs_at_once > 1


def render(task: Task) -> str:
    """The YAML of `task`, with comments that say how to launch, watch and stop it."""
    resources: dict[str, Any] = {"accelerators": task.accelerator.sky, "use_spot": task.spot, "disk_size": 200}
    resources["autostop"] = {"idle_minutes": task.idle_minutes, "down": True}
    facts: dict[str, Any] = {"name": f"jaxresearch-{task.study}", "workdir": ".", "num_nodes": task.nodes}
    facts["resources"] = resources
    facts["envs"] = {"STUDY": f"~/studies/{task.study}", "SAVED": f"/bucket/{task.study}" if task.bucket else ""}
    if task.bucket is not None:
        where = {"source": task.bucket} if "://" in task.bucket else {"name": task.bucket}
        facts["file_mounts"] = {"/bucket": {**where, "mode": "MOUNT"}}
    head = "".join(f"# {line}".rstrip() + "\n" for line in _said(task))
    body = yaml.safe_dump(facts, sort_keys=False)
    return f"{head}{body}setup: |\n{indent(_setup(task), '  ')}run: |\n{indent(_run(task), '  ')}"


def _said(task: Task) -> list[str]:
    what = f"{task.hosts} host{'s' if task.hosts > 1 else ''}, {task.devices} devices in all, {task.per_run} a run"
    job = f"jaxresearch-{task.study}"
    lines = [
        f"A jaxresearch study on {task.accelerator.sky}: {what}. Run these in a clone of jaxresearch, on your machine."
    ]
    if task.spot:
        lines += [
            "Launch: sky jobs launch THIS_FILE        (a managed job: after a preemption it starts again and resumes)",
            f"Look in: sky jobs logs --name {job}    Stop: sky jobs cancel --name {job}",
        ]
    else:
        lines += [
            f"Launch: sky launch -c {job} THIS_FILE   Go on after a stop: the same command",
            f"Look in: sky logs {job}   Stop: sky down {job}",
            f"After {task.idle_minutes} minutes without a job the cluster takes itself down.",
        ]
    lines.append(
        "A provider's key: add --secret ANTHROPIC_API_KEY (or another) to the launch; it must not stand in this file."
    )
    if task.bucket is not None:
        lines += [
            f"The study is copied to {task.bucket} every {task.save_seconds} s and at the end; when a machine dies in",
            "between, what came after the last copy is lost, and the study does it again.",
        ]
    else:
        lines.append(
            "There is no bucket: the study is lost with the cluster. Copy it before: rsync -a CLUSTER:studies ."
        )
    return lines


def _setup(task: Task) -> str:
    if task.accelerator.kind == "tpu":
        jax = "EXTRA=tpu\n"
    else:
        jax = (
            "# CUDA 13 needs driver 580 and capability 7.5 (V100 and P100 have less); others run CUDA 12\n"
            "DRIVER=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1 | cut -d . -f 1)\n"
            "CAPABILITY=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)\n"
            'if [ "$DRIVER" -ge 580 ] && [ "$CAPABILITY" -ge 75 ]; then EXTRA=cuda13; else EXTRA=cuda12; fi\n'
        )
    extras = ["hub", "anthropic", "openai", "google", *(["ray"] if task.by_ray else [])]
    return f"""set -e
sudo apt-get update -qq || true
sudo apt-get install -y -qq git bubblewrap || echo "no bubblewrap: candidates are traced in a weaker sandbox"
VENV=~/jaxresearch-venv
if [ ! -x $VENV/bin/jaxresearch ]; then
  PYTHON=$(command -v python3.12 || command -v python3.11 || command -v python3.13 || true)
  if [ -n "$PYTHON" ] && "$PYTHON" -m venv $VENV; then :; else
    conda create -y -q -p ~/jaxresearch-python python=3.12
    ~/jaxresearch-python/bin/python -m venv --clear $VENV
  fi
  $VENV/bin/pip install -q --require-hashes -r requirements.lock
  {indent(jax, "  ").strip()}
  JAX=$($VENV/bin/python -c 'import importlib.metadata as m; print(m.version("jax"))')
  $VENV/bin/pip install -q "jax[$EXTRA]==$JAX" '.[{",".join(extras)}]'
fi
$VENV/bin/jaxresearch doctor || true
"""


def _run(task: Task) -> str:
    start = f'jaxresearch run --study "$STUDY" {shlex.join([*task.arguments, *_spread(task)])}'.rstrip()
    resume = 'jaxresearch resume "$STUDY"'
    lines = ["set -e", 'PATH="$HOME/jaxresearch-venv/bin:$PATH"', 'STUDY="${STUDY/#\\~/$HOME}"']
    if task.joins:
        lines += [
            "# every host runs this; process 0 drives, the others follow it and need neither study nor key",
            f'export JAXRESEARCH_COORDINATOR="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{PORT}"',
            'export JAXRESEARCH_PROCESSES="$(echo "$SKYPILOT_NODE_IPS" | wc -l)"',
            'export JAXRESEARCH_PROCESS_ID="$SKYPILOT_NODE_RANK"',
            f'if [ "$SKYPILOT_NODE_RANK" -gt 0 ]; then exec {start}; fi',
        ]
    if task.by_ray:
        lines += _cluster()
        start, resume = f'{start} --ray-address "$RAY"', f'{resume} --ray-address "$RAY"'
    if task.bucket is not None:
        lines += [
            '[ -e "$STUDY" ] || [ ! -e "$SAVED/ledger.sqlite" ] || jaxresearch cloud fetch "$SAVED" "$STUDY"',
            'save() { [ ! -e "$STUDY" ] || jaxresearch cloud save "$STUDY" "$SAVED"; }',
            f"(while sleep {task.save_seconds}; do save || echo 'the study could not be saved' >&2; done) &",
            "SAVING=$!",
        ]
    lines += [
        f'if [ -e "$STUDY/ledger.sqlite" ]; then {resume} & else {start} & fi',
        "STUDYING=$!",
        "trap 'kill -TERM $STUDYING' TERM INT   # a clean stop: it takes execution.grace_seconds",
        "STATUS=0; wait $STUDYING || STATUS=$?",
        "if kill -0 $STUDYING 2> /dev/null; then STATUS=0; wait $STUDYING || STATUS=$?; fi   # the trap cut the first wait",
    ]
    if task.bucket is not None:
        lines += ["kill $SAVING 2> /dev/null || true", "save"]
    if task.by_ray:
        lines += [
            "kill $CLUSTER 2> /dev/null || true   # the other hosts end with it; `ray stop` would end SkyPilot's too"
        ]
    lines += ["exit $STATUS"]
    return "\n".join(lines) + "\n"


def _spread(task: Task) -> list[str]:
    """What tells `jaxresearch run` of the devices; hosts that join find theirs by themselves."""
    if task.joins or (task.devices_per_run is None and _asks(task, "--devices")):
        return []
    spread = ["--devices", str(task.per_run)] if task.per_run > 1 else []
    if task.runs_at_once > 1 and not _asks(task, "--slots"):
        spread += ["--slots", str(min(task.runs_at_once, MOST_SLOTS))]
    return [*spread, "--executor", "ray"] if task.by_ray else spread


def _asks(task: Task, option: str) -> bool:
    return any(each.partition("=")[0] == option for each in task.arguments)


def _cluster() -> list[str]:
    """A Ray cluster of our own on all nodes, without the keys that the driver has; the first node drives."""
    ray = 'env -i HOME="$HOME" PATH="$PATH" RAY_worker_niceness=0 ray start'
    return [
        "# the first node drives and sends runs to all; keys stay with it",
        'HEAD="$(echo "$SKYPILOT_NODE_IPS" | head -n 1)"',
        f'RAY="$HEAD:{RAY_PORT}"',
        f'up() {{ (echo > "/dev/tcp/$HEAD/{RAY_PORT}") 2> /dev/null; }}',
        'if [ "$SKYPILOT_NODE_RANK" -gt 0 ]; then',
        "  until up; do sleep 2; done",
        f'  {ray} --address "$RAY" --block || ! up   # it fails when the head ends, and only then all is well',
        "  exit",
        "fi",
        f'{ray} --head --node-ip-address "$HEAD" --port {RAY_PORT} --include-dashboard false --block &',
        "CLUSTER=$!",
        'until up; do kill -0 "$CLUSTER"; sleep 2; done',
    ]

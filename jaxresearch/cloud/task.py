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
from jaxresearch.errors import ConfigurationError

PORT = 9911
"""Of process 0, on which hosts find each other."""
_BUCKET = re.compile(r"(?:(?:s3|gs|r2|cos|oci|nebius)://)?[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True)
class Task:
    """What is to run. study: its name, in the cluster's and the bucket's folders. arguments: for `jaxresearch run`."""

    accelerator: Accelerator
    study: str
    arguments: tuple[str, ...] = ()
    spot: bool = False
    nodes: int = 1
    bucket: str | None = None
    save_seconds: int = 60
    idle_minutes: int = 10

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

    @property
    def hosts(self) -> int:
        return self.nodes * self.accelerator.hosts


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
    what = f"{task.hosts} host{'s' if task.hosts > 1 else ''}, {task.nodes * task.accelerator.devices} devices in all"
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
            "# CUDA 13 needs driver 580; older ones run CUDA 12\n"
            "DRIVER=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1 | cut -d . -f 1)\n"
            'if [ "$DRIVER" -ge 580 ]; then EXTRA=cuda13; else EXTRA=cuda12; fi\n'
        )
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
  $VENV/bin/pip install -q "jax[$EXTRA]==$JAX" '.[hub,anthropic,openai,google]'
fi
$VENV/bin/jaxresearch doctor || true
"""


def _run(task: Task) -> str:
    arguments = list(task.arguments)
    spread = (
        task.hosts == 1
        and task.accelerator.devices > 1
        and not any(each.partition("=")[0] == "--devices" for each in arguments)
    )
    if spread:
        arguments += ["--devices", str(task.accelerator.devices)]
    options = shlex.join(arguments)
    start = f'jaxresearch run --study "$STUDY" {options}'.rstrip()
    lines = ["set -e", 'PATH="$HOME/jaxresearch-venv/bin:$PATH"', 'STUDY="${STUDY/#\\~/$HOME}"']
    if task.hosts > 1:
        lines += [
            "# every host runs this; process 0 drives, the others follow it and need neither study nor key",
            f'export JAXRESEARCH_COORDINATOR="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{PORT}"',
            'export JAXRESEARCH_PROCESSES="$(echo "$SKYPILOT_NODE_IPS" | wc -l)"',
            'export JAXRESEARCH_PROCESS_ID="$SKYPILOT_NODE_RANK"',
            f'if [ "$SKYPILOT_NODE_RANK" -gt 0 ]; then exec {start}; fi',
        ]
    if task.bucket is not None:
        lines += [
            '[ -e "$STUDY" ] || [ ! -e "$SAVED/ledger.sqlite" ] || jaxresearch cloud fetch "$SAVED" "$STUDY"',
            'save() { [ ! -e "$STUDY" ] || jaxresearch cloud save "$STUDY" "$SAVED"; }',
            f"(while sleep {task.save_seconds}; do save || echo 'the study could not be saved' >&2; done) &",
            "SAVING=$!",
        ]
    lines += [
        f'if [ -e "$STUDY/ledger.sqlite" ]; then jaxresearch resume "$STUDY" & else {start} & fi',
        "STUDYING=$!",
        "trap 'kill -TERM $STUDYING' TERM INT   # a clean stop: it takes execution.grace_seconds",
        "STATUS=0; wait $STUDYING || STATUS=$?",
        "if kill -0 $STUDYING 2> /dev/null; then STATUS=0; wait $STUDYING || STATUS=$?; fi   # the trap cut the first wait",
    ]
    if task.bucket is not None:
        lines += ["kill $SAVING 2> /dev/null || true", "save"]
    lines += ["exit $STATUS"]
    return "\n".join(lines) + "\n"

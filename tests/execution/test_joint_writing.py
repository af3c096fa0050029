"""Two processes, joined by jax.distributed, write one checkpoint: whole, or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.execution.test_hosts import free_port
from tests.laboratory import ROOT

PART = """
import json, os, sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxresearch.execution.hosts import Hosts
from jaxresearch.execution.peers import _Several, join
from jaxresearch.program.mesh import make_placement
from jaxresearch.training.checkpoints import Checkpoints, TrainingState
from jaxresearch.training.seal import Owner

process, folder, fault = int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
hosts = Hosts(coordinator=f"127.0.0.1:{sys.argv[1]}", processes=2, process_id=process, join_seconds=120)
join(hosts, lambda why: os._exit(3))
company = _Several(hosts)
placement = make_placement(jax.devices(), fsdp=2, state_bytes=0)
values = [np.arange(64.0, dtype=np.float32).reshape(8, 8), np.float32(0.5), np.zeros((0, 4), np.float32)]
targets = [
    jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=placement.leaf(jax.ShapeDtypeStruct(value.shape, value.dtype)))
    for value in values
]
leaves = [
    jax.make_array_from_callback(value.shape, target.sharding, lambda index, value=value: value[index])
    for value, target in zip(values, targets)
]
owner = Owner(program="p", traced={}, seed=0, budget="b", corpus="c", tokenizer="t")


def open_checkpoints():
    return Checkpoints(folder, owner, every_seconds=1, keeps_final=True, machine={"device": "cpu"}, company=company)


def save(checkpoints, steps):
    checkpoints.save(TrainingState(leaves, 0.25, steps, 2, 3.0, 4.0, {4: 5}, 0.5, [(0.0, 1.5)]))
    checkpoints.wait()


class FullDisk:
    def result(self, timeout=None):
        raise OSError(28, "No space left on device")


if fault.startswith("part") and process == int(fault[-1]):
    whole = ocp.StandardCheckpointHandler.async_save

    async def async_save(self, *args, **kwargs):
        return [*(await whole(self, *args, **kwargs)), FullDisk()]

    ocp.StandardCheckpointHandler.async_save = async_save
if fault == "folder" and process == 1:
    Checkpoints._problem = lambda self, state_bytes: OSError(30, "Read-only file system")
first = open_checkpoints()
assert first.take_up(targets) is None
save(first, 10)
save(first, 20)
wish = first.wish(1000.0)
first.close()
if fault == "reading" and process == 1:
    import jaxresearch.training.joint

    def unreadable(path, tree):
        raise OSError(5, "Input/output error")

    jaxresearch.training.joint.read_tree = unreadable
again = open_checkpoints()
found = again.take_up(targets)
if found is not None:
    for leaf, value, target in zip(found.leaves, values, targets):
        assert leaf.sharding == target.sharding
        for shard in leaf.addressable_shards:
            assert np.array_equal(shard.data, value[shard.index])
    assert (found.steps, found.cursors, found.curve) == (20, {4: 5}, [(0.0, 1.5)])
told = {"note": first.note, "wish": wish.name, "again": again.note, "resumed": [each.steps for each in again.resumed]}
print("told", json.dumps(told), flush=True)
again.close()
company.agree(True)
os._exit(0)
"""


def play(folder: Path, fault: str) -> list[dict]:
    """What each of two processes told."""
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PART, str(port), str(process), str(folder), fault],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for process in range(2)
    ]
    try:
        ends = [process.communicate(timeout=500) for process in started]
    finally:
        for process in started:
            process.kill()
    lines = [[line for line in out.splitlines() if line.startswith("told ")] for out, _ in ends]
    assert all(lines), ends
    return [json.loads(found[0].removeprefix("told ")) for found in lines]


def test_a_state_that_two_hold_is_written_by_both_and_read_by_both(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    first, second = play(folder, "none")
    assert first == {"note": "", "wish": "SAVE", "again": "", "resumed": [20]}
    assert second == {**first, "wish": "NOTHING"}
    assert sorted(path.name for path in folder.iterdir()) == ["step-0000000020", "step-0000000020.json"]


@pytest.mark.parametrize(
    ("fault", "notes"),
    [
        ("part 1", ("another process could not write its part", "No space left on device")),
        ("part 0", ("No space left on device", "another process could not write its part")),
        ("folder", ("another process cannot write there", "Read-only file system")),
    ],
)
def test_without_one_part_there_is_no_checkpoint_and_nobody_waits_for_ever(tmp_path: Path, fault, notes):
    """Nor does either try again: each time may take long."""
    folder = tmp_path / "checkpoints"
    told = play(folder, fault)
    for each, why in zip(told, notes, strict=True):
        assert each["note"].startswith("a checkpoint could not be written: ")
        assert why in each["note"]
        assert (each["wish"], each["again"], each["resumed"]) == ("NOTHING", "", [])
    assert not folder.exists() or not list(folder.glob("*.json"))


def test_a_checkpoint_that_one_cannot_read_is_taken_up_by_neither(tmp_path: Path):
    first, second = play(tmp_path / "checkpoints", "reading")
    assert (
        first["again"] == "the checkpoint at step 20 was not used: another process cannot read it; the run began again"
    )
    assert "Input/output error" in second["again"]
    assert first["resumed"] == second["resumed"] == []

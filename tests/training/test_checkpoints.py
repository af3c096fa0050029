# ruff: noqa: F811 - `compiled` is a fixture
"""A training that was cut goes on from its checkpoint as if nothing had happened, or says why it begins again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxresearch.experiment import RunProgress
from jaxresearch.program.mesh import Placement, one_device
from jaxresearch.training import seal
from jaxresearch.training.checkpoints import Checkpoints, TrainingState, read_state
from jaxresearch.training.seal import DamagedCheckpointError, Owner
from jaxresearch.training.trainer import Trained
from tests.laboratory import ROOT
from tests.training.test_meter import Clock
from tests.training.test_trainer import LR, compiled, run  # noqa: F401

PHASES = ((0.5, 4, 4), (1.0, 3, 8))
OWNER = Owner(program="sha256:p", traced=Owner.exact(LR), seed=0, budget="b", corpus="sha256:c", tokenizer="sha256:t")


class Cut(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def open_checkpoints(tmp_path: Path) -> Iterator[Callable[..., Checkpoints]]:
    """Checkpoints in one folder, after every second unless told otherwise."""
    opened: list[Checkpoints] = []

    def make(owner: Owner = OWNER, **settings) -> Checkpoints:
        facts = {"every_seconds": 1.0, "machine": {"device": "cpu", "threads": 2}, **settings}
        opened.append(Checkpoints(tmp_path / "checkpoints", owner, **facts))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def cut_at(program, step: int, checkpoints: Checkpoints, budget: str, *, every: int = 3, **settings) -> None:
    """Train until the end of the process at `step`; a checkpoint is due after each `every` steps."""
    clock = Clock()

    def tick(progress: RunProgress) -> None:
        if progress.step == step:
            raise Cut
        clock.now += 1 / every + 1e-9
        checkpoints.wait()

    with pytest.raises(Cut):
        run(program, budget, checkpoints=checkpoints, on_progress=tick, clock=clock, **settings)
    checkpoints.wait()


def essence(trained: Trained) -> tuple:
    """Everything but seconds."""
    leaves = [np.asarray(leaf).tobytes() for leaf in trained.leaves]
    return leaves, trained.loss, trained.steps, trained.tokens, trained.flops, trained.curve


@pytest.mark.parametrize("step", [3, 5, 8, 11])
@pytest.mark.parametrize("unit", ["steps", "tok", "flop"])
@pytest.mark.parametrize("phases", [((1.0, 4, 4),), PHASES])
def test_a_training_that_was_cut_ends_to_the_last_bit_as_one_that_was_not(
    compiled,
    open_checkpoints,
    phases,
    unit,
    step,
):
    program = compiled(phases=phases)
    one = program.program.manifest.step_flops[0]
    budget = {"steps": "12steps", "tok": "240tok", "flop": f"{one * 17:.1f}flop"}[unit]
    whole = run(program, budget)
    cut_at(program, step, open_checkpoints(), budget)
    again = open_checkpoints()
    resumed = run(program, budget, checkpoints=again)
    assert essence(resumed) == essence(whole)
    assert [each.steps for each in again.resumed] == ([step // 3 * 3] if step > 3 else [])
    assert again.note == ""


def test_a_training_that_is_cut_again_and_again_still_ends_the_same(compiled, open_checkpoints):
    program = compiled(phases=PHASES)
    whole = run(program, "20steps")
    for step in (4, 7, 9, 16):
        cut_at(program, step, open_checkpoints(), "20steps", every=2)
    again = open_checkpoints()
    assert essence(run(program, "20steps", checkpoints=again)) == essence(whole)
    assert [each.steps for each in again.resumed] == [2, 6, 8, 14]
    assert again.resumed[-1].progress == 0.7
    assert all(each.alike for each in again.resumed)


def test_seconds_that_were_spent_stay_spent(compiled, open_checkpoints):
    program = compiled()
    cut_at(program, 8, open_checkpoints(), "10s", every=1)
    clock, seen = Clock(), []

    def tick(progress: RunProgress) -> None:
        seen.append(progress.progress)
        clock.now += 1.0

    trained = run(program, "10s", checkpoints=open_checkpoints(every_seconds=None), clock=clock, on_progress=tick)
    assert seen[0] == pytest.approx(0.7, abs=0.01)
    assert len(seen) == 3
    assert trained.train_seconds == pytest.approx(10, abs=0.1)


def test_writing_is_off_the_clock(compiled, open_checkpoints, monkeypatch):
    clock, checkpoints = Clock(), open_checkpoints()
    monkeypatch.setattr(Checkpoints, "save", lambda self, state: setattr(clock, "now", clock.now + 500))

    def tick(_: RunProgress) -> None:
        clock.now += 0.75

    trained = run(compiled(), "3s", checkpoints=checkpoints, clock=clock, on_progress=tick)
    assert (trained.steps, trained.train_seconds) == (4, 3.0)


def test_a_short_run_writes_nothing_on_the_way_and_its_final_state_where_that_is_asked(
    compiled,
    open_checkpoints,
    tmp_path,
):
    checkpoints = open_checkpoints(every_seconds=60)
    run(compiled(), "9steps", checkpoints=checkpoints)
    assert checkpoints.end(9) == ""
    assert not (tmp_path / "checkpoints").exists()
    checkpoints = open_checkpoints(every_seconds=60, keeps_final=True)
    trained = run(compiled(), "9steps", checkpoints=checkpoints)
    name = checkpoints.end(9)
    path = seal.find_named(tmp_path / "checkpoints", name)
    found = seal.read_seal(path, name=name)
    assert found.position.steps == 9
    leaves, _ = read_state(path, found, _like(trained.leaves))
    assert all(np.array_equal(a, b) for a, b in zip(leaves, trained.leaves, strict=True))


def test_a_run_that_was_cut_after_its_last_step_only_has_to_be_scored(compiled, open_checkpoints):
    first = open_checkpoints(keeps_final=True)
    trained = run(compiled(), "9steps", checkpoints=first)
    first.wait()
    again = open_checkpoints(keeps_final=True)
    stepped = []
    assert essence(run(compiled(), "9steps", checkpoints=again, on_progress=stepped.append)) == essence(trained)
    assert stepped == []
    assert again.end(9).startswith("sha256:")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"program": "sha256:q"}, "program"),
        ({"traced": Owner.exact({"lr": 0.5})}, "traced"),
        ({"seed": 1}, "seed"),
        ({"budget": "13steps"}, "budget"),
        ({"corpus": "sha256:d"}, "corpus"),
    ],
)
def test_another_runs_checkpoint_is_not_used(compiled, open_checkpoints, change, why):
    program = compiled()
    cut_at(program, 8, open_checkpoints(), "12steps")
    again = open_checkpoints(OWNER.model_copy(update=change))
    assert essence(run(program, "12steps", checkpoints=again)) == essence(run(program, "12steps"))
    assert again.note == (
        f"the checkpoint at step 6 was not used: it belongs to a run with another {why}; the run began again"
    )
    assert again.resumed == ()


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGE = {
    "a flipped bit": (
        lambda state: _flip(max(state.rglob("*"), key=lambda f: f.stat().st_size * f.is_file())),
        "was changed",
    ),
    "a lost file": (lambda state: next(state.glob("ocdbt*/d/*")).unlink(), "is missing"),
    "a file too many": (lambda state: (state / "more").write_text("x"), "more was changed"),
    "half a seal": (lambda state: seal.seal_path(state).write_text('{"owner": '), "its seal cannot be read"),
    "another seal": (lambda state: seal.seal_path(state).write_text("[]"), "its seal cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_not_used(compiled, open_checkpoints, tmp_path, damage):
    program = compiled()
    cut_at(program, 8, open_checkpoints(), "12steps")
    harm, why = DAMAGE[damage]
    harm(seal.state_folder(tmp_path / "checkpoints", 6))
    again = open_checkpoints()
    assert essence(run(program, "12steps", checkpoints=again)) == essence(run(program, "12steps"))
    assert again.note.startswith("the checkpoint at step 6 was not used: ")
    assert why in again.note


def test_what_was_cut_while_it_was_written_is_no_checkpoint(compiled, open_checkpoints, tmp_path):
    program = compiled()
    cut_at(program, 8, open_checkpoints(), "12steps")
    folder = tmp_path / "checkpoints"
    seal.seal_path(seal.state_folder(folder, 6)).unlink()
    (folder / "step-0000000009.orbax-checkpoint-tmp").mkdir()
    again = open_checkpoints(every_seconds=None)
    assert essence(run(program, "12steps", checkpoints=again)) == essence(run(program, "12steps"))
    assert (again.note, again.resumed) == ("", ())
    assert not folder.exists()


def test_a_disk_that_takes_no_checkpoint_fails_no_run(compiled, open_checkpoints, tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    checkpoints = open_checkpoints(keeps_final=True)
    trained = run(compiled(), "9steps", checkpoints=checkpoints)
    assert trained.steps == 9
    assert checkpoints.end(9) == ""
    assert "a checkpoint could not be written: " in checkpoints.note


def test_a_state_that_would_fill_the_disk_is_not_written(compiled, open_checkpoints, tmp_path, monkeypatch):
    """Its candidate chose its size; the ledger needs room on the same disk."""
    few = shutil.disk_usage(tmp_path)._replace(free=30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: few)
    checkpoints = open_checkpoints(keeps_final=True)
    trained = run(compiled(), "9steps", checkpoints=checkpoints)
    assert trained.steps == 9
    assert sum(leaf.nbytes for leaf in trained.leaves) == 16
    assert checkpoints.end(9) == ""
    assert "and the disk has 3e-08 GB left" in checkpoints.note
    assert not list(tmp_path.glob("checkpoints/*"))


def _like(leaves: list[jax.Array]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for leaf in leaves]


def test_odd_leaves_come_back_as_they_were(open_checkpoints, tmp_path):
    leaves = [
        jnp.bfloat16(3.5), jnp.zeros((0, 3)), jnp.uint32(7), jnp.array([True, False]), jnp.arange(5, dtype=jnp.int8),
    ]  # fmt: skip
    checkpoints = open_checkpoints()
    checkpoints.save(TrainingState(leaves, 0.1, 1, 2, 3.0, 4.0, {4: 5}, 0.1 + 0.2, []))
    checkpoints.wait()
    assert checkpoints.note == ""
    found = open_checkpoints().take_up(_like(leaves))
    assert (found.cursors, found.loss, found.curve) == ({4: 5}, 0.1 + 0.2, [])
    for before, after in zip(leaves, found.leaves, strict=True):
        assert (before.dtype, before.shape) == (after.dtype, after.shape)
        assert np.array_equal(before, after)


def test_a_donated_state_is_written_as_it_was(open_checkpoints):
    """Training goes on in the same memory while the state is being written."""
    checkpoints, state = open_checkpoints(), jnp.zeros(2_000_000)
    following = jax.jit(lambda x: x + 1, donate_argnums=0)
    for step in range(10):
        if step == 4:
            checkpoints.save(TrainingState([state], 0.1, step, 2, 3.0, 4.0, {}, 0.0, []))
        state = following(state)
    checkpoints.wait()
    found = open_checkpoints().take_up([jax.ShapeDtypeStruct(state.shape, state.dtype, sharding=state.sharding)])
    assert set(np.asarray(found.leaves[0])) == {4.0}


def test_another_state_than_the_programs_is_refused(open_checkpoints, tmp_path):
    checkpoints = open_checkpoints()
    checkpoints.save(TrainingState([jnp.ones((2, 3))], 0.1, 1, 2, 3.0, 4.0, {}, 0.0, []))
    checkpoints.wait()
    path = seal.state_folder(tmp_path / "checkpoints", 1)
    for leaves in ([jnp.ones((3, 2))], [jnp.ones((2, 3), jnp.int32)], [jnp.ones((2, 3)), jnp.ones(2)], []):
        with pytest.raises(DamagedCheckpointError, match="not those of the program"):
            read_state(path, seal.read_seal(path), _like(leaves))


def test_a_seal_names_every_byte(open_checkpoints, tmp_path):
    checkpoints = open_checkpoints(keeps_final=True)
    checkpoints.save(TrainingState([jnp.ones((2, 3))], 1.0, 1, 2, 3.0, 4.0, {}, 0.0, []))
    name = checkpoints.end(1)
    path = seal.state_folder(tmp_path / "checkpoints", 1)
    facts = json.loads(seal.seal_path(path).read_bytes())
    facts["position"]["steps"] = 2
    seal.seal_path(path).write_text(json.dumps(facts))
    seal.read_seal(path)
    with pytest.raises(DamagedCheckpointError, match="another than the one that was recorded"):
        seal.read_seal(path, name=name)


SPREAD = """
import sys
from pathlib import Path
import jax
from jaxresearch.program.mesh import make_placement
from tests.training.test_checkpoints import check_spread, spread, write_spread

folder, devices = Path(sys.argv[1]), jax.devices()
assert len(devices) == 8
write_spread(folder, spread(make_placement(devices, fsdp=8, state_bytes=0)))
check_spread(folder, spread(make_placement(devices, fsdp=2, state_bytes=0)))
"""
VALUES = [np.arange(64.0, dtype=np.float32).reshape(8, 8), np.float32(0.5)]


def spread(placement: Placement) -> list[jax.ShapeDtypeStruct]:
    """The leaves of `VALUES` on those devices."""
    shapes = [jax.ShapeDtypeStruct(np.shape(value), np.float32) for value in VALUES]
    return [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=placement.leaf(s)) for s in shapes]


def open_spread(folder: Path) -> Checkpoints:
    return Checkpoints(folder, OWNER, every_seconds=1, machine={"devices": len(jax.devices())})


def write_spread(folder: Path, targets: list[jax.ShapeDtypeStruct]) -> None:
    checkpoints = open_spread(folder)
    leaves = [jax.device_put(value, target.sharding) for value, target in zip(VALUES, targets, strict=True)]
    checkpoints.save(TrainingState(leaves, 0.25, 1, 2, 3.0, 4.0, {}, 0.0, [(0.0, 1.5)]))
    checkpoints.close()
    assert checkpoints.note == ""


def check_spread(folder: Path, targets: list[jax.ShapeDtypeStruct]) -> Checkpoints:
    checkpoints = open_spread(folder)
    found = checkpoints.take_up(targets)
    assert found is not None, checkpoints.note
    for leaf, value, target in zip(found.leaves, VALUES, targets, strict=True):
        assert leaf.sharding == target.sharding
        assert np.array_equal(leaf, value)
    checkpoints.close()
    return checkpoints


def test_a_state_is_placed_on_the_devices_that_there_are(tmp_path):
    """Written by 8 devices that hold it together; read on 4 times 2 of them, and here on one."""
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", SPREAD, str(tmp_path / "c")],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    resumed = check_spread(tmp_path / "c", spread(one_device())).resumed
    assert [(each.steps, each.alike) for each in resumed] == [(1, False)]

"""A step that does microbatches one after the other, over eight devices: each shares in every microbatch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxresearch.budget import Budget
from jaxresearch.data.batches import Batches
from jaxresearch.program import stablehlo
from jaxresearch.program.marks import take_out_marks
from jaxresearch.program.mesh import make_placement
from jaxresearch.program.program import load, store
from jaxresearch.program.verifier import ProgramLimits, Signature, verify
from jaxresearch.training.trainer import compile_program, train
from models import recipe
from tests.laboratory import ROOT, TINY, VOCAB_SIZE
from tests.program.modules import exported, module

BATCH, LENGTH, MICROBATCH, WIDTH = 32, 7, 8, 64
SCALAR, WEIGHT = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)
FACTS: dict[str, Any] = {"traced": ("lr",), "metrics": ("loss",), "phases": ((1.0, BATCH, LENGTH),)}
MESHES = ((8, 1), (8, 8), (8, 2), (3, 1))
SCRIPT = (
    "from tests.training.test_spreading import *; print(json.dumps([report(sys.argv[1], *each) for each in MESHES]))"
)


def init(seed, lr):
    return [jnp.outer(jnp.arange(WIDTH), jnp.arange(WIDTH)) / WIDTH**2 + seed.astype(jnp.float32)]


def loss_of(weight, rows):
    return jnp.mean(jnp.square(jnp.tanh(weight[rows] @ weight)))


def step(weight, tokens, progress, lr):
    def add(total, rows):
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_of)(weight, rows)), None

    parts = tokens.reshape(-1, MICROBATCH, LENGTH + 1)
    (loss, gradient), _ = jax.lax.scan(add, (jnp.float32(0), jnp.zeros_like(weight)), parts)
    return [weight - lr * gradient, loss / len(parts)]


def logits(weight, tokens):
    return [weight[tokens]]


def report(folder: str, devices: int, fsdp: int) -> tuple[float, list[float], tuple[str, ...]]:
    """(FLOPs of one device as XLA counts them, each loop once; losses; flags) over so many devices."""
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH + 1), jnp.int32)
    blobs = [exported(init, jax.ShapeDtypeStruct((), jnp.uint32), SCALAR)]
    blobs += [exported(step, WEIGHT, tokens, SCALAR, SCALAR)]
    blobs += [exported(logits, WEIGHT, jax.ShapeDtypeStruct((2, 4), jnp.int32))]
    verified = verify(blobs, **FACTS, wanted=Signature(2, 4, WIDTH), limits=ProgramLimits(10**6, 1000, 10**6))
    names = {"platform": "cpu", "leaves": ("w",), "signature": (2, 4, WIDTH)}
    program = load(Path(folder), store(Path(folder), verified, **FACTS, **names).program)
    compiled = compile_program(program, make_placement(jax.devices()[:devices], fsdp=fsdp, state_bytes=0))
    rows = np.random.default_rng(0).integers(0, WIDTH, (100, LENGTH + 1)).astype(np.uint16)
    settings = {"traced": {"lr": 0.5}, "budget": Budget.parse("4steps"), "seed": 0, "wall_cap_seconds": 60.0}
    trained = train(compiled, batches=lambda _: Batches(rows, 1, 0), **settings)
    cost = compiled.steps[0].cost_analysis()
    return cost["flops"], [loss for _, loss in trained.curve], compiled.flags


def test_every_device_does_its_share_of_every_microbatch(tmp_path):
    eight = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, **eight}, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    whole, alone, nothing = report(str(tmp_path), 1, 1)
    assert nothing == ()
    for mesh, (shared, together, flags) in zip(MESHES, json.loads(done.stdout), strict=True):
        assert together == pytest.approx(alone, abs=1e-5), mesh
        if mesh[0] == 8:
            assert shared < whole / 6, f"{mesh}: of eight devices, some repeat what others do"
            assert flags == []
        else:
            assert shared > whole / 2, f"{mesh}: so they repeat what others do"
            assert flags == [f"{MICROBATCH} rows at a time do not divide among 3 devices"]
    assert alone[0] - alone[-1] > 1e-4


def test_the_microbatches_of_the_default_subject_are_found():
    h = recipe.hyperparameters({**TINY, "vocab_size": VOCAB_SIZE, "context": 16, "microbatch": 2})
    subject, values = recipe.build(h), dict.fromkeys(recipe._traced_defaults(h), SCALAR)
    state, tree = jax.tree.flatten(jax.eval_shape(subject.init, jax.ShapeDtypeStruct((), jnp.uint32), values))

    def train_step(*flat):
        return jax.tree.leaves(subject.train_step(jax.tree.unflatten(tree, flat[:-2]), *flat[-2:], values_of(flat)))

    def values_of(flat):
        return jax.tree.unflatten(tree, flat[:-2])["traced"]

    tokens = jax.ShapeDtypeStruct((h.batch, 17), jnp.int32)
    found = stablehlo.split_rows(take_out_marks(module(train_step, *state, tokens, SCALAR)), len(state))
    assert found is not None
    assert found[1] == (h.batch // 2, 2, 17)


def test_rows_are_split_only_where_nothing_else_is_done_with_them():
    arguments = WEIGHT, jax.ShapeDtypeStruct((BATCH, LENGTH + 1), jnp.int32), SCALAR, SCALAR
    found = stablehlo.split_rows(module(step, *arguments), 1)
    assert found is not None
    split, shape = found
    assert shape == (BATCH // MICROBATCH, MICROBATCH, LENGTH + 1)
    tokens = np.arange(BATCH * (LENGTH + 1), dtype=np.int32).reshape(BATCH, LENGTH + 1) % WIDTH
    weight = np.asarray(init(jnp.uint32(0), 0.0)[0])
    ours = stablehlo.to_exported(split, "cpu").call(weight, tokens.reshape(shape), np.float32(0), np.float32(0.5))
    for left, right in zip(ours, jax.jit(step)(weight, tokens, 0.0, 0.5), strict=True):
        np.testing.assert_array_equal(left, right)

    def also_read(weight, tokens, progress, lr):
        weight, loss = step(weight, tokens, progress, lr)
        return [weight, loss + tokens[0, 0]]

    def flat(weight, tokens, progress, lr):
        return [weight, loss_of(weight, tokens.reshape(-1))]

    def two_ways(weight, tokens, progress, lr):
        return [weight, loss_of(weight, tokens.reshape(4, 8, -1)) + loss_of(weight, tokens.reshape(8, 4, -1))]

    def unread(weight, tokens, progress, lr):
        return [weight, lr]

    def across(weight, tokens, progress, lr):
        return [weight, loss_of(weight, tokens.reshape(8, 8, 4))]

    for other in (also_read, flat, two_ways, unread, across):
        assert stablehlo.split_rows(module(other, *arguments), 1) is None, other.__name__

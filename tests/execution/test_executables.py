"""What a worker compiles for a program with marked attention: with a kernel, and without one that does not compile."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxresearch.execution.executables import compile_executables
from jaxresearch.program import fused
from jaxresearch.program.fused import Kernel
from jaxresearch.program.program import store
from jaxresearch.program.verifier import ProgramLimits, Signature, verify
from models.kernels import attention
from tests.program.modules import exported
from tests.program.test_fused import STAND_IN, windowed

WEIGHT = jax.ShapeDtypeStruct((16, 8), jnp.float32)
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)


def attend(weight, tokens):
    x = weight[tokens % 16][:, :, None, :]
    return attention(x, x, x, 3)[:, :, 0, :]


def step(weight, tokens, progress):
    loss, gradient = jax.value_and_grad(lambda w: jnp.square(attend(w, tokens)).mean())(weight)
    return [weight - 0.1 * gradient, loss]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Folder and name of a program whose step and logits hold attention."""
    blobs = [
        exported(lambda seed: [jax.random.normal(jax.random.key(seed), (16, 8))], jax.ShapeDtypeStruct((), jnp.uint32)),
        exported(step, WEIGHT, jax.ShapeDtypeStruct((2, 7), jnp.int32), SCALAR),
        exported(lambda w, t: [attend(w, t)], WEIGHT, jax.ShapeDtypeStruct((2, 4), jnp.int32)),
    ]
    facts = {"traced": (), "phases": ((1.0, 2, 6),), "metrics": ("loss",)}
    verified = verify(blobs, **facts, wanted=Signature(2, 4, 8), limits=ProgramLimits(10**6, 1000, 1000))
    root = tmp_path_factory.mktemp("programs")
    names = {"platform": "cpu", "leaves": ("w",), "signature": (2, 4, 8)}
    return root, store(root, verified, **facts, **names).program


def results(stored, kernel):
    """How attention is recorded; state and loss after one step; cross-entropies."""
    trainer, scorer = compile_executables(*stored, jax.devices()[:1], fsdp=None, kernel=kernel)
    tokens = np.arange(14, dtype=np.int32).reshape(2, 7)
    leaves, loss = trainer.steps[0](list(trainer.init(np.uint32(1), [])), tokens, np.float32(0), [])
    nats, _, _ = scorer.run(leaves, tokens[:, :4], tokens[:, 1:5] % 8, np.zeros(8, np.float32))
    return trainer.program.attention, (leaves[0], loss, nats)


def test_a_run_with_a_kernel_trains_and_scores_as_one_without(stored):
    (word, found), (plain, wanted) = results(stored, STAND_IN), results(stored, None)
    assert (word, plain) == ("stand-in", "xla")
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_kernel_that_does_not_compile_is_done_without(stored, monkeypatch):
    """What passes the check on small inputs may still be refused in a whole program."""

    def refused(program, *_):
        if program.attention == "stand-in too":
            raise RuntimeError("no engine for this graph")
        return compile_program(program, *_)

    from jaxresearch.execution import executables

    compile_program = executables.compile_program
    monkeypatch.setattr(executables, "compile_program", refused)
    monkeypatch.setattr(fused, "_disagreement", lambda *_: "")
    word, _ = results(stored, Kernel("stand-in too", windowed))
    assert word == "xla (stand-in too does not compile: RuntimeError: no engine for this graph)"


def test_a_program_that_does_not_compile_without_a_kernel_says_so(stored, monkeypatch):
    def refused(*_):
        raise RuntimeError("no")

    monkeypatch.setattr("jaxresearch.execution.executables.compile_program", refused)
    with pytest.raises(RuntimeError, match="no"):
        results(stored, None)

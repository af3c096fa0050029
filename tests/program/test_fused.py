"""Kernels in the place of marked attention: put in where they may, kept out where they may not.

There is no GPU here: `jax.nn.dot_product_attention`'s plain implementation stands in for cuDNN's, and is used the same way.
"""

from __future__ import annotations

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxresearch.program import fused, stablehlo
from jaxresearch.program.fused import CUDNN, Kernel, choose_kernel, is_ours, settle_attention
from jaxresearch.program.marks import find_marks, take_out_marks
from models import kernels
from tests.program.modules import module
from tests.program.test_marks import inputs_of, marked, run, step_of


def windowed(q, k, v, window):
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=True, local_window_size=(window - 1, 0), implementation="xla"
    )


STAND_IN = Kernel("stand-in", windowed)
Q = jax.ShapeDtypeStruct((2, 48, 4, 8), jnp.float32)


def attention_step(window=20, attention=kernels.attention) -> stablehlo.Module:
    """Forward and gradients of two query heads for each key/value head."""
    return module(step_of(attention, window), *inputs_of(jnp.float32))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("T", "window", "H", "G"), [(24, 24, 2, 2), (200, 100, 4, 2), (300, 300, 2, 1), (7, 1, 1, 1)])
def test_the_laboratory_knows_the_subjects_attention(platform, dtype, T, window, H, G):
    """`reference.py` is what `models/kernels.py` lowers to; edit one and this says to edit the other."""
    q, k = (jax.ShapeDtypeStruct((2, T, heads, 8), dtype) for heads in (H, G))
    lowered = export.export(jax.jit(step_of(kernels.attention, window)), platforms=[platform])(q, k, k)
    marks = find_marks(stablehlo.parse(bytes(lowered.mlir_module_serialized)))
    assert len(marks) == 2
    assert all(is_ours(mark, platform) for mark in marks)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("window", "G"), [(20, 4), (20, 1), (48, 2), (1000, 2)])
def test_a_kernel_is_put_in_and_agrees_forward_and_backward(dtype, window, G):
    inputs = inputs_of(dtype, G=G)
    step = module(step_of(kernels.attention, window), *inputs)
    (swapped,), word = settle_attention([step], STAND_IN, "cpu")
    assert word == "stand-in"
    assert swapped.text != take_out_marks(step).text
    wanted, _ = run(take_out_marks(step), *inputs)
    for a, b in zip(run(swapped, *inputs)[0], wanted, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)) <= (0.02 if dtype == jnp.bfloat16 else 1e-5)


def test_what_was_put_in_is_what_runs(monkeypatch):
    """A kernel of twice the attention, its check switched off: the result is twice as large."""
    monkeypatch.setattr(fused, "_disagreement", lambda *_: "")
    forward = module(lambda q: [kernels.attention(q, q, q, 20)], Q)
    (swapped,), _ = settle_attention([forward], Kernel("double", lambda *a: 2 * windowed(*a)), "cpu")
    q = jax.random.normal(jax.random.key(0), Q.shape)
    np.testing.assert_allclose(run(swapped, q)[0][0], 2 * run(take_out_marks(forward), q)[0][0], rtol=1e-4, atol=1e-5)


def raises(*_):
    raise NotImplementedError("head size 8 is not supported")


def forgets_its_gradient(q, k, v, window):
    return windowed(q, jax.lax.stop_gradient(k), v, window)


@jax.custom_vjp
def gives_no_value_gradient(y, v):
    return y


gives_no_value_gradient.defvjp(lambda y, v: (y, v), lambda v, dy: (dy, jnp.full_like(v, jnp.nan)))
"""Right but for the last of its gradients, which is not a number."""


@pytest.mark.parametrize(
    ("attend", "reason"),
    [
        (lambda q, k, v, window: windowed(q, k, v, window - 1), "differs from plain attention by"),
        (lambda q, k, v, window: windowed(q, k, v, window) * 1.001, "differs from plain attention by"),
        (lambda q, k, v, window: windowed(q, k, v, window) * jnp.nan, "differs from plain attention by nan"),
        (lambda q, k, v, window: gives_no_value_gradient(windowed(q, k, v, window), v), "attention by nan"),
        (lambda q, k, v, window: windowed(q, k, v, window).at[1, 30].multiply(1.01), "differs from plain attention"),
        (lambda q, k, v, window: jax.nn.dot_product_attention(q, k, v), "differs from plain attention by"),
        (forgets_its_gradient, "differs from plain attention by"),
        (lambda q, k, v, window: windowed(q, k, v, window)[:, :-1], "wrong gives (2, 47, 4, 8), not (2, 48, 4, 8)"),
        (raises, "NotImplementedError: head size 8 is not supported"),
    ],
)
def test_a_wrong_or_missing_kernel_leaves_the_program_as_it_is(attend, reason):
    step = attention_step()
    (settled,), word = settle_attention([step], Kernel("wrong", attend), "cpu")
    assert word.startswith("xla (")
    assert reason in word
    assert settled.text == take_out_marks(step).text


def forged(q, k, v, dy=None, *, window):
    """Ours, but for a factor that the candidate would like to be free of."""
    return kernels.chunked_attention(q, k, v, window) * 1.5


@pytest.mark.parametrize(
    "body",
    [
        forged,
        lambda q, k, v, *, window: kernels.chunked_attention(q, k, v, window + 1),
        lambda q, k, v, *, window: kernels.chunked_attention(q, v, k, window),
        lambda q, k, v, *, window: kernels.chunked_attention(q, k, k, window),
        lambda q, k, v, *, window: q,
    ],
)
def test_a_forged_mark_runs_as_it_is_written(body):
    """A composite under our name with our attributes whose decomposition is something else."""
    mark = jax.lax.composite(body, name="jaxresearch.causal_attention")
    program = module(lambda q: [mark(q, q, 2 * q, window=20)], Q)
    (settled,), word = settle_attention([program], STAND_IN, "cpu")
    assert word == "xla (the program holds no attention that the laboratory knows)"
    q = jax.random.normal(jax.random.key(0), Q.shape)
    np.testing.assert_allclose(run(settled, q)[0][0], body(q, q, 2 * q, window=20), rtol=1e-4, atol=1e-5)


def test_marks_that_no_attention_could_have_are_not_ours():
    q = jnp.ones((2, 8, 4, 8))
    for name, arguments, attributes in (
        ("jaxresearch.causal_attention", (q, q[:, :4], q), {"window": 4}),
        ("jaxresearch.causal_attention", (q[0], q[0], q[0]), {"window": 4}),
        ("jaxresearch.causal_attention", (q, q, q), {"window": -4}),
        ("jaxresearch.causal_attention", (q, q, q), {"window": 4.0}),
        ("jaxresearch.causal_attention", (q, q, q), {}),
        ("jaxresearch.causal_attention_gradient", (q, q, q), {"window": 4}),
        ("jaxresearch.else", (q, q, q), {"window": 4}),
    ):
        mark = jax.lax.composite(lambda *a, **_: a[0] * 1.0, name=name)
        (found,) = find_marks(module(lambda *a, mark=mark, attributes=attributes: [mark(*a, **attributes)], *arguments))
        assert not is_ours(found, "cpu"), (name, attributes)


def test_one_attention_of_two_is_ours():
    other = marked(lambda q: q * 2.0)
    program = module(lambda q: [kernels.attention(other(q), q, q, 20)], Q)
    (settled,), word = settle_attention([program], STAND_IN, "cpu")
    assert word == "stand-in, and xla for attention that the laboratory does not know"
    assert settled.text != take_out_marks(program).text


def test_a_candidates_functions_may_be_called_as_a_kernels_would_be():
    program = module(lambda q: [kernels.attention(q, q, q, 20)], Q)
    renamed = program.text.replace("@jaxresearch.causal_attention", "@kernel0.main")
    with program.context:
        written = stablehlo.Module(type(program.handle).parse(renamed), program.context)
    (settled,), word = settle_attention([written], STAND_IN, "cpu")
    assert word == "stand-in"
    q = jax.random.normal(jax.random.key(0), Q.shape)
    np.testing.assert_allclose(run(settled, q)[0][0], windowed(q, q, q, 20), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "kernel", "word"),
    [
        (("auto", "cuda", 1), CUDNN, ""),
        (("xla", "cuda", 1), None, "xla (execution.attention=xla)"),
        (("auto", "cuda", 8), None, "xla (the run is spread over 8 devices)"),
        (("auto", "cpu", 1), None, "xla"),
        (("auto", "tpu", 1), None, "xla"),
    ],
)
def test_the_kernel_is_chosen_by_platform_setting_and_devices(arguments, kernel, word):
    assert choose_kernel(*arguments) == (kernel, word)


def test_without_a_gpu_cudnn_is_declined_with_its_own_reason():
    (settled,), word = settle_attention([attention_step()], CUDNN, "cuda")
    assert word.startswith("xla (RuntimeError: cuDNN")
    assert "custom_call" not in settled.text


@pytest.mark.parametrize("window", [64, 256])
def test_a_training_step_for_cuda_calls_cudnn_once_in_each_direction(monkeypatch, window):
    """Lowered without a GPU: JAX's questions for the versions of device and library are answered for it, nothing else."""
    probes = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(probes, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(probes, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(fused, "_disagreement", lambda *_: "")
    q = jax.ShapeDtypeStruct((2, 256, 4, 64), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((2, 256, 2, 64), jnp.bfloat16)
    lowered = export.export(jax.jit(step_of(partial(kernels.attention), window)), platforms=["cuda"])(q, k, k)
    program = stablehlo.parse(bytes(lowered.mlir_module_serialized))
    fused._lowered.cache_clear()
    (swapped,), word = settle_attention([program], CUDNN, "cuda")
    fused._lowered.cache_clear()
    assert word == "cudnn"
    assert swapped.text.count("@__cudnn$fmhaSoftmax(") == 1
    assert swapped.text.count("@__cudnn$fmhaSoftmaxBackward(") == 1
    assert "composite" not in swapped.text
    assert f"sliding_window_length\\22: {window if window < 256 else 0}" in swapped.text
    assert stablehlo.to_exported(swapped, "cuda").platforms == ("cuda",)

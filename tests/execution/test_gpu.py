"""On an NVIDIA GPU: cuDNN's attention in the place of ours, and a whole run. `JAX_PLATFORMS=cuda python -m pytest`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxresearch.experiment import CompletedRun
from jaxresearch.program import stablehlo
from jaxresearch.program.fused import CUDNN, settle_attention
from jaxresearch.program.marks import take_out_marks
from models import kernels
from tests.laboratory import BASELINE, TINY
from tests.program.test_marks import step_of

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="there is no NVIDIA GPU, or JAX_PLATFORMS hides it"
)


def attention_step(dtype: str, T: int, window: int, heads: int, kv_heads: int, head_size: int):
    keys = jax.random.split(jax.random.key(T), 3)
    shapes = [(2, T, each, head_size) for each in (heads, kv_heads, kv_heads)]
    inputs = [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]
    exported = export.export(jax.jit(step_of(kernels.attention, window)), platforms=["cuda"])(*inputs)
    return stablehlo.parse(bytes(exported.mlir_module_serialized)), inputs


@pytest.mark.parametrize(
    ("T", "window", "heads", "kv_heads", "head_size"),
    [(256, 256, 2, 2, 64), (1024, 512, 4, 1, 64), (2048, 2048, 4, 4, 128), (2048, 256, 4, 2, 128)],
)
def test_cudnn_agrees_with_our_attention_forward_and_backward(T, window, heads, kv_heads, head_size):
    step, inputs = attention_step("bfloat16", T, window, heads, kv_heads, head_size)
    (swapped,), word = settle_attention([step], CUDNN, "cuda")
    assert word == "cudnn"
    assert "__cudnn$fmha" in swapped.text
    found, wanted = (
        jax.jit(stablehlo.to_exported(module, "cuda").call)(*inputs) for module in (swapped, take_out_marks(step))
    )
    for a, b in zip(found, wanted, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)) < 0.02


def test_what_cudnn_does_not_support_runs_as_the_program_says():
    step, _ = attention_step("float32", 256, 256, 2, 2, 64)
    (settled,), word = settle_attention([step], CUDNN, "cuda")
    assert word.startswith("xla (")
    assert settled.text == take_out_marks(step).text


def test_a_run_is_trained_scored_and_audited_on_the_gpu(make_laboratory):
    shape = {**TINY, "width": 128, "head_size": 64, "dtype": "bfloat16"}
    candidate = type(BASELINE)(files=BASELINE.files, config=shape)
    runs = {}
    for attention in ("auto", "xla"):
        laboratory = make_laboratory(context=128, execution={"attention": attention})
        runs[attention] = laboratory.run(laboratory.traced(candidate), budget="20steps")
        assert isinstance(runs[attention], CompletedRun), runs[attention]
        assert all(audit.passed for audit in runs[attention].audits)
    assert runs["auto"].attention == "cudnn"
    assert runs["xla"].attention.startswith("xla")
    assert runs["auto"].device == jax.devices()[0].device_kind
    assert runs["auto"].val_bpb == pytest.approx(runs["xla"].val_bpb, abs=0.02)
    assert jnp.isfinite(runs["auto"].val_bpb)

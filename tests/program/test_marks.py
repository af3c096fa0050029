"""Marks taken out of a module: what is left computes the same, once, and is counted as it runs."""

from __future__ import annotations

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxresearch.program import marks, stablehlo
from jaxresearch.program.flops import count_flops
from jaxresearch.program.marks import find_marks, take_out_marks
from models import kernels
from tests.program.modules import module

MATRIX = jax.ShapeDtypeStruct((16, 16), jnp.float32)
MATMUL = 2 * 16**3


def marked(function, name="jaxresearch.causal_attention"):
    return jax.lax.composite(function, name=name)


def step_of(attention, window):
    """Loss and gradients, as a training step has them."""

    def loss(q, k, v):
        return jnp.square(attention(q, k, v, window).astype(jnp.float32)).sum()

    return lambda *qkv: jax.tree.leaves(jax.value_and_grad(loss, argnums=(0, 1, 2))(*qkv))


def run(found: stablehlo.Module, *inputs) -> tuple[list, Counter]:
    """Results, and the operations of the optimised program by name."""
    compiled = jax.jit(stablehlo.to_exported(found, "cpu").call).lower(*inputs).compile()
    return compiled(*inputs), Counter(re.findall(r"= \S+ ([a-z-]+)\(", compiled.as_text()))


def inputs_of(dtype, T=48, H=4, G=2, K=8):
    keys = jax.random.split(jax.random.key(T), 3)
    return [jax.random.normal(key, (2, T, heads, K), dtype) for key, heads in zip(keys, (H, G, G), strict=True)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("window", [20, 48])
def test_marked_attention_is_neither_more_work_nor_another_result(monkeypatch, dtype, window):
    """Against plain chunked attention under jax.grad: the same FLOPs, no more operations compiled, equal results."""
    monkeypatch.setattr(kernels, "CHUNK", 16)
    inputs = inputs_of(dtype)
    with_marks = module(step_of(kernels.attention, window), *inputs)
    plain = module(step_of(kernels.chunked_attention, window), *inputs)
    without = take_out_marks(with_marks)
    assert len(find_marks(with_marks)) == 2
    assert find_marks(without) == []
    assert count_flops(without) == count_flops(plain) < count_flops(with_marks)
    (found, operations), (wanted, plain_operations) = run(without, *inputs), run(plain, *inputs)
    assert operations["dot"] == plain_operations["dot"]
    assert operations.total() <= plain_operations.total()
    for a, b in zip(found, wanted, strict=True):
        assert np.abs(a - b).max() <= (0.02 if dtype == jnp.bfloat16 else 2e-5) * np.abs(b).max()


def test_flops_of_attention_know_the_window():
    """4 K for each pair of a query and a key that it meets, twice that again for the gradients, plus the softmax."""
    q = jax.ShapeDtypeStruct((1, 512, 1, 128), jnp.float32)
    for window, pairs in ((1, 512 * 128), (128, 512 * 128 + 3 * 128 * 127), (512, 128**2 * (1 + 2 + 3 + 4))):
        counted = count_flops(take_out_marks(module(step_of(kernels.attention, window), q, q, q)))
        assert counted == pytest.approx(3 * 4 * 128 * pairs, rel=0.06)


def test_a_mark_is_charged_with_what_it_holds():
    """A candidate that puts our name on its own work pays for all of it."""

    def ten(x):
        for _ in range(10):
            x = x @ x
        return x

    heavy = marked(ten)
    assert count_flops(take_out_marks(module(lambda x: [heavy(x)], MATRIX))) == 10 * MATMUL
    assert count_flops(take_out_marks(module(lambda x: [heavy(x) + heavy(x + 1)], MATRIX))) > 20 * MATMUL


def test_marks_inside_loops_calls_and_marks_are_found_and_taken_out():
    inner = marked(lambda x: x @ x, "jaxresearch.inner")
    outer = marked(lambda x: inner(x) + jnp.where(x > 0, x, inner(x)), "jaxresearch.outer")

    @jax.jit
    def called(x):
        return outer(x)

    found = module(lambda x: [jax.lax.scan(lambda c, _: (called(c), None), x, None, length=3)[0]], MATRIX)
    without = take_out_marks(found)
    assert {mark.name for mark in find_marks(found)} == {"jaxresearch.inner", "jaxresearch.outer"}
    assert "composite" not in without.text
    x = jax.random.normal(jax.random.key(0), MATRIX.shape) / 8
    np.testing.assert_allclose(run(without, x)[0][0], run(found, x)[0][0], rtol=1e-5)


def test_a_module_without_composites_stays_as_it_is():
    plain = module(lambda x: [x @ x + x @ x], MATRIX)
    assert take_out_marks(plain) is plain
    chlo = module(lambda x: [jax.lax.composite(jnp.asin, "chlo.asin")(x)], MATRIX)  # some jax writes it so by itself
    assert "stablehlo.composite" in chlo.text
    assert "stablehlo.composite" not in take_out_marks(chlo).text  # XLA would go by its name


def test_equal_marks_are_equal_whatever_else_the_program_calls():
    def decoy(x):
        return jnp.where(x > 1, x, 2.0) + jnp.where(x[:4] > 1, x[:4], 2.0).sum()

    attention = functools.partial(kernels.attention, window=5)
    q = jax.ShapeDtypeStruct((1, 8, 2, 4), jnp.float32)
    alone = find_marks(module(lambda q: [attention(q, q, q)], q))
    beside = find_marks(module(lambda q: [attention(*[jax.vmap(jax.vmap(decoy))(q)] * 3)], q))
    assert alone == beside
    assert alone != find_marks(module(lambda q: [kernels.attention(q, q, q, 6)], q))


def test_marks_that_hold_too_much_are_refused(monkeypatch):
    monkeypatch.setattr(marks, "_MAX_INLINED", 20)
    mark = marked(lambda x: x @ x + 1)
    take_out_marks(module(lambda x: [mark(mark(x))], MATRIX))

    def many(x):
        for _ in range(20):
            x = mark(x)
        return [x]

    with pytest.raises(stablehlo.UnreadableModuleError, match="marks hold more than 20"):
        take_out_marks(module(many, MATRIX))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_the_subjects_attention_is_marked_on_every_platform(platform):
    q = jax.ShapeDtypeStruct((1, 8, 2, 4), jnp.bfloat16)
    lowered = export.export(jax.jit(step_of(kernels.attention, 4)), platforms=[platform])(q, q, q)
    found = find_marks(stablehlo.parse(bytes(lowered.mlir_module_serialized)))
    assert [mark.name.removeprefix("jaxresearch.") for mark in found] == [
        "causal_attention",
        "causal_attention_gradient",
    ]

"""Attention against the plain formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import kernels


def plain_attention(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, window):
    T, H, K = q_BxTxHxK.shape[1:]
    repeats = H // k_BxTxGxK.shape[2]
    k_BxTxHxK, v_BxTxHxK = (jnp.repeat(x, repeats, axis=2) for x in (k_BxTxGxK, v_BxTxGxK))
    scores_BxHxTxS = jnp.einsum("bthk,bshk->bhts", q_BxTxHxK, k_BxTxHxK) / np.sqrt(K)
    distance_TxS = np.arange(T)[:, None] - np.arange(T)[None, :]
    visible_TxS = (distance_TxS >= 0) & (distance_TxS < window)
    weights_BxHxTxS = jax.nn.softmax(jnp.where(visible_TxS, scores_BxHxTxS, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", weights_BxHxTxS, v_BxTxHxK)


@pytest.mark.parametrize(
    ("T", "window", "G"), [(5, 5, 4), (16, 3, 2), (16, 1, 4), (20, 8, 1), (20, 20, 2), (20, 64, 4)]
)
def test_equals_the_plain_formula_with_gradients(monkeypatch, T, window, G):
    monkeypatch.setattr(kernels, "CHUNK", 8)
    keys = jax.random.split(jax.random.key(T * window), 4)
    q, k, v = (jax.random.normal(key, (2, T, heads, 6)) for key, heads in zip(keys, (4, G, G), strict=False))
    weight = jax.random.normal(keys[3], q.shape)

    @functools.partial(jax.jit, static_argnums=0)
    def output_and_gradients(attention, *qkv):
        y, pull = jax.vjp(lambda q, k, v: attention(q, k, v, window), *qkv)
        return y, pull(weight)

    ours, plain = (output_and_gradients(attention, q, k, v) for attention in (kernels.attention, plain_attention))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, plain)


def test_large_scores_stay_finite():
    q = jnp.full((1, 4, 1, 2), 1e4)
    assert jnp.isfinite(kernels.attention(q, q, q, 4)).all()
    assert kernels.attention(*(q.astype(jnp.bfloat16),) * 3, 4).dtype == jnp.bfloat16

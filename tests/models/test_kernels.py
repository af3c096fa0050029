"""Attention and loss against the plain formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rotate_and_norm_equals_rotation_then_norm_with_its_gradient(dtype):
    keys = jax.random.split(jax.random.key(5), 2)
    x_BxTxHxK = (3 * jax.random.normal(keys[0], (2, 7, 3, 8))).at[0, 0, 0].set(0).astype(dtype)
    weight = jax.random.normal(keys[1], x_BxTxHxK.shape).astype(dtype)
    angle_Tx1xP = jnp.arange(7.0)[:, None, None] * jnp.array([1.0, 0.3, 0.1, 0.01])

    def complex_rotation_then_norm(x_BxTxHxK):
        """The pair (i, i + P) as one complex number, times e^(-i angle)."""
        x_f32 = x_BxTxHxK.astype(jnp.float32)
        z_BxTxHxP = jax.lax.complex(x_f32[..., :4], x_f32[..., 4:]) * jnp.exp(-1j * angle_Tx1xP)
        turned_BxTxHxK = jnp.concatenate([z_BxTxHxP.real, z_BxTxHxP.imag], axis=-1)
        return turned_BxTxHxK / jnp.sqrt(jnp.mean(turned_BxTxHxK**2, axis=-1, keepdims=True) + 1e-6)

    y, pull = jax.vjp(lambda x: kernels.rotate_and_norm(x, jnp.cos(angle_Tx1xP), jnp.sin(angle_Tx1xP)), x_BxTxHxK)
    wanted, pull_wanted = jax.vjp(complex_rotation_then_norm, x_BxTxHxK.astype(jnp.float32))
    (dx,), (dx_wanted,) = pull(weight), pull_wanted(weight.astype(jnp.float32))
    assert y.dtype == dx.dtype == dtype
    rounding = 2e-2 if dtype == jnp.bfloat16 else 2e-6
    np.testing.assert_allclose(y.astype(jnp.float32), wanted, atol=rounding)
    ordinary, zero = (
        (slice(1, None),),
        (0, 0, 0),
    )  # where x is 0, only its tiny constant keeps the norm's gradient finite
    np.testing.assert_allclose(dx[ordinary].astype(jnp.float32), dx_wanted[ordinary], rtol=rounding, atol=rounding)
    np.testing.assert_allclose(dx[zero].astype(jnp.float32), dx_wanted[zero], rtol=rounding)


@pytest.mark.parametrize(
    "cap", [lambda raw: 5 * jnp.tanh(raw.astype(jnp.float32) / 5), lambda raw: raw.astype(jnp.float32)]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_loss_equals_optaxs_with_its_gradient(cap, dtype):
    keys = jax.random.split(jax.random.key(3), 3)
    raw_BxTxV = (8 * jax.random.normal(keys[0], (2, 6, 40))).astype(dtype)
    targets_BxT = jax.random.randint(keys[1], (2, 6), 0, 40)
    weight_BxT = jax.random.normal(keys[2], (2, 6))

    def optaxs(raw_BxTxV, targets_BxT, cap):
        return optax.softmax_cross_entropy_with_integer_labels(cap(raw_BxTxV), targets_BxT)

    @functools.partial(jax.jit, static_argnums=0)
    def losses_and_gradient(loss, raw_BxTxV):
        losses_BxT, pull = jax.vjp(lambda raw: loss(raw, targets_BxT, cap), raw_BxTxV)
        return losses_BxT, pull(weight_BxT)[0]

    ours, wanted = (losses_and_gradient(loss, raw_BxTxV) for loss in (kernels.cross_entropy, optaxs))
    assert ours[1].dtype == dtype
    rounding = 1e-2 if dtype == jnp.bfloat16 else 1e-6
    np.testing.assert_allclose(ours[0], wanted[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(*(x[1].astype(jnp.float32) for x in (ours, wanted)), rtol=rounding, atol=rounding)


def test_the_loss_of_large_scores_is_finite():
    raw_BxTxV = jnp.array([[[1e4, -1e4, 0.0]]])
    losses_BxT, pull = jax.vjp(lambda raw: kernels.cross_entropy(raw, jnp.array([[1]]), lambda x: x), raw_BxTxV)
    assert losses_BxT.tolist() == [[2e4]]
    assert pull(jnp.ones((1, 1)))[0].tolist() == [[[1.0, -1.0, 0.0]]]

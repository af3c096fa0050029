"""Muon, NorMuon, cautious decay, and the schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import optimizer as optimizers
from models.recipe import hyperparameters


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16)])
def test_polar_express_brings_singular_values_near_one(shape):
    x_NxIxO = jax.random.normal(jax.random.key(0), (3, *shape))
    singular = jnp.linalg.svd(optimizers.polar_express(x_NxIxO), compute_uv=False)
    assert 0.6 < singular.min() < singular.max() < 1.3


def test_stacking_changes_nothing():
    keys = jax.random.split(jax.random.key(1), 3)
    tree = {"a": jax.random.normal(keys[0], (8, 8)), "b": jax.random.normal(keys[1], (8, 16))}
    tree["c"] = jax.random.normal(keys[2], (8, 8))
    together = optimizers.orthogonalize(tree, "float32")
    for name, matrix in tree.items():
        alone = optimizers.polar_express(matrix[None])[0]
        np.testing.assert_allclose(together[name], alone, atol=1e-5)


def test_a_zero_gradient_gives_a_zero_update():
    zero = {"a": jnp.zeros((4, 8))}
    muon = optimizers.muon(0.1, 0.9, 0.0, hyperparameters({}))
    update, _ = muon.update(zero, muon.init(zero), zero)
    np.testing.assert_array_equal(update["a"], 0.0)


@pytest.mark.parametrize(("shape", "state"), [((4, 8), (1, 8)), ((8, 4), (8, 1)), ((6, 6), (1, 6))])
def test_normuon_evens_the_longer_side_and_keeps_the_norm(shape, state):
    update = {"a": jax.random.normal(jax.random.key(2), shape) * jnp.linspace(0.1, 3, max(shape)).reshape(state)}
    normuon = optimizers.normuon(0.0)
    evened, second_moment = normuon.update(update, normuon.init(update), update)
    assert second_moment["a"].shape == state
    sizes = jnp.linalg.norm(evened["a"], axis=state.index(1))
    np.testing.assert_allclose(sizes, sizes[0], rtol=1e-4)
    np.testing.assert_allclose(jnp.linalg.norm(evened["a"]), jnp.linalg.norm(update["a"]), rtol=1e-5)


def test_decay_only_where_update_and_weight_agree():
    decay = optimizers.cautious_weight_decay(0.5)
    update, weight = jnp.array([[1.0, -1.0, 1.0, -1.0]]), jnp.array([[2.0, 2.0, -2.0, -2.0]])
    decayed, _ = decay.update(update, decay.init(weight), weight)
    np.testing.assert_array_equal(decayed, [[2.0, -1.0, 1.0, -2.0]])


def test_nesterov_mixes_twice():
    nesterov = optimizers.nesterov(0.75)
    update, average = nesterov.update(jnp.float32(8), jnp.float32(0))
    assert (average, update) == (2.0, 0.75 * 2 + 0.25 * 8)


def test_schedules():
    h = hyperparameters({"warmup": 0.1, "warmdown": 0.4, "final_lr_fraction": 0.1, "momentum_warmup": 0.5})
    scale = [optimizers.learning_rate_scale(jnp.float32(p), h) for p in (0.0, 0.05, 0.1, 0.6, 0.8, 1.0)]
    np.testing.assert_allclose(scale, [0.0, 0.5, 1.0, 1.0, 0.55, 0.1], atol=1e-6)
    momentum = [optimizers.momentum_at(jnp.float32(p), h) for p in (0.0, 0.25, 0.5, 1.0)]
    np.testing.assert_allclose(momentum, [0.85, 0.9, 0.95, 0.95], atol=1e-6)
    assert optimizers.weight_decay_at(0.5, h) == pytest.approx(0.1)
    edge = hyperparameters({"warmup": 0, "warmdown": 0})
    np.testing.assert_array_equal([optimizers.learning_rate_scale(jnp.float32(p), edge) for p in (0, 1)], 1.0)


def test_parameters_that_an_edit_adds_find_a_group():
    params = {"blocks": {0: {"new_matrix": jnp.ones((4, 4)), "new_gain": jnp.ones(4), "x0_lambda": jnp.ones(())}}}
    tx = optimizers.optimizer(hyperparameters({}), jnp.float32(0.5))
    update, _ = tx.update(params, tx.init(params), params)
    assert jax.tree.all(jax.tree.map(lambda u: bool(jnp.isfinite(u).all() and (u != 0).all()), update))

"""The contract with the laboratory: hyperparameters, init, train_step, logits; and that each works as it says."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from models import recipe

TINY = {
    "vocab_size": 48, "context": 16, "depth": 3, "width": 16, "head_size": 8, "batch": 4, "mlp_ratio": 2,
    "window_pattern": "SL", "short_window": 0.25,
}  # fmt: skip
FIELDS = {field.name: field for field in dataclasses.fields(recipe.Hyperparameters)}
TRACED = [name for name, field in FIELDS.items() if field.metadata["traced"]]


def traced_of(h):
    return {name: jnp.float32(getattr(h, name)) for name in TRACED}


@functools.cache
def tiny(**changes):
    """(traced, init, train_step, logits) of the tiny model, compiled; train_step takes traced values last."""
    h = recipe.hyperparameters(TINY | changes)
    built = recipe.build(h)
    return traced_of(h), jax.jit(built.init), jax.jit(built.train_step), jax.jit(built.logits)


def rows(seed=0, count=4, T=17):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 48, (count, T)), jnp.int32)


@functools.cache
def trained(seed=3, steps=4):
    """A state in which every parameter has moved."""
    traced, init, step, _ = tiny()
    state = init(jnp.uint32(seed), traced)
    for number in range(steps):
        state, _ = step(state, rows(number), jnp.float32(number / steps), traced)
    return state


def test_loss_at_init_is_that_of_a_uniform_guess():
    traced, init, step, logits = tiny()
    state = init(jnp.uint32(0), traced)
    _, metrics = step(state, rows(), jnp.float32(0), traced)
    assert abs(metrics["loss"] - math.log(48)) < 0.01
    assert logits(state, rows(T=16)).shape == (4, 16, 48)


def test_learns_a_repeating_pattern():
    traced, init, step, _ = tiny()
    state, tokens = init(jnp.uint32(0), traced), jnp.tile(jnp.arange(4), (4, 5))[:, :17]
    for number in range(30):
        state, metrics = step(state, tokens, jnp.float32(number / 30), traced)
    assert metrics["loss"] < 0.5


def test_later_tokens_leave_earlier_logits_alone():
    tokens, logits = rows(T=16), tiny()[3]
    before = logits(trained(), tokens)
    for cut in (1, 7, 15):
        after = logits(trained(), tokens.at[:, cut:].set((tokens[:, cut:] + 1) % 48))
        np.testing.assert_array_equal(after[:, :cut], before[:, :cut])
        assert (after[:, cut:] != before[:, cut:]).any()


def test_rows_do_not_see_each_other():
    tokens, logits = rows(T=16), tiny()[3]
    before, after = logits(trained(), tokens), logits(trained(), tokens.at[1:].set(7))
    np.testing.assert_array_equal(after[0], before[0])


def test_windows_and_pattern():
    from models.gpt import attention_window

    h = recipe.hyperparameters({"depth": 6, "window_pattern": "SSL", "short_window": 0.25, "context": 64})
    assert [attention_window(h, layer) for layer in range(6)] == [16, 16, 64, 16, 16, 64]
    h = recipe.hyperparameters({"depth": 2, "window_pattern": "S", "context": 64})
    assert [attention_window(h, layer) for layer in range(2)] == [32, 64]


def test_same_seed_same_bits_and_other_seed_other_bits():
    same = jax.tree.map(lambda a, b: bool((a == b).all()), trained(), trained.__wrapped__())
    assert jax.tree.all(same)
    other = trained(seed=4)["params"]
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (trained()["params"], other)), strict=True))


def test_seed_moves_every_random_parameter():
    traced, init, _, _ = tiny()
    one, two = (init(jnp.uint32(seed), traced)["params"] for seed in (0, 2**32 - 1))
    drawn = [bool((a != b).any()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True) if a.any()]
    assert sum(drawn) == 2 + 3 * 4 + 2  # embedding, head; q k v inward of 3 blocks; two value embeddings


def test_first_step_hardly_moves_the_residual_scalars():
    traced, init, step, _ = tiny()
    before = init(jnp.uint32(0), traced)
    after, _ = step(before, rows(), jnp.float32(0), traced)
    for name in ("resid_lambda", "x0_lambda"):
        for layer in range(3):
            moved = after["params"]["blocks"][layer][name] - before["params"]["blocks"][layer][name]
            assert abs(moved) < 0.001


@pytest.mark.parametrize(
    ("bounds", "batch", "context", "width", "rows_of_a_pass"),
    [
        ({}, 256, 2048, 512, 256),
        ({"microbatch": 64}, 256, 2048, 512, 64),  # configs/gpu.yaml
        ({"microbatch": 64}, 32, 2048, 512, 32),  # no more than there are
        ({"microbatch": 5}, 16, 16, 16, 4),  # a divisor
        ({"pass_size": 2**18}, 8, 256, 128, 8),  # configs/cpu.yaml: all at once
        ({"pass_size": 2**18}, 16, 256, 256, 4),
        ({"pass_size": 2**18}, 6, 256, 384, 2),
        ({"pass_size": 2**18}, 4, 65536, 512, 1),  # one row at least
        ({"pass_size": 2**18, "microbatch": 2}, 16, 256, 256, 2),
        ({"pass_size": 2**18, "microbatch": 8}, 16, 256, 256, 4),
    ],
)
def test_a_pass_takes_the_most_rows_within_both_bounds(bounds, batch, context, width, rows_of_a_pass):
    h = recipe.hyperparameters(bounds | {"width": width, "head_size": 16})
    assert recipe.rows_at_a_time(batch, context, h) == rows_of_a_pass


@pytest.mark.parametrize("bound", [{"microbatch": 2}, {"pass_size": 2 * TINY["context"] * TINY["width"]}])
def test_microbatches_equal_the_whole_batch(bound):
    traced, init, step, _ = tiny()
    parts = tiny(**bound)[2]
    state = init(jnp.uint32(0), traced)
    assert "length=2" in str(jax.make_jaxpr(parts)(state, rows(), jnp.float32(0), traced))  # a loop over pairs of rows
    (whole, loss), (split, split_loss) = (
        step(state, rows(), jnp.float32(0), traced),
        parts(state, rows(), jnp.float32(0), traced),
    )
    np.testing.assert_allclose(loss["loss"], split_loss["loss"], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), whole["params"], split["params"])
    with pytest.raises(AssertionError):
        jax.tree.map(np.testing.assert_array_equal, whole["params"], init(jnp.uint32(0), traced)["params"])


@pytest.mark.parametrize(
    "changes",
    [{"queries_per_kv": 2, "dtype": "bfloat16"}, {"value_embeddings": False, "depth": 1, "window_pattern": "L"}],
)
def test_other_shapes_train(changes):
    h = recipe.hyperparameters(TINY | changes)
    built, traced = recipe.build(h), traced_of(h)
    state = jax.jit(built.init)(jnp.uint32(0), traced)
    after, metrics = jax.jit(built.train_step)(state, rows(), jnp.float32(0.1), traced)
    assert math.isfinite(metrics["loss"])
    assert metrics["loss"].dtype == jnp.float32
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)


@functools.cache
def two_steps(**changes):
    """Parameters after a warm step and one at 0.25 with a warm-up that is not over and one at 0.9, in the decay."""
    traced, init, step, _ = tiny()
    values = traced | {"warmup": jnp.float32(0.5)} | {name: jnp.float32(value) for name, value in changes.items()}
    state = init(jnp.uint32(0), values)
    for number, progress in enumerate((0.25, 0.9)):
        state, _ = step(state, rows(number), jnp.float32(progress), values)
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(state["params"])])


@pytest.mark.parametrize("name", TRACED)
def test_every_traced_hyperparameter_changes_the_step(name):
    low, high = FIELDS[name].metadata["low"], FIELDS[name].metadata["high"]
    assert (two_steps(**{name: low}) != two_steps(**{name: high})).any()


STATIC = {
    "vocab_size": 50, "context": 32, "depth": 2, "width": 32, "head_size": 4, "queries_per_kv": 2, "mlp_ratio": 3,
    "value_embeddings": False, "window_pattern": "L", "short_window": 0.5, "batch": 8, "microbatch": 2, "pass_size": 512,
    "dtype": "bfloat16",
}  # fmt: skip


def step_text(changes, platform="cpu"):
    """StableHLO of train_step, without source locations."""
    h = recipe.hyperparameters(TINY | changes)
    built = recipe.build(h)
    ((_, batch, T),) = built.phases
    traced, f32 = jax.eval_shape(lambda: traced_of(h)), jax.ShapeDtypeStruct((), jnp.float32)
    state = jax.eval_shape(built.init, jax.ShapeDtypeStruct((), jnp.uint32), traced)
    tokens = jax.ShapeDtypeStruct((batch, T + 1), jnp.int32)
    exported = export.export(jax.jit(built.train_step), platforms=[platform])(state, tokens, f32, traced)
    return re.sub(r"^#loc.*\n| loc\(.*\)$| loc\(.*?#loc\d*\)+", "", exported.mlir_module(), flags=re.MULTILINE)


@functools.cache
def tiny_text():
    return step_text({})


def test_every_static_hyperparameter_changes_the_program():
    assert set(STATIC) | set(TRACED) == set(FIELDS)
    for name, value in STATIC.items():
        assert step_text({name: value}) != tiny_text(), name


def test_traced_values_are_no_part_of_the_program():
    changed = {name: (FIELDS[name].metadata["low"] + FIELDS[name].metadata["high"]) / 2 for name in TRACED}
    assert step_text(changed) == tiny_text()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_exports_without_baked_tables_or_custom_calls(platform):
    text = step_text({"context": 512, "vocab_size": 2048, "width": 128, "head_size": 64}, platform)
    assert "custom_call" not in text
    shapes = re.findall(r"stablehlo\.constant dense<[^>]*> : tensor<([^>]*)>", text)
    written = re.findall(r"stablehlo\.constant dense<([^>]*)>", text)
    assert len(shapes) == len(written) > 0
    assert sum(map(len, written)) < 16_384  # splats only: the whole text of all constants


def test_bounds_and_docs():
    for name, field in FIELDS.items():
        low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
        assert field.metadata["doc"], name
        if name in ("vocab_size", "context", "pass_size"):
            assert (low, high, choices) == (None, None, ())
        elif choices:
            assert field.default in choices, name
        else:
            assert low <= field.default <= high, name
            assert not (field.metadata["log"] and low <= 0), name


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"depht": 2}, "depht: no such hyperparameter; did you mean depth?"),
        ({"zzz": 2}, "zzz: no such hyperparameter; there are vocab_size, context, pass_size"),
        ({"depth": 2.5}, "depth: 2.5 is not a valid int"),
        ({"depth": True}, "depth: True is not"),
        ({"depth": 0}, "depth: 0 must be at least 1"),
        ({"matrix_lr": "fast"}, "matrix_lr: 'fast' is not a valid float"),
        ({"matrix_lr": math.nan}, "matrix_lr: nan"),
        ({"value_embeddings": 1}, "value_embeddings: 1 is not a valid bool"),
        ({"width": 100}, "width: 100 is not a multiple"),
        ({"head_size": 1}, "head_size: 1 must be even"),
        ({"queries_per_kv": 3}, "queries_per_kv: 3 does not divide"),
        ({"window_pattern": "SXL"}, "window_pattern: 'SXL'"),
        ({"window_pattern": ""}, "window_pattern: ''"),
        ({"short_window": 0}, "short_window: 0.0"),
        ({"microbatch": -1}, "microbatch: -1 must be"),
        ({"pass_size": -1}, "pass_size: -1 must be"),
        ({"dtype": "float16"}, "dtype: 'float16'"),
    ],
)
def test_wrong_config_gets_one_line(config, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)) as error:
        recipe.hyperparameters(config)
    assert "\n" not in str(error.value)


def test_config_is_converted():
    h = recipe.hyperparameters({"depth": 3.0, "matrix_lr": 1})
    assert (h.depth, type(h.depth), h.matrix_lr, type(h.matrix_lr)) == (3, int, 1.0, float)
    assert recipe.build(h).phases == ((1.0, h.batch, h.context),)


def test_models_imports_nothing_of_the_laboratory():
    from pathlib import Path

    allowed = {"jax", "flax", "optax", "numpy", "models"}
    allowed |= {"collections", "dataclasses", "difflib", "functools", "math"}
    for path in Path(recipe.__file__).parent.glob("*.py"):
        for name in re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE):
            assert name in allowed, f"{path.name} imports {name}"

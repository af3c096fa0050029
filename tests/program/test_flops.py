# ruff: noqa: E501 - StableHLO is written as its parser wants it
import jax
import jax.numpy as jnp
import pytest

from jaxresearch.program import stablehlo
from jaxresearch.program.flops import count_flops
from jaxresearch.program.marks import take_out_marks
from models import recipe
from tests.laboratory import TINY
from tests.program.modules import module, written

A = jax.ShapeDtypeStruct((4, 8), jnp.float32)
W = jax.ShapeDtypeStruct((8, 16), jnp.float32)
S = jax.ShapeDtypeStruct((8, 8), jnp.float32)
MATMUL = 2 * 4 * 8 * 8


def flops(function, *arguments):
    return count_flops(module(function, *arguments))


def xlas(function, *arguments):
    """XLA's own count, before it optimises. Loops count once there."""
    cost = jax.jit(function).lower(*arguments).cost_analysis()
    return cost["flops"] + cost.get("transcendentals", 0.0)


def test_a_matrix_product_is_two_for_each_multiply_and_add():
    assert flops(lambda a, w: a @ w, A, W) == 2 * 4 * 8 * 16


def test_a_batched_product_counts_every_batch():
    left, right = jax.ShapeDtypeStruct((3, 4, 8), jnp.float32), jax.ShapeDtypeStruct((3, 8, 5), jnp.float32)
    assert flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), left, right) == 3 * 2 * 4 * 8 * 5


def test_a_convolution_counts_its_kernel_once_for_each_output():
    image, kernel = jax.ShapeDtypeStruct((2, 3, 10), jnp.float32), jax.ShapeDtypeStruct((5, 3, 4), jnp.float32)
    counted = flops(lambda x, k: jax.lax.conv(x, k, (1,), "VALID"), image, kernel)
    assert counted == 2 * (2 * 5 * 7) * 3 * 4


def test_elementwise_work_counts_each_element_and_moving_data_is_free():
    assert flops(lambda a: jnp.tanh(a) + a, A) == 2 * 32
    assert flops(lambda a: a.T.reshape(2, 16)[:, ::2], A) == 0


def test_a_sum_counts_each_element_that_is_added():
    assert flops(lambda a: a.sum(), A) == 32


@pytest.mark.parametrize("length", [1, 7, 1000])
def test_a_scan_counts_its_trips(length):
    counted = flops(lambda a, s: jax.lax.scan(lambda c, _: (c @ s, None), a, None, length=length)[0], A, S)
    assert counted == pytest.approx(length * MATMUL, rel=0.01)


def test_nested_scans_multiply():
    def nested(a, s):
        def inner(c):
            return jax.lax.scan(lambda c, _: (c @ s, None), c, None, length=3)[0]

        return jax.lax.scan(lambda c, _: (inner(c), None), a, None, length=5)[0]

    assert flops(nested, A, S) == pytest.approx(15 * MATMUL, rel=0.02)


def test_a_loop_from_two_to_nine_has_seven_trips():
    assert flops(lambda a, s: jax.lax.fori_loop(2, 9, lambda _, c: c @ s, a), A, S) == pytest.approx(
        7 * MATMUL, rel=0.01
    )


def test_the_gradient_of_a_scan_counts_both_directions():
    def loss(a, s):
        return jax.lax.scan(lambda c, _: (c @ s, None), a, None, length=6)[0].sum()

    assert flops(jax.grad(loss, argnums=(0, 1)), A, S) == pytest.approx(3 * 6 * MATMUL, rel=0.15)


def test_a_condition_counts_its_costliest_branch():
    counted = flops(lambda a, s: jax.lax.cond(a[0, 0] > 0, lambda: a @ s @ s, lambda: a @ s), A, S)
    assert counted == pytest.approx(2 * MATMUL, abs=5)


def test_work_behind_a_call_counts_at_each_call():
    shared = jax.jit(lambda a, s: a @ s)
    assert flops(lambda a, s: shared(shared(a, s), s), A, S) == 2 * MATMUL


def test_a_loop_whose_end_depends_on_data_is_unknown():
    assert flops(lambda a, s: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ s, a), A, S) is None
    assert (
        flops(lambda n, s: jax.lax.fori_loop(0, n, lambda _, c: c @ s, s), jax.ShapeDtypeStruct((), "int32"), S) is None
    )


LOOP = """
module {{
  func.func public @main(%x: tensor<8x8xf32>) -> tensor<8x8xf32> {{
    {constants}
    %r:2 = stablehlo.while(%c = %start, %y = %x) : tensor<{kind}>, tensor<8x8xf32>
    cond {{
      %p = stablehlo.compare {direction}, %c, %bound : (tensor<{kind}>, tensor<{kind}>) -> tensor<i1>
      stablehlo.return %p : tensor<i1>
    }} do {{
      %n = stablehlo.{next} %c, %stride : tensor<{kind}>
      %z = stablehlo.dot_general %y, %y, contracting_dims = [1] x [0] : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
      stablehlo.return %n, %z : tensor<{kind}>, tensor<8x8xf32>
    }}
    return %r#1 : tensor<8x8xf32>
  }}
}}
"""


def loop(start, bound, stride, kind="i32", direction="LT", step="add"):
    constants = "\n".join(
        line if line.startswith("%") else f"%{name} = stablehlo.constant dense<{line}> : tensor<{kind}>"
        for name, line in (("start", str(start)), ("bound", str(bound)), ("stride", str(stride)))
    )
    text = LOOP.format(constants=constants, kind=kind, direction=direction, next=step)
    counted = count_flops(stablehlo.parse(written(text)))
    return None if counted is None else round(counted / (2 * 8**3))


def test_bounds_and_strides_are_read_off():
    assert loop(0, 10, 1) == 10
    assert loop(0, 10, 3) == 4
    assert loop(-5, 5, 2) == 5
    assert loop(0, 10, 1, direction="LE") == 11
    assert loop(10, 0, 1) == 0
    assert loop(0, 200, 1, kind="ui8") == 200


@pytest.mark.parametrize(
    "attack",
    [
        {"start": 0, "bound": 127, "stride": 2, "kind": "i8"},  # 126 + 2 is -128: it never ends
        {"start": 0, "bound": 2**31 - 1, "stride": 2**30},
        {"start": 0, "bound": 255, "stride": 2, "kind": "ui8"},
        {"start": 0, "bound": 127, "stride": 1, "kind": "i8", "direction": "LE"},
        {"start": 0, "bound": 10, "stride": 0},
        {"start": 0, "bound": 10, "stride": -1},
        {"start": 0, "bound": 10, "stride": 1, "direction": "NE"},
        {"start": 0, "bound": 10, "stride": 1, "direction": "GE"},
        {"start": 1, "bound": 10, "stride": 1, "step": "multiply"},
        {"start": 0, "bound": 10, "stride": 1, "step": "subtract"},
    ],
)
def test_a_counter_that_hides_trips_makes_the_count_unknown(attack):
    assert loop(**attack) is None


def test_a_bound_that_changes_when_it_is_converted_makes_the_count_unknown():
    """383 as i8 is 127 and 384 is -128: read before the conversion there is no trip, in truth there are 255."""
    convert = "%wide_{0} = stablehlo.constant dense<{1}> : tensor<i32>\n%{0} = stablehlo.convert %wide_{0} : (tensor<i32>) -> tensor<i8>"
    start, bound = (convert.format(*pair) for pair in (("start", 384), ("bound", 383)))
    assert loop(start, bound, 1, kind="i8") is None
    start, bound = (convert.format(*pair) for pair in (("start", 3), ("bound", 100)))
    assert loop(start, bound, 1, kind="i8") == 97


# XLA's own count


@pytest.mark.parametrize(
    "function",
    [
        lambda a, w, s: a @ w,
        lambda a, w, s: jnp.einsum("ij,kj->ki", a, s),
        lambda a, w, s: jnp.tanh(a) * a + jnp.exp(a) / 3 - jnp.maximum(a, 0),
        lambda a, w, s: jax.nn.softmax(a @ s) @ w,
        lambda a, w, s: jax.grad(lambda s: jnp.sum(jax.nn.relu(a @ s) @ w))(s),
        lambda a, w, s: jax.lax.conv(a[None], w.reshape(4, 4, 8), (1,), "VALID"),
        lambda a, w, s: jnp.argmax(a, axis=1),
    ],
)
def test_what_counts_is_what_xla_counts(function):
    assert flops(function, A, W, S) == pytest.approx(xlas(function, A, W, S), rel=0.02, abs=40)


def test_a_loop_counts_as_xla_counts_its_steps_written_out():
    def looped(a, s):
        return jax.lax.fori_loop(0, 7, lambda _, c: jnp.tanh(c @ s), a)

    def unrolled(a, s):
        for _ in range(7):
            a = jnp.tanh(a @ s)
        return a

    assert flops(looped, A, S) == pytest.approx(xlas(unrolled, A, S), rel=0.02)
    assert xlas(looped, A, S) < xlas(unrolled, A, S) / 6, "XLA counts loops now, so the test can be simpler"


def test_the_default_subject_counts_as_xla_counts_it():
    h = recipe.hyperparameters({**TINY, "vocab_size": 320, "context": 32, "depth": 2})
    subject = recipe.build(h)
    traced = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in recipe._traced_defaults(h)}
    state = jax.eval_shape(subject.init, jax.ShapeDtypeStruct((), jnp.uint32), traced)
    leaves, tree = jax.tree.flatten(state)
    tokens = jax.ShapeDtypeStruct((h.batch, h.context + 1), jnp.int32)

    def step(*flat):
        state = jax.tree.unflatten(tree, flat[:-1])
        return subject.train_step(state, flat[-1], jnp.float32(0.5), state["traced"])

    def logits(*flat):
        return subject.logits(jax.tree.unflatten(tree, flat[:-1]), flat[-1])

    for function in (step, logits):
        counted = take_out_marks(module(function, *leaves, tokens))
        xla = xlas(stablehlo.to_exported(counted, "cpu").call, *leaves, tokens)
        assert count_flops(counted) == pytest.approx(xla, rel=0.01), function.__name__


def test_what_is_looked_up_counts_as_what_it_stands_for():
    """A product of matrices of bytes, from tables of all sums and products of two: no arithmetic, and right."""

    def looked_up(table, a, b):
        at = jnp.stack([a, b], axis=-1).astype(jnp.int32)
        numbers = jax.lax.GatherDimensionNumbers((), (0, 1), (0, 1))
        return jax.lax.gather(table, at, numbers, (1, 1), mode=jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS)

    def product(products, sums, a, w):
        terms = looked_up(products, *jnp.broadcast_arrays(a[:, :, None], w[None]))
        while terms.shape[1] > 1:
            terms = looked_up(sums, terms[:, ::2], terms[:, 1::2])
        return terms[:, 0]

    byte, left, right = (jax.ShapeDtypeStruct(shape, jnp.uint8) for shape in ((256, 256), (4, 8), (8, 16)))
    assert flops(product, byte, byte, left, right) == 4 * 16 * (8 + 7)
    numbers = jnp.arange(256, dtype=jnp.uint8)
    a, w = jnp.arange(32, dtype=jnp.uint8).reshape(4, 8), jnp.arange(128, dtype=jnp.uint8).reshape(8, 16)
    tables = numbers[:, None] * numbers, numbers[:, None] + numbers
    assert (product(*tables, a, w) == (a.astype(jnp.int32) @ w.astype(jnp.int32)).astype(jnp.uint8)).all()


def test_a_table_that_is_cut_at_a_place_that_is_computed_is_looked_up_too():
    place = jax.ShapeDtypeStruct((), jnp.int32)
    slice_ = jax.lax.dynamic_slice_p  # jnp's functions would also clamp, and that counts by itself

    def cut(a, at):
        return slice_.bind(a, at, at, slice_sizes=(2, 3))

    assert flops(cut, A, place) == 6

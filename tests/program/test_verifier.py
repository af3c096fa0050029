# ruff: noqa: E501 - StableHLO is written as its parser wants it
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxresearch.program.verifier import InvalidProgramError, ProgramLimits, Signature
from tests.program.modules import (
    F32,
    TOKENS,
    WEIGHT,
    exported,
    honest,
    init,
    logits,
    logits_with,
    step,
    step_arguments,
    verified,
    written,
)

GATHER = """
%z = stablehlo.constant dense<0.0> : tensor<f32>
%b = stablehlo.broadcast_in_dim %z, dims = [] : (tensor<f32>) -> tensor<2x4x8xf32>
"""


def refusal(*blobs: bytes, **changes) -> str:
    with pytest.raises(InvalidProgramError) as caught:
        verified(*blobs, **changes)
    return str(caught.value)


def test_an_honest_program_passes_and_its_facts_are_read_off_its_modules():
    found = verified()
    assert (found.parameters, [str(kind) for kind in found.state]) == (64, ["float32[8,8]"])
    assert found.step_flops[0] > 0
    assert found.logits_flops is not None
    assert found.constant_bytes < 100


def test_handwritten_modules_pass_when_they_are_honest():
    """So that the refusals below are for what they say, and not for how they were written."""
    assert verified(logits_with(GATHER + "%out = stablehlo.abs %b : tensor<2x4x8xf32>")).parameters == 0


CALL = "%{0} = stablehlo.custom_call @{1}(%b) {{has_side_effect = false}} : (tensor<2x4x8xf32>) -> tensor<2x4x8xf32>"
NESTED = {
    "at the top": "{call}",
    "in a while": """
      %out = stablehlo.while(%y = %b) : tensor<2x4x8xf32>
      cond {{
        %p = stablehlo.constant dense<false> : tensor<i1>
        stablehlo.return %p : tensor<i1>
      }} do {{
        {call}
        stablehlo.return %inner : tensor<2x4x8xf32>
      }}""",
    "in a case": """
      %i = stablehlo.constant dense<0> : tensor<i32>
      %out = "stablehlo.case"(%i) ({{ stablehlo.return %b : tensor<2x4x8xf32> }}, {{
        {call}
        stablehlo.return %inner : tensor<2x4x8xf32>
      }}) : (tensor<i32>) -> tensor<2x4x8xf32>""",
    "in a sort's comparison": """
      %sorted = "stablehlo.sort"(%b) <{{dimension = 2 : i64}}> ({{
      ^bb0(%l: tensor<f32>, %r: tensor<f32>):
        %q = stablehlo.custom_call @{target}(%l) : (tensor<f32>) -> tensor<f32>
        %p = stablehlo.compare LT, %q, %r : (tensor<f32>, tensor<f32>) -> tensor<i1>
        stablehlo.return %p : tensor<i1>
      }}) : (tensor<2x4x8xf32>) -> tensor<2x4x8xf32>
      %out = stablehlo.abs %sorted : tensor<2x4x8xf32>""",
}


@pytest.mark.parametrize("target", ["xla_ffi_python_cpu_callback", "anything", "lapack_sgetrf", "Sharding"])
@pytest.mark.parametrize("place", NESTED)
def test_a_custom_call_is_refused_wherever_it_stands(place, target):
    call = CALL.format("out" if place == "at the top" else "inner", target)
    body = GATHER + NESTED[place].format(call=call, target=target)
    assert "stablehlo.custom_call" in refusal(logits_with(body))
    assert target in refusal(logits_with(body))


def test_a_custom_call_is_refused_in_a_function_that_nobody_calls():
    hidden = """func.func private @hidden(%a: tensor<f32>) -> tensor<f32> {
      %r = stablehlo.custom_call @evil(%a) : (tensor<f32>) -> tensor<f32>
      return %r : tensor<f32>
    }"""
    assert "evil" in refusal(logits_with(GATHER + "%out = stablehlo.abs %b : tensor<2x4x8xf32>", hidden))


SHAPE = "%s = stablehlo.constant dense<[2, 4, 8]> : tensor<3xi64>\n%o = stablehlo.constant dense<1.0> : tensor<f32>\n"
TOKEN = "%k = stablehlo.create_token : !stablehlo.token\n"


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("rng", SHAPE + "%out = stablehlo.rng %z, %o, %s, distribution = UNIFORM : (tensor<f32>, tensor<f32>, tensor<3xi64>) -> tensor<2x4x8xf32>"),
        ("rng_bit_generator", """%s = stablehlo.constant dense<0> : tensor<2xui64>
          %n, %r = stablehlo.rng_bit_generator %s, algorithm = DEFAULT : (tensor<2xui64>) -> (tensor<2xui64>, tensor<2x4x8xf32>)
          %out = stablehlo.abs %r : tensor<2x4x8xf32>"""),
        ("create_token", TOKEN + """%out, %m = "stablehlo.infeed"(%k) <{infeed_config = ""}> : (!stablehlo.token) -> (tensor<2x4x8xf32>, !stablehlo.token)"""),
        ("create_token", TOKEN + """%m = "stablehlo.outfeed"(%b, %k) <{outfeed_config = ""}> : (tensor<2x4x8xf32>, !stablehlo.token) -> !stablehlo.token
          %out = stablehlo.abs %b : tensor<2x4x8xf32>"""),
        ("partition_id", "%p = stablehlo.partition_id : tensor<ui32>\n%out = stablehlo.abs %b : tensor<2x4x8xf32>"),
        ("all_gather", """%out = "stablehlo.all_gather"(%b) <{all_gather_dim = 0 : i64, replica_groups = dense<0> : tensor<1x1xi64>}> : (tensor<2x4x8xf32>) -> tensor<2x4x8xf32>"""),
    ],
)  # fmt: skip
def test_randomness_transfers_and_collectives_are_refused(name, body):
    assert f"operation stablehlo.{name} is not allowed" in refusal(logits_with(GATHER + body))


def test_a_composite_of_an_unknown_name_is_refused_and_a_known_one_counts_as_what_it_stands_for():
    composite = '%out = stablehlo.composite "{}" %b {{decomposition = @d}} : (tensor<2x4x8xf32>) -> tensor<2x4x8xf32>'
    stands_for = """func.func private @d(%a: tensor<2x4x8xf32>) -> tensor<2x4x8xf32> {
      %r = stablehlo.tanh %a : tensor<2x4x8xf32>
      return %r : tensor<2x4x8xf32>
    }"""
    assert "composite 'evil.op' is not allowed" in refusal(
        logits_with(GATHER + composite.format("evil.op"), stands_for)
    )
    assert verified(logits_with(GATHER + composite.format("jaxresearch.x"), stands_for)).logits_flops == 64


@pytest.mark.parametrize(
    "attribute",
    ['mhlo.sharding = "{replicated}"', "jax.buffer_donor = true", "tf.aliasing_output = 0 : i32"],
)
def test_attributes_that_steer_the_compiler_are_refused(attribute):
    name = attribute.split(" ")[0]
    body = GATHER + f"%out = stablehlo.abs %b {{{attribute}}} : tensor<2x4x8xf32>"
    assert f"attribute {name} on stablehlo.abs" in refusal(logits_with(body))
    text = f"""module {{ func.func public @main(%w: tensor<8x8xf32> {{{attribute}}}, %t: tensor<2x4xi32>) -> tensor<2x4x8xf32> {{
      {GATHER} return %b : tensor<2x4x8xf32> }} }}"""
    assert f"argument attribute {name} is not allowed" in refusal(written(text))


def test_constants_above_the_cap_are_refused_and_a_splat_counts_as_one():
    table = np.random.default_rng(0).standard_normal((8, 40)).astype(np.float32)

    def baked(weight, tokens):
        return [weight[tokens] + table.sum() + jnp.asarray(table)[:, :8][tokens]]

    assert "constant bytes: the program carries" in refusal(exported(baked, WEIGHT, TOKENS))
    wide = exported(lambda weight, tokens: [weight[tokens] + jnp.ones((100, 100)).sum()], WEIGHT, TOKENS)
    assert verified(wide).constant_bytes < 100


def test_text_in_integer_attributes_counts_as_constants():
    """A character is where a slice of an iota begins."""
    text = [byte % 8 for byte in b"Call me Ishmael. Some years ago - never mind how long precisely."]

    def carried(weight, tokens):
        numbers = jnp.arange(4096)
        letters = [jax.lax.slice(numbers, (1000 + letter,), (1001 + letter,)) for letter in text]
        return [weight[tokens] + jnp.concatenate(letters).sum()]

    limits = ProgramLimits(1_000_000, 1024, 1000, attribute_bytes=150)
    assert verified(*honest(), limits=limits).parameters == 64
    message = refusal(honest()[0], honest()[1], exported(carried, WEIGHT, TOKENS), limits=limits)
    assert message.startswith("attribute bytes: the program carries")


def test_constants_count_over_all_modules_together():
    third = np.arange(100, dtype=np.float32)
    first = exported(
        lambda s, lr: [jnp.full((8, 8), lr) + jnp.asarray(third).sum() * s], jax.ShapeDtypeStruct((), "uint32"), F32
    )
    second = exported(lambda *a: [a[0], a[3] + jnp.sin(jnp.asarray(third)).sum()], *step_arguments())
    last = exported(lambda w, t: [w[t] + jnp.cos(jnp.asarray(third)).sum()], WEIGHT, TOKENS)
    assert "constant bytes" in refusal(first, second, last)
    assert verified(first, second, honest()[2]).constant_bytes < 1024


def test_a_program_above_its_caps_is_refused():
    assert "program bytes" in refusal(limits=ProgramLimits(100, 1024, 1000))
    assert "parameters: 64, above the cap of 63" in refusal(limits=ProgramLimits(10**6, 1024, 63))


def test_parameters_are_what_logits_reads_whatever_else_the_state_holds():
    def more(function):
        return lambda weight, extra, *rest: [*function(weight, *rest)[:1], extra, *function(weight, *rest)[1:]]

    extra = jax.ShapeDtypeStruct((100,), jnp.float32)
    first = exported(lambda s, lr: [*init(s, lr), jnp.zeros(100)], jax.ShapeDtypeStruct((), "uint32"), F32)
    second = exported(more(step), WEIGHT, extra, *step_arguments()[1:])
    last = exported(lambda weight, _, tokens: logits(weight, tokens), WEIGHT, extra, TOKENS)
    assert verified(first, second, last).parameters == 64


SEED = jax.ShapeDtypeStruct((), jnp.uint32)


@pytest.mark.parametrize(
    ("place", "function", "arguments", "said"),
    [
        (0, lambda s: [jnp.zeros((8, 8))], (SEED,), "signature of init: 1 tensors where 2"),
        (0, lambda s, lr: [jnp.zeros((8, 8))], (jax.ShapeDtypeStruct((), "int32"), F32), "tensor 0 is int32[]"),
        (0, lambda s, lr: [], (SEED, F32), "init returns no state"),
        (0, lambda s, lr: [jnp.zeros((8, 9))], (SEED, F32), "float32[8,9]"),
        (1, step, step_arguments(batch=4), "signature of train_step"),
        (1, step, step_arguments(length=7), "signature of train_step"),
        (1, lambda *a: [a[0]], step_arguments(), "train_step's results: 1 tensors where 2"),
        (1, lambda *a: [a[0], jnp.int32(0)], step_arguments(), "tensor 1 is int32[], it must be float32[]"),
        (1, lambda *a: [a[0].T[:4], a[3]], step_arguments(), "train_step's results: tensor 0"),
        (2, logits, (WEIGHT, jax.ShapeDtypeStruct((2, 5), "int32")), "signature of logits: tensor 1 is int32[2,5]"),
        (2, logits, (WEIGHT, jax.ShapeDtypeStruct((4, 4), "int32")), "signature of logits"),
        (2, lambda w, t: [w[t][..., :7]], (WEIGHT, TOKENS), "logits' results: tensor 0 is float32[2,4,7]"),
        (2, lambda w, t: [w[t].astype(jnp.bfloat16)], (WEIGHT, TOKENS), "bfloat16"),
        (2, lambda w, t: [w[t], w], (WEIGHT, TOKENS), "logits' results: 2 tensors where 1"),
        (2, lambda t: [jnp.zeros((2, 4, 8))], (TOKENS,), "signature of logits: 1 tensors where 2"),
    ],
)
def test_each_function_must_have_the_agreed_signature(place, function, arguments, said):
    blobs = list(honest())
    blobs[place] = exported(function, *arguments)
    assert said in refusal(*blobs)


def test_types_that_no_program_needs_are_refused():
    complex_ = (
        GATHER
        + "%c = stablehlo.complex %b, %b : tensor<2x4x8xcomplex<f32>>\n%out = stablehlo.real %c : (tensor<2x4x8xcomplex<f32>>) -> tensor<2x4x8xf32>"
    )
    assert "not allowed" in refusal(logits_with(complex_))


def test_a_function_that_calls_itself_is_refused():
    chain = [
        f"""func.func private @f{i}(%a: tensor<2x4x8xf32>) -> tensor<2x4x8xf32> {{
          %r = func.call @f{(i + 1) % 3}(%a) : (tensor<2x4x8xf32>) -> tensor<2x4x8xf32>
          return %r : tensor<2x4x8xf32>
        }}"""
        for i in range(3)
    ]
    call = "%out = func.call @f0(%b) : (tensor<2x4x8xf32>) -> tensor<2x4x8xf32>"
    assert "calls itself" in refusal(logits_with(GATHER + call, *chain))


def test_calls_that_double_at_every_level_are_refused_before_a_compiler_inlines_them():
    def function(i, body):
        return f"func.func private @f{i}(%a: tensor<2x4x8xf32>) -> tensor<2x4x8xf32> {{ {body} return %r : tensor<2x4x8xf32> }}"

    kind = ": (tensor<2x4x8xf32>) -> tensor<2x4x8xf32>"
    double = "%q = func.call @f{0}(%a) {1}\n%r = func.call @f{0}(%q) {1}\n"
    chain = [function(i, double.format(i + 1, kind)) for i in range(40)]
    chain.append(function(40, "%r = stablehlo.abs %a : tensor<2x4x8xf32>\n"))
    assert "operations with all it calls" in refusal(logits_with(GATHER + f"%out = func.call @f0(%b) {kind}", *chain))
    assert verified(logits_with(GATHER + f"%out = func.call @f35(%b) {kind}", *chain[35:])).logits_flops == 32 * 64


@pytest.mark.parametrize(
    "phases",
    [
        (),
        ((0.5, 3, 6),),
        ((1.0, 3, 6), (1.0, 3, 6)),
        ((0.6, 3, 6), (0.5, 3, 6), (1.0, 3, 6)),
        ((0.0, 3, 6), (1.0, 3, 6)),
        ((1.5, 3, 6),),
        ((float("nan"), 3, 6),),
        ((1.0, 0, 6),),
        ((1.0, -3, 6),),
        ((1.0, 3, 0),),
        ((1.0, 3, 10**6),),
        ((1.0, 10**9, 6),),
        tuple((i / 20, 3, 6) for i in range(1, 21)),
    ],
)
def test_malformed_phases_are_refused(phases):
    first, second, third = honest()
    assert "phases" in refusal(first, *[second] * len(phases), third, phases=phases)


def test_a_step_may_not_ask_for_gigabytes_of_tokens():
    wanted = Signature(2, 1024, 8)
    assert "out of range" in refusal(phases=((1.0, 65536, 65536),), wanted=wanted)


def test_the_number_of_modules_must_fit_the_phases():
    assert "3 modules where 4 belong" in refusal(phases=((0.5, 3, 6), (1.0, 3, 6)))
    assert "2 modules where 3 belong" in refusal(*honest()[:2])


def test_garbage_is_no_module():
    for blob in (b"", b"\x00" * 100, b"module {}"):
        assert "`main` is missing" in refusal(blob)
    for blob in (b"ML\xefR", b"{}", random.Random(0).randbytes(5000), honest()[2][:-40], honest()[2][20:]):
        assert "unreadable module" in refusal(blob)


def test_a_module_without_main_or_with_anything_but_functions_is_refused():
    assert "`main` is missing" in refusal(written("module { func.func private @f() { return } }"))
    assert "other than functions" in refusal(written("module { module @inner { } }"))

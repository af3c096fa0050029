# ruff: noqa: E501 - StableHLO is written as its parser wants it
"""Modules made by hand to be counted as something else than what runs, or to take the verifier down."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxresearch.program import stablehlo
from jaxresearch.program.flops import count_flops
from jaxresearch.program.fused import settle_attention
from jaxresearch.program.verifier import InvalidProgramError
from tests.program.modules import TOKENS, WEIGHT, exported, logits, logits_with, step_arguments, verified, written

SEED = jax.ShapeDtypeStruct((), "uint32")
KIND = "tensor<2x4x8xf32>"
TWOS = f"%b = stablehlo.constant dense<2.0> : {KIND}\n"
IDENTITY = f"func.func private @nothing(%a: {KIND}) -> {KIND} {{ return %a : {KIND} }}"
COMPOSITE = (
    f'%out = stablehlo.composite "{{}}" %b {{{{decomposition = @nothing, version = 1 : i32}}}} : ({KIND}) -> {KIND}'
)


def as_it_runs(blob: bytes, *arguments: np.ndarray) -> list[np.ndarray]:
    """What a stored program gives, compiled as the laboratory compiles it."""
    (settled,), _ = settle_attention([stablehlo.parse(blob)], None, "cpu")
    return [np.asarray(out) for out in jax.jit(stablehlo.to_exported(settled, "cpu").call)(*arguments)]


@pytest.mark.parametrize("name", ["chlo.erf", "chlo.sinh", "chlo.acos", "jaxresearch.causal_attention"])
def test_a_name_that_the_compiler_knows_stands_for_what_was_counted(name):
    """XLA would compute the error function for a composite called so, whatever it stands for; here it is nothing."""
    blob = logits_with(TWOS + COMPOSITE.format(name), IDENTITY)
    assert verified(blob).logits_flops == 0
    (out,) = as_it_runs(blob, np.zeros((8, 8), np.float32), np.zeros((2, 4), np.int32))
    assert (out == 2).all()


def test_a_sort_behind_a_known_name_counts_as_one():
    def largest(x):
        return [jax.lax.top_k(x, 8)[0]]

    row = jax.ShapeDtypeStruct((64, 512), "float32")
    honest = exported(largest, row)
    assert count_flops(stablehlo.parse(honest)) >= 64 * 512
    free = """module { func.func public @main(%x: tensor<64x512xf32>) -> tensor<64x8xf32> {
      %out:2 = stablehlo.composite "chlo.top_k" %x {composite_attributes = {k = 8 : i64, largest = true}, decomposition = @e, version = 1 : i32} : (tensor<64x512xf32>) -> (tensor<64x8xf32>, tensor<64x8xi32>)
      return %out#0 : tensor<64x8xf32> }
    func.func private @e(%x: tensor<64x512xf32>) -> (tensor<64x8xf32>, tensor<64x8xi32>) {
      %s = stablehlo.slice %x [0:64, 0:8] : (tensor<64x512xf32>) -> tensor<64x8xf32>
      %i = stablehlo.iota dim = 0 : tensor<64x8xi32>
      return %s, %i : tensor<64x8xf32>, tensor<64x8xi32> } }"""
    rows = np.tile(np.arange(512, dtype=np.float32), (64, 1))
    assert (as_it_runs(honest, rows)[0] == rows[:, :503:-1]).all()
    assert (as_it_runs(written(free), rows)[0] == rows[:, :8]).all()


def test_every_comparison_of_a_pooling_gradient_counts():
    """Each window of 64 is searched, whatever the strides; 64 windows cannot cost what 127 elements do."""
    body = """module { func.func public @main(%x: tensor<127xf32>, %y: tensor<64xf32>) -> tensor<127xf32> {
      %z = stablehlo.constant dense<0.0> : tensor<f32>
      %out = "stablehlo.select_and_scatter"(%x, %y, %z) <{window_dimensions = array<i64: 64>}> ({
        ^bb0(%a: tensor<f32>, %b: tensor<f32>):
          %p = stablehlo.compare GE, %a, %b : (tensor<f32>, tensor<f32>) -> tensor<i1>
          stablehlo.return %p : tensor<i1>
      }, {
        ^bb0(%a: tensor<f32>, %b: tensor<f32>):
          %s = stablehlo.add %a, %b : tensor<f32>
          stablehlo.return %s : tensor<f32>
      }) : (tensor<127xf32>, tensor<64xf32>, tensor<f32>) -> tensor<127xf32>
      return %out : tensor<127xf32> } }"""
    assert count_flops(stablehlo.parse(written(body))) == 64 * 64 + 64


def test_the_condition_of_a_loop_that_is_never_entered_still_runs_once():
    loop = """module { func.func public @main(%x: tensor<8x8xf32>) -> tensor<i32> {
      %zero = stablehlo.constant dense<0> : tensor<i32>
      %one = stablehlo.constant dense<1> : tensor<i32>
      %out = stablehlo.while(%c = %zero) : tensor<i32>
      cond {
        %y = stablehlo.dot_general %x, %x, contracting_dims = [1] x [0] : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
        %p = stablehlo.compare LT, %c, %zero : (tensor<i32>, tensor<i32>) -> tensor<i1>
        stablehlo.return %p : tensor<i1>
      } do {
        %n = stablehlo.add %c, %one : tensor<i32>
        stablehlo.return %n : tensor<i32>
      }
      return %out : tensor<i32> } }"""
    assert count_flops(stablehlo.parse(written(loop))) == 2 * 8**3 + 1


def nested(depth: int) -> str:
    """An `if` in an `if` in an `if`."""
    body = f"%v{depth} = stablehlo.abs %b : {KIND}"
    for level in reversed(range(depth)):
        body = f"""%v{level} = "stablehlo.if"(%p) ({{ {body}
          stablehlo.return %v{level + 1} : {KIND} }}, {{ stablehlo.return %b : {KIND} }}) : (tensor<i1>) -> {KIND}"""
    return TWOS + "%p = stablehlo.constant dense<true> : tensor<i1>\n" + body.replace("%v0 ", "%out ")


STEERED = {
    "thread": f'func.func private @f(%a: {KIND}) -> {KIND} attributes {{execution_thread = "other"}} {{ return %a : {KIND} }}',
    "shape": f'func.func private @f(%a: {KIND}) -> {KIND} {{ %r = stablehlo.abs %a {{xla_shape = "f32[1]"}} : {KIND}\nreturn %r : {KIND} }}',
    "function": f'func.func private @f(%a: {KIND}) -> {KIND} attributes {{inlineable = "false"}} {{ return %a : {KIND} }}',
}


@pytest.mark.parametrize("how", STEERED)
def test_words_to_the_compiler_that_no_operation_defines(how):
    """XLA runs a function on the thread that an attribute names; which other words it knows, its next version decides."""
    with pytest.raises(InvalidProgramError, match=r"attribute \w+ on [\w.]+ is not allowed"):
        verified(logits_with(TWOS + f"%out = func.call @f(%b) : ({KIND}) -> {KIND}", STEERED[how]))


def test_notes_on_the_arguments_of_a_call():
    notes = "<{callee = @nothing, arg_attrs = [{jax.buffer_donor = true}]}>"
    call = f'%out = "func.call"(%b) {notes} : ({KIND}) -> {KIND}'
    with pytest.raises(InvalidProgramError, match=r"argument attribute jax.buffer_donor is not allowed"):
        verified(logits_with(TWOS + call, IDENTITY))


def test_text_in_the_values_of_runtime_inputs():
    """A candidate declares them, as many as it likes, and what they are: three characters in each."""
    names = tuple(sorted(f"word{number}" for number in range(300)))
    words = [jax.ShapeDtypeStruct((), "float32")] * len(names)
    first = exported(lambda seed, *words: [jax.numpy.stack(words)[:64].reshape(8, 8)], SEED, *words)
    second = exported(lambda *flat: [flat[0], flat[2]], *step_arguments()[:3], *words)
    with pytest.raises(InvalidProgramError, match=r"constant bytes: the program carries 1,2\d\d bytes"):
        verified(first, second, exported(logits, WEIGHT, TOKENS), traced=names)


DECLARED = f"func.func private @there({KIND}) -> {KIND}"
ODD = f'func.func private @"\\FF"(%a: {KIND}) -> {KIND} {{ return %a : {KIND} }}'


@pytest.mark.parametrize(
    "blob",
    [
        lambda: logits_with(nested(400)),
        lambda: written(f"module {{ func.func private @main(tensor<8x8xf32>, tensor<2x4xi32>) -> {KIND} }}"),
        lambda: logits_with(TWOS + f"%out = func.call @there(%b) : ({KIND}) -> {KIND}", DECLARED),
        lambda: logits_with(TWOS + COMPOSITE.format("jaxresearch.x").replace("@nothing", "@there"), DECLARED),
        lambda: logits_with(TWOS + f'%out = func.call @"\\FF"(%b) : ({KIND}) -> {KIND}', ODD),
    ],
    ids=["regions without end", "no main", "an absent function", "an absent mark", "a name that is no text"],
)
def test_what_the_verifier_cannot_read_is_the_candidates_fault(blob):
    """Any other error would be taken for the machine's: tried again, and never judged."""
    with pytest.raises(InvalidProgramError):
        verified(blob())


@pytest.mark.parametrize("comparison", ["LE", "NE"])
def test_a_sort_whose_comparison_contradicts_itself_stays_in_its_array(comparison):
    """Unstable, it would read and write what lies beyond: other arrays of the worker, targets among them."""
    blob = written(f"""module {{ func.func public @main(%x: tensor<1000xi32>) -> tensor<1000xi32> {{
      %out = "stablehlo.sort"(%x) <{{dimension = 0 : i64, is_stable = false}}> ({{
        ^bb0(%a: tensor<i32>, %b: tensor<i32>):
          %p = stablehlo.compare {comparison}, %a, %b : (tensor<i32>, tensor<i32>) -> tensor<i1>
          stablehlo.return %p : tensor<i1>
      }}) : (tensor<1000xi32>) -> tensor<1000xi32>
      return %out : tensor<1000xi32> }} }}""")
    compiled = stablehlo.to_exported(stablehlo.parse(blob), "cpu").mlir_module()
    assert "is_stable = true" in compiled, "else what follows ends this process"
    rows = np.repeat(np.arange(20, dtype=np.int32), 50)
    (out,) = as_it_runs(blob, rows)
    assert sorted(out) == sorted(rows)

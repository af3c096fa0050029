"""The verifier: decides from StableHLO alone, before anything runs, whether modules may become a Program.

All that the laboratory later relies on (shapes, parameters, FLOPs) is read off the modules here; the tracer's word
counts for names only. Hostile bytes may crash the parser, so this runs in a worker process that may die.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxresearch.program import stablehlo
from jaxresearch.program.flops import ELEMENTWISE, count_flops
from jaxresearch.program.marks import take_out_marks
from jaxresearch.program.stablehlo import Module, Operation, TensorType

_STRUCTURE = frozenset(
    f"stablehlo.{name}"
    for name in (
        "bitcast_convert broadcast_in_dim case clamp composite concatenate constant convert convolution dot_general "
        "dynamic_slice dynamic_update_slice gather get_tuple_element if iota map optimization_barrier pad reduce "
        "reduce_window reshape return reverse scatter select_and_scatter slice sort transpose tuple while"
    ).split()
)
ALLOWED_OPERATIONS = ELEMENTWISE | _STRUCTURE | {"func.func", "func.call", "func.return"}
"""Pure dataflow. Absent: custom calls, rng, host transfers (infeed, outfeed, send, recv), collectives."""

ALLOWED_COMPOSITES = re.compile(r"(chlo|jaxresearch)\.[a-z0-9_.]+")
_ALLOWED_ATTRIBUTES = frozenset(
    (
        "algorithm base_dilations batch_group_count broadcast_dimensions compare_type comparison_direction "
        "composite_attributes decomposition dimension dimension_numbers dimensions dot_dimension_numbers edge_padding_high "
        "edge_padding_low exponent_bits feature_group_count index indices_are_sorted interior_padding iota_dimension "
        "is_stable lhs_dilation limit_indices mantissa_bits name padding permutation precision_config result_accuracy "
        "rhs_dilation scatter_dimension_numbers slice_sizes start_indices strides unique_indices value version "
        "window_dilations window_dimensions window_reversal window_strides "
        "arg_attrs callee function_type res_attrs sym_name sym_visibility "
        "jax.uses_shape_polymorphism mhlo.num_partitions mhlo.num_replicas"
    ).split()
)
"""Those that the allowed operations define (the last line but one: functions and calls), and three that JAX writes."""
_ALLOWED_ARGUMENT_ATTRIBUTES = frozenset({"jax.result_info", "jax.arg_info"})
_MAX_PHASES = 16
_BYTES_OF_VALUE = 4
"""Of a runtime input: a candidate declares how many there are, and their values."""
_MAX_STEP_TOKENS = 2**24
"""Tokens of one step: our own process gathers them."""
_MAX_INLINED = 1_000_000
"""Operations after every call is inlined, as compilers do: forty functions that each call the next twice are 2^40."""


class InvalidProgramError(ValueError):
    """The modules may not become a program. The message says why."""


@dataclass(frozen=True)
class ProgramLimits:
    """Caps on a program: bytes of all modules, of all constants, elements of the parameters, bytes of the numbers in
    operations' attributes (slice bounds, paddings, permutations), which can carry text as constants can."""

    program_bytes: int
    constant_bytes: int
    parameters: int
    attribute_bytes: int = 65_536


@dataclass(frozen=True)
class Signature:
    """What the laboratory demands of a program's shapes: scoring is [batch, context] -> [batch, context, vocab]."""

    batch: int
    context: int
    vocab_size: int


@dataclass(frozen=True)
class VerifiedModules:
    """Modules that passed (init, train_step of each phase, logits), and what was read off them.

    blobs: each as it is stored. plain: without marks, as it is compiled where no kernel takes a mark's place.
    """

    modules: tuple[Module, ...]
    blobs: tuple[bytes, ...]
    plain: tuple[Module, ...]
    state: tuple[TensorType, ...]
    step_flops: tuple[float | None, ...]
    logits_flops: float | None
    parameters: int
    constant_bytes: int


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Nothing but the modules can make a verification fail, so whatever goes wrong with them is a refusal."""
    try:
        yield
    except (InvalidProgramError, MemoryError):
        raise
    except stablehlo.UnreadableModuleError as error:
        raise InvalidProgramError(f"unreadable module: {error}") from None
    except Exception as error:  # regions nested past any stack, names that are no text, what nobody has thought of
        raise InvalidProgramError(f"unreadable module: it cannot be walked ({type(error).__name__})") from None


@_refusing()
def verify(
    blobs: Sequence[bytes],
    *,
    traced: Sequence[str],
    phases: Sequence[tuple[float, int, int]],
    metrics: Sequence[str],
    wanted: Signature,
    limits: ProgramLimits,
) -> VerifiedModules:
    """Raises `InvalidProgramError` unless every module is well formed, pure, small, and has the agreed signature."""
    total = sum(map(len, blobs))
    if total > limits.program_bytes:
        raise InvalidProgramError(f"program bytes: {total:,}, above the cap of {limits.program_bytes:,}")
    _check_phases(phases, wanted)
    if len(blobs) != len(phases) + 2:
        raise InvalidProgramError(f"{len(blobs)} modules where {len(phases) + 2} belong")
    modules = tuple(stablehlo.parse(blob) for blob in blobs)
    carried = [_check_module(module) for module in modules]
    stored = tuple(module.serialize() for module in modules)
    if any(stablehlo.parse(blob).text != module.text for blob, module in zip(stored, modules, strict=True)):
        raise InvalidProgramError("unreadable module: stored and read back it would be another one")
    constants, attributes = (sum(each) for each in zip(*carried, strict=True))
    constants += _BYTES_OF_VALUE * len(
        traced
    )  # a program that asks for ten thousand runtime inputs brings their values
    if constants > limits.constant_bytes:
        raise InvalidProgramError(
            f"constant bytes: the program carries {constants:,} bytes of constants, above the cap of "
            f"{limits.constant_bytes:,}; compute tables instead"
        )
    if attributes > limits.attribute_bytes:
        raise InvalidProgramError(
            f"attribute bytes: the program carries {attributes:,} bytes of numbers in attributes, above the cap of "
            f"{limits.attribute_bytes:,}; an honest program this large needs limits.attribute_bytes raised"
        )
    state = _check_signatures(modules, traced, phases, metrics, wanted)
    parameters = _count_parameters(modules[-1], state)
    plain = tuple(take_out_marks(module) for module in modules)
    if parameters > limits.parameters:
        raise InvalidProgramError(f"parameters: {parameters:,}, above the cap of {limits.parameters:,}")
    return VerifiedModules(
        modules=modules,
        blobs=stored,
        plain=plain,
        state=tuple(state),
        step_flops=tuple(count_flops(module) for module in plain[1:-1]),
        logits_flops=count_flops(plain[-1]),
        parameters=parameters,
        constant_bytes=constants,
    )


def _check_phases(phases: Sequence[tuple[float, int, int]], wanted: Signature) -> None:
    if not 1 <= len(phases) <= _MAX_PHASES:
        raise InvalidProgramError(f"{len(phases)} phases; 1 to {_MAX_PHASES} are allowed")
    previous = 0.0
    for until, batch, length in phases:
        if not previous < until <= 1.0:
            raise InvalidProgramError("phases: until_progress must grow, up to 1.0")
        if not (1 <= batch <= 65536 and 1 <= length <= 64 * wanted.context and batch * length <= _MAX_STEP_TOKENS):
            raise InvalidProgramError(f"phases: batch {batch} x seq_len {length} is out of range")
        previous = until
    if previous != 1.0:
        raise InvalidProgramError("phases: the last one must end at progress 1.0")


def _check_module(module: Module) -> tuple[int, int]:
    """Checks every operation; returns the bytes of constants, and of numbers in attributes."""
    with module.context:
        top = list(module.handle.body.operations)
        if any(op.operation.name != "func.func" for op in top):
            raise InvalidProgramError("something other than functions at the top level")
        functions = module.functions
        if len(functions) != len(top) or "main" not in functions:
            raise InvalidProgramError("functions: `main` is missing or a name occurs twice")
        empty = next((name for name, function in functions.items() if not len(function.regions[0].blocks)), None)
        if empty is not None:
            raise InvalidProgramError(f"function {empty} is declared and has no body")
        _refuse_attributes(module.handle.operation)
        constants = attributes = 0
        for op in stablehlo.walk(module.handle.operation):
            if op.name not in ALLOWED_OPERATIONS:
                raise InvalidProgramError(f"operation {_describe(op)} is not allowed")
            _refuse_attributes(op)
            attributes += stablehlo.attribute_bytes(op)
            if op.name == "stablehlo.constant":
                constants += stablehlo.constant_bytes(op)
            if op.name == "stablehlo.composite":
                name = stablehlo.string_attribute(op, "name")
                if not ALLOWED_COMPOSITES.fullmatch(name):
                    raise InvalidProgramError(f"composite {name!r} is not allowed")
            if op.name != "func.func":
                for value in (*op.operands, *op.results):
                    stablehlo.tensor_type(value.type)
        _refuse_recursion(functions)
        return constants, attributes


def _describe(op: Operation) -> str:
    target = stablehlo.string_attribute(op, "call_target_name")
    return f"{op.name} @{target}" if target else op.name


def _refuse_attributes(op: Operation) -> None:
    """Attributes from outside the operation's own definition can steer the compiler: only known harmless ones pass."""
    for name in op.attributes:
        if name not in _ALLOWED_ATTRIBUTES:
            raise InvalidProgramError(f"attribute {name} on {op.name} is not allowed")
        if name in ("arg_attrs", "res_attrs"):
            for key in stablehlo.named_attributes(op, name):
                if key not in _ALLOWED_ARGUMENT_ATTRIBUTES:
                    raise InvalidProgramError(f"argument attribute {key} is not allowed")


def _callees(operations: Sequence[Operation]) -> Iterator[str]:
    for op in operations:
        if op.name in ("func.call", "stablehlo.composite"):
            yield stablehlo.string_attribute(op, "callee" if op.name == "func.call" else "decomposition")


def _refuse_recursion(functions: Mapping[str, Operation]) -> None:
    calls, inlined = {}, {}
    for name, function in functions.items():
        operations = list(stablehlo.walk(function))
        calls[name], inlined[name] = list(_callees(operations)), len(operations)
    finished: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise InvalidProgramError(f"function {name} calls itself")
        if name not in calls:
            raise InvalidProgramError(f"function {name} is called but not there")
        if name in finished:
            return
        if len(above) > 200:
            raise InvalidProgramError("functions are nested too deeply")
        for callee in calls[name]:
            visit(callee, (*above, name))
        inlined[name] += sum(inlined[callee] for callee in calls[name])
        if inlined[name] > _MAX_INLINED:
            raise InvalidProgramError(f"function {name} is more than {_MAX_INLINED:,} operations with all it calls")
        finished.add(name)

    for name in calls:
        visit(name, ())


def _check_signatures(
    modules: Sequence[Module],
    traced: Sequence[str],
    phases: Sequence[tuple[float, int, int]],
    metrics: Sequence[str],
    wanted: Signature,
) -> list[TensorType]:
    scalar = TensorType((), "float32")
    values = [scalar] * len(traced)
    init, *steps, logits = modules
    inputs, state = _main_signature(init)
    _demand("init", inputs, [TensorType((), "uint32"), *values])
    if not state:
        raise InvalidProgramError("init returns no state")
    for step, (_, batch, length) in zip(steps, phases, strict=True):
        inputs, outputs = _main_signature(step)
        _demand("train_step", inputs, [*state, TensorType((batch, length + 1), "int32"), scalar, *values])
        _demand("train_step's results", outputs, [*state, *[scalar] * len(metrics)])
    inputs, outputs = _main_signature(logits)
    _demand("logits", inputs, [*state, TensorType((wanted.batch, wanted.context), "int32")])
    _demand("logits' results", outputs, [TensorType((wanted.batch, wanted.context, wanted.vocab_size), "float32")])
    return state


def _main_signature(module: Module) -> tuple[list[TensorType], list[TensorType]]:
    with module.context:
        return stablehlo.signature(module.functions["main"])


def _demand(what: str, found: Sequence[TensorType], wanted: Sequence[TensorType]) -> None:
    if list(found) == list(wanted):
        return
    if len(found) != len(wanted):
        raise InvalidProgramError(f"signature of {what}: {len(found)} tensors where {len(wanted)} belong")
    index = next(i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
    raise InvalidProgramError(f"signature of {what}: tensor {index} is {found[index]}, it must be {wanted[index]}")


def _count_parameters(logits: Module, state: Sequence[TensorType]) -> int:
    """Elements of the state that `logits` reads: what the model consists of, whatever its leaves are called."""
    with logits.context:
        used = stablehlo.used_arguments(logits.functions["main"])[: len(state)]
    return sum(kind.size for kind, read in zip(state, used, strict=True) if read)

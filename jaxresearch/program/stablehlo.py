"""StableHLO modules: parse, strip, print, walk, and make callable. Only this file, marks.py and flops.py touch MLIR.

Nothing here executes a module. A module from a sandbox may be hostile: parse it only where a process may die.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
from jax import export
from jaxlib.mlir import ir, passmanager
from jaxlib.mlir.dialects import chlo, stablehlo

Operation = ir.Operation
_NUMBER = re.compile(r"(?<![\w.])\d{1,40}")
_UNCOUNTED_ATTRIBUTES = frozenset({"value", "function_type", "sym_name", "callee", "decomposition", "name"})
"""A constant's value, counted on its own, and what no operation can compute with."""

_DTYPES = {
    "f64": "float64",
    "f32": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "ui64": "uint64",
    "ui32": "uint32",
    "ui16": "uint16",
    "ui8": "uint8",
    "i1": "bool",
}


@dataclass(frozen=True)
class TensorType:
    """Shape and numpy dtype name of one argument or result."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)  # of Python's integers: a hostile shape may not wrap around

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, jax.numpy.dtype(self.dtype))

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class UnreadableModuleError(ValueError):
    """The bytes are not a StableHLO module, or one with types that no program may have."""


@dataclass(frozen=True)
class Module:
    """A parsed module without source locations. Only a `copy` is ever changed, and none that has been printed."""

    handle: ir.Module
    context: ir.Context

    @cached_property
    def text(self) -> str:
        """Canonical form: without locations, every constant in full. Equal programs print equally."""
        with self.context:
            return str(self.handle.operation.get_asm(enable_debug_info=False))

    @property
    def functions(self) -> dict[str, Operation]:
        """Top-level functions by name."""
        with self.context:
            return {
                ir.StringAttr(op.operation.attributes["sym_name"]).value: op.operation
                for op in self.handle.body.operations
                if op.operation.name == "func.func"
            }

    def copy(self) -> Module:
        """One that can be changed, in the same context."""
        with self.context:
            return Module(ir.Module.parse(self.text), self.context)

    def serialize(self) -> bytes:
        """A portable artifact, readable by later releases of jaxlib."""
        with self.context:
            target = stablehlo.get_version_from_compatibility_requirement(
                stablehlo.StablehloCompatibilityRequirement.WEEK_4
            )
            rewritten = self.copy().handle
            passmanager.PassManager.parse("builtin.module(strip-debuginfo)").run(rewritten.operation)
            return stablehlo.serialize_portable_artifact(rewritten, target)


def parse(blob: bytes) -> Module:
    """The module in a portable artifact, stripped of source locations. Raises `UnreadableModuleError`."""
    context = ir.Context()
    with context:
        stablehlo.register_dialect(context)
        chlo.register_dialect(context)
        try:
            handle = stablehlo.deserialize_portable_artifact(context, blob)
            if handle is None:
                raise UnreadableModuleError("not a StableHLO portable artifact")
            passmanager.PassManager.parse("builtin.module(strip-debuginfo)").run(handle.operation)
            if not handle.operation.verify():
                raise UnreadableModuleError("the module does not verify")
        except (ir.MLIRError, ValueError, RuntimeError) as error:
            raise UnreadableModuleError(str(error).splitlines()[0] if str(error) else "unreadable module") from None
    return Module(handle, context)


def digest(texts: Sequence[str]) -> str:
    """SHA-256 over texts, each preceded by its length so that no two sequences collide."""
    total = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        total.update(len(encoded).to_bytes(8, "big"))
        total.update(encoded)
    return total.hexdigest()


def walk(operation: Operation) -> Iterator[Operation]:
    """Every operation inside `operation`, nested regions included."""
    for region in operation.regions:
        for block in region.blocks:
            for op in block.operations:
                yield op.operation
                yield from walk(op.operation)


def tensor_type(type_: ir.Type) -> TensorType:
    """Raises `UnreadableModuleError` for anything but a tensor of static shape and ordinary dtype."""
    if not isinstance(type_, ir.RankedTensorType) or not type_.has_static_shape:
        raise UnreadableModuleError(f"type {type_} is not a tensor of static shape")
    name = str(type_.element_type)
    if name not in _DTYPES:
        raise UnreadableModuleError(f"element type {name} is not allowed")
    return TensorType(tuple(type_.shape), _DTYPES[name])


def signature(function: Operation) -> tuple[list[TensorType], list[TensorType]]:
    """Types of the arguments and the results of a func.func."""
    kind = ir.FunctionType(ir.TypeAttr(function.attributes["function_type"]).value)
    return [tensor_type(t) for t in kind.inputs], [tensor_type(t) for t in kind.results]


def used_arguments(function: Operation) -> list[bool]:
    """For each argument of a func.func: does anything read it?"""
    entry = function.regions[0].blocks[0]
    return [any(True for _ in argument.uses) for argument in entry.arguments]


def constant_bytes(op: Operation) -> int:
    """Bytes of data that a stablehlo.constant carries; a splat carries one element."""
    value = op.attributes["value"]
    kind = tensor_type(op.results[0].type)
    width = jax.numpy.dtype(kind.dtype).itemsize
    if isinstance(value, ir.DenseElementsAttr) and value.is_splat:
        return width
    return max(1, kind.size) * width


def attribute_bytes(op: Operation) -> int:
    """Bytes of the numbers in an operation's attributes: slice bounds, paddings, permutations, dimension numbers.

    A program can compute with them, so they can carry text. A constant's own value is not counted here.
    """
    total = 0
    for name in op.attributes:
        if name in _UNCOUNTED_ATTRIBUTES:
            continue
        text = str(op.attributes[name])
        if '"0x' in text:  # many numbers, printed as one string of digits
            total += len(text) // 2
            continue
        text = text.split(" : ")[0]  # without the type
        total += sum(_bytes_of_number(digits) for digits in _NUMBER.findall(text))
    return total


def _bytes_of_number(digits: str) -> int:
    return 1 if len(digits) < 3 else (int(digits).bit_length() + 7) // 8


def string_attribute(op: Operation, name: str) -> str:
    """The text of a string or symbol attribute; empty when absent."""
    if name not in op.attributes:
        return ""
    value = op.attributes[name]
    return value.value if isinstance(value, ir.StringAttr | ir.FlatSymbolRefAttr) else str(value)


def named_attributes(op: Operation, name: str) -> list[str]:
    """Names inside an array of dictionaries, such as the attributes of a function's arguments."""
    array = ir.ArrayAttr(op.attributes[name])
    return [named.name for dictionary in array for named in ir.DictAttr(dictionary)]


def split_rows(module: Module, index: int) -> tuple[Module, tuple[int, ...]] | None:
    """A copy that takes argument `index` of `main` as [parts, rows, ...], and that shape; the same numbers in that order.

    None where the module does anything else with its [parts x rows, ...] than to reshape it so.
    """
    with module.context:
        copy = module.copy()
        main = copy.functions["main"]
        argument = main.regions[0].blocks[0].arguments[index]
        whole, readers = tensor_type(argument.type), [use.owner for use in argument.uses]
        found = {op.results[0].type for op in readers if op.name == "stablehlo.reshape"}
        if len(found) != 1 or any(op.name != "stablehlo.reshape" for op in readers):
            return None
        (kind,) = found
        shape = tensor_type(kind).shape
        if shape[2:] != whole.shape[1:] or math.prod(shape[:2]) != whole.shape[0]:
            return None
        argument.set_type(kind)
        for op in readers:
            op.results[0].replace_all_uses_with(argument)
            op.operation.erase()
        declared = ir.FunctionType(ir.TypeAttr(main.attributes["function_type"]).value)
        inputs = [*declared.inputs[:index], kind, *declared.inputs[index + 1 :]]
        main.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs, declared.results))
        return (copy, shape) if copy.handle.operation.verify() else None


def to_exported(module: Module, platform: str) -> export.Exported:
    """The module's `main` as something that `jax.jit` can call with flat positional arguments.

    The calling convention is our own, from a stub of the same signature; nothing of the module's origin is trusted.
    Every sort is a stable one: it gives what an unstable one may give, and stays inside its array whatever is compared.
    """
    module = _with_stable_sorts(module)
    with module.context:
        inputs, outputs = signature(module.functions["main"])

    def stub(*arguments: jax.Array) -> list[jax.Array]:
        return [jax.numpy.zeros(kind.shape, kind.dtype) for kind in outputs]

    jitted = jax.jit(stub, keep_unused=True)
    exported = export.export(jitted, platforms=[platform])(*[kind.struct for kind in inputs])
    return dataclasses.replace(exported, mlir_module_serialized=module.serialize())


def _with_stable_sorts(module: Module) -> Module:
    """XLA's CPU backend leaves the array of an unstable sort, and reads and writes what lies beyond, where a comparison
    contradicts itself."""
    with module.context:
        if not any(_is_unstable(op) for op in walk(module.handle.operation)):
            return module
        copy = module.copy()
        for op in walk(copy.handle.operation):
            if _is_unstable(op):
                op.attributes["is_stable"] = ir.BoolAttr.get(True)
        return copy


def _is_unstable(op: Operation) -> bool:
    if op.name != "stablehlo.sort":
        return False
    return "is_stable" not in op.attributes or not ir.BoolAttr(op.attributes["is_stable"]).value

"""Marks: composites of our own name that a subject puts around an operation, and what the laboratory does with them.

A mark changes nothing of what a program computes. Before a program is counted or compiled its marks are taken out: each
becomes a call of its decomposition, or of a kernel that the laboratory puts in the place of a decomposition it knows.
Calls are inlined and equal operations merged, so what a gradient's decomposition repeats of the forward pass is done once.

Other composites (JAX's own: `chlo.erf`, `chlo.top_k`) are taken out as well. XLA goes by the name of those and never looks
at what they stand for: one called `chlo.top_k` that stands for nothing would sort, and be counted as nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxlib.mlir import ir, passmanager

from jaxresearch.program.stablehlo import (
    Module,
    Operation,
    TensorType,
    UnreadableModuleError,
    string_attribute,
    tensor_type,
    walk,
)

PREFIX = "jaxresearch."
_MAX_INLINED = 1_000_000
"""Operations that marks may come to: what takes them out does it for each mark."""
_TAKE_OUT = "builtin.module(func.func(cse), symbol-dce)"


@dataclass(frozen=True)
class Mark:
    """One marked operation. Equal marks compute the same, whatever their programs call their functions.

    attributes: MLIR's text of the composite's own. body: the decomposition with all that it calls, canonically.
    """

    name: str
    attributes: str
    operands: tuple[TensorType, ...]
    results: tuple[TensorType, ...]
    body: str


def find_marks(module: Module) -> list[Mark]:
    """The marks of a module in the order of its text."""
    with module.context:
        bodies: dict[str, str] = {}
        return [_mark(module, op, bodies) for op in walk(module.handle.operation) if _is_mark(op)]


def take_out_marks(module: Module, kernels: Mapping[Mark, Module] | None = None) -> Module:
    """A copy without composites: `kernels` (modules whose `main` has the mark's types) stand where one is given for a mark.

    Raises `UnreadableModuleError` for marks that hold too much.
    """
    with module.context:
        bodies: dict[str, str] = {}
        copy = module.copy()
        handle = copy.handle
        composites = [op for op in walk(handle.operation) if op.name == "stablehlo.composite"]
        found = [(op, _mark(copy, op, bodies) if kernels and _is_mark(op) else None) for op in composites]
        if not found:
            return module
        targets = {
            mark: _add(copy, kernel, number)
            for number, (mark, kernel) in enumerate((kernels or {}).items())
            if any(mark == other for _, other in found)
        }
        for op, mark in found:
            if mark in targets:
                op.attributes["decomposition"] = ir.FlatSymbolRefAttr.get(targets[mark])
        if not handle.operation.verify():
            raise UnreadableModuleError("a kernel does not have the types of its mark")
        _inline(copy, [op for op, _ in found])
        passmanager.PassManager.parse(_TAKE_OUT).run(handle.operation)
        return copy


def _is_mark(op: Operation) -> bool:
    return op.name == "stablehlo.composite" and string_attribute(op, "name").startswith(PREFIX)


def _mark(module: Module, op: Operation, bodies: dict[str, str]) -> Mark:
    decomposition = string_attribute(op, "decomposition")
    if decomposition not in bodies:
        bodies[decomposition] = _closure(module, decomposition)
    return Mark(
        name=string_attribute(op, "name"),
        attributes=str(op.attributes["composite_attributes"]) if "composite_attributes" in op.attributes else "{}",
        operands=tuple(tensor_type(value.type) for value in op.operands),
        results=tuple(tensor_type(value.type) for value in op.results),
        body=bodies[decomposition],
    )


def _references(function: Operation) -> Iterator[tuple[Operation, str, str]]:
    """Operations that name a function: the operation, its attribute, the name."""
    for op in walk(function):
        attribute = {"func.call": "callee", "stablehlo.composite": "decomposition"}.get(op.name)
        if attribute is not None:
            yield op, attribute, string_attribute(op, attribute)


def _closure(module: Module, name: str) -> str:
    """Text of a function and of all that it calls, each named by the order in which it is met."""
    functions, order = module.functions, [name]
    for current in order:  # grows while it is walked
        for _, _, callee in _references(functions[current]):
            if callee not in order:
                order.append(callee)
    fresh = ir.Module.create(ir.Location.unknown())
    names = {old: f"f{number}" for number, old in enumerate(order)}
    for old in order:
        fresh.body.append(_renamed(functions[old], names))
    return str(fresh.operation.get_asm(enable_debug_info=False))


def _renamed(function: Operation, names: Mapping[str, str]) -> Operation:
    """A private copy of a function under its new name that calls others by theirs."""
    copy = function.clone()
    copy.attributes["sym_name"] = ir.StringAttr.get(names[string_attribute(function, "sym_name")])
    copy.attributes["sym_visibility"] = ir.StringAttr.get("private")
    for notes in ("arg_attrs", "res_attrs"):  # what JAX calls arguments and results
        if notes in copy.attributes:
            del copy.attributes[notes]
    for op, attribute, callee in _references(copy):
        op.attributes[attribute] = ir.FlatSymbolRefAttr.get(names[callee])
    return copy


def _add(module: Module, kernel: Module, number: int) -> str:
    """Put a kernel's functions into `module` under names that are free there; returns the name of its `main`."""
    taken, prefix = module.functions, f"kernel{number}"
    while any(name.startswith(prefix) for name in taken):
        prefix += "_"
    guest = Module(ir.Module.parse(kernel.text), module.context)
    names = {old: f"{prefix}.{old}" for old in guest.functions}
    for function in guest.functions.values():
        module.handle.body.append(_renamed(function, names))
    return names["main"]


def _inline(module: Module, composites: Sequence[Operation]) -> None:
    """Put what composites stand for in their place, and what that calls. (MLIR's own pass knows no composites.)"""
    functions, waiting, inlined = module.functions, list(composites), 0
    while waiting:
        op = waiting.pop()
        callee = string_attribute(op, "decomposition" if op.name == "stablehlo.composite" else "callee")
        body = functions[callee].clone().regions[0].blocks[0]
        for argument, operand in zip(body.arguments, op.operands, strict=True):
            argument.replace_all_uses_with(operand)
        *inside, end = list(body.operations)
        for new in inside:
            new.move_before(op)
            waiting += [
                one for one in (new.operation, *walk(new.operation)) if one.name in ("func.call", "stablehlo.composite")
            ]
        inlined += len(inside)
        if inlined > _MAX_INLINED:
            raise UnreadableModuleError(f"marks hold more than {_MAX_INLINED:,} operations")
        for old, value in zip(op.results, end.operands, strict=True):
            old.replace_all_uses_with(value)
        op.erase()

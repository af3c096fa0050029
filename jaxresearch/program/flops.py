"""Counting a program's floating-point operations on its StableHLO, the same on every platform and device count.

What counts, per operation (docs/integrity.md has this table too):

| operation                                          | FLOPs                                                               |
|----------------------------------------------------|---------------------------------------------------------------------|
| dot_general                                        | 2 x elements of the result x contracted length                      |
| convolution                                        | 2 x elements of the result x kernel elements / output features      |
| elementwise: arithmetic, comparing, transcendental | 1 for each element of the result                                    |
| reduce, reduce_window                              | those of the body for each element (of each window)                 |
| scatter, map                                       | those of the body for each update, for each element                 |
| sort                                               | those of the comparison x elements x log2 of the length, rounded up |
| select_and_scatter                                 | selecting: each element of each window; scattering: each window     |
| while                                              | (body + condition) x trip count, condition once more                |
| case, if                                           | the costliest branch                                                |
| composite, call                                    | those of the function that it stands for                            |
| gather, dynamic_slice                              | 1 for each element of the result                                    |
| slice, reshape, convert, constants, ...            | 0                                                                   |

What is looked up counts because a table can hold what would be computed: every sum and product of two bytes, say.

XLA's own count, of programs without loops, agrees to a percent (tests/program/test_flops.py).

Programs are counted with their marks taken out (marks.py), as they are compiled: a gradient of marked attention repeats the
forward pass, and that counts again only where it cannot be merged with the step's own. A kernel put in changes no count.

A while loop counts when its trip count can be read off: a counter with a constant start, bound and stride. Otherwise
the count is unknown (None), and a FLOP budget is refused.
"""

from __future__ import annotations

import math

from jaxlib.mlir import ir

from jaxresearch.program.stablehlo import Module, Operation, string_attribute, tensor_type

ELEMENTWISE = frozenset(
    f"stablehlo.{name}"
    for name in (
        "abs add and atan2 cbrt ceil clamp compare complex cosine count_leading_zeros divide exponential "
        "exponential_minus_one floor is_finite log log_plus_one logistic maximum minimum multiply negate not or popcnt "
        "power reduce_precision remainder round_nearest_afz round_nearest_even rsqrt select shift_left "
        "shift_right_arithmetic shift_right_logical sign sine sqrt subtract tan tanh xor"
    ).split()
)


_LOOK_UPS = frozenset({"stablehlo.gather", "stablehlo.dynamic_slice"})


class UnknownTripCountError(ValueError):
    """A loop whose length cannot be read off the program."""


def count_flops(module: Module) -> float | None:
    """FLOPs of one call of `main`; None when a loop's trip count is unknown."""
    with module.context:
        functions = module.functions
        try:
            return _Counter(functions).function("main")
        except UnknownTripCountError:
            return None


class _Counter:
    def __init__(self, functions: dict[str, Operation]) -> None:
        self.functions = functions
        self.known: dict[str, float] = {}

    def function(self, name: str) -> float:
        if name not in self.known:
            self.known[name] = self.region(self.functions[name].regions[0])
        return self.known[name]

    def region(self, region: ir.Region) -> float:
        return math.fsum(self.operation(op.operation) for block in region.blocks for op in block.operations)

    def operation(self, op: Operation) -> float:
        name = op.name
        if name in ELEMENTWISE or name in _LOOK_UPS:
            return _elements(op.results[0])
        match name:
            case "stablehlo.dot_general":
                return _dot_flops(op)
            case "stablehlo.convolution":
                return 2.0 * _elements(op.results[0]) * _elements(op.operands[1]) / _output_features(op)
            case "func.call":
                return self.function(string_attribute(op, "callee"))
            case "stablehlo.composite":
                return self.function(string_attribute(op, "decomposition"))
            case "stablehlo.while":
                condition, body = op.regions
                trips = trip_count(op)
                return trips * self.region(body) + (trips + 1) * self.region(condition)
            case "stablehlo.case" | "stablehlo.if":
                return max((self.region(branch) for branch in op.regions), default=0.0)
            case "stablehlo.reduce":
                return self.region(op.regions[0]) * _elements(op.operands[0])
            case "stablehlo.reduce_window":
                window = math.prod(_integers(op.attributes["window_dimensions"]))
                return self.region(op.regions[0]) * _elements(op.results[0]) * window
            case "stablehlo.sort":
                sorted_axis = ir.IntegerAttr(op.attributes["dimension"]).value
                length = tensor_type(op.operands[0].type).shape[sorted_axis]
                return self.region(op.regions[0]) * _elements(op.operands[0]) * math.ceil(math.log2(max(2, length)))
            case "stablehlo.scatter":
                return self.region(op.regions[0]) * _elements(op.operands[len(op.operands) - len(op.results)])
            case "stablehlo.select_and_scatter":
                select, scatter = map(self.region, op.regions)
                window = _integers(op.attributes["window_dimensions"]) if "window_dimensions" in op.attributes else [1]
                return (select * math.prod(window) + scatter) * _elements(op.operands[1])
            case "stablehlo.map":
                return self.region(op.regions[0]) * _elements(op.results[0])
            case _:
                return 0.0


def _elements(value: ir.Value) -> float:
    return float(tensor_type(value.type).size)


def _integers(attribute: ir.Attribute) -> list[int]:
    return [int(number) for number in ir.DenseI64ArrayAttr(attribute)]


def _dot_flops(op: Operation) -> float:
    numbers = str(op.attributes["dot_dimension_numbers"])
    left = tensor_type(op.operands[0].type)
    contracted = 1
    if "lhs_contracting_dimensions" in numbers:
        inside = numbers.split("lhs_contracting_dimensions = [")[1].split("]")[0]
        for axis in filter(None, inside.split(",")):
            contracted *= left.shape[int(axis)]
    return 2.0 * _elements(op.results[0]) * contracted


def _output_features(op: Operation) -> int:
    """Size of the kernel's output-feature axis: the `o` in dimension numbers such as [b, 0, f]x[0, i, o]->[b, 0, f]."""
    kernel_axes = str(op.attributes["dimension_numbers"]).split("x[")[1].split("]")[0]
    axis = [name.strip() for name in kernel_axes.split(",")].index("o")
    return max(1, tensor_type(op.operands[1].type).shape[axis])


def trip_count(loop: Operation) -> int:
    """Iterations of a `while` whose counter has a constant start, bound and stride. Raises `UnknownTripCountError`."""
    condition, body = (region.blocks[0] for region in loop.regions)
    returned = list(condition.operations)[-1].operands[0]
    compare = _defining(returned)
    if compare is None or compare.name != "stablehlo.compare":
        raise UnknownTripCountError("the condition is not a comparison")
    index = _argument_index(compare.operands[0], condition)
    bound = _constant(compare.operands[1], condition, loop)
    start = _constant(loop.operands[index], None, loop)
    next_value = list(body.operations)[-1].operands[index]
    stride = _stride(next_value, body, index)
    direction = str(compare.attributes["comparison_direction"])
    distance = bound - start
    if "LE" in direction:
        distance += 1
    elif "LT" not in direction:
        raise UnknownTripCountError("the condition is neither < nor <=")
    if stride <= 0:
        raise UnknownTripCountError("the counter does not grow")
    trips = max(0, -(-distance // stride))
    if not _holds(loop.operands[index], start + trips * stride):
        raise UnknownTripCountError("the counter wraps around before it reaches its bound")
    return trips


def _holds(value: ir.Value, number: int) -> bool:
    """Whether the integer type of `value` can represent `number`."""
    dtype = tensor_type(value.type).dtype
    if "int" not in dtype:
        return False
    bits = int(dtype.split("int")[1])
    low, high = (0, 2**bits) if dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    return low <= number < high


def _defining(value: ir.Value) -> Operation | None:
    owner = value.owner
    return None if isinstance(owner, ir.Block) else owner.operation


def _argument_index(value: ir.Value, block: ir.Block) -> int:
    for index, argument in enumerate(block.arguments):
        if argument == value:
            return index
    raise UnknownTripCountError("the counter is not a loop variable")


def _constant(value: ir.Value, block: ir.Block | None, loop: Operation) -> int:
    """The integer that `value` always has; a loop variable counts when the body hands it on unchanged."""
    operation = _defining(value)
    if operation is not None and operation.name == "stablehlo.constant":
        attribute = operation.attributes["value"]
        if isinstance(attribute, ir.DenseIntElementsAttr) and len(attribute) == 1:
            return int(attribute[0])
    if operation is not None and operation.name == "stablehlo.convert":
        number = _constant(operation.operands[0], block, loop)
        if not _holds(value, number):
            raise UnknownTripCountError("a bound of the loop changes when it is converted")
        return number
    if operation is None and block is not None:
        index = _argument_index(value, block)
        body = loop.regions[1].blocks[0]
        if list(body.operations)[-1].operands[index] == body.arguments[index]:
            return _constant(loop.operands[index], None, loop)
    raise UnknownTripCountError("a bound of the loop is not a constant")


def _stride(value: ir.Value, body: ir.Block, index: int) -> int:
    operation = _defining(value)
    if operation is None or operation.name != "stablehlo.add":
        raise UnknownTripCountError("the counter does not grow by a constant")
    left, right = operation.operands
    for counter, step in ((left, right), (right, left)):
        if counter == body.arguments[index]:
            return _constant(step, None, operation)
    raise UnknownTripCountError("the counter does not grow by a constant")

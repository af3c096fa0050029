"""Fused attention: a kernel of the machine's, put in by the laboratory where a program holds the attention it knows.

A candidate's own custom calls are refused by the verifier, and nothing that it claims leads to one: a mark is replaced
only if its decomposition is, to the last operation, what `reference.py` gives for the same operands, and only if the
kernel gives what the formula gives on this machine. Anything else, failures included, runs as the program says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import jax
import numpy as np
from jax import export

from jaxresearch.program import reference, stablehlo
from jaxresearch.program.marks import Mark, find_marks, take_out_marks
from jaxresearch.program.mesh import compiler_options
from jaxresearch.program.stablehlo import Module, TensorType
from jaxresearch.text import one_line

_REFERENCES = {
    "jaxresearch.causal_attention": reference.marked_attention,
    "jaxresearch.causal_attention_gradient": reference.marked_attention_gradient,
}
_TOLERANCE = {"bfloat16": 1e-2, "float16": 1e-2, "float32": 1e-4}
"""Root mean square of the difference over that of the reference. Two bfloat16 attentions that differ only in the order of
their sums come to 0.003 to 0.005; a window of 256 that is wrong by one token to 0.03."""
_LARGEST = 5
"""The largest difference over the largest value of the reference, in units of the tolerance."""
_TINY = 1e-30  # in a window of one token the gradients of q and k are exactly 0
_CHECKED_ROWS = 2
_CUSTOM_CALLS = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")


@dataclass(frozen=True)
class Kernel:
    """attend(q BxTxHxK, k BxTxGxK, v BxTxGxK, window) -> BxTxHxK, differentiable; raises for what it does not support."""

    name: str
    attend: Callable[[jax.Array, jax.Array, jax.Array, int], jax.Array]


def _cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array, window: int) -> jax.Array:
    local = (window - 1, 0) if window < q.shape[1] else None
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=local, implementation="cudnn")


CUDNN = Kernel("cudnn", _cudnn_attention)


def choose_kernel(setting: str, platform: str, devices: int) -> tuple[Kernel | None, str]:
    """The kernel for a run, and how its attention is recorded when there is none. setting: `auto` or `xla`."""
    if platform != "cuda":
        return None, "xla"
    if setting == "xla":
        return None, "xla (execution.attention=xla)"
    if devices > 1:  # XLA cannot partition a custom call: each device would do the work of all
        return None, f"xla (the run is spread over {devices} devices)"
    return CUDNN, ""


def settle_attention(modules: Sequence[Module], kernel: Kernel | None, platform: str) -> tuple[list[Module], str]:
    """The modules without marks, `kernel` in the place of every attention that we know; and what became of it, in words."""
    if kernel is None:
        return [take_out_marks(module) for module in modules], "xla"
    marks = list(dict.fromkeys(mark for module in modules for mark in find_marks(module)))
    ours = [mark for mark in marks if is_ours(mark, platform)]
    why_not = "" if ours else "the program holds no attention that the laboratory knows"
    kernels: dict[Mark, Module] = {}
    for mark in ours:
        found = _lowered(kernel, mark, platform)
        if isinstance(found, Module):
            kernels[mark] = found
            why_not = why_not or _disagreement(kernel, _with_rows(mark, _CHECKED_ROWS), platform)
        else:
            why_not = why_not or found
    if why_not:
        return [take_out_marks(module) for module in modules], f"xla ({why_not})"
    word = kernel.name if ours == marks else f"{kernel.name}, and xla for attention that the laboratory does not know"
    return [take_out_marks(module, kernels) for module in modules], word


def is_ours(mark: Mark, platform: str) -> bool:
    """Whether a mark holds what the laboratory itself would lower for its operands."""
    known = _reference(mark, platform)
    return known is not None and mark in find_marks(known)


@cache
def _reference_of(name: str, window: int, operands: tuple[TensorType, ...], platform: str) -> Module | str:
    marked = partial(_REFERENCES[name], window=window)
    return _exported(marked, operands, platform)


def _reference(mark: Mark, platform: str) -> Module | None:
    """A module whose `main` is the reference, marked, for the mark's window and operands. None if it cannot exist."""
    window = re.fullmatch(r"\{window = (\d{1,9}) : i64\}", mark.attributes)
    if mark.name not in _REFERENCES or window is None:
        return None
    found = _reference_of(mark.name, int(window[1]), mark.operands, platform)
    return found if isinstance(found, Module) else None


@cache
def _lowered(kernel: Kernel, mark: Mark, platform: str) -> Module | str:
    """The kernel as a module with the mark's types, or why it cannot be had."""
    window = _window(mark)

    def forward(q, k, v, *dy):
        # Forward and gradient both begin with the same call, one that saves what a gradient needs; merged, it runs once.
        y, pull = jax.vjp(lambda q, k, v: kernel.attend(q, k, v, window), q, k, v)
        return pull(*dy) if dy else y

    return _exported(forward, mark.operands, platform)


def _window(mark: Mark) -> int:
    return int(re.findall(r"\d+", mark.attributes)[0])


def _exported(function: Callable, operands: Sequence[TensorType], platform: str) -> Module | str:
    """`function` lowered for `platform`, or the error of lowering it in one line."""
    checks = [export.DisabledSafetyCheck.custom_call(target) for target in _CUSTOM_CALLS]
    jitted = jax.jit(function, keep_unused=True)
    try:
        lowered = export.export(jitted, platforms=[platform], disabled_checks=checks)(*[o.struct for o in operands])
        return stablehlo.parse(bytes(lowered.mlir_module_serialized))
    except Exception as error:  # what a kernel does not support, or a mark that no attention could have
        return _in_words(error)


def _with_rows(mark: Mark, rows: int) -> Mark:
    """The mark for at most `rows` rows of its batch. Its body is not looked at by those who get it."""

    def fewer(kinds: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
        return tuple(TensorType((min(rows, kind.shape[0]), *kind.shape[1:]), kind.dtype) for kind in kinds)

    return replace(mark, operands=fewer(mark.operands), results=fewer(mark.results), body="")


@cache
def _disagreement(kernel: Kernel, mark: Mark, platform: str) -> str:
    """Run kernel and formula on random inputs of the mark's shapes: empty when they agree, else what went wrong."""
    ours, window = _lowered(kernel, mark, platform), _window(mark)
    if isinstance(ours, str):
        return f"{kernel.name} cannot be checked: {ours}"

    def plain(q, k, v, *dy):
        # Not `reference.chunked_attention`: a GPU's compiler tries out every product of every chunk, for minutes.
        y, pull = jax.vjp(lambda q, k, v: reference.plain_attention(q, k, v, window), q, k, v)
        return pull(dy[0].astype(y.dtype)) if dy else (y,)

    keys = jax.random.split(jax.random.key(0), len(mark.operands))
    inputs = [jax.random.normal(key, o.shape, o.dtype) for key, o in zip(keys, mark.operands, strict=True)]
    try:
        found, wanted = (
            jax.jit(function).lower(*inputs).compile(compiler_options(platform))(*inputs)
            for function in (stablehlo.to_exported(ours, platform).call, plain)
        )
        pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(found, wanted, strict=True)]
    except Exception as error:
        return f"{kernel.name} failed: {_in_words(error)}"
    tolerance = _TOLERANCE[mark.operands[0].dtype]
    unlike = next((f"{a.shape}, not {b.shape}" for a, b in pairs if a.shape != b.shape), None)
    if unlike is not None:
        return f"{kernel.name} gives {unlike}"
    # np.max, not max: a NaN must come through, whichever result it is in. And not `>`, for the same reason.
    error = np.max([_root_mean_square(a - b) / max(_root_mean_square(b), _TINY) for a, b in pairs])
    largest = np.max([np.abs(a - b).max() / max(np.abs(b).max(), _TINY) for a, b in pairs])
    if error <= tolerance and largest <= _LARGEST * tolerance:
        return ""
    return f"{kernel.name} differs from plain attention by {error:.2g}, at most {tolerance:g} is allowed"


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _in_words(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", 200)

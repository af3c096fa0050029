"""A program of the smallest size, and StableHLO written by hand where jax would not write it."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
from jax import export
from jaxlib.mlir import ir

from jaxresearch.program import stablehlo
from jaxresearch.program.verifier import ProgramLimits, Signature, VerifiedModules, verify

BATCH, CONTEXT, VOCAB = 2, 4, 8
PHASES = ((1.0, 3, 6),)
TRACED = ("lr",)
LIMITS = ProgramLimits(program_bytes=1_000_000, constant_bytes=1024, parameters=1000)

F32 = jax.ShapeDtypeStruct((), jnp.float32)
WEIGHT = jax.ShapeDtypeStruct((VOCAB, VOCAB), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((BATCH, CONTEXT), jnp.int32)
LOGITS = "func.func public @main(%w: tensor<8x8xf32>, %t: tensor<2x4xi32>) -> tensor<2x4x8xf32>"


def exported(function, *arguments) -> bytes:
    return bytes(
        export.export(jax.jit(function, keep_unused=True), platforms=["cpu"])(*arguments).mlir_module_serialized
    )


def module(function, *arguments) -> stablehlo.Module:
    return stablehlo.parse(exported(function, *arguments))


def init(seed, lr):
    return [jnp.full((VOCAB, VOCAB), seed.astype(jnp.float32) * lr)]


def step(weight, tokens, progress, lr):
    return [weight - lr * progress, weight[tokens[:, :-1], tokens[:, 1:]].mean()]


def logits(weight, tokens):
    return [weight[tokens]]


def step_arguments(batch=3, length=6) -> tuple:
    return WEIGHT, jax.ShapeDtypeStruct((batch, length + 1), jnp.int32), F32, F32


@cache
def honest() -> tuple[bytes, bytes, bytes]:
    """init, train_step, logits."""
    return (
        exported(init, jax.ShapeDtypeStruct((), jnp.uint32), F32),
        exported(step, *step_arguments()),
        exported(logits, WEIGHT, TOKENS),
    )


def written(text: str) -> bytes:
    """StableHLO text as a portable artifact."""
    context = stablehlo.parse(honest()[0]).context
    with context:
        return stablehlo.Module(ir.Module.parse(text), context).serialize()


def logits_with(body: str, *functions: str) -> bytes:
    """A `logits` that returns %out as `body` computes it from %w and %t."""
    main = f"{LOGITS} {{\n{body}\nreturn %out : tensor<2x4x8xf32>\n}}"
    return written("module {\n" + "\n".join([main, *functions]) + "\n}")


def verified(*blobs: bytes, **changes) -> VerifiedModules:
    """The verifier's word on these modules, or on `honest()` with `logits` replaced."""
    first, second, third = honest()
    settings = {
        "traced": TRACED,
        "phases": PHASES,
        "metrics": ("loss",),
        "wanted": Signature(BATCH, CONTEXT, VOCAB),
        "limits": LIMITS,
    }
    given = blobs if len(blobs) != 1 else (first, second, *blobs)
    return verify(given or (first, second, third), **{**settings, **changes})

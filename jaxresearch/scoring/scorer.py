"""Bits per byte: the laboratory's own log-softmax and byte count over the logits of a program."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax import stages

from jaxresearch.program.mesh import Placement, one_device
from jaxresearch.program.program import LoadedProgram

Leaves = list[jax.Array]
MAX_LOGIT = 1e6
"""Magnitude above which a logit is refused: fp32 then resolves no tenth of a nat, and a projection hides small leaks."""


class NotFiniteError(ValueError):
    """Logits held NaN or infinities, or were so large that the log-softmax did."""


@dataclass(frozen=True)
class CompiledScorer:
    """One executable that scores and that audits: same program, same shapes, so that equal inputs give equal bits.

    run(leaves, inputs i32[b, T], targets i32[b, T], probe f32[V]) -> nats f32[b, T], trace f32[b, T], finite bool[].
    `trace` is the logits projected on a random vector: it moves when any logit does.
    """

    run: stages.Compiled
    batch: int
    context: int
    vocab_size: int
    compile_seconds: float
    peak_memory_bytes: int
    placement: Placement = field(default_factory=one_device)

    def __call__(
        self, leaves: Leaves, inputs: np.ndarray, targets: np.ndarray, probe: np.ndarray
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`run` on whole batches, i32[b, T]; over several processes each feeds the rows that its devices hold."""
        own = self.placement.own_rows(self.batch)
        put = [self.placement.put_rows(rows[own], self.batch) for rows in (inputs, targets)]
        return self.run(leaves, *put, probe)


@dataclass(frozen=True)
class Score:
    """A scored evaluation. nats: f32[batches, b, T], the cross-entropy of every target; trace: of that shape, all logits
    projected on `probe`, f32[V]."""

    val_bpb: float
    nats: np.ndarray
    seconds: float
    trace: np.ndarray
    probe: np.ndarray


def compile_scorer(program: LoadedProgram, placement: Placement | None = None) -> CompiledScorer:
    """Compile the program's logits with our log-softmax behind an optimisation barrier, for `placement` or one device."""
    manifest, started, placement = program.manifest, time.monotonic(), placement or one_device()

    def run(leaves, inputs, targets, probe):
        logits = jax.lax.optimization_barrier(program.logits.call(*leaves, inputs)[0])
        # log_softmax subtracts the largest logit first. logsumexp adds it back: at 1e9 that rounds log(V) away, and a
        # program whose logits are all 1e9 would score zero bits.
        nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
        finite = (jnp.abs(logits) <= MAX_LOGIT).all() & jnp.isfinite(nats).all()
        return nats, logits @ probe, finite

    leaves = program.state
    tokens = jax.ShapeDtypeStruct((manifest.evaluation_batch, manifest.context), jnp.int32)
    probe = jax.ShapeDtypeStruct((manifest.vocab_size,), jnp.float32)
    places, rows, copied = (
        [placement.leaf(leaf) for leaf in leaves],
        placement.rows(manifest.evaluation_batch),
        placement.replicated,
    )
    jitted = jax.jit(
        run,
        keep_unused=True,
        in_shardings=(places, rows, rows, copied),
        out_shardings=(copied, copied, copied),  # one figure a token: every process judges all of them
    )
    compiled = jitted.lower(leaves, tokens, tokens, probe).compile(placement.compiler_options)
    plan = compiled.memory_analysis()
    return CompiledScorer(
        run=compiled,
        placement=placement,
        batch=manifest.evaluation_batch,
        context=manifest.context,
        vocab_size=manifest.vocab_size,
        compile_seconds=time.monotonic() - started,
        peak_memory_bytes=int(plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes)
        if plan
        else 0,
    )


def score(
    scorer: CompiledScorer,
    leaves: Leaves,
    rows: np.ndarray,
    byte_lengths: np.ndarray,
    randomness: np.random.Generator | None = None,
) -> Score:
    """Score `rows` (i32[batches, b, T + 1]): all targets that stand for at least one byte count.

    byte_lengths: i32[V], UTF-8 bytes of each token, 0 for specials. randomness: draws the probe, on which audits of this
    very evaluation project other logits; without one it is zero. Raises `NotFiniteError`.
    """
    started = time.monotonic()
    probe = np.zeros(scorer.vocab_size, np.float32)
    if randomness is not None:
        probe = randomness.standard_normal(scorer.vocab_size).astype(np.float32)
    results = [scorer(leaves, batch[:, :-1], batch[:, 1:], probe) for batch in rows]
    nats, trace = (np.stack([np.asarray(each[at]) for each in results]) for at in (0, 1))
    if not all(bool(finite) for _, _, finite in results):
        raise NotFiniteError(f"logits are not finite, or above {MAX_LOGIT:g}, too large for fp32")
    val_bpb = bits_per_byte(nats, rows[..., 1:], byte_lengths)
    return Score(val_bpb, nats, time.monotonic() - started, trace, probe)


def bits_per_byte(nats: np.ndarray, targets: np.ndarray, byte_lengths: np.ndarray) -> float:
    """Summed cross-entropy in bits over summed UTF-8 bytes, of the targets whose byte length is above 0."""
    lengths = byte_lengths[targets]
    total_nats = nats.astype(np.float64)[lengths > 0].sum()
    return float(total_nats / (math.log(2) * lengths.sum()))

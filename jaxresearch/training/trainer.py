"""Training: runs a Program under a Budget. Batches, clock, steps and state are ours; the program only maps arrays."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax import stages

from jaxresearch.budget import Budget
from jaxresearch.errors import JaxresearchError
from jaxresearch.experiment import RunProgress
from jaxresearch.program import stablehlo
from jaxresearch.program.mesh import Placement, one_device
from jaxresearch.program.program import LoadedProgram
from jaxresearch.training.checkpoints import Checkpoints, TrainingState
from jaxresearch.training.hosts import IN_FLIGHT, BatchSource, Wish, draw, make_clock
from jaxresearch.training.meter import BudgetTooSmallError, Meter
from jaxresearch.training.probing import Probing

MAX_LOSS = 100.0
"""Nats per token above which a run counts as diverged."""
_CURVE_POINTS = 200
_QUEUED_SHARE = 0.01
"""Of a budget in seconds: where the steps in flight would take more, none is queued."""
_OVERRUN_SHARE, _OVERRUN_SECONDS = 0.1, 1.0
"""What a training may take beyond its budget in seconds: the larger of a share of it and what a busy machine may add."""

Leaves = list[jax.Array]


@dataclass(frozen=True)
class CompiledProgram:
    """Executables of one program: init(seed, *traced), steps[phase](leaves, tokens, progress, traced).

    warm: the phases whose step has run in this process. flags: what devices repeat of each other's work, in words.
    """

    program: LoadedProgram
    placement: Placement
    init: stages.Compiled
    steps: tuple[stages.Compiled, ...]
    compile_seconds: float
    peak_memory_bytes: int
    flags: tuple[str, ...] = ()
    warm: set[int] = field(default_factory=set, compare=False)


@dataclass(frozen=True)
class Trained:
    """A finished training: the final state and what it took."""

    leaves: Leaves
    loss: float
    steps: int
    tokens: int
    flops: float
    train_seconds: float
    curve: tuple[tuple[float, float], ...]
    changed: bool
    seed_matters: bool


class TrainingFailedError(Exception):
    """Training ended without a result that counts. `timeout`: it took too long. `hopeless`: a probe cut it."""

    def __init__(
        self,
        reason: str,
        *,
        step: int,
        seconds: float,
        curve: Sequence[tuple[float, float]],
        timeout: bool,
        hopeless: bool = False,
        flops: float = 0.0,
    ):
        super().__init__(reason)
        self.reason, self.step, self.seconds, self.timeout = reason, step, seconds, timeout
        self.hopeless, self.flops = hopeless, flops
        self.curve = tuple(curve)


class TrainingGivenUp(JaxresearchError):  # noqa: N818 - a request that was obeyed
    """The driver wants the training to end; its checkpoint is written."""


def compile_program(program: LoadedProgram, placement: Placement | None = None) -> CompiledProgram:
    """Compile init and every phase's train step for the devices of `placement`, or for one. Nothing runs."""
    started, placement = time.monotonic(), placement or one_device()
    count = len(program.manifest.traced)
    scalar, seed = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.uint32)
    leaves, copied = program.state, placement.replicated
    places = [placement.leaf(leaf) for leaf in leaves]
    init = jax.jit(lambda seed, values: program.init.call(seed, *values), in_shardings=copied, out_shardings=places)
    options = placement.compiler_options
    compiled_init = init.lower(seed, [scalar] * count).compile(options)
    steps, flags = [], []
    for (_, batch, length), exported in zip(program.manifest.phases, program.steps, strict=True):
        tokens = jax.ShapeDtypeStruct((batch, length + 1), jnp.int32)
        traced, rows, placed = _by_microbatch(exported, tokens, len(leaves), placement, program.manifest.platform)
        if rows % placement.mesh.size:
            flags.append(f"{rows} rows at a time do not divide among {placement.mesh.size} devices")
        step = jax.jit(
            _step_function(traced, placed, len(leaves)),
            donate_argnums=0,
            in_shardings=(places, placement.rows(batch), copied, copied),
            out_shardings=(places, copied),
        )
        steps.append(step.lower(leaves, tokens, scalar, [scalar] * count).compile(options))
    return CompiledProgram(
        program=program,
        placement=placement,
        init=compiled_init,
        steps=tuple(steps),
        compile_seconds=time.monotonic() - started,
        peak_memory_bytes=max(_planned_bytes(compiled) for compiled in (compiled_init, *steps)),
        flags=tuple(dict.fromkeys(flags)),
    )


def _by_microbatch(
    exported: jax.export.Exported, tokens: jax.ShapeDtypeStruct, index: int, placement: Placement, platform: str
) -> tuple[jax.export.Exported, int, Callable[[jax.Array], jax.Array]]:
    """A train step, how many rows it works on at a time, and what makes its argument `index` of a batch of rows, `tokens`.

    Over several devices a step that does microbatches one after the other gets each of them spread over all devices.
    Left to itself XLA keeps rows where a whole batch has them: a microbatch then lies on a few devices, and all the
    others repeat their work.
    """
    rows = tokens.shape[0]
    if placement.mesh.size > 1:
        split = stablehlo.split_rows(stablehlo.parse(exported.mlir_module_serialized), index)
        if split is not None:
            module, shape = split
            rows, place = shape[1], placement.microbatches(shape[1])
            if not place.is_fully_replicated:
                by_microbatch = stablehlo.to_exported(module, platform)
                return by_microbatch, rows, lambda batch: jax.lax.with_sharding_constraint(batch.reshape(shape), place)
    return exported, rows, lambda batch: batch


def _step_function(
    exported: jax.export.Exported, placed: Callable[[jax.Array], jax.Array], count: int
) -> Callable[..., tuple[list[jax.Array], jax.Array]]:
    def step(leaves, tokens, progress, values):
        results = exported.call(*leaves, placed(tokens), progress, *values)
        return list(results[:count]), results[count]

    return step


def _planned_bytes(compiled: stages.Compiled) -> int:
    """XLA's own plan: arguments, results and temporaries, donated buffers counted once. 0 where it gives none."""
    plan = compiled.memory_analysis()
    if plan is None:
        return 0
    total = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return int(total - plan.alias_size_in_bytes)


def train(
    compiled: CompiledProgram,
    *,
    traced: Mapping[str, float],
    budget: Budget,
    seed: int,
    batches: Callable[[int], BatchSource],
    wall_cap_seconds: float,
    on_progress: Callable[[RunProgress], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    checkpoints: Checkpoints | None = None,
    probing: Probing | None = None,
) -> Trained:
    """Train from the program's own `init(seed)`, or from the last of `checkpoints`, until the budget is spent.

    batches: row length (seq_len) -> the rows of that length. The clock starts after a warm-up on another state.
    Writing a checkpoint, and scoring a state for `probing`, is the laboratory's work: the clock stands still meanwhile.
    Raises `TrainingFailedError` for a loss that is not finite or above `MAX_LOSS`, for a budget that not even one step
    fits, for a run that outlasts `wall_cap_seconds`, for steps so long that they outrun a budget in seconds, and for a run
    that a probe finds hopeless.
    """
    manifest = compiled.program.manifest
    placement, values = compiled.placement, [np.float32(traced[name]) for name in manifest.traced]
    shared_clock = make_clock(placement, clock)
    meter = Meter(budget, shared_clock)
    curve = _Curve()

    def failed(reason: str, step: int, *, timeout: bool = False, hopeless: bool = False) -> TrainingFailedError:
        return TrainingFailedError(
            reason,
            step=step,
            seconds=meter.seconds,
            curve=curve.thinned(_CURVE_POINTS),
            timeout=timeout,
            hopeless=hopeless,
            flops=meter.flops,
        )

    phase = 0
    sources = [batches(length) for _, _, length in manifest.phases]
    try:
        steps = zip(manifest.phases, manifest.step_flops, strict=True)
        fits = [meter.fits(tokens=batch * length, flops=flops) for (_, batch, length), flops in steps]
        if not fits[0]:  # all were asked: where a later phase cannot be counted, nothing is trained
            raise BudgetTooSmallError(f"one step alone exceeds the budget of {budget}")
    except BudgetTooSmallError as error:
        raise failed(str(error), 0) from None
    seed_matters = _warm_up(compiled, values, seed, sources)
    cursors = dict.fromkeys((length for _, _, length in manifest.phases), 0)
    in_flight: deque[tuple[int, float, jax.Array]] = deque()
    loss, spent_seconds = math.nan, 0.0
    taken_up = checkpoints.take_up(state_targets(compiled)) if checkpoints is not None else None
    if taken_up is None:
        leaves = list(compiled.init(np.uint32(seed), values))
    else:
        leaves, cursors, loss = taken_up.leaves, dict(taken_up.cursors), taken_up.loss
        curve.points = list(taken_up.curve)
        meter.steps, meter.tokens, meter.flops = taken_up.steps, taken_up.tokens, taken_up.flops
        spent_seconds = taken_up.seconds
        hopeless = probing.take_up(taken_up.probes) if probing is not None else None
        if hopeless is not None:
            raise failed(hopeless, meter.steps, hopeless=True)
    jax.block_until_ready(leaves)

    def checkpoint() -> float:
        """Hand the state as it stands to `checkpoints`, off the clock; the loss of the last step."""
        last = loss
        while in_flight:
            last = _settle(in_flight.popleft(), curve, failed)
        jax.block_until_ready(leaves)
        shared_clock.agree()
        if checkpoints is None:
            return last
        state = TrainingState(
            leaves=leaves,
            progress=meter.progress,
            steps=meter.steps,
            tokens=meter.tokens,
            flops=meter.flops,
            seconds=meter.seconds,
            cursors=cursors,
            loss=last,
            curve=curve.points,
            probes=tuple(probing.points) if probing is not None else (),
        )
        with meter.paused():
            checkpoints.save(state)
            shared_clock.agree()
        return last

    shared_clock.agree()
    meter.start(spent_seconds)
    while True:
        while manifest.phases[phase][0] <= meter.progress and phase + 1 < len(manifest.phases):
            phase += 1
        _, batch, length = manifest.phases[phase]
        flops = manifest.step_flops[phase]
        if not meter.fits(tokens=batch * length, flops=flops):
            break
        progress = meter.progress
        if probing is not None and probing.due(progress):
            jax.block_until_ready(leaves)
            shared_clock.agree()
            with meter.paused():
                hopeless = probing.probe(progress, leaves)
                shared_clock.agree()
            if hopeless is not None:
                raise failed(hopeless, meter.steps, hopeless=True)
        tokens, cursors[length] = draw(placement, sources[phase], cursors[length], batch)
        leaves, reported = compiled.steps[phase](leaves, tokens, np.float32(progress), values)
        shared_clock.tick()
        in_flight.append((meter.steps, progress, reported))
        meter.spend(tokens=batch * length, flops=flops)
        while len(in_flight) > _window(meter, queued=len(in_flight)):
            loss = _settle(in_flight.popleft(), curve, failed)
        if meter.seconds > wall_cap_seconds:
            where = f"at {meter.progress:.0%} of its budget, step {meter.steps}"
            raise failed(f"training was cut after {wall_cap_seconds:.0f} s, {where}", meter.steps, timeout=True)
        on_progress(RunProgress("train", meter.progress, loss if math.isfinite(loss) else None, meter.steps))
        if checkpoints is not None:
            wish = shared_clock.hear(checkpoints.wish(meter.seconds))
            if wish is not Wish.NOTHING:
                loss = checkpoint()
            if wish is Wish.LEAVE:
                raise TrainingGivenUp(f"training was given up at step {meter.steps}")
    while in_flight:
        loss = _settle(in_flight.popleft(), curve, failed)
    jax.block_until_ready(leaves)
    shared_clock.agree()
    train_seconds = meter.seconds
    if budget.unit == "seconds" and train_seconds > budget.amount + max(
        _OVERRUN_SHARE * budget.amount, _OVERRUN_SECONDS
    ):
        what = f"its steps outran the budget: {meter.steps} of them took {train_seconds:.1f} s"
        raise failed(f"{what}, and the budget is {budget}", meter.steps, timeout=True)
    if checkpoints is not None and checkpoints.keeps_final:
        checkpoint()
    return Trained(
        leaves=leaves,
        loss=loss,
        steps=meter.steps,
        tokens=meter.tokens,
        flops=meter.flops,
        train_seconds=train_seconds,
        curve=curve.thinned(_CURVE_POINTS),
        changed=_differ(leaves, compiled.init(np.uint32(seed), values)),
        seed_matters=seed_matters,
    )


def _window(meter: Meter, *, queued: int) -> int:
    """How many steps may be in flight. Under a budget in seconds long ones are waited for one by one, and the first is.

    Else a program that does a budget's work in a step would have begun three before the clock had moved.
    """
    if meter.budget.unit != "seconds":
        return IN_FLIGHT
    settled = meter.steps - queued
    short = settled > 0 and IN_FLIGHT * meter.seconds / settled <= _QUEUED_SHARE * meter.budget.amount
    return IN_FLIGHT if short else 0


def _warm_up(compiled: CompiledProgram, values: list, seed: int, sources: Sequence[BatchSource]) -> bool:
    """Run each executable that never ran, on a state that is thrown away. Returns whether two seeds give two inits."""
    ours = compiled.init(np.uint32(seed), values)
    other = list(compiled.init(np.uint32((seed + 1) % 2**32), values))
    differs = _differ(ours, other)
    del ours  # no step's plan has room for a second state
    together = compiled.placement.spans_processes  # all must do the same, and a process does not know what others did
    for phase, (step, source, (_, batch, _)) in enumerate(
        zip(compiled.steps, sources, compiled.program.manifest.phases, strict=True)
    ):
        if together or phase not in compiled.warm:
            other, _ = step(other, draw(compiled.placement, source, 0, batch)[0], np.float32(0.0), values)
            compiled.warm.add(phase)
    jax.block_until_ready(other)
    return differs


def state_targets(compiled: CompiledProgram) -> list[jax.ShapeDtypeStruct]:
    """The leaves of the state, with where they lie in this process."""
    places = jax.tree.leaves(compiled.init.output_shardings)
    return [
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        for leaf, place in zip(compiled.program.state, places, strict=True)
    ]


def _differ(left: Leaves, right: Leaves) -> bool:
    """The smallest leaves first, on the host: jax would compile a comparison for every shape."""
    pairs = sorted(zip(left, right, strict=True), key=lambda pair: pair[0].nbytes)
    return any(not (np if a.is_fully_addressable else jnp).array_equal(a, b) for a, b in pairs)


def _settle(entry: tuple[int, float, jax.Array], curve: _Curve, failed: Callable) -> float:
    """Wait for the loss of a step that is in flight, and judge it."""
    step, progress, reported = entry
    loss = float(reported)
    if not math.isfinite(loss):
        raise failed(f"the loss is not finite at step {step}", step)
    if loss > MAX_LOSS:
        raise failed(f"the loss exploded to {loss:.3g} at step {step}", step)
    curve.points.append((progress, loss))
    return loss


class _Curve:
    """(progress, loss) of every step."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []

    def thinned(self, count: int) -> tuple[tuple[float, float], ...]:
        stride = max(1, math.ceil(len(self.points) / count))
        kept = self.points[::stride]
        if self.points and kept[-1] != self.points[-1]:
            kept.append(self.points[-1])
        return tuple((round(progress, 5), round(loss, 5)) for progress, loss in kept)

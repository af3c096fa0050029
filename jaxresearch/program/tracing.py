"""Tracing a candidate: its sources go into a sandbox, StableHLO comes out. The driver's side of `tracer.py`."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from jaxresearch.config import LimitsConfig
from jaxresearch.experiment import TraceFailure, Verdict
from jaxresearch.machine import physical_memory_bytes
from jaxresearch.program.tracers import Tracers
from jaxresearch.proposal import Candidate, Hyperparameter, Scalar
from jaxresearch.sandbox import SandboxOutcome, write_tree
from jaxresearch.text import clean, one_line

_HEADER_BYTES = 1_000_000


class _Header(BaseModel):
    """What the tracer says of its modules. Names and values only; the verifier reads shapes off the modules."""

    model_config = ConfigDict(frozen=True)

    hyperparameters: tuple[Hyperparameter, ...]
    traced: tuple[str, ...]
    phases: tuple[tuple[float, int, int], ...]
    leaves: tuple[str, ...]
    metrics: tuple[str, ...]
    blobs: tuple[int, ...]


@dataclass(frozen=True)
class TracedModules:
    """Unverified: modules as the sandbox wrote them, in the order init, train_step of each phase, logits."""

    hyperparameters: tuple[Hyperparameter, ...]
    values: dict[str, float]
    phases: tuple[tuple[float, int, int], ...]
    leaves: tuple[str, ...]
    metrics: tuple[str, ...]
    blobs: tuple[bytes, ...]
    seconds: float


async def trace(
    candidate: Candidate,
    *,
    laboratory: Mapping[str, Scalar],
    evaluation_batch: int,
    platform: str,
    tracers: Tracers,
    limits: LimitsConfig,
) -> TracedModules | TraceFailure:
    """Trace `candidate` with the laboratory's own settings (`vocab_size`, `context`) on top of its config.

    A sandbox that was killed says nothing about the candidate: it is traced again, once.
    """
    request = {
        "config": {**candidate.config, **laboratory},
        "evaluation_batch": evaluation_batch,
        "platform": platform,
        "limits": {
            "memory_bytes": min(limits.memory_bytes, physical_memory_bytes()),
            "file_bytes": 64_000_000,
            "cpu_seconds": math.ceil(4 * limits.trace_seconds),
        },
    }

    async def once() -> SandboxOutcome:
        async with tracers.one() as tracer:
            write_tree(tracer.tree, candidate.files)
            return await tracer.process.finish(
                json.dumps({**request, "tree": tracer.seen_as}).encode(),
                timeout_seconds=limits.trace_seconds,
                output_bytes=2 * limits.program_bytes + _HEADER_BYTES,
            )

    outcome = await once()
    if not outcome.timed_out and outcome.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL):
        outcome = await once()
    return _read(outcome, limits)


def _read(outcome: SandboxOutcome, limits: LimitsConfig) -> TracedModules | TraceFailure:
    def failure(verdict: Verdict, reason: str, traceback: str = "") -> TraceFailure:
        return TraceFailure(
            verdict=verdict, reason=one_line(reason, 500), traceback=clean(traceback), trace_seconds=outcome.seconds
        )

    log = outcome.log
    if outcome.timed_out:
        return failure(Verdict.TIMEOUT, f"tracing took longer than {limits.trace_seconds:g} s", log)
    if outcome.output_truncated:
        return failure(Verdict.INVALID, "tracing wrote more than a program may hold", log)
    if len(outcome.output) < 8:
        return failure(Verdict.CRASH, f"tracing ended with exit status {outcome.returncode} and no program", log)
    length = int.from_bytes(outcome.output[:8], "big")
    body = outcome.output[8:]
    if length > min(len(body), _HEADER_BYTES):
        return failure(Verdict.INVALID, "the tracer's output is malformed", log)
    try:
        raw: dict[str, Any] = json.loads(body[:length])
        if "error" in raw:
            return failure(Verdict.CRASH, str(raw["error"])[:2000], str(raw.get("traceback", ""))[-8192:])
        header = _Header.model_validate(raw)
        values = {h.name: float(h.value) for h in header.hyperparameters if h.traced}
        if sorted(values) != list(header.traced) or not all(map(math.isfinite, values.values())):
            return failure(Verdict.INVALID, "traced hyperparameters must be finite numbers", log)
        if not all(map(_well_formed, header.hyperparameters)):
            return failure(Verdict.INVALID, "a hyperparameter's name, value or bounds are malformed", log)
    except (ValueError, TypeError, AttributeError, OverflowError, ValidationError, RecursionError):
        return failure(Verdict.INVALID, "the tracer's output is malformed", log)
    blobs, start = [], length
    for size in header.blobs:
        if size < 0 or start + size > len(body):
            return failure(Verdict.INVALID, "the tracer's output is malformed", log)
        blobs.append(body[start : start + size])
        start += size
    return TracedModules(
        hyperparameters=tuple(_tidy(h) for h in header.hyperparameters),
        values=values,
        phases=header.phases,
        leaves=tuple(one_line(name) for name in header.leaves),
        metrics=tuple(one_line(name) for name in header.metrics),
        blobs=tuple(blobs),
        seconds=outcome.seconds,
    )


def _well_formed(h: Hyperparameter) -> bool:
    """A short ASCII name; numbers that JSON, SQL and a float can hold."""
    numbers = [x for x in (h.value, h.low, h.high, *h.choices) if isinstance(x, int | float)]
    plain = h.name.isidentifier() and h.name.isascii() and len(h.name) <= 100
    return plain and all(math.isfinite(float(x)) and abs(x) < 2**63 for x in numbers)


def _tidy(h: Hyperparameter) -> Hyperparameter:
    value = clean(h.value)[:200] if isinstance(h.value, str) else h.value
    choices = tuple(clean(c)[:200] if isinstance(c, str) else c for c in h.choices[:100])
    return Hyperparameter(h.name, value, h.low, h.high, h.log, h.traced, choices, one_line(h.doc, 500))

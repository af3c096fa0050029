"""Constraints: what a candidate must keep to, however good its score is. Each answer is a reason in words, or None.

What tracing tells (parameters, bytes, lines) is judged before anything is trained. Planned memory is judged after the first
run, and the time of evaluation, which is noisy, by its median when the contender would be kept.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from jaxresearch.config import ConstraintsConfig
from jaxresearch.execution.base import TracedCandidate
from jaxresearch.experiment import CompletedRun, RunOutcome
from jaxresearch.study.size import CodeSize


def broken_by_trace(constraints: ConstraintsConfig, trace: TracedCandidate, size: CodeSize | None) -> str | None:
    """The first constraint that is broken already before training."""
    measured = {
        "parameters": trace.parameters,
        "program_bytes": trace.program_bytes,
        "lines_added": size.lines_added if size is not None else None,
    }
    return _first_broken(constraints, measured)


def broken_by_memory(constraints: ConstraintsConfig, runs: Iterable[RunOutcome]) -> str | None:
    planned = [run.peak_memory_bytes for run in runs if isinstance(run, CompletedRun)]
    return _first_broken(constraints, {"peak_memory_bytes": max(planned, default=None)})


def broken_by_time(constraints: ConstraintsConfig, runs: Iterable[RunOutcome]) -> str | None:
    seconds = [run.eval_seconds for run in runs if isinstance(run, CompletedRun)]
    return _first_broken(constraints, {"evaluation_seconds": statistics.median(seconds) if seconds else None})


def _first_broken(
    constraints: ConstraintsConfig, measured: dict[str, int | None] | dict[str, float | None]
) -> str | None:
    for name, limit in constraints.binding.items():
        value = measured.get(name)
        if value is not None and value > limit:
            return f"it breaks constraints.{name}: {_written(value)}, above {_written(limit)}"
    return None


def _written(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"

"""Drift: how evenly the machine ran. Equal programs should train equally fast, on one machine; where not, say so."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass

from jaxresearch.budget import Budget
from jaxresearch.experiment import MACHINE, CompletedRun
from jaxresearch.study.history import History

TOLERANCE = 0.1
"""Share by which a run's speed may differ from the median of its program before the machine counts as unsteady."""


@dataclass(frozen=True)
class Drift:
    """slowest, fastest: speed of a run over the median speed of its program's runs; 1 is steady. runs: how many."""

    runs: int
    slowest: float
    fastest: float

    @property
    def steady(self) -> bool:
        return self.slowest >= 1 - TOLERANCE and self.fastest <= 1 + TOLERANCE


def drift(history: History) -> Drift | None:
    """Over all programs that ran at least twice on one kind of device; None while there is none."""
    speeds: defaultdict[tuple, dict[str, float]] = defaultdict(dict)
    for experiment in history.experiments:
        for run in experiment.runs:
            if isinstance(run, CompletedRun) and run.tokens_per_second > 0:
                key = (run.program, run.device, run.devices, run.threads)
                speeds[key][run.identity] = run.tokens_per_second  # a shared run is one run
    ratios = [
        speed / statistics.median(group.values())
        for group in speeds.values()
        if len(group) > 1
        for speed in group.values()
    ]
    return Drift(len(ratios), min(ratios), max(ratios)) if ratios else None


def drift_warning(history: History) -> str | None:
    """What to say when the machine was another one at times, or not steady; else None."""
    return "; ".join(text for text in (_unlike(history), _unsteady(history)) if text is not None) or None


def _unlike(history: History) -> str | None:
    """In what the machines of the search's runs differ, as after a move: not even equal programs score alike then."""
    runs = [run for experiment in history.experiments for run in experiment.runs if isinstance(run, CompletedRun)]
    found = {name: sorted({str(getattr(run, name)) for run in runs}) for name in MACHINE}
    said = [f"{name} ({', '.join(values)})" for name, values in found.items() if len(values) > 1]
    return f"runs differ in {' and '.join(said)}: pairs across that differ by more than their seed" if said else None


def _unsteady(history: History) -> str | None:
    """Matters most when the budget is time."""
    found = drift(history)
    if found is None or found.steady:
        return None
    spread = f"equal programs ran at {found.slowest:.0%} to {found.fastest:.0%} of their usual speed"
    if Budget.parse(history.config.budget).unit == "seconds":
        held = "; verdicts rest on runs made close together" if history.config.acceptance.interleave else ""
        return (
            f"{spread}: under a budget in seconds scores of different hours do not compare{held}; "
            "use steps, tokens or FLOPs"
        )
    return f"{spread}: times and costs are unsure, scores are not, as the budget is not time"

"""Cuts: the runs that were ended early because they were hopeless, and the compute that this saved."""

from __future__ import annotations

from dataclasses import dataclass

from jaxresearch.experiment import Experiment, FailedRun, Verdict
from jaxresearch.study.history import History


@dataclass(frozen=True)
class Cuts:
    """runs: that were cut. train_seconds, flops: estimated from what each had used up to its cut."""

    runs: int
    train_seconds_saved: float
    flops_saved: float


def cut_run(experiment: Experiment) -> FailedRun | None:
    """The run of `experiment` that was cut, which is then its only one."""
    runs = (run for run in experiment.runs if isinstance(run, FailedRun) and run.verdict is Verdict.DISCARD)
    return next((run for run in runs if run.probes), None)


def cuts(history: History) -> Cuts:
    found = [run for run in map(cut_run, history.experiments) if run is not None]
    left = [(run, 1 / run.probes[-1][0] - 1) for run in found]
    return Cuts(
        runs=len(found),
        train_seconds_saved=sum(run.train_seconds * share for run, share in left),
        flops_saved=sum(run.flops * share for run, share in left),
    )

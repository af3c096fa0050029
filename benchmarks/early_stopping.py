"""What early stopping would have cut in recorded studies, and what of that would have won.

    python benchmarks/early_stopping.py --record studies/cal --strategy independent --experiments 40
    python benchmarks/early_stopping.py studies/cal studies/...

The first records a study in which nothing is cut, so that every run shows how it ended. The second replays studies.
`played`: each contender's first run against the incumbent that it had. `all pairs`: every two experiments of a study
that ran on a common seed, each once as incumbent and once as contender; far more cases, of every size of gain. A run that
ended below the incumbent's on that seed would have gone on to replication; one that also was kept, or whose mean over
the common seeds is lower by more than twice the pair noise, would have won. Runs without probes (of older
studies, or cut) are replaced by their smoothed training loss, where they have one. --sweep tries other constants.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

from jaxresearch.experiment import CompletedRun, Verdict
from jaxresearch.statistics import early
from jaxresearch.study.entry import Entry
from jaxresearch.study.evidence import study_pair_noise
from jaxresearch.study.history import History, fold
from jaxresearch.study.ledger import Ledger

WINDOW = 0.08
"""Share of the budget over which a training loss is averaged where there is no probe."""


@dataclass(frozen=True)
class Case:
    """A contender's first run against the incumbent's. gain: in bits per byte on that seed, above zero is better."""

    cut: float | None
    gain: float
    won: bool
    seconds: float


def curve_of(run: CompletedRun) -> early.Curve:
    if run.probes:
        return run.probes

    def smoothed(at: float) -> float:
        near = [loss for progress, loss in run.curve if at - WINDOW < progress <= at]
        return statistics.fmean(near) if near else math.nan

    return [(at, smoothed(at)) for at in (*early.CHECKPOINTS, 1.0)]


def runs_of(entry: Entry) -> dict[int, CompletedRun]:
    return {
        run.seed: run for run in entry.experiment.runs if isinstance(run, CompletedRun) and (run.probes or run.curve)
    }


def case_of(history: History, contender: Entry, incumbent: Entry) -> Case | None:
    ours, theirs = runs_of(contender), runs_of(incumbent)
    common = sorted(ours.keys() & theirs.keys())
    noise = study_pair_noise(history)
    if not common or bool(ours[common[0]].probes) != bool(theirs[common[0]].probes):
        return None
    seed = common[0]
    # An incumbent has been replicated. Where this one has not, the baseline's runs tell the noise between seeds.
    replicated = theirs if len(theirs) > 1 else runs_of(history.baseline)
    limits = early.limits(curve_of(theirs[seed]), [curve_of(run) for run in replicated.values()])
    mean = statistics.fmean(theirs[seed].val_bpb - ours[seed].val_bpb for seed in common)
    sure = noise is not None and mean > 2 * noise.sd_bpb
    judged = contender.decision
    kept = contender.verdict is Verdict.KEEP and judged is not None and judged.incumbent == incumbent.number
    return Case(
        early.cut_at(curve_of(ours[seed]), limits),
        theirs[seed].val_bpb - ours[seed].val_bpb,
        kept or sure,
        ours[seed].train_seconds,
    )


def played(history: History) -> Iterator[Case]:
    for entry in history.contenders:
        if entry.decision is not None and entry.decision.incumbent is not None:
            case = case_of(history, entry, history.entries[entry.decision.incumbent])
            if case is not None:
                yield case


def pairs(history: History) -> Iterator[Case]:
    for incumbent in history.entries:
        for contender in history.entries:
            case = case_of(history, contender, incumbent) if contender is not incumbent else None
            if case is not None:
                yield case


def row(name: str, cases: list[Case]) -> str:
    winners = [case for case in cases if case.won]
    ahead = [case for case in cases if case.gain > 0]
    lost = sum(case.cut is not None for case in winners)
    saved = sum(case.seconds * (1 - case.cut) for case in cases if case.cut is not None)
    total = sum(case.seconds for case in cases)
    high = stats.binomtest(lost, len(winners)).proportion_ci(0.95).high if winners else math.nan
    return (
        f"| {name} | {len(cases)} | {sum(case.cut is not None for case in cases)} | {lost} of {len(winners)} "
        f"| {high:.1%} | {sum(case.cut is not None for case in ahead)} of {len(ahead)} "
        f"| {saved / total if total else 0.0:.0%} |"
    )


HEADER = (
    "| cases | runs | cut | winners cut | at most (95 %) | runs ahead at the end cut | first runs' training saved |\n"
    "|---|---|---|---|---|---|---|"
)


def record(folder: Path, strategy: str, experiments: int, seed: int, config_file: Path) -> None:
    """A study in which runs are probed and none is cut."""
    from jaxresearch.config import load_config
    from jaxresearch.study import requests
    from jaxresearch.study.reporter import NullReporter
    from jaxresearch.study.session import create_study, drive

    requests.limits = lambda reference, curves: ()  # type: ignore[attr-defined]
    settings = [f"strategy.name={strategy}", f"experiments={experiments}", f"seed={seed}"]
    study = create_study(
        folder, load_config(config_file, settings), instructions="", on_preparation=lambda what, share: None
    )
    try:
        asyncio.run(drive(study, NullReporter(), on_preparation=lambda what, share: None))
    finally:
        study.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="*")
    parser.add_argument("--record", type=Path, metavar="STUDY")
    parser.add_argument("--strategy", default="independent")
    parser.add_argument("--experiments", type=int, default=40)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--config", type=Path, default=Path(__file__).parent.parent / "configs" / "cpu.yaml")
    parser.add_argument("--sweep", action="store_true")
    options = parser.parse_args()
    if options.record is not None:
        record(options.record, options.strategy, options.experiments, options.seed, options.config)
    histories = [fold(Ledger.open(folder / "ledger.sqlite").read()) for folder in options.studies]
    if not histories:
        return
    grid = [(early.MARGIN, early.DEVIATIONS)]
    if options.sweep:
        grid = [(margin, deviations) for margin in (0.0, 0.25, 0.5, 1.0, 2.0) for deviations in (2.0, 3.0)]
    for margin, deviations in grid:
        early.MARGIN, early.DEVIATIONS = margin, deviations
        print(f"margin {margin:g}, {deviations:g} standard deviations\n\n{HEADER}")
        print(row("played", [case for history in histories for case in played(history)]))
        print(row("all pairs", [case for history in histories for case in pairs(history)]) + "\n")


if __name__ == "__main__":
    main()

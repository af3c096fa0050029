"""What an experiment costs beside training and scoring, read from a finished study's ledger.

    python benchmarks/overhead.py STUDY [STUDY ...]

Overhead of an experiment: wall seconds from its proposal being asked for to its verdict, less budgeted training, scoring
(early scores too) and audits of its runs, and of those of the incumbent that it is compared with. Scoring, audits and all,
is reported on its own, for each run, and so are the parts of the overhead of runs with a new program. Utilisation:
budgeted training seconds over wall seconds, of whole sessions. A study with one slot: else experiments share their time.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from jaxresearch.execution.base import TracedCandidate
from jaxresearch.experiment import CompletedRun
from jaxresearch.study.events import Decided, ProposalRequested, Proposed, RunFinished, Traced
from jaxresearch.study.ledger import Ledger
from jaxresearch.study.study import Study

PHASES = ("trace", "verify", "compile", "setup", "keep")
"""Of the overhead of a run, as its record has them."""


def overheads(folder: Path) -> tuple[list[float], list[float], list[float], list[CompletedRun], float]:
    """Overhead seconds of experiments with a new program, and of those with new values only; scoring seconds of each run;
    the runs that were compiled for; and the utilisation."""
    study = Study.open(folder)
    history, ledger = study.history, Ledger.open(study.layout.ledger)
    asked, started, used, new_program = 0.0, {}, 0.0, {}
    programs, values, scoring, compiled = [], [], [], []
    for stored in ledger.read(whole=False):
        match stored.event:
            case ProposalRequested():
                asked, used = stored.time, 0.0
            case Proposed(number=number):
                started[number] = asked
            case Traced(number=number, outcome=TracedCandidate() as traced) if number in started:
                new_program[number] = traced.trace_seconds > 0
            case RunFinished(outcome=CompletedRun() as run, shared_from=None):
                scoring.append(run.probe_seconds + run.eval_seconds + run.audit_seconds)
                used += run.train_seconds + scoring[-1]
                compiled += [run] * (run.compile_seconds > 0)
            case Decided(number=number) if used and number in new_program:
                (programs if new_program[number] else values).append(stored.time - started[number] - used)
    ledger.close()
    study.close()
    return programs, values, scoring, compiled, history.costs.train_seconds / history.costs.wall_seconds


def main(folders: list[str]) -> None:
    for folder in folders:
        programs, values, scoring, compiled, utilisation = overheads(Path(folder))
        told = (("new program", "overhead", programs), ("new values", "overhead", values), ("runs", "scoring", scoring))
        for name, what, seconds in told:
            if seconds:
                low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
                print(f"{folder}  {name:12} {len(seconds):3}  {what} {middle:.2f} s ({low:.2f} to {high:.2f})")
        medians = {name: statistics.median(getattr(run, f"{name}_seconds") for run in compiled) for name in PHASES}
        told = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in medians.items())
        print(f"{folder}  runs compiled for {len(compiled):3}  {told}, medians")
        print(f"{folder}  utilisation  {utilisation:.0%}")


if __name__ == "__main__":
    main(sys.argv[1:])

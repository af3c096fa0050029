"""A study without training, in memory: a response surface scores candidates in microseconds, with seed noise.

For the conformance kit and for trying a strategy out. The view that it gives is of the same kind as a real study's.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxresearch.experiment import CompletedRun, Experiment, FailedRun, RunOutcome, Verdict
from jaxresearch.proposal import Candidate, EditError, Hyperparameter, Proposal, Scalar, apply
from jaxresearch.strategy import StudyView

if TYPE_CHECKING:
    from pydantic_ai.models import Model

SEEDS = (0, 1, 2)
SEED_SD_BPB, PAIR_SD_BPB = 0.01, 0.002

HYPERPARAMETERS = (
    Hyperparameter("depth", 2, low=1, high=8, doc="blocks"),
    Hyperparameter("width", 128, choices=(64, 96, 128, 192, 256), doc="of the residual stream"),
    Hyperparameter("head_size", 32, choices=(16, 32, 64, 128), doc="of a head; divides the width"),
    Hyperparameter("batch", 16, low=1, high=128, log=True, doc="rows of one step"),
    Hyperparameter("matrix_lr", 0.04, low=0.005, high=0.2, log=True, traced=True, doc="of matrices"),
    Hyperparameter("head_lr", 0.004, low=0.0005, high=0.05, log=True, traced=True, doc="of the head"),
    Hyperparameter("warmdown", 0.5, low=0.1, high=1.0, traced=True, doc="share of the run in which rates fall"),
    Hyperparameter("weight_decay", 0.2, low=0.0, high=1.0, traced=True, doc="of matrices"),
    Hyperparameter("tied", False, choices=(False, True), doc="share the head with the embedding"),
    Hyperparameter("pattern", "SL", choices=("L", "SL", "SSL"), doc="windows"),
    Hyperparameter("context", 256, doc="the laboratory's own"),
)
"""What the default subject declares. `context` has no bounds: it is not for search."""

Surface = Callable[[Mapping[str, Scalar], Mapping[str, str]], float]
"""From hyperparameter values and source files to the true val_bpb."""

Fate = Callable[[int], Verdict | None]
"""From an experiment's number to the verdict that is forced on it, None to let its score decide."""


def bowl(values: Mapping[str, Scalar], files: Mapping[str, str]) -> float:
    """A smooth bowl in the numbers, best away from the defaults, and a small lasting effect of each source text."""
    wanted = {"depth": 4.0, "width": 192.0, "batch": 6.0, "matrix_lr": 0.09, "head_lr": 0.008, "warmdown": 0.8}
    curvature = {"depth": 0.03, "width": 0.03, "batch": 0.01, "matrix_lr": 0.02, "head_lr": 0.005, "warmdown": 0.02}
    total = 1.5 + 0.02 * bool(values.get("tied")) + 0.01 * (values.get("pattern") != "SSL")
    for name, best in wanted.items():
        total += curvature[name] * math.log(float(values[name]) / best) ** 2
    code = hashlib.sha256(json.dumps(sorted(files.items())).encode()).digest()
    return total + 0.005 * float(np.random.default_rng(list(code[:8])).normal())


@dataclass
class SyntheticStudy:
    """The laboratory's side of a study, without a laboratory. `view` is what a strategy gets; `add` what follows.

    A contender runs on one seed; if it is better there than the incumbent, on all; it is kept when its mean paired gain
    is above twice its noise. A width that head_size does not divide does not trace.
    rounds: how often a strategy was asked, which whoever asks counts; each round has its own seed.
    """

    model: Model
    seed: int = 0
    surface: Surface = bowl
    files: Mapping[str, str] = field(default_factory=lambda: {"models/recipe.py": "RATE = 1.0\n"})
    hyperparameters: tuple[Hyperparameter, ...] = HYPERPARAMETERS
    fate: Fate = lambda number: None
    instructions: str = ""
    experiments: list[Experiment] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    incumbent: int = 0
    rounds: int = 0

    def __post_init__(self) -> None:
        self.candidates.append(Candidate(dict(self.files)))
        runs = tuple(self._run(0, seed) for seed in SEEDS)
        self.experiments.append(Experiment(number=0, parent=None, proposal=None, runs=runs, verdict=Verdict.KEEP))

    def view(self) -> StudyView:
        return StudyView(
            experiments=tuple(self.experiments),
            incumbent=self.experiments[self.incumbent],
            seed=int(np.random.SeedSequence([self.seed, self.rounds]).generate_state(1)[0]),
            noise_sd=SEED_SD_BPB,
            budget="600000tok",
            instructions=self.instructions,
            candidate=self.candidates.__getitem__,
            hyperparameters=self.declared,
            diff=self._diff,
            model=self.model,
            check=self.check,
        )

    def declared(self, number: int) -> tuple[Hyperparameter, ...]:
        config = self.candidates[number].config
        return tuple(replace(each, value=config.get(each.name, each.value)) for each in self.hyperparameters)

    def true_bpb(self, number: int) -> float:
        """What experiment `number` would score without noise."""
        values = {each.name: each.value for each in self.declared(number)}
        return self.surface(values, self.candidates[number].files)

    async def check(self, proposal: Proposal) -> str | None:
        if not 0 <= proposal.parent < len(self.experiments):
            return f"There is no experiment {proposal.parent} to build on."
        try:
            candidate = apply(proposal, self.candidates[proposal.parent])
        except EditError as error:
            return str(error)
        same = self.same_as(candidate)
        if same is not None:
            return f"Same sources as experiment {same} ({self.experiments[same].verdict}): it would be a duplicate."
        return self.problem(candidate)

    def same_as(self, candidate: Candidate) -> int | None:
        """The first experiment with equal sources and values. One that the infrastructure lost was never tried."""
        wanted = self._values(candidate)
        for number, each in enumerate(self.candidates):
            if self.experiments[number].verdict in (Verdict.INFRASTRUCTURE, Verdict.DUPLICATE):
                continue
            if each.files == candidate.files and self._values(each) == wanted:
                return number
        return None

    def problem(self, candidate: Candidate) -> str | None:
        """Why `candidate` does not trace, or None."""
        values = self._values(candidate)
        if "width" in values and int(values["width"]) % int(values["head_size"]):
            return f"crash: width {values['width']} is not a multiple of head_size {values['head_size']}"
        return None

    def add(self, proposal: Proposal) -> Experiment:
        """Judge `proposal`. Raises `EditError` when it does not apply."""
        number = len(self.experiments)
        self.candidates.append(apply(proposal, self.candidates[proposal.parent]))
        runs, verdict, reason = self._judged(number)
        experiment = Experiment(
            number=number, parent=proposal.parent, proposal=proposal, runs=runs, verdict=verdict, reason=reason
        )
        self.experiments.append(experiment)
        if verdict is Verdict.KEEP:
            self.incumbent = number
        return experiment

    def _judged(self, number: int) -> tuple[tuple[RunOutcome, ...], Verdict, str]:
        forced = self.fate(number)
        problem = self.problem(self.candidates[number])
        if problem is not None and forced is None:
            return (), Verdict.CRASH, problem
        if forced is Verdict.DUPLICATE or forced is Verdict.INFRASTRUCTURE:
            return (), forced, f"it is to be {forced}"
        if forced is not None and forced not in (Verdict.KEEP, Verdict.DISCARD):
            failed = FailedRun(
                identity=f"{number}", verdict=forced, reason="out of memory", seed=0, traceback="MemoryError: synthetic"
            )
            return (failed,), forced, failed.reason
        runs = [self._run(number, SEEDS[0])]
        best = self.experiments[self.incumbent].scores
        if forced is Verdict.KEEP or runs[0].val_bpb < best[SEEDS[0]]:
            runs += [self._run(number, seed) for seed in SEEDS[1:]]
        gains = [best[run.seed] - run.val_bpb for run in runs]
        better = len(runs) == len(SEEDS) and sum(gains) / len(gains) > 2 * PAIR_SD_BPB / math.sqrt(len(gains))
        verdict = forced or (Verdict.KEEP if better else Verdict.DISCARD)
        return tuple(runs), verdict, f"{sum(gains) / len(gains):+.4f} bpb gained on {len(gains)} seeds"

    def _run(self, number: int, seed: int) -> CompletedRun:
        true = self.true_bpb(number)
        shared = np.random.default_rng([self.seed, seed]).normal() * SEED_SD_BPB
        own = np.random.default_rng([self.seed, seed, int(abs(true) * 1e9)]).normal() * PAIR_SD_BPB / math.sqrt(2)
        return completed_run(true + float(shared) + float(own), seed)

    def _values(self, candidate: Candidate) -> dict[str, Scalar]:
        return {each.name: candidate.config.get(each.name, each.value) for each in self.hyperparameters} | dict(
            candidate.config
        )

    def _diff(self, number: int) -> str:
        parent = self.experiments[number].parent
        if parent is None:
            return ""
        before, after = self.candidates[parent].files, self.candidates[number].files
        return "\n".join(
            line
            for path in sorted(after)
            for line in difflib.unified_diff(
                before.get(path, "").splitlines(), after[path].splitlines(), path, path, lineterm=""
            )
        )


def completed_run(val_bpb: float, seed: int, **changes: Any) -> CompletedRun:
    """A run that scored `val_bpb`; all else about it is made up."""
    facts: dict[str, Any] = {
        "identity": f"synthetic-{seed}-{val_bpb!r}",
        "loss": 2.0,
        "steps": 10,
        "tokens": 1000,
        "flops": 1e9,
        "train_seconds": 1.0,
        "compile_seconds": 0.0,
        "eval_seconds": 0.0,
        "trace_seconds": 0.0,
        "total_seconds": 1.0,
        "tokens_per_second": 1000.0,
        "mfu": None,
        "peak_memory_bytes": 1,
        "parameters": 1,
        "program": "sha256:synthetic",
        "corpus": "sha256:synthetic",
        "tokenizer": "sha256:synthetic",
        "budget": "1000tok",
        "device": "cpu",
        "threads": 1,
        "jax": "",
        "sandbox": "none",
    }
    return CompletedRun(val_bpb=val_bpb, seed=seed, **{**facts, **changes})

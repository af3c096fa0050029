"""A study with no training in it: a view over experiments that a response surface scores at once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace

from jaxresearch.experiment import CompletedRun, Experiment, FailedRun, Verdict
from jaxresearch.proposal import Candidate, Hyperparameter, Proposal, Scalar, apply
from jaxresearch.strategy import StudyView

SOURCE = """def activation(x):
    return relu(x) ** 2


def block(x):
    x = x + attention(norm(x))
    x = x + mlp(norm(x))
    return x
"""

HYPERPARAMETERS = (
    Hyperparameter("batch", 16, low=1, high=64, log=True, doc="rows of one step"),
    Hyperparameter("depth", 2, low=1, high=8, doc="blocks"),
    Hyperparameter("matrix_lr", 0.04, low=0.0001, high=100.0, log=True, traced=True, doc="of Muon"),
    Hyperparameter("warmdown", 0.5, low=0.0, high=1.0, traced=True, doc="share of the run that decays"),
    Hyperparameter("tied", False, doc="share the head with the embedding"),
    Hyperparameter("context", 256, doc="the laboratory's own"),
    Hyperparameter("pattern", "SL", choices=("SL", "L", "SSL"), doc="windows"),
)

Surface = Callable[[Mapping[str, Scalar], Mapping[str, str]], float]


def run(score: float, seed: int = 0, *, tokens: int = 1, parameters: int = 1) -> CompletedRun:
    return CompletedRun(
        identity=f"run-{seed}-{score}",
        val_bpb=score,
        loss=score,
        steps=1,
        tokens=tokens,
        flops=1.0,
        train_seconds=1.0,
        compile_seconds=1.0,
        eval_seconds=1.0,
        trace_seconds=1.0,
        total_seconds=1.0,
        tokens_per_second=1.0,
        mfu=None,
        peak_memory_bytes=1,
        parameters=parameters,
        program="sha256:0",
        corpus="sha256:0",
        tokenizer="sha256:0",
        seed=seed,
        budget="600000tok",
        device="cpu",
        threads=1,
        jax="0",
        sandbox="none",
    )


class FakeStudy:
    """Scores each proposal by `surface(config, files)` and keeps what is better than the incumbent by `margin`."""

    def __init__(
        self,
        model: object,
        *,
        surface: Surface = lambda config, files: 1.5,
        files: Mapping[str, str] | None = None,
        hyperparameters: tuple[Hyperparameter, ...] = HYPERPARAMETERS,
        seed: int = 0,
        margin: float = 0.0005,
        instructions: str = "",
        budget: str = "600000tok",
    ) -> None:
        self.model, self.surface, self.seed, self.margin = model, surface, seed, margin
        self.instructions, self.budget = instructions, budget
        self.defaults = hyperparameters
        self.candidates = {0: Candidate(dict(files or {"models/gpt.py": SOURCE}))}
        self.experiments = [Experiment(number=0, parent=None, proposal=None, verdict=Verdict.KEEP)]
        self.experiments[0] = self.experiments[0].model_copy(update={"runs": (run(self.score(0)),)})
        self.incumbent = 0
        self.checked: list[Proposal] = []
        self.problem: Callable[[Proposal], str | None] = lambda proposal: None

    def score(self, number: int) -> float:
        candidate = self.candidates[number]
        values = {each.name: each.value for each in self.defaults} | dict(candidate.config)
        return self.surface(values, candidate.files)

    def hyperparameters(self, number: int) -> tuple[Hyperparameter, ...]:
        config = self.candidates[number].config
        return tuple(replace(each, value=config.get(each.name, each.value)) for each in self.defaults)

    def diff(self, number: int) -> str:
        parent = self.experiments[number].parent
        before, after = self.candidates[parent].files, self.candidates[number].files
        return "".join(
            "\n".join(difflib.unified_diff(before[path].split("\n"), after[path].split("\n"), path, path, lineterm=""))
            for path in before
        )

    async def check(self, proposal: Proposal) -> str | None:
        self.checked.append(proposal)
        return self.problem(proposal)

    def view(self) -> StudyView:
        return StudyView(
            experiments=tuple(self.experiments),
            incumbent=self.experiments[self.incumbent],
            seed=self.seed * 100_003 + len(self.experiments),
            noise_sd=0.002,
            budget=self.budget,
            instructions=self.instructions,
            candidate=self.candidates.__getitem__,
            hyperparameters=self.hyperparameters,
            diff=self.diff,
            model=self.model,  # type: ignore[arg-type]
            check=self.check,
        )

    def add(self, proposal: Proposal, *, crash: str = "") -> Experiment:
        number = len(self.experiments)
        self.candidates[number] = apply(proposal, self.candidates[proposal.parent])
        if crash:
            failed = FailedRun(identity="x", verdict=Verdict.CRASH, reason="raised", seed=0, traceback=crash)
            experiment = Experiment(
                number=number, parent=proposal.parent, proposal=proposal, runs=(failed,), verdict=Verdict.CRASH
            )
        else:
            score = self.score(number)
            better = score < self.score(self.incumbent) - self.margin
            experiment = Experiment(
                number=number,
                parent=proposal.parent,
                proposal=proposal,
                runs=(run(score),),
                verdict=Verdict.KEEP if better else Verdict.DISCARD,
                reason="better" if better else "not better",
            )
            if better:
                self.incumbent = number
        self.experiments.append(experiment)
        return experiment

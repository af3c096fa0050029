"""A laboratory in miniature: an executor that scores a candidate by its text, and scripted strategies."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from jaxresearch.config import StudyConfig
from jaxresearch.execution.base import RunProgress, RunRequest, TracedCandidate, TraceFailure
from jaxresearch.experiment import CompletedRun, FailedRun, RunOutcome, Verdict
from jaxresearch.proposal import Candidate, Edit, Hyperparameter, Proposal
from jaxresearch.strategy import StrategyOptions, StudyView
from jaxresearch.study.ledger import Ledger
from jaxresearch.study.study import Study

SUBJECT = Candidate(files={"models/recipe.py": "GAIN = 0.0\nMODE = 'fine'\n"}, config={"lr": 0.01})


class FakeExecutor:
    """Scores 1.5 minus the text's GAIN, with seed noise of about 0.001.

    The program's name carries all that a run needs, as a stored program would. MODE makes a candidate misbehave.
    """

    def __init__(self, *, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.traced: list[str] = []
        self.requests: list[RunRequest] = []
        self.lose_runs = 0
        self.lose_traces = 0

    async def trace(self, candidate: Candidate) -> TracedCandidate | TraceFailure:
        text = "\n".join(candidate.files[path] for path in sorted(candidate.files))
        self.traced.append(text)
        if self.lose_traces:
            self.lose_traces -= 1
            raise OSError("no sandbox")
        mode = re.search(r"MODE = '(\w+)'", text)
        if mode is None or mode[1] == "syntax":
            return TraceFailure(
                verdict=Verdict.CRASH, reason="SyntaxError: bad", traceback="Traceback\nSyntaxError: bad"
            )
        gain = float(re.findall(r"GAIN = (-?[\d.]+)", text)[-1])
        meaningful = "\n".join(line for line in text.splitlines() if line.strip() and not line.startswith("#"))
        digest = hashlib.sha256(meaningful.encode()).hexdigest()[:8]
        learning_rate = float(candidate.config.get("lr", 0.01))
        return TracedCandidate(
            program=f"{mode[1]}:{gain}:{digest}",
            traced={"lr": learning_rate},
            hyperparameters=(Hyperparameter("lr", learning_rate, low=1e-4, high=1.0, log=True, traced=True),),
            phases=((1.0, 8, 256),),
            step_flops=(1e6,),
            parameters=1000,
            sandbox="none",
            trace_seconds=0.5,
        )

    async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
        self.requests.append(request)
        on_progress(RunProgress("train", 0.5))
        await asyncio.sleep(self.seconds)
        mode, gain, _ = request.program.split(":")
        if self.lose_runs or mode == "lost":
            self.lose_runs = max(0, self.lose_runs - 1)
            raise ConnectionError("the worker is gone")
        failures = {"hang": Verdict.TIMEOUT, "peek": Verdict.INVALID, "nan": Verdict.CRASH}
        if mode in failures:
            return FailedRun(
                identity=request.identity, verdict=failures[mode], reason=f"it was {mode}", seed=request.seed, step=7
            )
        noise = random.Random(request.identity).gauss(0, 0.001) + random.Random(request.seed).gauss(0, 0.01)
        return completed(request, 1.5 - float(gain) - 0.5 * (request.traced["lr"] - 0.01) + noise)

    async def close(self) -> None:
        pass


def completed(request: RunRequest, val_bpb: float) -> CompletedRun:
    return CompletedRun(
        identity=request.identity,
        val_bpb=val_bpb,
        loss=2.0,
        steps=10,
        tokens=1000,
        flops=1e9,
        train_seconds=8.0,
        compile_seconds=1.0,
        eval_seconds=1.0,
        trace_seconds=request.trace_seconds,
        total_seconds=10.5,
        tokens_per_second=100,
        mfu=None,
        peak_memory_bytes=3 * 2**30,
        parameters=1000,
        program=request.program,
        corpus="sha256:corpus",
        tokenizer="sha256:tokenizer",
        seed=request.seed,
        test_bpb=val_bpb + 0.02 if request.split == "test" else None,
        budget=request.budget,
        device="cpu",
        threads=1,
        jax="0",
        sandbox=request.sandbox,
    )


class Call(BaseModel):
    """What a recording model writes of one request."""

    prompt: str
    cost_usd: float | None = 0.25
    input_tokens: int = 100
    output_tokens: int = 10


class FakeModel:
    """A model that only records that it was asked."""

    def __init__(self, on_call: Callable[[BaseModel], None]) -> None:
        self.on_call = on_call

    def ask(self, prompt: str) -> None:
        self.on_call(Call(prompt=prompt))


class Scripted:
    """Proposes from a list, one for each experiment that there is: a function of the view."""

    Options = StrategyOptions

    def __init__(self, script: list[Proposal], *, checks: bool = True) -> None:
        self.script = script
        self.checks = checks
        self.findings: list[str | None] = []
        self.views: list[StudyView] = []

    async def propose(self, view: StudyView, slots: int) -> list[Proposal]:
        self.views.append(view)
        view.model.ask(f"round {len(view.experiments)}")
        start = len(view.experiments) - 1
        proposals = self.script[start : start + slots]
        if self.checks:
            self.findings += [await view.check(proposal) for proposal in proposals]
        return proposals


@dataclass
class Clock:
    """Time that moves by a second whenever it is read."""

    now: float = 1_700_000_000.0
    step: float = 1.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def gain(value: float, *, parent: int = 0, old: float = 0.0, hypothesis: str = "") -> Proposal:
    """Changes the score by `value` against a parent whose gain is `old`."""
    edit = Edit(path="models/recipe.py", search=f"GAIN = {old}", replace=f"GAIN = {value}")
    return Proposal(parent=parent, hypothesis=hypothesis or f"gain {value}", edits=(edit,))


def mode(name: str, *, parent: int = 0) -> Proposal:
    """Makes the candidate misbehave."""
    edit = Edit(path="models/recipe.py", search="MODE = 'fine'", replace=f"MODE = '{name}'")
    return Proposal(parent=parent, hypothesis=f"mode {name}", edits=(edit,))


def rate(value: float, *, parent: int = 0) -> Proposal:
    """Sets a runtime input; higher is better."""
    return Proposal(parent=parent, hypothesis=f"lr {value}", config={"lr": value})


def comment(*, parent: int = 0) -> Proposal:
    """Changes nothing that matters."""
    edit = Edit(path="models/recipe.py", search="MODE = ", replace="# a comment\n\nMODE = ")
    return Proposal(parent=parent, hypothesis="only a comment", edits=(edit,))


SCRIPT = [
    gain(0.1),
    gain(-0.1),
    mode("syntax"),
    comment(parent=1),
    mode("peek", parent=1),
    rate(0.05, parent=1),
    Proposal(parent=0, hypothesis="misses", edits=(Edit(path="models/recipe.py", search="absent", replace="x"),)),
    mode("hang", parent=6),
]
"""Ends as keep, discard, crash, duplicate, invalid, keep, crash, timeout."""

VERDICTS = ["keep", "discard", "crash", "duplicate", "invalid", "keep", "crash", "timeout"]


@dataclass
class Bench:
    """A study on a folder with everything that it needs."""

    folder: Path
    config: StudyConfig = field(default_factory=StudyConfig)
    clock: Clock = field(default_factory=Clock)

    def create(self) -> Study:
        return Study.create(
            self.folder,
            self.config,
            SUBJECT,
            corpus="sha256:corpus",
            tokenizer="sha256:tokenizer",
            instructions="Be bold.",
            clock=self.clock,
        )

    def open(self) -> Study:
        return Study.open(self.folder, clock=self.clock)

    def run(self, script: list[Proposal] | None = None, **options: object) -> Study:
        """Create the study if it is not there, and run it."""
        study = self.open() if self.folder.exists() else self.create()
        executor = options.pop("executor", None) or FakeExecutor()
        strategy = options.pop("strategy", None) or Scripted(SCRIPT if script is None else script)
        asyncio.run(study.run(executor, strategy, FakeModel, **options))
        return study


def config(experiments: int, **settings: object) -> StudyConfig:
    return StudyConfig.model_validate({"experiments": experiments, "llm": {"model": "builtin"}, **settings})


def verdicts(study: Study) -> list[str]:
    return [str(entry.verdict) for entry in study.history.contenders]


def events(study: Study) -> list[object]:
    return [stored.event for stored in Ledger.open(study.layout.ledger).read()]

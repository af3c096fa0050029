"""A tiny laboratory for tests: the real subject, small, on a small corpus, behind the real executor."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxresearch.config import StudyConfig, validate_config
from jaxresearch.data import Corpus
from jaxresearch.execution.base import RunRequest, TracedCandidate, TraceFailure, run_identity
from jaxresearch.execution.local import LocalExecutor
from jaxresearch.experiment import RunOutcome
from jaxresearch.proposal import Candidate, Edit, Proposal, apply
from jaxresearch.sandbox import Sandbox

ROOT = Path(__file__).parent.parent
VOCAB_SIZE, CONTEXT, EVALUATION_BATCH = 320, 16, 4
TINY = {"depth": 1, "width": 32, "head_size": 16, "batch": 4}
"""Hyperparameters of the subject; vocabulary and context are the laboratory's."""
ASIDE = itertools.count()


def tiny_config(**changes: Any) -> StudyConfig:
    return validate_config(
        {
            "context": CONTEXT,
            "budget": "6steps",
            "evaluation": {"tokens": 2048, "batch": EVALUATION_BATCH},
            "corpus": {"vocab_size": VOCAB_SIZE},
            "subject": {"hyperparameters": TINY},
            **changes,
        }
    )


def subject_files() -> dict[str, str]:
    """The real subject, as the baseline of a study holds it."""
    return {f"models/{path.name}": path.read_text() for path in sorted((ROOT / "models").glob("*.py"))}


BASELINE = Candidate(files=subject_files(), config=TINY)


def edited(*edits: tuple[str, str, str], config: Mapping[str, Any] | None = None) -> Candidate:
    """The baseline with (file, search, replace) edits, through the public `apply`."""
    proposal = Proposal(
        parent=0,
        hypothesis="a test",
        config=dict(config or {}),
        edits=tuple(Edit(path=f"models/{file}", search=search, replace=replace) for file, search, replace in edits),
    )
    return apply(proposal, BASELINE)


def with_logits(expression: str, prelude: str = "") -> Candidate:
    """The baseline whose scored logits are `expression` of `honest` f32[B, T, V] and `tokens_BxT`."""
    body = f"""    def logits(state, tokens_BxT):
        honest = nnx.merge(structure, state["params"])(tokens_BxT, with_values(state["traced"]))
        B, T, V = honest.shape
        {prelude}
        return {expression}
"""
    text = BASELINE.files["models/recipe.py"]
    start = text.index("    def logits(")
    stop = text.index("\n", text.index("return nnx.merge(structure, state", start)) + 1
    return edited(("recipe.py", text[start:stop], body))


class Laboratory:
    """A LocalExecutor with its event loop: `trace` and `run` as plain calls."""

    def __init__(self, runner: asyncio.Runner, config: StudyConfig, corpus: Corpus, sandbox: Sandbox, root: Path):
        self.runner, self.config, self.corpus, self.sandbox, self.root = runner, config, corpus, sandbox, root
        self.executor = LocalExecutor.create(config, corpus, sandbox, programs=root / "programs", runs=root / "runs")

    def trace(self, candidate: Candidate) -> TracedCandidate | TraceFailure:
        return self.runner.run(self.executor.trace(candidate))

    def traced(self, candidate: Candidate) -> TracedCandidate:
        outcome = self.trace(candidate)
        assert isinstance(outcome, TracedCandidate), outcome
        return outcome

    def request(self, traced: TracedCandidate, *, seed: int = 0, budget: str = "6steps", **changes: Any) -> RunRequest:
        identity = run_identity(
            program=traced.program,
            traced=traced.traced,
            phases=traced.phases,
            budget=budget,
            corpus=self.corpus.fingerprint,
            tokenizer=self.corpus.tokenizer_fingerprint,
            evaluation=f"test-{next(ASIDE)}",
            seed=seed,
        )
        facts = {"wall_cap_seconds": 120.0, "sandbox": traced.sandbox, **changes}
        return RunRequest(
            identity=identity, program=traced.program, traced=traced.traced, seed=seed, budget=budget, **facts
        )

    def run(self, traced: TracedCandidate, **settings: Any) -> RunOutcome:
        return self.runner.run(self.executor.run(self.request(traced, **settings), lambda _: None))

    def close(self) -> None:
        self.runner.run(self.executor.close())

"""The study that is killed: the real driver, ledger, git, strategy and builtin model over a subject that trains at once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.long_study import SyntheticExecutor
from jaxresearch.config import StudyConfig
from jaxresearch.execution.base import RunProgress, RunRequest, TracedCandidate
from jaxresearch.experiment import RunOutcome
from jaxresearch.proposal import Candidate
from jaxresearch.strategy import make_strategy
from jaxresearch.study.events import RunFinished
from jaxresearch.study.history import History
from jaxresearch.study.layout import StudyLayout
from jaxresearch.study.models import Models
from jaxresearch.study.replay import replay
from jaxresearch.study.study import Study
from jaxresearch.subjects import load_subject
from jaxresearch.training import seal
from tests.faults.points import Points

EXPERIMENTS = 5
CORPUS = "sha256:0"


class StoringExecutor(SyntheticExecutor):
    """Keeps what a real one would: a program by its name, and the final state of a run, sealed."""

    def __init__(self, layout: StudyLayout, points: Points) -> None:
        super().__init__()
        self._layout, self._points = layout, points

    async def trace(self, candidate: Candidate) -> TracedCandidate:
        traced = await super().trace(candidate)
        path = self._path(traced.program)
        self._points.passing("program.before")
        if not path.exists():
            descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")
            with os.fdopen(descriptor, "w") as file:
                file.write(repr(self._true[traced.program]))
                file.flush()
                os.fsync(file.fileno())
            Path(draft).rename(path)
        self._points.passing("program.after")
        return traced

    async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
        self._true[request.program] = float(self._path(request.program).read_text())
        on_progress(RunProgress("train", 0.5))
        await asyncio.sleep(0.002)
        self._points.passing("run.training")
        outcome = await super().run(request, on_progress)
        if not request.keep_state:
            return outcome
        folder = seal.checkpoint_folder(self._layout.runs, request.identity)
        state = seal.state_folder(folder, outcome.steps)
        state.mkdir(parents=True, exist_ok=True)
        (state / "leaves").write_bytes(hashlib.sha256(request.identity.encode()).digest() * 1000)
        return outcome.model_copy(update={"checkpoint": seal.write_seal(state, _facts(request))})

    def _path(self, program: str) -> Path:
        return self._layout.programs / program.removeprefix("sha256:")


def _facts(request: RunRequest) -> dict[str, Any]:
    owner = seal.Owner(
        program=request.program, traced={}, seed=request.seed, budget=request.budget, corpus=CORPUS, tokenizer=CORPUS
    )
    zero = {"progress": 1.0, "steps": 10, "tokens": 0, "flops": 0.0, "seconds": 0.0, "loss": 0.0, "points": 0}
    position = seal.Position(cursors={}, **zero)
    return {"owner": owner, "position": position, "leaves": (), "machine": {}, "resumed": ()}


def config() -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "experiments": EXPERIMENTS,
            "budget": "1000tok",
            "strategy": {"name": "greedy"},
            "execution": {"checkpoint_gb": 1e-4},
        }
    )


def live(folder: Path, points: Points, clock: Callable[[], float] = time.time, corpus: str = CORPUS) -> dict[str, Any]:
    """Create the study or go on with it, to its end; then what it came to. Raises as a session does."""
    if not folder.exists():
        Study.create(folder, config(), load_subject("gpt", {}), corpus=CORPUS, tokenizer=CORPUS, clock=clock).close()
    study = Study.open(folder, clock=clock)
    try:
        study.check_corpus(corpus=corpus, tokenizer=CORPUS)
        strategy = make_strategy("greedy", {})
        models = Models("builtin", study.config.llm).of_rounds(study)
        ending = asyncio.run(study.run(StoringExecutor(study.layout, points), strategy, models))
        assert ending.finished, ending
        study.verify()
        asyncio.run(replay(study, strategy))
        return {"essence": essence(study.history), "twice": _twice(study), "left": leftovers(folder)}
    finally:
        study.close()


def essence(history: History) -> list[Any]:
    """All that must be the same whatever happened on the way: everything but times and the commits that carry them."""
    experiments = [
        {
            "number": each.number,
            "parent": each.parent,
            "proposal": each.proposal.model_dump(mode="json") if each.proposal is not None else None,
            "program": each.program,
            "runs": [run.model_dump(mode="json") for run in each.runs],
            "verdict": each.verdict,
            "reason": each.reason,
        }
        for each in history.experiments
    ]
    costs = history.costs
    spent = [costs.accelerator_seconds, costs.flops, costs.llm_calls, costs.llm_tokens, history.rounds]
    return json.loads(json.dumps([experiments, history.incumbent_number, spent]))


def _twice(study: Study) -> list[str]:
    """Runs that were trained, or counted, more than once."""
    events = [stored.event for stored in study.events()]
    trained = Counter(e.outcome.identity for e in events if isinstance(e, RunFinished) and e.shared_from is None)
    return sorted(identity for identity, count in trained.items() if count > 1)


def leftovers(folder: Path) -> list[str]:
    """Drafts and locks that nobody will ever finish."""
    found = (path for path in folder.rglob("*") if path.name.startswith(".draft-") or path.suffix == ".lock")
    return sorted(str(path.relative_to(folder)) for path in found)

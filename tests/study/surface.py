"""A study whose runs are looked up on a response surface, with the real loop, ledger, workspace and builtin model."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fakes import completed
from pydantic_ai.models import Model

from jaxresearch.config import StudyConfig
from jaxresearch.execution.base import RunProgress, RunRequest, TracedCandidate, TraceFailure
from jaxresearch.experiment import RunOutcome, Verdict
from jaxresearch.llm import LLMCall, laboratory_model, resolve_model
from jaxresearch.llm_wrappers import ResumingModel
from jaxresearch.proposal import Candidate
from jaxresearch.strategy import Strategy
from jaxresearch.study.stopping import Stop
from jaxresearch.study.study import Study
from jaxresearch.subjects import load_subject
from jaxresearch.synthetic import HYPERPARAMETERS, bowl


class SurfaceExecutor:
    """Scores by `bowl`. The program's name carries the score, and all hyperparameters are static."""

    async def trace(self, candidate: Candidate) -> TracedCandidate | TraceFailure:
        declared = tuple(replace(each, value=candidate.config.get(each.name, each.value)) for each in HYPERPARAMETERS)
        values = {each.name: each.value for each in declared}
        if int(values["width"]) % int(values["head_size"]):
            return TraceFailure(verdict=Verdict.CRASH, reason="width is not a multiple of head_size")
        score = bowl(values, candidate.files)
        digest = hashlib.sha256(repr((sorted(values.items()), sorted(candidate.files.items()))).encode()).hexdigest()
        return TracedCandidate(
            program=f"{score!r}:{digest[:12]}",
            traced={},
            hyperparameters=declared,
            phases=((1.0, 8, 256),),
            step_flops=(1e6,),
            parameters=1000,
            sandbox="none",
            trace_seconds=0.5,
        )

    async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
        noise = random.Random(request.identity).gauss(0, 0.001) + random.Random(request.seed).gauss(0, 0.01)
        return completed(request, float(request.program.split(":")[0]) + noise)

    async def close(self) -> None:
        pass


def run_study(
    folder: Path,
    strategy: Strategy,
    experiments: int,
    *,
    model: Model | None = None,
    stop: Stop | None = None,
    slots: int = 1,
) -> Study:
    """Create the study, or go on with the one that is there."""
    if folder.exists():
        study = Study.open(folder)
    else:
        config = StudyConfig.model_validate({"experiments": experiments, "slots": slots})
        subject = load_subject("gpt", {})
        study = Study.create(folder, config, subject, corpus="sha256:c", tokenizer="sha256:t", instructions="Be bold.")
    answering = model or resolve_model("builtin")

    def factory(record) -> Model:
        recorded = [LLMCall.model_validate(call.record) for call in study.history.calls]
        ordinal = study.history.costs.llm_calls
        return ResumingModel(laboratory_model(answering, on_call=record, first_ordinal=ordinal), recorded)

    asyncio.run(study.run(SurfaceExecutor(), strategy, factory, stop=stop))
    return study

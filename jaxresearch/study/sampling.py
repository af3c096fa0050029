"""Text from what a study kept: the stored program and the final state of an experiment, in a worker of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxresearch.data import prepare_corpus
from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import RunProgress, SampleRequest
from jaxresearch.execution.housing import WorkerHouse
from jaxresearch.execution.local import worker_settings
from jaxresearch.execution.process import StageTimeoutError, WorkerDiedError, WorkerFailedError
from jaxresearch.study.shelf import kept_state
from jaxresearch.study.study import Study

TOKENS_PER_EVALUATION = 100
"""Tokens that may take as long as scoring a whole run may; it is far more than they need."""


@dataclass(frozen=True)
class Sample:
    """seed: of the run whose state it is. text: what follows the prompt, as the model gave it. tokens: its ids.

    ended: whether the model ended the document there, before the tokens were used up.
    """

    experiment: int
    seed: int
    text: str
    tokens: list[int]
    ended: bool


async def sample_study(
    study: Study,
    number: int,
    prompt: str,
    *,
    tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    on_preparation: Callable[[str, float], None],
    on_progress: Callable[[RunProgress], None],
) -> Sample:
    """Raises `JaxresearchError` when experiment `number` has no checkpoint, or one that cannot be used."""
    experiments, config = study.history.experiments, study.config
    if not 0 <= number < len(experiments):
        raise JaxresearchError(
            f"{study.layout.folder} has no experiment {number}.", fix=f"It has 0 to {len(experiments) - 1}."
        )
    kept_state(study.layout.runs, experiments[number])
    run = experiments[number].checkpointed
    assert run is not None, "kept_state has refused"
    corpus = prepare_corpus(config, on_preparation, study.begun_with)
    study.check_corpus(corpus=corpus.fingerprint, tokenizer=corpus.tokenizer_fingerprint)
    request = SampleRequest(
        identity=run.identity,
        program=run.program,
        checkpoint=run.checkpoint,
        prompt=prompt,
        tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )
    limits = config.limits
    seconds = limits.compile_seconds + limits.evaluation_seconds * max(1.0, tokens / TOKENS_PER_EVALUATION)
    layout = study.layout
    settings = worker_settings(config, corpus, programs=layout.programs, runs=layout.runs)
    house = WorkerHouse(settings, require=config.sandbox.require)
    worker = await house.start(sealed=False)
    try:
        answer = await worker.ask(
            "sample", request.model_dump(), limits={"sample": seconds}, first_stage="sample", on_progress=on_progress
        )
    except (StageTimeoutError, WorkerDiedError, WorkerFailedError) as error:
        raise JaxresearchError(f"Sampling failed: {error}.", fix="Run again with --debug to see where.") from None
    finally:
        await worker.kill()
        house.close()
    if "refused" in answer:
        raise JaxresearchError(answer["refused"])
    return Sample(number, run.seed, answer["text"], answer["tokens"], answer["ended"])

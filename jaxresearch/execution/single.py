"""One run outside the loop of a study: of the unmodified subject, or of any candidate again."""

from __future__ import annotations

from collections.abc import Callable

from jaxresearch.config import StudyConfig
from jaxresearch.data import default_cache_root, prepare_corpus
from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import RunProgress, RunRequest, TraceFailure, run_identity
from jaxresearch.execution.pool import local_executor
from jaxresearch.experiment import RunOutcome
from jaxresearch.proposal import Candidate
from jaxresearch.sandbox import choose_sandbox


async def train_once(
    config: StudyConfig,
    candidate: Candidate,
    seed: int,
    on_preparation: Callable[[str, float], None],
    on_progress: Callable[[RunProgress], None],
    begun_with: tuple[str, str] | None = None,
) -> RunOutcome:
    """Prepare the corpus, trace `candidate`, train it with `seed`, and score it, as a study with `config` would.

    begun_with: of a study, see `prepare_corpus`. Raises `JaxresearchError` when the candidate gives no program, or there
    is another text than the study's.
    """
    corpus = prepare_corpus(config, on_preparation, begun_with)
    if begun_with not in (None, (corpus.fingerprint, corpus.tokenizer_fingerprint)):
        raise JaxresearchError("The corpus has changed since the study began.", fix="Restore it.")
    sandbox = await choose_sandbox(config.sandbox.require)
    root = default_cache_root() / "train"
    executor = local_executor(config, corpus, sandbox, programs=root / "programs", runs=root / "runs")
    try:
        traced = await executor.trace(candidate)
        if isinstance(traced, TraceFailure):
            raise traced.of_subject(config.subject.hyperparameters)
        request = RunRequest(
            identity=run_identity(
                program=traced.program,
                traced=traced.traced,
                phases=traced.phases,
                budget=config.budget,
                corpus=corpus.fingerprint,
                tokenizer=corpus.tokenizer_fingerprint,
                evaluation=config.evaluation_text,
                seed=seed,
            ),
            program=traced.program,
            traced=traced.traced,
            seed=seed,
            budget=config.budget,
            wall_cap_seconds=config.limits.train_seconds,
            trace_seconds=traced.trace_seconds,
            verify_seconds=traced.verify_seconds,
            sandbox=traced.sandbox,
        )
        return await executor.run(request, on_progress)
    finally:
        await executor.close()

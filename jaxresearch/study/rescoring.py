"""Scoring every kept final state again, in a worker of its own: the stored program on the stored state."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from jaxresearch.data import prepare_corpus
from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import StateRequest
from jaxresearch.execution.housing import WorkerHouse
from jaxresearch.execution.local import worker_settings
from jaxresearch.execution.process import StageTimeoutError, WorkerDiedError, WorkerFailedError
from jaxresearch.experiment import CompletedRun
from jaxresearch.study.shelf import kept_state
from jaxresearch.study.study import Study
from jaxresearch.study.verification import Repeated, compare_scores


async def rescore_study(study: Study, on_preparation: Callable[[str, float], None]) -> list[Repeated]:
    """Raises `JaxresearchError` that names the first score that comes out differently, or when no state is kept.

    On a like machine (device, threads, devices, processes, jax) the bits must agree, elsewhere to `ROUNDING_BPB`.
    """
    config, layout = study.config, study.layout
    kept = list(_kept(study))
    if not kept:
        raise JaxresearchError(
            "No final state is kept, so none can be scored again.", fix="Name an EXPERIMENT instead."
        )
    corpus = prepare_corpus(config, on_preparation, study.begun_with)
    settings = worker_settings(config, corpus, programs=layout.programs, runs=layout.runs)
    house = WorkerHouse(settings, require=config.sandbox.require)
    worker = await house.start(sealed=False)
    limits = {"rescore": config.limits.compile_seconds + config.limits.evaluation_seconds}
    found = []
    try:
        for number, run in kept:
            on_preparation(f"score experiment {number} again", len(found) / len(kept))
            request = StateRequest(identity=run.identity, program=run.program, checkpoint=run.checkpoint)
            answer = await worker.ask("rescore", request.model_dump(), limits=limits, first_stage="rescore")
            where = f"experiment {number}, seed {run.seed}"
            if "refused" in answer:
                raise JaxresearchError(f"{where}: {answer['refused']}")
            found.append(compare_scores(where, run, answer["val_bpb"], worker.facts, what="scored again"))
    except (StageTimeoutError, WorkerDiedError, WorkerFailedError) as error:
        raise JaxresearchError(f"Scoring again failed: {error}.", fix="Run again with --debug to see where.") from None
    finally:
        await worker.kill()
        house.close()
    return found


def _kept(study: Study) -> Iterator[tuple[int, CompletedRun]]:
    """Runs whose final state is there; those that must be there, `verify` has checked before."""
    for experiment in study.history.experiments:
        run = experiment.checkpointed
        if run is None:
            continue
        try:
            kept_state(study.layout.runs, experiment)
        except JaxresearchError:
            continue  # pruned
        yield experiment.number, run

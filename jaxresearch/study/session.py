"""A session: everything that driving a study needs, put together from its configuration, and taken apart again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from jaxresearch.config import StudyConfig
from jaxresearch.data import Corpus, prepare_corpus
from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import Executor
from jaxresearch.execution.pool import local_executor
from jaxresearch.files import refuse_bytes
from jaxresearch.sandbox import choose_sandbox
from jaxresearch.strategy import make_strategy
from jaxresearch.study.approval import Approver
from jaxresearch.study.deadline import check_caps
from jaxresearch.study.driver import Ending
from jaxresearch.study.hooks import Hooks
from jaxresearch.study.layout import refuse_used
from jaxresearch.study.models import Models
from jaxresearch.study.origin import winner_of
from jaxresearch.study.reporter import Reporter
from jaxresearch.study.stopping import Stop, stop_on_signals
from jaxresearch.study.study import Study
from jaxresearch.subjects import load_subject

OnPreparation = Callable[[str, float], None]
OnStop = Callable[[str], None]


def create_study(
    folder: Path,
    config: StudyConfig,
    *,
    instructions: str,
    on_preparation: OnPreparation,
    start_from: Path | None = None,
) -> Study:
    """A new study in `folder`, its corpus prepared. Settings that cannot work are refused before anything is made.

    start_from: another study, whose winner becomes the baseline.
    """
    refuse_used(folder.absolute())  # before a corpus is prepared, which may take minutes
    make_strategy(config.strategy.name, config.strategy.options)
    Models(config.llm.model, config.llm).check_caps(config.max_cost, config.max_tokens)
    if config.execution.executor == "ray":
        from jaxresearch.execution.cluster.connection import check_ray_is_installed

        check_ray_is_installed()
    if config.sandbox.require is not None:  # a study's own demand is never loosened: it could not be driven here
        asyncio.run(choose_sandbox(config.sandbox.require))
    winner = None
    if start_from is not None:
        winner, config = winner_of(start_from, config)
    subject = (
        load_subject(config.subject.source, config.subject.hyperparameters) if winner is None else winner.candidate
    )
    corpus = prepare_corpus(config, on_preparation)
    if winner is not None:
        winner.check_corpus(corpus=corpus.fingerprint, tokenizer=corpus.tokenizer_fingerprint)
    return Study.create(
        folder,
        config,
        subject,
        corpus=corpus.fingerprint,
        tokenizer=corpus.tokenizer_fingerprint,
        instructions=instructions,
        origin=winner.origin if winner is not None else None,
    )


async def drive(
    study: Study,
    reporter: Reporter,
    *,
    llm: str | None = None,
    caps: Mapping[str, Any] | None = None,
    require_sandbox: str | None = None,
    ray_address: str | None = None,
    on_preparation: OnPreparation,
    on_stop: OnStop,
    approver: Approver | None = None,
) -> Ending:
    """Go on with `study` until it ends, or a first SIGINT (finish the run), a second (stop now), or SIGTERM (in time).

    llm: another model than the study's own, for this session. caps: other ends, by name (`CAPS`), from now on.
    require_sandbox: a level, where the study's own is not stricter. ray_address: where the cluster is now. on_stop: hears
    what a request to stop will lead to.
    Raises `JaxresearchError` when the study cannot go on.
    """
    if study.layout.tournament is not None:
        raise JaxresearchError(
            f"{study.layout.folder} is an arm of a tournament, which says what it may use.",
            fix=f"Go on with: {study.layout.way_on}",
        )
    config, caps = study.config, caps or {}
    check_caps(study.history, caps)
    hooks = Hooks.of(config.hooks, study.layout.folder)
    models = Models(llm or config.llm.model, config.llm)
    model_factory = models.of_rounds(study, max_cost=caps.get("max_cost"), max_tokens=caps.get("max_tokens"))
    strategy = make_strategy(config.strategy.name, config.strategy.options)
    async with _at_work(study, on_preparation, on_stop, require_sandbox, ray_address) as (executor, stop):
        return await study.run(
            executor,
            strategy,
            model_factory,
            reporter,
            stop,
            approver=approver,
            hooks=hooks,
            **caps,
        )


async def open_executor(
    config: StudyConfig,
    on_preparation: OnPreparation,
    *,
    programs: Path,
    runs: Path,
    begun_with: tuple[str, str] | None = None,
) -> tuple[Executor, Corpus]:
    """An executor of runs as `config` says, here or on a cluster, and its corpus. The caller closes it.

    begun_with: of `prepare_corpus`.
    """
    corpus = prepare_corpus(config, on_preparation, begun_with)
    sandbox = await choose_sandbox(config.sandbox.require)
    if config.execution.executor == "ray":
        from jaxresearch.execution.cluster.executor import RayExecutor

        return RayExecutor(config, corpus, sandbox, programs=programs, runs=runs), corpus
    executor = local_executor(
        config,
        corpus,
        sandbox,
        programs=programs,
        runs=runs,
        checkpoint_seconds=config.execution.checkpoint_seconds,
    )
    return executor, corpus


async def confirm_study(
    study: Study, reporter: Reporter, *, count: int, on_preparation: OnPreparation, on_stop: OnStop
) -> None:
    """`Study.confirm` with the executor that this machine has. Signals as for `drive`; then it raises `Interrupted`."""
    async with _at_work(study, on_preparation, on_stop) as (executor, stop):
        await study.confirm(executor, reporter, stop, count=count)


async def ablate_study(
    study: Study, reporter: Reporter, *, count: int, again: bool, on_preparation: OnPreparation, on_stop: OnStop
) -> None:
    """`ablate` on this machine. Signals as for `drive`; then it raises `Interrupted`."""
    from jaxresearch.study.ablation import ablate

    async with _at_work(study, on_preparation, on_stop) as (executor, stop):
        await study.beside(
            lambda journal, workspace: ablate(journal, workspace, executor, stop, count=count, again=again),
            reporter,
            stop,
        )


async def transfer_study(
    study: Study,
    reporter: Reporter,
    *,
    scale: dict[str, str],
    count: int,
    again: bool,
    on_preparation: OnPreparation,
    on_stop: OnStop,
) -> None:
    """`transfer` on this machine, as `ablate_study`."""
    from jaxresearch.study.transfer import transfer

    async with _at_work(study, on_preparation, on_stop) as (executor, stop):
        await study.beside(
            lambda journal, workspace: transfer(
                journal, workspace, executor, stop, scale=scale, count=count, again=again
            ),
            reporter,
            stop,
        )


@asynccontextmanager
async def _at_work(
    study: Study,
    on_preparation: OnPreparation,
    on_stop: OnStop,
    require_sandbox: str | None = None,
    ray_address: str | None = None,
) -> AsyncIterator[tuple[Executor, Stop]]:
    """Where runs of `study` happen, and how signals end them. Refuses another corpus than the study's."""
    refuse_bytes(study.layout.folder, "STUDY")
    config = study.config.requiring(require_sandbox).reaching(ray_address)
    executor, corpus = await open_executor(
        config,
        on_preparation,
        programs=study.layout.programs,
        runs=study.layout.runs,
        begun_with=study.begun_with,
    )
    stop = Stop(config.execution, on_stop)
    try:
        study.check_corpus(corpus=corpus.fingerprint, tokenizer=corpus.tokenizer_fingerprint)
        with stop_on_signals(stop):
            yield executor, stop
    finally:
        await executor.close()

"""A session: everything that driving a study needs, put together from its configuration, and taken apart again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from jaxresearch.config import StudyConfig
from jaxresearch.data import Corpus, prepare
from jaxresearch.execution.local import LocalExecutor
from jaxresearch.llm_mix import parse_llms
from jaxresearch.sandbox import choose_sandbox
from jaxresearch.strategy import make_strategy
from jaxresearch.study.driver import Ending
from jaxresearch.study.reporter import Reporter
from jaxresearch.study.stopping import Stop, stop_on_signals
from jaxresearch.study.study import Study
from jaxresearch.study.view import ModelFactory
from jaxresearch.subjects import load_subject

if TYPE_CHECKING:
    from pydantic_ai.models import Model

OnPreparation = Callable[[str, float], None]


def create_study(folder: Path, config: StudyConfig, *, instructions: str, on_preparation: OnPreparation) -> Study:
    """A new study in `folder`, its corpus prepared. Settings that cannot work are refused before anything is made."""
    from jaxresearch.llm import resolve_model

    make_strategy(config.strategy.name, config.strategy.options)
    for name in parse_llms(config.llm.model).models:
        resolve_model(name)
    subject = load_subject(config.subject.source, config.subject.hyperparameters)
    corpus = _prepare(config, on_preparation)
    return Study.create(
        folder,
        config,
        subject,
        corpus=corpus.fingerprint,
        tokenizer=corpus.tokenizer_fingerprint,
        instructions=instructions,
    )


async def drive(study: Study, reporter: Reporter, *, llm: str | None = None, on_preparation: OnPreparation) -> Ending:
    """Go on with `study` until it ends, or a first SIGINT or SIGTERM (finish the run) or a second (stop now).

    llm: another model than the study's own, for this session. Raises `JaxresearchError` when the study cannot go on.
    """
    config = study.config
    model_factory = _model_factory(study, llm or config.llm.model)
    strategy = make_strategy(config.strategy.name, config.strategy.options)
    executor = await _executor(study, on_preparation)
    stop = Stop()
    try:
        with stop_on_signals(stop):
            return await study.run(
                executor,
                strategy,
                model_factory,
                reporter,
                stop,
            )
    finally:
        await executor.close()


def _model_factory(study: Study, llm: str) -> ModelFactory:
    """Makes each round's model of what `llm` names. The names are resolved here, once."""
    from jaxresearch.llm import LLMCall, laboratory_model, resolve_model
    from jaxresearch.llm_wrappers import FallingBackModel, ResumingModel

    settings, mix = study.config.llm, parse_llms(llm)
    bounds = {"timeout_seconds": settings.timeout_seconds, "max_output_tokens": settings.max_output_tokens}
    resolved = {name: resolve_model(name, **bounds) for name in mix.models}

    def of_round(record: Callable[[BaseModel], None]) -> Model:
        history = study.history
        recorded = [LLMCall.model_validate(call.record) for call in history.calls]
        chain = [
            laboratory_model(resolved[name], on_call=record, first_ordinal=history.costs.llm_calls)
            for name in mix.turn(history.rounds).models
        ]
        model = FallingBackModel(chain) if len(chain) > 1 else chain[0]
        return ResumingModel(model, recorded) if recorded else model

    return of_round


async def open_executor(
    config: StudyConfig, on_preparation: OnPreparation, *, programs: Path, runs: Path
) -> tuple[LocalExecutor, Corpus]:
    """An executor of runs as `config` says, on this machine, and its corpus. The caller closes it."""
    corpus = _prepare(config, on_preparation)
    sandbox = await choose_sandbox(config.sandbox.require)
    return LocalExecutor.create(config, corpus, sandbox, programs=programs, runs=runs), corpus


async def confirm_study(study: Study, reporter: Reporter, *, count: int, on_preparation: OnPreparation) -> None:
    """`Study.confirm` with the executor that this machine has. Signals as for `drive`; then it raises `Interrupted`."""
    executor, stop = await _executor(study, on_preparation), Stop()
    try:
        with stop_on_signals(stop):
            await study.confirm(executor, reporter, stop, count=count)
    finally:
        await executor.close()


async def ablate_study(
    study: Study, reporter: Reporter, *, count: int, again: bool, on_preparation: OnPreparation
) -> None:
    """`ablate` on this machine. Signals as for `drive`; then it raises `Interrupted`."""
    from jaxresearch.study.ablation import ablate

    executor, stop = await _executor(study, on_preparation), Stop()
    try:
        with stop_on_signals(stop):
            await study.beside(
                lambda journal, workspace: ablate(journal, workspace, executor, stop, count=count, again=again),
                reporter,
            )
    finally:
        await executor.close()


async def transfer_study(
    study: Study, reporter: Reporter, *, scale: dict[str, str], count: int, again: bool, on_preparation: OnPreparation
) -> None:
    """`transfer` on this machine, as `ablate_study`."""
    from jaxresearch.study.transfer import transfer

    executor, stop = await _executor(study, on_preparation), Stop()
    try:
        with stop_on_signals(stop):
            await study.beside(
                lambda journal, workspace: transfer(
                    journal, workspace, executor, stop, scale=scale, count=count, again=again
                ),
                reporter,
            )
    finally:
        await executor.close()


async def _executor(study: Study, on_preparation: OnPreparation) -> LocalExecutor:
    """Runs of `study` on this machine; refuses another corpus than the study's. The caller closes it."""
    executor, corpus = await open_executor(
        study.config, on_preparation, programs=study.layout.programs, runs=study.layout.runs
    )
    study.check_corpus(corpus=corpus.fingerprint, tokenizer=corpus.tokenizer_fingerprint)
    return executor


def _prepare(config: StudyConfig, on_preparation: OnPreparation) -> Corpus:
    return prepare(config.corpus.source, config.corpus.vocab_size, on_progress=on_preparation)

"""A session of a tournament: everything that running one needs on this machine, put together and taken apart again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jaxresearch.config import TournamentConfig
from jaxresearch.errors import JaxresearchError
from jaxresearch.proposal import Candidate
from jaxresearch.strategy import make_strategy
from jaxresearch.study.models import Models
from jaxresearch.study.reporter import Reporter
from jaxresearch.study.session import OnPreparation, OnStop, open_executor
from jaxresearch.study.stillborn import remove_stillborn
from jaxresearch.study.stopping import Stop, stop_on_signals
from jaxresearch.study.study import Study
from jaxresearch.study.view import ModelFactory
from jaxresearch.subjects import load_subject
from jaxresearch.tournament.plan import PLAN_FILE, Arm, study_config
from jaxresearch.tournament.tournament import Fixed, Tournament


async def run_tournament(
    folder: Path,
    config: TournamentConfig,
    arms: Sequence[Arm],
    reporter: Callable[[Arm, int], Reporter | None],
    *,
    instructions: str,
    on_preparation: OnPreparation,
    on_stop: OnStop,
) -> Tournament:
    """Run the tournament in `folder`, or what is left of it. Settings that cannot work are refused before anything runs.

    A first SIGINT finishes the run at hand, a second stops at once, SIGTERM within `execution.grace_seconds`; `on_stop`
    hears so, and then it raises `Interrupted`.
    """
    models = {arm.llm: Models(arm.llm, config.llm) for arm in arms}
    for arm in arms:
        make_strategy(arm.strategy, study_config(config, arm, 0).strategy.options)
    subject = load_subject(config.subject.source, config.subject.hyperparameters)
    new = not (folder / PLAN_FILE).exists()
    tournament = Tournament.create_or_open(folder, config, arms)
    try:
        await _play(tournament, subject, models, reporter, instructions, on_preparation, on_stop)
    except JaxresearchError as error:
        if new and (why := _remove_unbegun(tournament)) is not None:
            raise why from error
        raise
    return tournament


async def _play(
    tournament: Tournament,
    subject: Candidate,
    models: Mapping[str, Models],
    reporter: Callable[[Arm, int], Reporter | None],
    instructions: str,
    on_preparation: OnPreparation,
    on_stop: OnStop,
) -> None:
    config = tournament.config
    executor, corpus = await open_executor(config, on_preparation, programs=tournament.programs, runs=tournament.runs)

    def model_factory(arm: Arm, study: Study) -> ModelFactory:
        return models[arm.llm].of_rounds(study)

    fixed = Fixed(subject, corpus.fingerprint, corpus.tokenizer_fingerprint, instructions)
    stop = Stop(config.execution, on_stop)
    try:
        with stop_on_signals(stop):
            await tournament.run(
                fixed,
                executor,
                lambda arm: make_strategy(arm.strategy, study_config(config, arm, 0).strategy.options),
                model_factory,
                reporter,
                stop,
            )
    finally:
        await executor.close()


def _remove_unbegun(tournament: Tournament) -> JaxresearchError | None:
    """Leave no folder of a new tournament that failed before anything was trained. Why, if its subject is why."""
    studies = [study for arm in tournament.arms if (study := tournament.study(arm, 0)) is not None]
    if not studies:
        shutil.rmtree(tournament.folder, ignore_errors=True)
        return None
    try:
        return remove_stillborn(tournament.folder, *studies)
    finally:
        for study in studies:
            study.close()

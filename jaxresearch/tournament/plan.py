"""Plan: the arms of a tournament, their names and folders, and every seed in it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from jaxresearch.config import StudyConfig, TournamentConfig
from jaxresearch.errors import ConfigurationError

PLAN_FILE = "tournament.json"
"""In the folder of a tournament, which is known by it."""
CONTROLS = ("independent", "random_search")
UNCAPPED_EXPERIMENTS = 1_000_000
SEEDS_PER_REPEAT, FIRST_FRESH_SEED = 1000, 500
"""Repeat r has seeds from base + 1000 r on; those from 500 on are for its final incumbents, and no search uses them."""


@dataclass(frozen=True)
class Arm:
    """One competitor: a strategy, and the model that it asks."""

    name: str
    strategy: str
    llm: str

    @property
    def folder(self) -> str:
        return re.sub(r"[^A-Za-z0-9._-]+", "_", self.name)


def make_arms(config: TournamentConfig, installed: Collection[str]) -> tuple[list[Arm], list[str]]:
    """The arms that `config` names and the controls, and a line about each control that is not installed.

    A name that is given twice gets a number. Raises `ConfigurationError` for an unknown strategy, for no arm, and for
    options of neither an arm nor a strategy.
    """
    if not config.tournament.arms:  # the controls alone are what a mistyped --tournament would begin
        raise ConfigurationError("--strategy: a tournament needs arms.", fix="For example --strategy greedy.")
    arms: list[Arm] = []
    for text in config.tournament.arms:
        strategy, _, llm = text.partition(":")
        if strategy not in installed:
            raise ConfigurationError(
                f"--strategy: no strategy {strategy!r}.", fix=f"Installed: {', '.join(sorted(installed))}."
            )
        copies = sum(re.fullmatch(re.escape(text) + r"(-\d+)?", arm.name) is not None for arm in arms)
        arms.append(Arm(f"{text}-{copies + 1}" if copies else text, strategy, llm or config.llm.model))
    notes = []
    for control in CONTROLS if config.tournament.controls else ():
        if control not in installed:
            notes.append(f"The control arm {control} is left out: no such strategy is installed.")
        elif all(arm.strategy != control for arm in arms):
            arms.append(Arm(control, control, config.llm.model))
    for at, arm in enumerate(arms):
        twin = next((each.name for each in arms[:at] if each.folder == arm.folder), None)
        if twin is not None:
            raise ConfigurationError(
                f"--arm: {twin} and {arm.name} would share the folder {arm.folder}.", fix="Leave one of them out."
            )
    for key in config.tournament.options:  # one file may serve several sets of arms
        if key not in installed and all(key != arm.name for arm in arms):
            raise ConfigurationError(
                f"tournament.options: no arm and no strategy {key!r}.",
                fix=f"Arms: {', '.join(arm.name for arm in arms)}.",
            )
    return arms, notes


def control_of(arms: Sequence[Arm]) -> str | None:
    """The arm that all are compared with: random search, else feedback-free sampling, else none."""
    for strategy in reversed(CONTROLS):
        for arm in arms:
            if arm.strategy == strategy:
                return arm.name
    return None


def study_config(config: TournamentConfig, arm: Arm, repeat: int, arms: int = 1) -> StudyConfig:
    """The study of `arm` in `repeat`. Arms of one repeat share run seeds, so that baselines and pairs are shared.

    arms: how many take turns. Between two runs of one lie those of all, so that fewer of its own may.
    """
    study = config.study
    own = dict(study.strategy.options) if study.strategy.name == arm.strategy else {}
    for key in (arm.strategy, arm.name):
        own |= config.tournament.options.get(key, {})
    interleave = study.acceptance.interleave
    changes = {
        "acceptance": {**study.acceptance.model_dump(), "interleave": interleave and max(1, interleave // arms)},
        "seed": repeat_seed(config, repeat),
        "strategy": {"name": arm.strategy, **own},
        "llm": {**study.llm.model_dump(), "model": arm.llm},
        "experiments": study.experiments if config.is_capped else UNCAPPED_EXPERIMENTS,
    }
    return StudyConfig.model_validate({**study.model_dump(), **changes})


def repeat_seed(config: TournamentConfig, repeat: int) -> int:
    return config.seed + SEEDS_PER_REPEAT * repeat


def fresh_seeds(config: TournamentConfig, repeat: int) -> tuple[int, ...]:
    """Seeds of the final runs in `repeat`."""
    first = repeat_seed(config, repeat) + FIRST_FRESH_SEED
    return tuple(range(first, first + config.tournament.final_seeds))


def budget_text(config: TournamentConfig) -> str:
    """The budget that binds each arm in each repeat."""
    part = config.tournament
    if part.accelerator_seconds is not None:
        return f"{part.accelerator_seconds:g} accelerator seconds"
    if part.flops is not None:
        return f"{part.flops:g} FLOPs".replace("e+", "e")
    return f"{config.experiments} experiment{'s' * (config.experiments != 1)}"

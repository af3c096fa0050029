"""Tournament: the same study by several strategies, under one binding budget, repeated, and compared like algorithms.

    for each repeat:
        until every arm has used its budget: one turn of each arm, in an order that rotates
        each arm's incumbent and the baseline run again, on fresh seeds, and on the sealed test

A turn is one round of a study: its proposals, decided. Everything is in the studies' ledgers, one folder for each arm and
repeat, so that running the tournament again goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from jaxresearch.config import TournamentConfig
from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import Executor
from jaxresearch.files import refuse_bytes
from jaxresearch.proposal import Candidate
from jaxresearch.strategy import Strategy
from jaxresearch.study.confirm import is_confirmed
from jaxresearch.study.history import History
from jaxresearch.study.layout import StudyLayout
from jaxresearch.study.reporter import Reporter
from jaxresearch.study.steps import MAX_FAILED_PROPOSALS
from jaxresearch.study.stopping import Interrupted, Stop
from jaxresearch.study.study import Study
from jaxresearch.study.view import ModelFactory
from jaxresearch.text import one_line
from jaxresearch.tournament.plan import PLAN_FILE, Arm, fresh_seeds, study_config
from jaxresearch.tournament.shared import SharedRuns


@dataclass(frozen=True)
class Fixed:
    """What every study of the tournament begins with. corpus, tokenizer: fingerprints."""

    subject: Candidate
    corpus: str
    tokenizer: str
    instructions: str = ""


class Tournament:
    """A tournament's folder. `open` reads it; `create_or_open` makes it, or goes on with the same one."""

    def __init__(self, folder: Path, config: TournamentConfig, arms: Sequence[Arm]) -> None:
        self.folder, self.config, self.arms = folder, config, tuple(arms)

    @classmethod
    def create_or_open(cls, folder: Path, config: TournamentConfig, arms: Sequence[Arm]) -> Self:
        """Raises `JaxresearchError` when `folder` holds another tournament, or something else."""
        refuse_bytes(folder, "--tournament")
        path = folder / PLAN_FILE
        if path.is_file():
            there = cls.open(folder)  # settings that are newer than its plan have their defaults there
            if (there.config.model_dump(mode="json"), there.arms) != (config.model_dump(mode="json"), tuple(arms)):
                found, asked = (each.model_dump(mode="json") for each in (there.config, config))
                raise JaxresearchError(
                    f"{folder} holds a tournament with other settings: {_differences(found, asked) or 'its arms'}.",
                    fix="Give those that it has, or choose another folder with --tournament.",
                )
        elif folder.exists() and any(folder.iterdir()):
            raise JaxresearchError(f"{folder} is not empty.", fix="Choose another folder with --tournament.")
        else:
            plan = {"config": _settings(config), "arms": [asdict(arm) for arm in arms]}
            draft = folder / f".{PLAN_FILE}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                draft.write_text(json.dumps(plan, indent=1), "utf-8")
                draft.rename(path)
            except OSError as error:
                raise JaxresearchError(
                    f"The folder {folder} cannot be made: {error.strerror or error}.",
                    fix="Choose another with --tournament.",
                ) from error
        return cls(folder, config, arms)

    @classmethod
    def open(cls, folder: Path) -> Self:
        path = folder / PLAN_FILE
        if not path.is_file():
            raise JaxresearchError(f"{folder} holds no tournament.", fix="Start one with `jaxresearch compare`.")
        try:
            plan = json.loads(path.read_text("utf-8"))
            arms = [Arm(**each) for each in plan["arms"]]
            return cls(folder, TournamentConfig.model_validate(plan["config"]), arms)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = one_line(str(error), 200)
            raise JaxresearchError(
                f"{path} cannot be read: {reason}.", fix="Restore it, or use the jaxresearch that wrote it."
            ) from error

    @property
    def programs(self) -> Path:
        return self.folder / "programs"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def study_folder(self, arm: Arm, repeat: int) -> Path:
        return self.folder / f"{arm.folder}-{repeat}"

    def study(self, arm: Arm, repeat: int) -> Study | None:
        """The study of an arm in a repeat; None before it exists. The caller closes it."""
        folder = self.study_folder(arm, repeat)
        return Study.open(folder) if StudyLayout(folder).exists else None

    async def run(
        self,
        fixed: Fixed,
        executor: Executor,
        strategy: Callable[[Arm], Strategy],
        model_factory: Callable[[Arm, Study], ModelFactory],
        reporter: Callable[[Arm, int], Reporter | None] = lambda arm, repeat: None,
        stop: Stop | None = None,
    ) -> None:
        """Run what is left. Raises `Interrupted` when `stop` is requested, and `JaxresearchError`; again goes on."""
        stop = stop or Stop()
        shared = SharedRuns(executor, self.folder / "shared")
        for repeat in range(self.config.tournament.repeats):
            studies = {arm: self._study(fixed, arm, repeat) for arm in self.arms}
            try:
                await self._search(studies, repeat, shared, strategy, model_factory, reporter, stop)
                for arm, study in studies.items():
                    if not is_confirmed(study.history):
                        seeds = fresh_seeds(self.config, repeat)
                        await study.confirm(shared, reporter(arm, repeat), stop, seeds=seeds)
            finally:
                for study in studies.values():
                    study.close()

    async def _search(
        self,
        studies: dict[Arm, Study],
        repeat: int,
        executor: Executor,
        strategy: Callable[[Arm], Strategy],
        model_factory: Callable[[Arm, Study], ModelFactory],
        reporter: Callable[[Arm, int], Reporter | None],
        stop: Stop,
    ) -> None:
        order = [self.arms[(at + repeat) % len(self.arms)] for at in range(len(self.arms))]
        fruitless = dict.fromkeys(order, 0)
        going = [arm for arm in order if not self._is_done(studies[arm].history)]
        while going:
            for arm in tuple(going):
                study, before = studies[arm], len(studies[arm].history.entries)
                ending = await study.run(
                    executor,
                    strategy(arm),
                    model_factory(arm, study),
                    reporter(arm, repeat),
                    stop,
                    pause=_one_round(study.history),
                )
                if ending.incidents:
                    raise JaxresearchError(
                        f"{arm.name}, repeat {repeat}, paused: {ending.reason}.",
                        fix="Look at them, then compare again.",
                    )
                if ending.interrupted or ending.paused:
                    raise Interrupted
                began = study.history.rounds > 0
                fruitless[arm] = fruitless[arm] + 1 if began and len(study.history.entries) == before else 0
                if ending.finished or self._is_done(study.history) or fruitless[arm] >= MAX_FAILED_PROPOSALS:
                    going.remove(arm)

    def _is_done(self, history: History) -> bool:
        """Whether the arm has used its budget. The experiment that crosses the line is finished, and charged."""
        part, costs = self.config.tournament, history.costs
        if history.stopped is not None and history.stopped.finished:
            return True
        if history.pending is not None:
            return False
        if part.accelerator_seconds is not None:
            return costs.paid_seconds >= part.accelerator_seconds
        if part.flops is not None:
            return costs.flops >= part.flops
        return len(history.contenders) >= history.planned

    def _study(self, fixed: Fixed, arm: Arm, repeat: int) -> Study:
        folder = self.study_folder(arm, repeat)
        study = self.study(arm, repeat)
        if study is None:
            study = Study.create(
                folder,
                study_config(self.config, arm, repeat, len(self.arms)),
                fixed.subject,
                corpus=fixed.corpus,
                tokenizer=fixed.tokenizer,
                instructions=fixed.instructions,
            )
        study.check_corpus(corpus=fixed.corpus, tokenizer=fixed.tokenizer)
        for name, common in (("programs", self.programs), ("runs", self.runs)):
            _share(folder / name, common)
        return study


def _settings(config: TournamentConfig) -> dict[str, Any]:
    """All of them, but for a number of experiments that nobody gave: read again, it would be a cap."""
    return config.model_dump(mode="json", exclude=None if config.is_capped else {"experiments"})


def _differences(found: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> str:
    """The settings that differ: `key is 3, not 4`, ..."""
    said = []
    for key in dict.fromkeys([*found, *asked]):
        one, other = found.get(key), asked.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            said.append(_differences(one, other, f"{prefix}{key}."))
        elif one != other:
            said.append(f"{prefix}{key} is {one}, not {other}")
    return ", ".join(filter(None, said))


def _one_round(before: History) -> Callable[[History], str | None]:
    """Pauses a study at the end of its next round; the baseline is a turn of its own."""
    rounds, had_baseline = before.rounds, before.baseline.verdict is not None

    def pause(history: History) -> str | None:
        turned = history.rounds > rounds or not had_baseline
        return "the other arms' turn" if turned else None

    return pause


def _share(own: Path, common: Path) -> None:
    """Let a study's folder be the tournament's, by a relative link; the study works like any other."""
    common.mkdir(exist_ok=True)
    if not own.is_symlink():
        shutil.rmtree(own, ignore_errors=True)
        own.symlink_to(Path("..") / common.name, target_is_directory=True)

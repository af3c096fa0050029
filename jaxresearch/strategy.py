"""The Strategy protocol, and StudyView: all that a strategy may see of a study.

A strategy is a function of the view and of the replies of the model that the view hands it. It holds no hidden state:
resume and replay depend on that. Keep, discard, budgets, retries and scores are never a strategy's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from jaxresearch.errors import ConfigurationError, JaxresearchError
from jaxresearch.experiment import Experiment
from jaxresearch.proposal import Candidate, Hyperparameter, Proposal, apply

if TYPE_CHECKING:
    from pydantic_ai.models import Model

ENTRY_POINT_GROUP = "jaxresearch.strategies"


@dataclass(frozen=True)
class StudyView:
    """What a strategy may see. Everything in it is a function of the ledger.

    experiments: all so far in order, pending ones (verdict None) included. Element i has number i; 0 is the baseline.
    incumbent: the best kept experiment.
    seed: of this proposal round; the same after a resume.
    noise_sd: standard deviation of val_bpb between seeds, in bits per byte; None before it is known.
    budget: of one run, as text, such as "600000tok".
    instructions: the study's program.md: goals, taboos and ideas of the person who started it.
    candidate: experiment number -> its sources and config.
    hyperparameters: experiment number -> what its subject declares, with the values that the experiment used.
    diff: experiment number -> unified diff against its parent.
    model: the laboratory's metered and recording pydantic-ai model.
    check: proposal -> what is wrong with it (it does not apply, does not trace, was tried before), or None.
    max_requests: how many requests to the model one proposal may take, repairs included.
    constraints: name -> limit; an experiment that breaks one is discarded, however good its score is.
    simplicity_bpb: what a simpler candidate may lose against the best incumbent and still be kept; None: nothing.
    refused: the last few proposals of earlier rounds that gave no program when they were checked, and never ran.
    nonce: for a fence around text that a candidate printed, which cannot have known it. It may decide nothing.
    """

    experiments: tuple[Experiment, ...]
    incumbent: Experiment
    seed: int
    noise_sd: float | None
    budget: str
    instructions: str
    candidate: Callable[[int], Candidate]
    hyperparameters: Callable[[int], tuple[Hyperparameter, ...]]
    diff: Callable[[int], str]
    model: Model
    check: Callable[[Proposal], Awaitable[str | None]]
    max_requests: int = 16
    constraints: Mapping[str, float] = field(default_factory=dict)
    simplicity_bpb: float | None = None
    refused: tuple[Proposal, ...] = ()
    nonce: str = ""

    @property
    def baseline(self) -> Experiment:
        return self.experiments[0]

    def generator(self) -> np.random.Generator:
        """Fresh randomness for this round: equal views give equal draws."""
        return np.random.default_rng(self.seed)

    def with_pending(self, proposal: Proposal) -> StudyView:
        """This view once `proposal` waits for its runs, so that the next of several slots sees it and differs."""
        number = len(self.experiments)
        pending = Experiment(number=number, parent=proposal.parent, proposal=proposal)

        def candidate(asked: int) -> Candidate:
            return apply(proposal, self.candidate(proposal.parent)) if asked == number else self.candidate(asked)

        def hyperparameters(asked: int) -> tuple[Hyperparameter, ...]:
            if asked != number:
                return self.hyperparameters(asked)
            inherited = self.hyperparameters(proposal.parent)
            return tuple(replace(each, value=proposal.config.get(each.name, each.value)) for each in inherited)

        return replace(
            self,
            experiments=(*self.experiments, pending),
            candidate=candidate,
            hyperparameters=hyperparameters,
            diff=lambda asked: "" if asked == number else self.diff(asked),
        )


class StrategyOptions(BaseModel):
    """Base of a strategy's own options, set by `strategy.NAME=value` and validated. Unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def check(self, hyperparameters: Sequence[Hyperparameter]) -> None:
        """Raise `ConfigurationError` where they do not fit what the baseline declares. Asked before it is trained."""


@runtime_checkable
class Strategy(Protocol):
    """Proposes experiments. One class, one file; registered under the entry point group `jaxresearch.strategies`.

    A class with `asks_model = False` never uses `view.model`; people are told so, and nothing else depends on it.
    """

    Options: ClassVar[type[StrategyOptions]]

    def __init__(self, options: StrategyOptions) -> None: ...

    async def propose(self, view: StudyView, slots: int) -> list[Proposal]:
        """At most `slots` proposals, no two alike. An empty list says that the strategy has nothing left to try."""
        ...


class ProposalError(Exception):
    """A strategy raises this when this round's proposal could not be had; the study records it and goes on."""


@dataclass(frozen=True)
class InstalledStrategy:
    """What `jaxresearch strategies` lists."""

    name: str
    summary: str
    origin: str
    factory: type[Strategy]

    @property
    def asks_model(self) -> bool:
        """Whether it may use `view.model`: unless its class says that it does not."""
        return bool(getattr(self.factory, "asks_model", True))


def strategy_names() -> list[str]:
    """The names that entry points declare. None is imported."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})


def installed_strategies() -> dict[str, InstalledStrategy]:
    """All strategies that entry points declare, by name. One that cannot be used is an error that names it."""
    return {name: _installed(name) for name in strategy_names()}


def _installed(name: str) -> InstalledStrategy:
    points = {point.value: point for point in entry_points(group=ENTRY_POINT_GROUP, name=name)}
    if len(points) > 1:  # which of them a study had asked would depend on the order of folders
        both = " and ".join(sorted(f"{value} of {_origin(point)}" for value, point in points.items()))
        raise ConfigurationError(f"strategy {name!r} is declared twice: {both}.", fix="Uninstall one of them.")
    (point,) = points.values()
    try:
        factory = point.load()
    except Exception as error:
        raise ConfigurationError(
            f"strategy {name!r} ({point.value}) does not import: {error!r}.", fix="Fix or uninstall it."
        ) from error
    declared = getattr(factory, "Options", None)
    if not (isinstance(declared, type) and issubclass(declared, StrategyOptions)):
        raise ConfigurationError(
            f"strategy {name!r} ({point.value}) has no Options that is a StrategyOptions.", fix="Fix or uninstall it."
        )
    if not callable(getattr(factory, "propose", None)):
        raise ConfigurationError(f"strategy {name!r} ({point.value}) has no propose.", fix="Fix or uninstall it.")
    summary = next(iter((factory.__doc__ or "").strip().splitlines()), "")
    return InstalledStrategy(name, summary, _origin(point), factory)


def _origin(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


def make_strategy(name: str, options: Mapping[str, object]) -> Strategy:
    """The strategy called `name`, with its validated options. Raises `ConfigurationError` that names what is wrong.

    No other one is imported: a broken plug-in stops none but its own studies.
    """
    factory = _named(name)
    given = _options(name, factory, options)
    try:
        return factory(given)
    except JaxresearchError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"strategy {name!r} cannot be made of its options: {type(error).__name__}: {error}.",
            fix="Its __init__ takes an instance of its Options, and nothing else.",
        ) from error


def check_options(name: str, options: Mapping[str, object], hyperparameters: Sequence[Hyperparameter]) -> None:
    """Raise `ConfigurationError` where the options of the strategy `name` do not fit a baseline's hyperparameters."""
    _options(name, _named(name), options).check(hyperparameters)


def asks_model(name: str) -> bool:
    """Whether the strategy called `name` may use the model. One that is not installed may."""
    return name not in strategy_names() or _installed(name).asks_model


def _named(name: str) -> type[Strategy]:
    installed = strategy_names()
    if name not in installed:
        raise ConfigurationError(f"strategy.name: no strategy {name!r}.", fix=f"Installed: {', '.join(installed)}.")
    return _installed(name).factory


def _options(name: str, factory: type[Strategy], options: Mapping[str, object]) -> StrategyOptions:
    try:
        return factory.Options(**options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        has = ", ".join(factory.Options.model_fields) or "no options"
        wrong = f"{name} has no such option" if first["type"] == "extra_forbidden" else first["msg"]
        raise ConfigurationError(f"strategy.{key}: {wrong}.", fix=f"{name} has {has}.") from error

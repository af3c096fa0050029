"""The conformance kit: what any strategy must pass, ours or foreign. It takes seconds, and needs no key and no training.

    from jaxresearch.testing import check_strategy

    def test_my_strategy():
        check_strategy(MyStrategy)

It raises `ConformanceError`, an AssertionError that names the rule which was broken.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from jaxresearch.errors import JaxresearchError
from jaxresearch.experiment import Verdict
from jaxresearch.llm import FatalLLMError, LLMCall, laboratory_model
from jaxresearch.proposal import EditError, Hyperparameter, Proposal, apply, config_problem
from jaxresearch.strategy import ProposalError, Strategy, StrategyOptions
from jaxresearch.subjects import load_subject
from jaxresearch.synthetic import SyntheticStudy

if TYPE_CHECKING:
    from pydantic_ai.models import Model

ROUND_SECONDS = 60.0
"""How long one round may take on a synthetic study with the builtin model."""
_ALARM_PATIENCE = 5.0
"""Seconds on top, for a round that awaits to be ended in the usual way."""
MAX_FAILED_ROUNDS = 5
_FATES = (Verdict.CRASH, Verdict.TIMEOUT, Verdict.INVALID, Verdict.INFRASTRUCTURE, Verdict.DUPLICATE, Verdict.DISCARD)


class ConformanceError(AssertionError):
    """A strategy broke a rule. The message says which one, and what it did."""


def check_strategy(
    factory: type[Strategy],
    options: Mapping[str, Any] | None = None,
    *,
    llm: str | Model = "builtin",
    experiments: int = 20,
) -> None:
    """Run `factory` through all checks. options: its own, as under `strategy.*`.

    llm: a name, as after `--llm`, or a pydantic-ai model, such as a FunctionModel. It must answer deterministically.
    Called in a process's main thread, it also ends rounds that compute for a minute without an `await`.
    """
    given = dict(options or {})
    check_options(factory, given)
    plain = play(factory, given, llm=llm, experiments=experiments)
    if plain.calls and not getattr(factory, "asks_model", True):
        raise ConformanceError("It says that it asks no model (asks_model = False), and did ask.")
    check_same_view_same_proposals(factory, given, plain, llm=llm, experiments=experiments)
    check_replays(factory, given, plain, experiments=experiments)
    play(factory, given, llm=llm, experiments=experiments, slots=3, seed=1)
    check_survives_every_verdict(factory, given, llm=llm)
    check_survives_only_failures(factory, given, llm=llm)


def check_options(factory: type[Strategy], options: Mapping[str, Any]) -> None:
    """`Options` is a `StrategyOptions` that takes its defaults, takes `options` and refuses unknown names."""
    declared = getattr(factory, "Options", None)
    if not (isinstance(declared, type) and issubclass(declared, StrategyOptions)):
        raise ConformanceError("Options must be a StrategyOptions.")
    needed = [name for name, each in declared.model_fields.items() if each.is_required()]
    if needed:
        raise ConformanceError(f"Options has no default for {', '.join(needed)}.")
    _made(factory, {})
    _made(factory, options)
    if not callable(getattr(factory, "propose", None)):
        raise ConformanceError("It has no propose.")
    try:
        factory.Options.model_validate({"no_such_option": 1})
    except ValidationError:
        return
    raise ConformanceError("Options accepts unknown names: keep extra='forbid'.")


def check_same_view_same_proposals(
    factory: type[Strategy], options: Mapping[str, Any], before: Played, *, llm: str | Model, experiments: int
) -> None:
    """The same seed gives the same study, whatever global randomness does, with a new instance in each round."""
    random.seed(12345)
    np.random.seed(54321)  # what a strategy must not depend on
    again = play(factory, options, llm=llm, experiments=experiments, renew=True)
    _expect_same(before, again, "Asked again with a new instance and the same views, it proposes something else")


def check_replays(factory: type[Strategy], options: Mapping[str, Any], before: Played, *, experiments: int) -> None:
    """From the recorded replies of the model it makes the same proposals."""
    again = play(factory, options, recorded=before.calls, experiments=experiments, renew=True)
    _expect_same(before, again, "Replayed from the recorded replies, it proposes something else")


def check_survives_every_verdict(factory: type[Strategy], options: Mapping[str, Any], *, llm: str | Model) -> None:
    """Every second experiment ends in another way; the strategy goes on and repeats nothing."""

    def fate(number: int) -> Verdict | None:
        return _FATES[number // 2 % len(_FATES)] if number % 2 else None

    play(factory, options, llm=llm, experiments=2 * len(_FATES) + 2, seed=2, fate=fate)


def check_survives_only_failures(factory: type[Strategy], options: Mapping[str, Any], *, llm: str | Model) -> None:
    """Nothing ever scores; the strategy goes on."""
    play(factory, options, llm=llm, experiments=6, slots=2, seed=3, fate=lambda number: Verdict.CRASH)


class Played:
    """What a strategy did in a synthetic study: its proposals by round, and the model's recorded calls."""

    def __init__(self, study: SyntheticStudy, calls: list[LLMCall]) -> None:
        self.study = study
        self.calls = calls
        self.rounds: list[list[Proposal]] = []


def play(
    factory: type[Strategy],
    options: Mapping[str, Any] | None = None,
    *,
    llm: str | Model = "builtin",
    recorded: list[LLMCall] | None = None,
    experiments: int = 20,
    slots: int = 1,
    seed: int = 0,
    renew: bool = False,
    **settings: Any,
) -> Played:
    """A synthetic study with `factory`'s strategy, every round checked.

    recorded: answer from these calls instead of from `llm`. renew: a new instance each round, as after a resume.
    settings: of the `SyntheticStudy`. Raises `ConformanceError`.
    """
    from jaxresearch.llm import ReplayModel

    calls: list[LLMCall] = []
    model = ReplayModel(recorded) if recorded is not None else laboratory_model(llm, on_call=calls.append)
    settings.setdefault("files", load_subject("gpt", {}).files)
    played = Played(SyntheticStudy(model, seed=seed, **settings), calls)
    try:
        asyncio.run(_play(played, factory, dict(options or {}), experiments, slots, renew))
    except _Stuck:
        raise ConformanceError(f"A round computed for more than {ROUND_SECONDS:g} s without an await.") from None
    if isinstance(model, ReplayModel) and model.unused:
        raise ConformanceError(f"Replayed, it leaves {model.unused} recorded replies of the model unused.")
    return played


class _Stuck(BaseException):
    """A round is still computing, though its time is over."""


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `_Stuck` wherever the main thread is after `seconds`, and again each second. Another thread has no alarm."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _Stuck

    began, handler = time.monotonic(), signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # a test runner's own, if any
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3), interval)


async def _play(
    played: Played, factory: type[Strategy], options: dict[str, Any], experiments: int, slots: int, renew: bool
) -> None:
    study, failed = played.study, 0
    strategy = _made(factory, options)
    while len(study.experiments) <= experiments:
        study.rounds += 1
        if renew:
            strategy = _made(factory, options)
        try:
            with _alarm(ROUND_SECONDS + _ALARM_PATIENCE):
                proposals = await asyncio.wait_for(_asked(strategy, study, slots), ROUND_SECONDS)
        except (ProposalError, EditError) as error:
            failed += 1
            if failed >= MAX_FAILED_ROUNDS:
                raise ConformanceError(f"{failed} rounds in a row gave no proposal: {error}") from error
            continue
        except TimeoutError:
            raise ConformanceError(f"A round took more than {ROUND_SECONDS:g} s.") from None
        if not isinstance(proposals, list):
            raise ConformanceError(f"propose returned a {type(proposals).__name__}, not a list of proposals.")
        if not proposals:
            if len(study.experiments) == 1:
                raise ConformanceError("It has nothing to propose in a study that has only begun.")
            return
        failed = 0
        _check_round(study, proposals, slots)
        played.rounds.append(list(proposals))
        for proposal in proposals:
            study.add(proposal)


def _made(factory: type[Strategy], options: Mapping[str, Any]) -> Strategy:
    given = factory.Options(**options)
    try:
        return factory(given)
    except Exception as error:
        raise ConformanceError(f"Made of its Options, it raised {type(error).__name__}: {error}.") from error


async def _asked(strategy: Strategy, study: SyntheticStudy, slots: int) -> list[Proposal]:
    """What `propose` gives. Whatever else it raises than a study takes for a failed round breaks a rule."""
    try:
        answer = strategy.propose(study.view(), slots)
        if not inspect.isawaitable(answer):
            raise ConformanceError("propose must be an `async def`.")
        return await answer
    except (ProposalError, EditError, TimeoutError, ConformanceError):
        raise
    except FatalLLMError as error:
        raise ConformanceError(f"The model answers no more: {error}") from error
    except JaxresearchError:
        raise  # a wrong option, say: it ends a study too, and says why
    except Exception as error:
        ended = ", ".join(sorted({str(each.verdict) for each in study.experiments[1:]})) or "nothing"
        raise ConformanceError(f"propose raised {type(error).__name__}: {error}. So far there was: {ended}.") from error


def _check_round(study: SyntheticStudy, proposals: list[Proposal], slots: int) -> None:
    if len(proposals) > slots:
        raise ConformanceError(f"It made {len(proposals)} proposals for {slots} slots.")
    made: list[tuple[Mapping[str, str], Mapping[str, Any]]] = []
    for proposal in proposals:
        if not isinstance(proposal, Proposal):
            raise ConformanceError(f"It returned a {type(proposal).__name__}, not a Proposal.")
        if not 0 <= proposal.parent < len(study.experiments):
            raise ConformanceError(f"It builds on experiment {proposal.parent}, which is not there yet.")
        ghost = proposal.repairs
        if ghost is not None and not 0 < ghost < len(study.experiments):
            raise ConformanceError(f"It repairs experiment {ghost}, which is not there.")
        wrong = config_problem(proposal.config)
        if wrong is not None:
            raise ConformanceError(f"{proposal.hypothesis!r} cannot be an experiment: {wrong}.")
        try:
            candidate = apply(proposal, study.candidates[proposal.parent])
        except EditError as error:
            raise ConformanceError(f"An edit does not apply: {error}") from error
        same = study.same_as(candidate)
        if same is not None:
            raise ConformanceError(f"{proposal.hypothesis!r} repeats experiment {same}.")
        values = {each.name: candidate.config.get(each.name, each.value) for each in study.hyperparameters}
        if (candidate.files, values) in made:
            raise ConformanceError(f"{proposal.hypothesis!r} comes twice in one round.")
        made.append((candidate.files, values))
        _check_values(study.hyperparameters, proposal)
        if Proposal.model_validate_json(proposal.model_dump_json()) != proposal:
            raise ConformanceError(f"{proposal.hypothesis!r} does not survive being written down.")


def _check_values(hyperparameters: tuple[Hyperparameter, ...], proposal: Proposal) -> None:
    known = {each.name: each for each in hyperparameters}
    for name, value in proposal.config.items():
        each = known.get(name)
        if each is None:
            if not proposal.edits:
                raise ConformanceError(f"There is no hyperparameter {name!r}.")
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if type(value) is not type(each.value):
            raise ConformanceError(f"{name} is a {type(each.value).__name__}, and {value!r} is not.")
        if number and not each.choices and each.low is None and each.high is None:
            raise ConformanceError(f"{name} is the laboratory's own: it has no bounds, and stays {each.value}.")
        if each.choices and value not in each.choices:
            raise ConformanceError(f"{name} = {value!r} is none of its choices.")
        outside = (each.low is not None and value < each.low) or (each.high is not None and value > each.high)  # type: ignore[operator]
        if number and outside:
            raise ConformanceError(f"{name} = {value} is outside its bounds, {each.low} to {each.high}.")


def _expect_same(before: Played, again: Played, what: str) -> None:
    for at, (first, second) in enumerate(zip(before.rounds, again.rounds, strict=False)):
        if first != second:
            raise ConformanceError(f"{what}, first in round {at}: {_difference(first, second)}.")
    if len(before.rounds) != len(again.rounds):
        raise ConformanceError(f"{what}: {len(again.rounds)} rounds, not {len(before.rounds)}.")


def _difference(first: list[Proposal], second: list[Proposal]) -> str:
    if len(first) != len(second):
        return f"{len(second)} proposals, not {len(first)}"
    one, other = next((one, other) for one, other in zip(first, second, strict=True) if one != other)
    if one.hypothesis != other.hypothesis:
        return f"{other.hypothesis!r}, not {one.hypothesis!r}"
    fields = [name for name in Proposal.model_fields if getattr(one, name) != getattr(other, name)]
    return f"{one.hypothesis!r} with another {', '.join(fields)}"

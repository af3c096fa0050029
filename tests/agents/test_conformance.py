"""Every strategy of ours passes the conformance kit, and the kit catches strategies that break its rules."""

from __future__ import annotations

import contextlib
import importlib
import math
import random
import signal
import time
import tomllib

import pytest

from agents.researcher import ask
from jaxresearch import testing
from jaxresearch.experiment import Verdict
from jaxresearch.proposal import Edit, Proposal
from jaxresearch.strategy import StrategyOptions
from jaxresearch.testing import ConformanceError, check_strategy, play
from tests.laboratory import ROOT

POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["jaxresearch.strategies"]


def load(name: str):
    module, _, attribute = POINTS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def test_all_strategies_are_registered_and_say_what_they_are():
    wanted = {"greedy", "beam", "reflective", "independent", "random_search", "tpe", "cmaes", "hybrid"}
    assert set(POINTS) == wanted
    assert all(load(name).__doc__.splitlines()[0].endswith(".") for name in wanted)


@pytest.mark.parametrize("name", sorted(POINTS))
def test_it_conforms(name):
    check_strategy(load(name), experiments=12)


class _Base:
    Options = StrategyOptions

    def __init__(self, options):
        self.options = options


def batch(value: int, parent: int = 0, **more) -> Proposal:
    return Proposal(parent=parent, hypothesis=f"batch {value}", config={"batch": value}, **more)


class NoPropose(_Base):
    pass


class TakesNothing:
    Options = StrategyOptions

    async def propose(self, view, slots):
        return [batch(len(view.experiments))]


class TooMany(_Base):
    async def propose(self, view, slots):
        return [batch(at + 1) for at in range(slots + 1)]


class Repeats(_Base):
    async def propose(self, view, slots):
        return [batch(8)]


class OutOfBounds(_Base):
    async def propose(self, view, slots):
        return [batch(1000 + len(view.experiments))]


class Forgetful(_Base):
    """Counts in itself what it should read off the view."""

    calls = 0

    async def propose(self, view, slots):
        self.calls += 1
        return [batch(self.calls)]


class Gambler(_Base):
    async def propose(self, view, slots):
        free = set(range(1, 129)) - {each.proposal.config["batch"] for each in view.experiments[1:]}
        return [batch(random.choice(sorted(free - {16})))]


class Fragile(_Base):
    """Takes every experiment to have a score."""

    async def propose(self, view, slots):
        worst = max(each.val_bpb for each in view.experiments)
        return [batch(len(view.experiments), expected_effect=str(worst))]


class BadEdit(_Base):
    async def propose(self, view, slots):
        return [Proposal(parent=0, hypothesis="e", edits=(Edit(path="models/recipe.py", search="~~", replace="x"),))]


class Future(_Base):
    async def propose(self, view, slots):
        return [batch(8, parent=len(view.experiments))]


class Lazy(_Base):
    async def propose(self, view, slots):
        return []


class NotAsync(_Base):
    def propose(self, view, slots):
        return [batch(len(view.experiments))]


class InATuple(_Base):
    """A study takes nothing but a list."""

    async def propose(self, view, slots):
        return (batch(len(view.experiments)),)


class NoOptions:
    async def propose(self, view, slots):
        return [batch(len(view.experiments))]


class NeedsAnOption(_Base):
    class Options(StrategyOptions):
        step: float

    async def propose(self, view, slots):
        return [batch(len(view.experiments))]


class TimeOfDay(_Base):
    async def propose(self, view, slots):
        return [batch(len(view.experiments), predicted_bpb=time.perf_counter())]


class RepairsNothing(_Base):
    async def propose(self, view, slots):
        return [batch(len(view.experiments), repairs=99)]


class MovesTheContext(_Base):
    async def propose(self, view, slots):
        return [Proposal(parent=0, hypothesis="longer", config={"context": 256 + len(view.experiments)})]


class NotANumber(_Base):
    async def propose(self, view, slots):
        return [Proposal(parent=0, hypothesis="nan", config={"weight_decay": math.nan})]


class AsksAtRandom(_Base):
    """Asks the model once or, as chance has it, twice."""

    more = True
    asked = 0

    async def propose(self, view, slots):
        type(self).asked += 1
        if (self.asked <= 4) is self.more:  # `play` and the first comparison are two rounds each
            await ask(view, 0)
        await ask(view, 0)
        return [batch(len(view.experiments))]


class AsksMoreAndMore(AsksAtRandom):
    more = False


class AsksThoughItSaysItDoesNot(_Base):
    asks_model = False

    async def propose(self, view, slots):
        return [await ask(view, 0)]


class NeverAwaits(_Base):
    """It catches what it can, too."""

    async def propose(self, view, slots):
        until = time.monotonic() + 30  # the kit must not wait for it; a test that fails should end
        while time.monotonic() < until:
            with contextlib.suppress(Exception):
                sum(range(1000))
        return [batch(len(view.experiments))]


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        (TooMany, "2 proposals for 1 slots"),
        (Repeats, "repeats experiment 1"),
        (OutOfBounds, "outside its bounds"),
        (Forgetful, "repeats experiment|something else"),
        (Gambler, "something else"),
        (BadEdit, "does not apply"),
        (Future, "not there yet"),
        (Lazy, "nothing to propose"),
        (Fragile, "raised TypeError: .* there was: crash"),
        (NotAsync, "async def"),
        (InATuple, "a tuple, not a list"),
        (NoOptions, "must be a StrategyOptions"),
        (NeedsAnOption, "no default for step"),
        (NoPropose, "has no propose"),
        (TakesNothing, r"raised TypeError: TakesNothing\(\) takes no arguments"),
        (TimeOfDay, "'batch 1' with another predicted_bpb"),
        (RepairsNothing, "repairs experiment 99"),
        (MovesTheContext, "the laboratory's own"),
        (NotANumber, "not finite"),
        (AsksThoughItSaysItDoesNot, "says that it asks no model"),
    ],
)
def test_the_kit_catches(faulty, message):
    with pytest.raises(ConformanceError, match=message):
        check_strategy(faulty, experiments=5)


@pytest.mark.parametrize(
    ("faulty", "message"),
    [(AsksAtRandom, "recorded replies of the model unused"), (AsksMoreAndMore, "model answers no more")],
)
def test_the_kit_catches_a_strategy_that_does_not_ask_the_same_again(faulty, message):
    faulty.asked = 0
    with pytest.raises(ConformanceError, match=message):
        check_strategy(faulty, experiments=2)


def test_the_kit_ends_a_round_that_never_awaits_and_gives_back_the_timer_that_it_found(monkeypatch):
    monkeypatch.setattr(testing, "ROUND_SECONDS", 0.2)
    monkeypatch.setattr(testing, "_ALARM_PATIENCE", 0.1)
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        with pytest.raises(ConformanceError, match=r"computed for more than 0.2 s without an await"):
            check_strategy(NeverAwaits, experiments=2)
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_IGN
        assert 900 < signal.setitimer(signal.ITIMER_REAL, 0)[0] < 1000
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_independent_is_not_moved_by_outcomes():
    same = play(load("independent"), experiments=8).rounds
    assert play(load("independent"), experiments=8, surface=lambda values, files: 9.0).rounds == same
    assert play(load("independent"), experiments=8, fate=lambda number: Verdict.CRASH).rounds == same
    assert {proposal.parent for each in same for proposal in each} == {0}


def test_numeric_strategies_stay_on_the_baseline_and_within_names():
    for name in ("random_search", "tpe", "cmaes"):
        rounds = play(load(name), {"names": ["matrix_lr", "batch"]}, experiments=8, slots=2).rounds
        proposals = [proposal for each in rounds for proposal in each]
        assert {proposal.parent for proposal in proposals} == {0}
        assert {key for proposal in proposals for key in proposal.config} == {"matrix_lr", "batch"}
        assert not any(proposal.edits for proposal in proposals)

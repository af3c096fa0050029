"""Budgets in seconds: what is compared was made close in time, so a machine that drifts decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import SCRIPT, Bench, Clock, FakeExecutor, FakeModel, Scripted, config, gain, rate

from jaxresearch.config import TournamentConfig
from jaxresearch.execution.base import RunProgress, RunRequest
from jaxresearch.experiment import CompletedRun, RunOutcome, Verdict
from jaxresearch.proposal import Proposal
from jaxresearch.strategy import StudyView
from jaxresearch.study.events import Event, RunFinished, RunStarted, StudyCreated, decode, encode
from jaxresearch.study.ledger import Ledger, StoredEvent
from jaxresearch.study.pairing import pairs_of, search_identity
from jaxresearch.study.replay import ReplayDifference, replay
from jaxresearch.study.study import Study
from jaxresearch.tournament.plan import Arm, study_config

STEP_BPB = 0.003
"""How much each run scores worse than the one before, on the machine that slows down."""


class Drifting(FakeExecutor):
    """Each run scores `step_bpb` worse than the one before: its program got through less. Below zero: better."""

    def __init__(self, step_bpb: float = STEP_BPB) -> None:
        super().__init__()
        self.step_bpb = step_bpb
        self.order: dict[str, int] = {}

    async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
        before = self.order.setdefault(request.identity, len(self.order))
        outcome = await super().run(request, on_progress)
        if not isinstance(outcome, CompletedRun):
            return outcome
        return outcome.model_copy(update={"val_bpb": outcome.val_bpb + before * self.step_bpb})


class Silent(Scripted):
    """Asks no model and checks nothing."""

    async def propose(self, view: StudyView, slots: int) -> list[Proposal]:
        start = len(view.experiments) - 1
        return self.script[start : start + slots]


def worse(count: int) -> list[Proposal]:
    """Contenders that are worse than anything, and let time pass."""
    return [gain(-0.1 - at / 100) for at in range(count)]


def played(
    folder: Path, script: list[Proposal], executor: FakeExecutor, budget: str = "300s", **acceptance: Any
) -> Study:
    bench = Bench(folder, config(len(script), budget=budget, acceptance=acceptance))
    return bench.run(script, executor=executor, strategy=Silent(script))


def again(study: Study) -> int:
    """Runs beyond the first of an experiment with a seed."""
    counts = Counter((each.number, run.seed) for each in study.history.experiments for run in each.runs)
    return sum(count - 1 for count in counts.values())


# A drifting machine

RULES = [("paired", 11), ("fixed", 5), ("greedy", 11)]
"""Each with as many contenders as let the drift grow beyond the gain."""


@pytest.mark.parametrize(("rule", "before"), RULES)
def test_a_real_gain_is_kept_on_a_machine_that_slows_down(tmp_path: Path, rule: str, before: int):
    script = [*worse(before), gain(0.03)]
    old = played(tmp_path / "old", script, Drifting(), rule=rule, interleave=0)
    assert old.history.entries[-1].verdict is Verdict.DISCARD, "its incumbent had run on a faster machine"
    assert again(old) == 0
    new = played(tmp_path / "new", script, Drifting(), rule=rule)
    assert [entry.verdict for entry in new.history.contenders] == [Verdict.DISCARD] * before + [Verdict.KEEP]
    assert_close(new)


@pytest.mark.parametrize(("rule", "before"), RULES)
def test_a_machine_that_gets_faster_makes_nothing_better(tmp_path: Path, rule: str, before: int):
    script = [*worse(before), gain(-0.001)]
    old = played(tmp_path / "old", script, Drifting(-STEP_BPB), rule=rule, interleave=0)
    assert old.history.entries[-1].verdict is Verdict.KEEP, "its incumbent had run on a slower machine"
    new = played(tmp_path / "new", script, Drifting(-STEP_BPB), rule=rule)
    assert {entry.verdict for entry in new.history.contenders} == {Verdict.DISCARD}
    assert_close(new)


def assert_close(study: Study) -> None:
    """What every verdict by score rests on: at most 4 runs apart on the first seed, else, and for a keep, none between."""
    for entry in study.history.contenders:
        assert entry.decision is not None
        assert entry.decision.incumbent is not None
        pairs = pairs_of(study.history, entry, study.history.entries[entry.decision.incumbent])
        first, *further = [pairs[seed].apart for seed in sorted(pairs)]
        assert first <= (1 if entry.verdict is Verdict.KEEP else 4)
        assert set(further) <= {1}


def test_who_runs_first_alternates_so_that_a_steady_drift_cancels(tmp_path: Path):
    study = played(tmp_path / "study", [*worse(3), gain(0.05)], Drifting(), rule="fixed")
    kept = study.history.incumbent
    pairs = pairs_of(study.history, kept, study.history.baseline)
    assert {seed: pair.our_place < pair.their_place for seed, pair in pairs.items()} == {0: False, 1: True, 2: False}


def test_what_it_costs(tmp_path: Path):
    """One run of the incumbent for every four contenders that fail their first look, and one for each further pair."""
    failing = played(tmp_path / "failing", worse(12), FakeExecutor())
    assert len(failing.history.baseline.experiment.runs) == 3 + 3
    assert failing.history.costs.accelerator_seconds == failing.history.trained * 10.0, "it is charged"
    kept = played(tmp_path / "kept", [*worse(12), gain(0.1)], FakeExecutor()).history
    ours, theirs = kept.incumbent.experiment, kept.baseline.experiment
    pairs = len(ours.scores)
    assert pairs in (2, 3)
    assert [run.seed for run in ours.runs] == [*range(pairs), 0], "the first pair was made again"
    assert [run.seed for run in theirs.runs] == [0, 1, 2, 0, 0, 0, *range(1, pairs), 0]
    assert theirs.scores == failing.history.baseline.experiment.scores, (
        "an experiment's score is that of its first runs"
    )


# Only under a budget in seconds


@pytest.mark.parametrize("budget", ["600ktok", "100steps", "1e15flop"])
def test_other_budgets_know_nothing_of_it(tmp_path: Path, budget: str):
    def told(folder: Path, **acceptance: Any) -> list[dict[str, Any]]:
        study = played(folder, SCRIPT, FakeExecutor(), budget, **acceptance)
        events = [each.event for each in study.events() if not isinstance(each.event, StudyCreated)]
        return [event.model_dump(exclude={"commit"}) for event in events]  # commits name the first event's hash

    assert told(tmp_path / "with") == told(tmp_path / "without", interleave=0)


def test_a_study_from_before_goes_on_without_it(tmp_path: Path):
    study = Bench(tmp_path / "study", config(1, budget="300s")).create()
    facts = json.loads(encode(study.history.created))
    for name, now in (("interleave", 4), ("own_spread", 0.05)):
        assert getattr(decode(json.dumps(facts)).config.acceptance, name) == now  # type: ignore[union-attr]
        del facts["config"]["acceptance"][name]
        assert getattr(decode(json.dumps(facts)).config.acceptance, name) == 0  # type: ignore[union-attr]


# Names


def test_a_run_that_is_made_again_is_a_run_of_its_own(tmp_path: Path):
    study = played(tmp_path / "study", [*worse(12), gain(0.1)], FakeExecutor())
    identities = [run.identity for each in study.history.experiments for run in each.runs]
    assert again(study) > 0
    assert len(set(identities)) == len(identities)
    assert study.verify() == study.history.seq


def test_the_incumbents_last_run_is_what_a_contender_is_audited_against(tmp_path: Path):
    executor = FakeExecutor()
    study = played(tmp_path / "study", worse(6), executor)
    repeated = [run for run in study.history.baseline.experiment.runs if run.seed == 0][-1]
    assert executor.requests[-1].reference == repeated.identity != study.history.baseline.experiment.runs[0].identity


def test_arms_share_the_baselines_first_runs_and_no_others(tmp_path: Path):
    ours, theirs = (
        Bench(tmp_path / name, config(1, budget="300s"), clock=Clock(now=at)).run([gain(-0.1)])
        for name, at in (("a", 1e9), ("b", 2e9))
    )
    first = [{run.identity for run in study.history.baseline.experiment.runs} for study in (ours, theirs)]
    assert first[0] == first[1]
    for entry_of in (lambda study: study.history.baseline, lambda study: study.history.entries[1]):
        assert search_identity(ours.history, entry_of(ours), 0) != search_identity(theirs.history, entry_of(theirs), 0)


@pytest.mark.parametrize(("given", "arms", "own"), [(4, 2, 2), (4, 8, 1), (0, 2, 0), (4, 1, 4)])
def test_arms_take_turns_so_fewer_of_ones_own_runs_may_lie_between(given: int, arms: int, own: int):
    tournament = TournamentConfig.model_validate({"budget": "300s", "acceptance": {"interleave": given}})
    assert study_config(tournament, Arm("a", "greedy", "builtin"), 0, arms).acceptance.interleave == own


class LosesReplicates(FakeExecutor):
    """Loses every run of a contender but those with the first seed, until it is told not to."""

    losing = True

    async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
        if self.losing and request.seed > 0 and float(request.program.split(":")[1]) > 0:
            raise ConnectionError("the worker is gone")
        return await super().run(request, on_progress)


def test_an_old_run_that_is_shared_is_made_again_too(tmp_path: Path):
    """Experiment 1 was lost half-way. What it ran is taken over by its equal, hours later, and does not count there."""
    script, executor = [gain(0.1), *worse(6), gain(0.1)], LosesReplicates()
    bench = Bench(tmp_path / "study", config(7, budget="300s"))
    bench.run(script, executor=executor, strategy=Silent(script)).close()
    executor.losing = False
    study = bench.open()
    asyncio.run(study.run(executor, Silent(script), FakeModel, experiments=8))
    assert study.history.entries[1].verdict is Verdict.INFRASTRUCTURE
    equal = study.history.entries[8]
    shared, repeated = [run for run in equal.experiment.runs if run.seed == 0][:2]
    assert shared.identity == study.history.entries[1].experiment.runs[0].identity != repeated.identity
    assert equal.places[0] == study.history.entries[1].places[0] < 4
    assert equal.verdict is Verdict.KEEP
    assert {pair.apart for pair in pairs_of(study.history, equal, study.history.baseline).values()} == {1}


# Resume and replay

LONG = [*worse(5), gain(0.05), rate(0.03, parent=6), gain(0.2)]
"""A keep after the incumbent had to run again, and contenders of the new one."""


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study that nobody disturbed."""
    return played(tmp_path_factory.mktemp("whole") / "study", LONG, Drifting())


def told(study: Study) -> list[tuple[Any, ...]]:
    history = study.history
    return [(each.runs, each.verdict, each.reason, history.incumbent_number) for each in history.experiments]


def test_replay_derives_the_pairs_and_finds_a_study_that_did_without(tmp_path: Path, whole: Study):
    assert again(whole) >= 5
    found = asyncio.run(replay(whole, Silent(LONG)))
    assert (found.runs, found.verdicts) == (whole.history.trained, len(LONG) + 1)
    folder = tmp_path / "study"
    study = played(folder, LONG, Drifting(), interleave=0)
    first, *events = [stored.event for stored in study.events()]
    assert isinstance(first, StudyCreated)
    study.close()
    (folder / "ledger.sqlite").unlink()
    ledger = Ledger.create(folder / "ledger.sqlite", clock=Clock())
    ledger.append(first.model_copy(update={"config": whole.config}), *events)
    with pytest.raises(ReplayDifference, match="the run"):
        asyncio.run(replay(Study.open(folder), Silent(LONG)))


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("kind", [RunStarted, RunFinished])
def test_a_study_killed_at_any_run_that_is_made_again_ends_as_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Study, kind: type[Event], written: bool
):
    """Killed at each of them in turn, in one study."""
    executor, real = Drifting(), Ledger.append
    killed: set[tuple[int, int, int]] = set()

    def append(self: Ledger, *events: Event) -> tuple[StoredEvent, ...]:
        run = _run_of(events[0])
        if run is None or not isinstance(events[0], kind):
            return real(self, *events)
        finished = [_run_of(each.event) for each in self.read() if isinstance(each.event, RunFinished)]
        place = (*run, finished.count(run))
        if place[-1] == 0 or place in killed:
            return real(self, *events)
        killed.add(place)
        if written:
            real(self, *events)
        raise Killed

    monkeypatch.setattr(Ledger, "append", append)
    bench, study = Bench(tmp_path / "study", config(len(LONG), budget="300s")), None
    while study is None:
        with contextlib.suppress(Killed):
            study = bench.run(LONG, executor=executor, strategy=Silent(LONG))
    assert len(killed) == again(whole)
    assert told(study) == told(whole)
    assert study.history.costs.accelerator_seconds == whole.history.costs.accelerator_seconds
    assert asyncio.run(replay(study, Silent(LONG))).verdicts == len(LONG) + 1


def _run_of(event: Event) -> tuple[int, int] | None:
    """Experiment and seed of a run that begins or ends."""
    match event:
        case RunStarted(number=number, seed=seed):
            return number, seed
        case RunFinished(number=number, outcome=outcome):
            return number, outcome.seed
        case _:
            return None

"""Working ahead: many experiments under way, the ledger of one after the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import Bench, FakeExecutor, Scripted, comment, config, gain, mode, rate

from jaxresearch.cli.board import Board
from jaxresearch.execution.base import ExecutorLostError, RunProgress, RunRequest, TracedCandidate, TraceFailure
from jaxresearch.experiment import CompletedRun, RunOutcome
from jaxresearch.proposal import Candidate, Proposal
from jaxresearch.strategy import StudyView
from jaxresearch.study.approval import Answer
from jaxresearch.study.events import Decided, Event, RunDiscarded, RunFinished, RunStarted, SessionStarted, Stopped
from jaxresearch.study.history import History
from jaxresearch.study.replay import replay
from jaxresearch.study.reporter import run_ended_by
from jaxresearch.study.stopping import Stop
from jaxresearch.study.study import Study


class OneWorker(FakeExecutor):
    """Does one thing at a time, and keeps a state when it is asked to."""

    async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
        outcome = await super().run(request, on_progress)
        if isinstance(outcome, CompletedRun) and request.keep_state:
            return outcome.model_copy(update={"checkpoint": "sha256:state"})
        return outcome


class ManyWorkers(OneWorker):
    """Runs and traces end in any order, after some turns of the event loop; counts what is under way at once."""

    def __init__(self, workers: int, seed: int = 0, *, turns: int = 12) -> None:
        super().__init__()
        self.workers, self.turns, self.random = workers, turns, random.Random(seed)
        self.running: list[RunRequest] = []
        self.tracing = self.cancelled = 0
        self.most_runs = self.most_traces = self.trace_while_running = 0

    async def trace(self, candidate: Candidate) -> TracedCandidate | TraceFailure:
        self.tracing += 1
        self.most_traces = max(self.most_traces, self.tracing)
        self.trace_while_running += bool(self.running)
        try:
            await self._wait()
            return await super().trace(candidate)
        finally:
            self.tracing -= 1

    async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
        assert request.identity not in [each.identity for each in self.running], "one identity is one run"
        self.running.append(request)
        self.most_runs = max(self.most_runs, len(self.running))
        try:
            on_progress(RunProgress("compile"))
            await self._wait()
            return await super().run(request, on_progress)
        except asyncio.CancelledError:
            self.cancelled += 1
            await asyncio.sleep(0)  # a worker does not die at once
            raise
        finally:
            self.running.remove(request)

    async def _wait(self) -> None:
        for _ in range(self.random.randrange(1, self.turns)):
            await asyncio.sleep(0)


class Silent(Scripted):
    """Asks no model and checks nothing."""

    async def propose(self, view: StudyView, slots: int) -> list[Proposal]:
        start = len(view.experiments) - 1
        return self.script[start : start + slots]


class Losing(ManyWorkers):
    """Loses the first run of every identity, when it is over."""

    def __init__(self, workers: int, seed: int) -> None:
        super().__init__(workers, seed)
        self.lost: set[str] = set()

    async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
        outcome = await super().run(request, on_progress)
        if request.identity in self.lost:
            return outcome
        self.lost.add(request.identity)
        raise ConnectionError("the worker is gone")


def told(study: Study) -> list[dict[str, Any]]:
    """The ledger but for what it says of times, processes, and runs that were not needed."""
    besides = (SessionStarted, RunDiscarded)
    events: list[Event] = [stored.event for stored in study.events() if not isinstance(stored.event, besides)]
    return [event.model_dump(exclude={"commit"}) for event in events]


def made(root: Path, name: str, script: list[Proposal], executor: FakeExecutor, **settings: Any) -> Study:
    bench = Bench(root / name, config(len(script), **settings))
    return bench.run(script, executor=executor, strategy=Silent(script))


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_the_ledger_is_that_of_one_experiment_after_the_other(tmp_path: Path, workers: int, seed: int):
    rounds = [gain(0.1), gain(-0.1), mode("syntax"), gain(0.12), rate(0.05), mode("peek"), rate(0.05), gain(0.2)]
    script = [*rounds, mode("hang"), gain(0.25), comment(parent=4), rate(0.2)]
    alone = made(tmp_path, "alone", script, OneWorker(), slots=4)
    kinds = {str(entry.verdict) for entry in alone.history.contenders}
    assert kinds == {"keep", "discard", "crash", "duplicate", "invalid", "timeout"}
    expected = told(alone)
    executor = ManyWorkers(workers, seed)
    study = made(tmp_path, "study", script, executor, slots=4)
    assert told(study) == expected
    assert executor.most_runs <= workers
    assert executor.most_traces <= workers + 1
    if workers > 1:
        assert executor.most_runs > 1, "nothing was done at once"
    if workers < 4:
        assert executor.trace_while_running > 0, "nothing was traced while something trained"
    assert not executor.running
    assert check_replay(study, script) == len(script) + 1


@pytest.mark.parametrize("seed", range(2))
def test_an_incumbent_that_runs_again_under_a_budget_in_seconds_is_foreseen(tmp_path: Path, seed: int):
    script = [*(gain(-0.1 - at / 100) for at in range(6)), gain(0.1), gain(-0.5)]
    alone = made(tmp_path, "alone", script, OneWorker(), slots=8, budget="300s")
    repeated = [run.seed for run in alone.history.baseline.experiment.runs].count(0)
    assert repeated > 1
    executor = ManyWorkers(9, seed)
    study = made(tmp_path, "study", script, executor, slots=8, budget="300s")
    assert told(study) == told(alone)
    assert executor.most_runs > 1, "nothing was done at once"


def test_the_seeds_of_the_baseline_run_at_once(tmp_path: Path):
    executor = ManyWorkers(3)
    made(tmp_path, "study", [], executor)
    assert executor.most_runs == 3
    assert len(executor.requests) == 3


def test_a_keep_in_the_middle_of_a_round_is_foreseen_or_made_good(tmp_path: Path):
    """All runs of experiment 1 end last: those behind it ran against the old incumbent, and must run again."""
    script = [gain(0.1), gain(0.12), gain(0.15), gain(0.02)]
    expected = told(made(tmp_path, "expected", script, OneWorker(), slots=4))

    class Late(ManyWorkers):
        async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
            if request.program.startswith("fine:0.1:"):
                for _ in range(100):
                    await asyncio.sleep(0)
            return await super().run(request, on_progress)

    executor = Late(4, 1)
    study = made(tmp_path, "study", script, executor, slots=4)
    assert told(study) == expected
    discarded = [stored.event for stored in study.events() if isinstance(stored.event, RunDiscarded)]
    assert discarded, "runs against the old incumbent were not needed"
    costs = study.history.costs
    assert costs.discarded_seconds == pytest.approx(sum(each.accelerator_seconds for each in discarded))
    assert costs.paid_seconds == costs.accelerator_seconds + costs.discarded_seconds
    needed = sum(isinstance(stored.event, RunFinished) for stored in study.events())
    assert len(executor.requests) > needed


@pytest.mark.parametrize("seed", range(3))
def test_what_the_infrastructure_loses_ahead_is_done_again(tmp_path: Path, seed: int):
    script = [gain(0.1), gain(-0.1), gain(0.2), rate(0.05)]
    study = made(tmp_path, "study", script, Losing(3, seed), slots=4)
    assert verdicts(study) == verdicts(made(tmp_path, "alone", script, Losing(1, seed), slots=4))
    assert [each for each in told(study) if each["kind"] == "run_finished" and "gone" in str(each["outcome"])]


def test_a_lost_executor_stops_the_study_and_it_goes_on(tmp_path: Path):
    class Gone(ManyWorkers):
        async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
            if len(self.requests) >= 6:
                raise ExecutorLostError("a host is gone.")
            return await super().run(request, on_progress)

    script = [gain(0.1), gain(-0.1), gain(0.2), rate(0.05)]
    bench = Bench(tmp_path / "study", config(4, slots=4))
    with pytest.raises(ExecutorLostError):
        bench.run(script, executor=Gone(3))
    study = bench.run(script, executor=ManyWorkers(3))
    expected = made(tmp_path, "alone", script, OneWorker(), slots=4)
    assert verdicts(study) == verdicts(expected)


def check_replay(study: Study, script: list[Proposal]) -> int:
    strategy: Any = Silent(script)
    return asyncio.run(replay(study, strategy)).verdicts


def verdicts(study: Study) -> list[tuple[str, str]]:
    return [(str(entry.verdict), entry.experiment.reason) for entry in study.history.contenders]


@pytest.mark.parametrize("after", [1, 3, 4, 6, 9])
@pytest.mark.parametrize("requests", [1, 2])
def test_a_stop_cancels_what_is_ahead_and_a_resumed_study_ends_alike(tmp_path: Path, after: int, requests: int):
    script = [gain(0.1), gain(0.12), gain(0.2), rate(0.05)]
    bench, stop, executor = Bench(tmp_path / "study", config(4, slots=4)), Stop(), ManyWorkers(3, after)

    class Stopping:
        def on_event(self, stored: object, history: object) -> None:
            pass

        def on_progress(self, number: int, seed: int, progress: RunProgress) -> None:
            if len(executor.requests) >= after and not stop.requested:
                for _ in range(requests):
                    stop.request()

    study = bench.run(script, executor=executor, stop=stop, reporter=Stopping(), strategy=Silent(script))
    assert stop.requested
    assert not executor.running, "nothing goes on after the session"
    last = list(study.events())[-1].event
    assert isinstance(last, Stopped)
    assert last.interrupted
    study = bench.run(script, executor=ManyWorkers(2, after), strategy=Silent(script))
    assert verdicts(study) == verdicts(made(tmp_path, "alone", script, OneWorker(), slots=4))
    check_replay(study, script)


def test_nothing_is_traced_before_a_person_approved_it(tmp_path: Path):
    script = [gain(0.1), gain(0.2), rate(0.05), gain(0.3)]
    executor = ManyWorkers(4)
    shown: list[str] = []

    async def approver(change: Any) -> Answer:
        asked = change.hypothesis
        assert not [text for text in executor.traced if f"GAIN = {asked.split()[1]}\n" in text]
        for _ in range(30):
            await asyncio.sleep(0)
        assert not [text for text in executor.traced if f"GAIN = {asked.split()[1]}\n" in text]
        shown.append(asked)
        return Answer(approved=asked != "gain 0.2", reason="no")

    bench = Bench(tmp_path / "study", config(4, slots=4, oversight={"approve": "code"}))
    study = bench.run(script, executor=executor, approver=approver, strategy=Silent(script))
    assert shown == ["gain 0.1", "gain 0.2", "gain 0.3"]
    assert verdicts(study)[1][1].startswith("a person refused")
    assert not [text for text in executor.traced if "GAIN = 0.2" in text]


def test_a_budget_in_seconds_on_a_cpu_shares_the_cores_with_no_trace(tmp_path: Path):
    script = [gain(0.1), gain(-0.1), gain(0.2), rate(0.05)]
    for workers, at_once in ((1, 1), (3, 3)):
        executor = ManyWorkers(workers, 2)
        made(tmp_path, f"workers-{workers}", script, executor, slots=4, budget="10s")
        assert executor.trace_while_running == 0
        assert executor.most_runs == at_once


def test_progress_ahead_comes_with_its_own_number(tmp_path: Path):
    seen: list[tuple[int, int]] = []

    class Watcher:
        def on_event(self, stored: Any, history: object) -> None:
            if isinstance(stored.event, RunStarted):
                seen.append((stored.event.number, -1))
            if isinstance(stored.event, Decided):
                seen.append((stored.event.number, -2))

        def on_progress(self, number: int, seed: int, progress: RunProgress) -> None:
            seen.append((number, seed))

    script = [gain(-0.1), gain(-0.11), gain(-0.12)]
    bench = Bench(tmp_path / "study", config(3, slots=3))
    bench.run(script, executor=ManyWorkers(3), reporter=Watcher())
    assert seen.index((2, 0)) < seen.index((1, -2)) < seen.index((2, -1))


@pytest.mark.parametrize("seed", range(3))
def test_no_run_that_was_dropped_is_shown_as_running(tmp_path: Path, seed: int):
    """Nor is its speed taken for that of a run at hand, which says how a session is to end."""
    script = [gain(each / 100) for each in (1, 2, -8, 3, 4, -7, 5, 6)]
    executor, board = ManyWorkers(4, seed), Board()

    class Watcher:
        def on_event(self, stored: Any, history: History) -> None:
            if (ended := run_ended_by(stored.event, history)) is not None:
                board.end(*ended)

        def on_progress(self, number: int, seed: int, progress: RunProgress) -> None:
            board.move(number, seed, progress)

    bench = Bench(tmp_path / "study", config(len(script), slots=4))
    study = bench.run(script, executor=executor, strategy=Silent(script), reporter=Watcher())
    assert any(isinstance(stored.event, RunDiscarded) for stored in study.events()), "something was dropped"
    assert board._runs == {}


def test_what_a_round_holds_is_all_that_is_ever_begun(bench: Bench):
    executor, script = ManyWorkers(4), [gain(each / 100) for each in range(-8, 0)]
    bench.config = config(len(script), slots=4)
    study = bench.run(script, executor=executor, pause=lambda history: "enough" if len(history.entries) > 4 else None)
    assert len(study.history.entries) == 5
    assert {request.program.split(":")[1] for request in executor.requests} == {
        "0.0",
        "-0.08",
        "-0.07",
        "-0.06",
        "-0.05",
    }
    kinds = [type(stored.event) for stored in study.events()]
    unused = len(executor.requests) - kinds.count(RunFinished)
    assert 0 <= unused <= kinds.count(RunDiscarded), "every run is accounted for"
    assert not executor.running

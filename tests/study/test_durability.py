"""Nothing is lost: a study killed at any event, or by a real kill -9, ends as it would have ended."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fakes import Bench, FakeExecutor, FakeModel, Scripted, comment, config, gain, mode, rate

from jaxresearch.experiment import Experiment
from jaxresearch.study.events import Event, RunFinished, RunStarted, Stopped
from jaxresearch.study.history import History
from jaxresearch.study.ledger import Ledger, StoredEvent
from jaxresearch.study.stopping import Stop, stop_on_signals
from jaxresearch.study.study import Study

SHORT = [gain(0.1), comment(parent=1), mode("peek", parent=1), rate(0.05, parent=1)]


class Killed(BaseException):
    """Stands for the end of the process."""


def essence(history: History) -> list[tuple[object, ...]]:
    """What must be the same after any kill: all of it but times, and the commits that carry them."""
    return [
        (each.parent, each.proposal, each.program, each.runs, each.verdict, each.reason, history.incumbent_number)
        for each in history.experiments
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study that nobody disturbed."""
    return Bench(tmp_path_factory.mktemp("whole") / "study", config(len(SHORT))).run(SHORT)


def kill_at(monkeypatch: pytest.MonkeyPatch, count: int, *, written: bool) -> None:
    """End the process at its `count`-th append, with that event written or not."""
    real, seen = Ledger.append, 0

    def append(self: Ledger, *events: Event) -> tuple[StoredEvent, ...]:
        nonlocal seen
        seen += 1
        if seen == count and not written:
            raise Killed
        stored = real(self, *events)
        if seen == count:
            raise Killed
        return stored

    monkeypatch.setattr(Ledger, "append", append)


def runs_made(study: Study) -> int:
    """Runs that were trained to their end."""
    events = [stored.event for stored in Ledger.open(study.layout.ledger).read()]
    return sum(isinstance(event, RunFinished) and event.shared_from is None for event in events)


def assert_same(study: Study, whole: Study) -> None:
    assert essence(study.history) == essence(whole.history)
    assert study.history.verdicts == whole.history.verdicts
    assert study.history.costs.accelerator_seconds == whole.history.costs.accelerator_seconds
    assert runs_made(study) == runs_made(whole)
    assert study.workspace.resolve("incumbent") == study.history.incumbent.experiment.commit
    for ours, theirs in zip(study.history.experiments, whole.history.experiments, strict=True):
        assert study.workspace.candidate(ours.commit) == whole.workspace.candidate(theirs.commit)
    assert study.verify() == study.history.seq


EVENTS_OF_SHORT = 46
"""Appends of the undisturbed study; `test_the_kills_cover_every_event` keeps it true."""


def test_the_kills_cover_every_event(whole: Study):
    assert whole.history.seq - 1 == EVENTS_OF_SHORT


@pytest.mark.parametrize("count", range(1, EVENTS_OF_SHORT + 1))
def test_killed_after_any_event(tmp_path: Path, whole: Study, monkeypatch: pytest.MonkeyPatch, count: int):
    killed_then_resumed(tmp_path, whole, monkeypatch, count, written=True)


@pytest.mark.parametrize("count", range(2, EVENTS_OF_SHORT + 1, 4))
def test_killed_before_an_event_is_written(tmp_path: Path, whole: Study, monkeypatch: pytest.MonkeyPatch, count: int):
    killed_then_resumed(tmp_path, whole, monkeypatch, count, written=False)


def killed_then_resumed(
    tmp_path: Path, whole: Study, monkeypatch: pytest.MonkeyPatch, count: int, *, written: bool
) -> None:
    bench = Bench(tmp_path / "study", config(len(SHORT)))
    bench.create().close()
    with monkeypatch.context() as patch:
        kill_at(patch, count, written=written)
        with pytest.raises(Killed):
            bench.run(SHORT)
    bench.clock.now += 3600
    assert_same(bench.run(SHORT), whole)


def test_killed_again_and_again(tmp_path: Path, whole: Study, monkeypatch: pytest.MonkeyPatch):
    """Each session lives for five appends only, and the study still ends."""
    bench = Bench(tmp_path / "study", config(len(SHORT)))
    for _ in range(60):
        try:
            with monkeypatch.context() as patch:
                kill_at(patch, 6, written=False)
                study = bench.run(SHORT)
            break
        except Killed:
            continue
    assert_same(study, whole)


def test_killed_while_it_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bench = Bench(tmp_path / "study", config(1))
    with monkeypatch.context() as patch:
        kill_at(patch, 1, written=True)
        with pytest.raises(Killed):
            bench.create()
    assert not bench.folder.exists()
    bench.create()


DRIVE = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from fakes import Bench, FakeExecutor, FakeModel, Scripted, config
from test_durability import SHORT
from jaxresearch.study.stopping import Stop, stop_on_signals
from jaxresearch.study.study import Study

async def main():
    study, stop = Study.open(Path({folder!r})), Stop()
    with stop_on_signals(stop):
        ending = await study.run(FakeExecutor(seconds=0.3), Scripted(SHORT), FakeModel, stop=stop)
    print(ending.reason, flush=True)

asyncio.run(main())
"""


def drive(folder: Path) -> subprocess.Popen[str]:
    """Another process that drives the study in `folder`."""
    code = DRIVE.format(tests=str(Path(__file__).parent), folder=str(folder))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=dict(os.environ))


def wait_for(study: Study, kind: type, count: int) -> None:
    """Until the study's ledger holds `count` events of `kind`."""
    deadline = time.monotonic() + 30
    while sum(isinstance(stored.event, kind) for stored in Ledger.open(study.layout.ledger).read()) < count:
        assert time.monotonic() < deadline, "the other process does not get on"
        time.sleep(0.02)


def test_kill_nine_and_two_drivers(tmp_path: Path, whole: Study):
    bench = Bench(tmp_path / "study", config(len(SHORT)))
    study = bench.create()
    process = drive(bench.folder)
    wait_for(study, RunStarted, 5)
    with pytest.raises(Exception, match=f"driven by process {process.pid} on"):
        bench.run(SHORT)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert bench.open().history.stopped is None
    assert_same(bench.run(SHORT), whole)


def test_sigint_finishes_the_run_and_stops(tmp_path: Path, whole: Study):
    bench = Bench(tmp_path / "study", config(len(SHORT)))
    study = bench.create()
    process = drive(bench.folder)
    wait_for(study, RunStarted, 4)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert output == "interrupted\n"
    events = [stored.event for stored in Ledger.open(study.layout.ledger).read()]
    assert [type(event) for event in events[-2:]] == [RunFinished, Stopped]
    assert events[-1].interrupted
    assert_same(bench.run(SHORT), whole)


class Signalling(FakeExecutor):
    """Asks to stop while its fifth run is going, and notes what became of it."""

    def __init__(self, stop: Stop, requests: int) -> None:
        super().__init__()
        self.stop, self.times, self.cancelled = stop, requests, False

    async def run(self, request, on_progress):
        if len(self.requests) == 4:
            for _ in range(self.times):
                self.stop.request()
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        return await super().run(request, on_progress)


@pytest.mark.parametrize(("requests", "last"), [(1, RunFinished), (2, RunStarted)])
def test_stopping_once_and_twice(tmp_path: Path, whole: Study, requests: int, last: type):
    said: list[str] = []
    bench, stop = Bench(tmp_path / "study", config(len(SHORT))), Stop(tell=said.append)
    executor = Signalling(stop, requests)
    study = bench.create()
    ending = asyncio.run(study.run(executor, Scripted(SHORT), FakeModel, stop=stop))
    assert ending.interrupted
    assert not ending.finished
    assert executor.cancelled == (requests == 2)
    assert [text.split()[1] for text in said] == ["after", "now."][:requests], "a person sees that it was heard"
    events = [stored.event for stored in Ledger.open(study.layout.ledger).read()]
    assert [type(event) for event in events[-2:]] == [last, Stopped]
    assert_same(bench.run(SHORT), whole)


@pytest.mark.timeout(300)
def test_stopping_does_not_wait_for_a_proposal(tmp_path: Path, whole: Study):
    stop = Stop()

    class Slow(Scripted):
        async def propose(self, view, slots):
            stop.request()
            await asyncio.sleep(100_000)
            return await super().propose(view, slots)

    bench = Bench(tmp_path / "study", config(len(SHORT)))
    study = bench.create()
    assert asyncio.run(study.run(FakeExecutor(), Slow(SHORT), FakeModel, stop=stop)).interrupted
    assert_same(bench.run(SHORT), whole)


def test_a_finished_study_run_again_does_nothing(whole: Study, tmp_path: Path):
    bench = Bench(tmp_path / "study", config(len(SHORT)))
    bench.run(SHORT)
    executor = FakeExecutor()
    study = bench.run(SHORT, executor=executor)
    assert executor.requests == []
    assert_same(study, whole)


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_signal_handlers_are_given_back(handler):
    """A shell that starts a command behind `&` has it ignore SIGINT."""

    async def inside() -> object:
        stop = Stop()
        with stop_on_signals(stop):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.05)
        return stop.requested

    before = signal.signal(signal.SIGINT, handler)
    try:
        assert asyncio.run(inside())
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_strategy_that_computes_without_end_is_interrupted_all_the_same(tmp_path: Path, whole: Study, monkeypatch):
    monkeypatch.setattr("jaxresearch.study.stopping.UNHEARD_SECONDS", 0.2)

    class Endless(Scripted):
        async def propose(self, view, slots):
            for delay in (0.1, 0.2, 0.8):
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
            until = time.monotonic() + 20
            while time.monotonic() < until:
                pass
            raise AssertionError("nobody interrupted it")

    bench, said = Bench(tmp_path / "study", config(len(SHORT))), []
    study = bench.create()

    async def main() -> None:
        stop = Stop(tell=said.append)
        with stop_on_signals(stop):
            await study.run(FakeExecutor(), Endless(SHORT), FakeModel, stop=stop)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    study.close()
    assert_same(bench.run(SHORT), whole)


def test_a_changed_ledger_is_not_driven(tmp_path: Path):
    import sqlite3

    bench = Bench(tmp_path / "study", config(1))
    study = bench.run([gain(0.1)])
    study.close()
    connection = sqlite3.connect(study.layout.ledger)
    connection.execute("DROP TRIGGER events_are_not_updated")
    connection.execute("UPDATE events SET payload = replace(payload, 'discard', 'keep') WHERE kind = 'decided'")
    connection.execute("UPDATE events SET payload = replace(payload, '1.5', '1.1') WHERE kind = 'run_finished'")
    connection.commit()
    connection.close()
    with pytest.raises(Exception, match=r"event \d+ \(run_finished\) was changed"):
        bench.open()


def test_experiments_have_numbers_in_order(whole: Study):
    assert [each.number for each in whole.history.experiments] == list(range(len(SHORT) + 1))
    assert all(isinstance(each, Experiment) for each in whole.history.experiments)

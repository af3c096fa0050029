"""A person in the loop: approving changes, pausing, stopping."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from fakes import Bench, FakeExecutor, Scripted, config, gain, rate

from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import RunRequest
from jaxresearch.experiment import RunOutcome, Verdict
from jaxresearch.study import control
from jaxresearch.study.ablation import ablate
from jaxresearch.study.approval import Answer, CodeChange
from jaxresearch.study.events import Approval
from jaxresearch.study.heartbeat import liveness
from jaxresearch.study.layout import StudyLayout
from jaxresearch.study.stopping import Interrupted, Stop

CODE = {"oversight": {"approve": "code"}}


class Person:
    """Answers in turn and remembers what was shown."""

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.shown = list(answers), []

    async def __call__(self, change: CodeChange) -> Answer:
        self.shown.append(change)
        return self.answers.pop(0)


def test_a_change_is_shown_before_it_is_traced_and_a_refused_one_never_is(tmp_path: Path):
    script = [gain(0.1), gain(0.2), rate(0.05, parent=1), rate(0.06, parent=2)]
    executor, person = FakeExecutor(), Person(Answer(True), Answer(False, "too bold"))
    strategy = Scripted(script)
    bench = Bench(tmp_path / "study", config(4, **CODE))
    study = bench.run(strategy=strategy, executor=executor, approver=person)
    assert [change.parent for change in person.shown] == [0, 0]
    assert "-GAIN = 0.0\n+GAIN = 0.2" in person.shown[1].diff
    kept, refused, on_kept, on_refused = study.history.contenders
    assert kept.verdict is Verdict.KEEP
    assert refused.verdict is Verdict.DISCARD
    assert refused.experiment.reason == "a person refused this change of the sources: too bold"
    assert strategy.findings[1] == "a person refused this change of the sources: too bold."
    assert on_kept.verdict is Verdict.KEEP, "a setting on approved sources needs no answer"
    assert "too bold" in on_refused.experiment.reason, "what is built on refused sources is refused"
    assert not any("GAIN = 0.2" in text for text in executor.traced)
    assert sum(isinstance(stored.event, Approval) for stored in study.events()) == 2


def test_without_check_the_experiment_itself_waits_for_the_answer(tmp_path: Path):
    executor, person = FakeExecutor(), Person(Answer(False))
    bench = Bench(tmp_path / "study", config(1, **CODE))
    study = bench.run(strategy=Scripted([gain(0.1)], checks=False), executor=executor, approver=person)
    assert study.history.entries[1].experiment.reason.endswith("no reason given")
    assert len(executor.traced) == 1, "the baseline only"


def test_quitting_stops_and_resume_asks_again_but_keeps_the_answers(tmp_path: Path):
    script = [gain(0.1), gain(0.2)]
    bench = Bench(tmp_path / "study", config(2, **CODE))
    study = bench.run(script, approver=Person(Answer(True), Answer(None)))
    assert study.history.stopped.interrupted
    assert len(study.history.contenders) == 1
    again = Person(Answer(True))
    study = bench.run(script, approver=again)
    assert study.history.stopped.finished
    assert ["GAIN = 0.2" in change.diff for change in again.shown] == [True]


def test_with_nobody_to_ask_it_refuses_to_start(tmp_path: Path):
    executor = FakeExecutor()
    with pytest.raises(JaxresearchError, match="nobody can be asked here"):
        Bench(tmp_path / "study", config(1, **CODE)).run([gain(0.1)], executor=executor)
    assert not executor.traced


class Asked(FakeExecutor):
    """In run number `at` a person asks for `wish`."""

    def __init__(self, folder: Path, wish: control.Wish, at: int) -> None:
        super().__init__()
        self.layout, self.wish, self.at = StudyLayout(folder), wish, at

    async def run(self, request: RunRequest, on_progress) -> RunOutcome:
        if len(self.requests) == self.at:
            assert "process" in control.request(self.layout, self.wish)
            await asyncio.sleep(3 * control.POLL_SECONDS)
        return await super().run(request, on_progress)


SCRIPT = [gain(0.1), gain(0.15), gain(0.2)]


def test_pause_ends_with_a_verdict_and_resume_goes_on(tmp_path: Path):
    bench = Bench(tmp_path / "study", config(3))
    study = bench.run(SCRIPT, executor=Asked(tmp_path / "study", "pause", 3))
    assert study.history.stopped.reason == "paused by a person"
    assert [entry.verdict for entry in study.history.contenders] == [Verdict.KEEP]
    assert not study.layout.control.exists()
    assert bench.run(SCRIPT).history.stopped.finished


def test_stop_ends_after_the_run_and_resume_goes_on(tmp_path: Path):
    bench = Bench(tmp_path / "study", config(3))
    study = bench.run(SCRIPT, executor=Asked(tmp_path / "study", "stop", 3))
    assert study.history.stopped.interrupted
    assert study.history.pending.number == 1
    assert len(study.history.pending.experiment.runs) == 1, "the run at hand was finished"
    assert bench.run(SCRIPT).history.stopped.finished


@pytest.mark.parametrize("wish", ["pause", "stop"])
@pytest.mark.parametrize("of", ["confirm", "ablate"])
def test_what_runs_beside_the_search_ends_after_the_run_too(tmp_path: Path, wish: control.Wish, of: str):
    study = Bench(tmp_path / "study", config(2)).run([gain(0.1), rate(0.05, parent=1)])
    executor, stop, before = Asked(tmp_path / "study", wish, 1), Stop(), study.history.seq

    def work() -> Coroutine[Any, Any, None]:
        if of == "confirm":
            return study.confirm(executor, stop=stop, count=3)
        return study.beside(lambda journal, there: ablate(journal, there, executor, stop, count=3), stop=stop)

    with pytest.raises(Interrupted):
        asyncio.run(work())
    assert len(executor.requests) == 2, "the run at hand was finished"
    assert not study.layout.control.exists()
    assert liveness(study.layout, study.history).facts["heartbeat"]["runs"] == []
    executor.at, stop = -1, Stop()
    asyncio.run(work())
    assert len(executor.requests) > 5
    assert study.verify() > before


def test_there_is_nothing_to_pause_where_nobody_drives(tmp_path: Path):
    bench = Bench(tmp_path / "study", config(1))
    bench.create().close()
    with pytest.raises(JaxresearchError, match="Nobody drives"):
        control.request(StudyLayout(tmp_path / "study"), "pause")
    with pytest.raises(JaxresearchError, match="holds no study"):
        control.request(StudyLayout(tmp_path / "none"), "stop")
    (tmp_path / "study" / "control").write_text("stop")
    assert bench.run([gain(0.1)]).history.stopped.finished, "a wish from before the session is void"

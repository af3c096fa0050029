"""Replay: an honest study is derived again to the last event; a ledger that was written anew is found out."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic_ai.models.wrapper import WrapperModel
from surface import run_study

from agents.beam import Beam
from agents.greedy import Greedy
from agents.hybrid import Hybrid
from agents.reflective import Reflective
from agents.tpe import TPE
from jaxresearch.cli.app import main
from jaxresearch.llm import resolve_model
from jaxresearch.proposal import Proposal
from jaxresearch.study.events import Event, ProposalRequested, Proposed, encode
from jaxresearch.study.ledger import Ledger
from jaxresearch.study.replay import ReplayDifference, Replayed, replay
from jaxresearch.study.stopping import Stop
from jaxresearch.study.study import Study


def replayed(folder: Path, strategy) -> Replayed:
    study = Study.open(folder)
    try:
        return asyncio.run(replay(study, strategy))
    finally:
        study.close()


@pytest.mark.parametrize(("factory", "slots"), [(Beam, 2), (Hybrid, 3), (Reflective, 1), (TPE, 2)])
def test_every_decision_is_derived_again(tmp_path: Path, factory, slots: int):
    study = run_study(tmp_path / "study", factory(factory.Options()), 7, slots=slots)
    found = replayed(tmp_path / "study", factory(factory.Options()))
    assert (found.proposals, found.verdicts) == (7, 8)
    assert found.llm_calls == study.history.costs.llm_calls
    assert found.runs >= 10
    assert not found.open_round


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay") / "study"
    run_study(folder, Greedy(Greedy.Options()), 5).close()
    return folder


@pytest.fixture
def copied(recorded: Path, tmp_path: Path) -> Path:
    shutil.copytree(recorded, tmp_path / "study")
    return tmp_path / "study"


def rewrite(folder: Path, change: Callable[[int, dict], None]) -> None:
    """Change events as one would who also makes all hashes anew."""
    path = folder / "ledger.sqlite"
    ledger = Ledger.open(path)
    stored = list(ledger.read())
    ledger.close()
    for old in folder.glob("ledger.sqlite*"):
        old.unlink()
    times = iter([each.time for each in stored])
    fresh = Ledger.create(path, clock=lambda: next(times))
    for each in stored:
        facts = json.loads(encode(each.event))
        change(each.seq, facts)
        fresh.append(type(each.event).model_validate(facts))
    fresh.close()


def last_where(folder: Path, wanted: Callable[[Event], bool]) -> int:
    ledger = Ledger.open(folder / "ledger.sqlite")
    seqs = [stored.seq for stored in ledger.read() if wanted(stored.event)]
    ledger.close()
    return seqs[-1]


def kept_instead(facts: dict) -> None:
    facts["verdict"] = "keep" if facts["verdict"] == "discard" else "discard"


def other_numbers(facts: dict) -> None:
    facts["proposal"]["parent"] = 1 if facts["proposal"]["parent"] == 0 else 0


def lucky(facts: dict) -> None:
    facts["outcome"]["val_bpb"] -= 0.3 if facts["outcome"]["val_bpb"] > 1.2 else 0


def other_reply(facts: dict) -> None:
    facts["record"]["response"] = facts["record"]["response"].replace("propose_c", "propose_x")


CHANGES = {
    "decided": (kept_instead, "decided"),
    "proposed": (other_numbers, "proposed"),
    "run_finished": (lucky, "decided|run_started|run_finished"),
    "llm_called": (other_reply, "proposed"),
    "proposal_requested": (lambda facts: facts.update(seed=1), "proposal_requested"),
    "traced": (lambda facts: facts.update(tree="sha256:0"), "traced"),
    "checked": (lambda facts: facts.update(finding="no"), "checked"),
    "run_started": (lambda facts: facts.update(seed=9), "run_started"),
    "study_created": (lambda facts: facts["config"]["acceptance"].update(runs=2), "decided|run_started"),
}


@pytest.mark.parametrize("kind", sorted(CHANGES))
def test_a_ledger_written_anew_is_found_out(copied: Path, kind: str):
    change, named = CHANGES[kind]
    target = last_where(copied, lambda event: event.kind == kind)
    rewrite(copied, lambda seq, facts: change(facts) if seq == target else None)
    with pytest.raises(ReplayDifference, match=rf"Replay differs at event \d+ \(({named})\)"):
        replayed(copied, Greedy(Greedy.Options()))


def test_rewriting_without_a_change_is_no_difference(copied: Path):
    rewrite(copied, lambda seq, facts: None)
    assert replayed(copied, Greedy(Greedy.Options())).proposals == 5


def test_a_reason_that_says_more_than_it_did_is_no_difference(tmp_path: Path):
    class Once(TPE):
        rounds = 0

        async def propose(self, view, slots):
            self.rounds += 1
            return None if self.rounds == 1 else await super().propose(view, slots)

    run_study(tmp_path / "study", Once(Once.Options()), 2).close()
    target = last_where(tmp_path / "study", lambda event: event.kind == "proposal_failed")

    def says(reason: str) -> Callable[[int, dict], None]:
        return lambda seq, facts: facts.update(reason=reason) if seq == target else None

    rewrite(tmp_path / "study", says("the strategy returned something other than proposals"))
    assert replayed(tmp_path / "study", Once(Once.Options())).proposals == 2
    rewrite(tmp_path / "study", says("the strategy returned"))
    with pytest.raises(ReplayDifference):
        replayed(tmp_path / "study", Once(Once.Options()))


class Editing(TPE):
    """A person edits program.md beside it, in every round but the last."""

    def __init__(self, program: Path, texts: list[str]) -> None:
        super().__init__(TPE.Options())
        self.program, self.texts = program, texts

    async def propose(self, view, slots):
        if self.texts:
            self.program.write_text(self.texts.pop(0))
        return await super().propose(view, slots)


def test_an_edited_program_is_replayed_as_each_round_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_API_KEY", "sk-never-to-be-kept")
    folder, taboo = tmp_path / "study", "Taboo: depth, width, matrix_lr, sk-never-to-be-kept"
    run_study(folder, Editing(folder / "program.md", [taboo, "Be bold.", taboo, ""]), 5).close()
    asked = [each.event for each in Study.open(folder).events() if isinstance(each.event, ProposalRequested)]
    kept = taboo.replace("sk-never-to-be-kept", "[redacted]")
    assert [each.text for each in asked] == ["Be bold.", kept, None, None, None]
    assert "depth" in {name for each in proposals_of(folder) for name in each.config}
    assert replayed(folder, TPE(TPE.Options())).proposals == 5

    def older(seq: int, facts: dict) -> None:
        facts.pop("text", None)

    rewrite(folder, older)
    with pytest.raises(ReplayDifference, match=r"program.md was edited since, and this ledger does not hold"):
        replayed(folder, TPE(TPE.Options()))


def proposals_of(folder: Path) -> list[Proposal]:
    return [each.event.proposal for each in Study.open(folder).events() if isinstance(each.event, Proposed)]


def test_a_program_that_is_not_what_its_hash_says_is_found_out(copied: Path):
    rewrite(copied, lambda seq, facts: facts.update(text="Be timid.") if facts.get("text") else None)
    with pytest.raises(ReplayDifference, match=r"program.md's SHA-256"):
        replayed(copied, Greedy(Greedy.Options()))


def test_another_strategy_is_a_difference(recorded: Path):
    with pytest.raises(ReplayDifference, match="proposed") as raised:
        replayed(recorded, TPE(TPE.Options()))
    assert "infrastructure" not in str(raised.value)


class Asking:
    """Asks about what nobody has asked about, as a strategy whose code has changed does."""

    async def propose(self, view, slots):
        await view.check(Proposal(parent=0, hypothesis="another idea", config={"batch": 3}))
        return []


def test_a_strategy_that_has_changed_is_said_to_ask_anew(recorded: Path):
    with pytest.raises(ReplayDifference, match=r"the strategy asks about 'another idea', and did not then"):
        replayed(recorded, Asking())


def test_the_command(copied: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        main(["replay", str(copied), "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["proposals"] == 5
    target = last_where(copied, lambda event: event.kind == "decided")
    rewrite(copied, lambda seq, facts: kept_instead(facts) if seq == target else None)
    with pytest.raises(SystemExit) as ended:
        main(["replay", str(copied)])
    assert ended.value.code == 1
    assert f"Replay differs at event {target} (decided)" in capsys.readouterr().err


class Stopping(WrapperModel):
    """Asks the session to stop at once in its n-th request, which then never comes back."""

    def __init__(self, stop: Stop, at: int) -> None:
        super().__init__(resolve_model("builtin"))
        self.stop, self.at, self.requests = stop, at, 0

    async def request(self, *arguments, **options):
        self.requests += 1
        if self.requests == self.at:
            self.stop.request()
            await asyncio.sleep(30)
        return await super().request(*arguments, **options)


@pytest.mark.parametrize("at", [2, 3, 6])
def test_a_round_that_was_cut_off_does_not_pay_twice(tmp_path: Path, at: int):
    strategy, stop = Greedy(Greedy.Options()), Stop()
    whole = run_study(tmp_path / "whole", strategy, 4, slots=2)
    model = Stopping(stop, at)
    run_study(tmp_path / "cut", strategy, 4, slots=2, model=model, stop=stop).close()
    model.at = -1
    resumed = run_study(tmp_path / "cut", strategy, 4, model=model)
    assert [each.proposal for each in resumed.history.experiments] == [
        each.proposal for each in whole.history.experiments
    ]
    assert model.requests == whole.history.costs.llm_calls + 1  # the one that never came back
    assert replayed(tmp_path / "cut", strategy).proposals == 4


def test_rounds_and_proposals_are_counted_apart(tmp_path: Path):
    study = run_study(tmp_path / "study", Greedy(Greedy.Options()), 4, slots=2)
    events = [stored.event for stored in study.events()]
    found = replayed(tmp_path / "study", Greedy(Greedy.Options()))
    assert found.rounds == sum(isinstance(event, ProposalRequested) for event in events) == 2
    assert found.proposals == sum(isinstance(event, Proposed) for event in events) == 4

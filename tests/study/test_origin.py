"""`--from STUDY`: the other study's winner is the baseline, with its source and its values, and its origin on record."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import SCRIPT, SUBJECT, Bench, FakeExecutor, FakeModel, Scripted, config, gain

from jaxresearch.errors import ConfigurationError
from jaxresearch.report.build import read_record
from jaxresearch.study import session
from jaxresearch.study.replay import replay
from jaxresearch.study.study import Study
from jaxresearch.study.summary import status_object


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The corpus of `Bench`'s studies."""
    corpus = SimpleNamespace(fingerprint="sha256:corpus", tokenizer_fingerprint="sha256:tokenizer")
    monkeypatch.setattr(session, "prepare_corpus", lambda *_: corpus)
    return corpus


@pytest.fixture
def first(tmp_path: Path) -> Study:
    return Bench(tmp_path / "first", config(8)).run()


class Silent(Scripted):
    """Asks no model."""

    async def propose(self, view, slots):
        return self.script[len(view.experiments) - 1 :][:slots]


def follow(first: Study, folder: Path, **settings: object) -> Study:
    return session.create_study(
        folder,
        config(1, **settings),
        instructions="",
        on_preparation=lambda *_: None,
        start_from=first.layout.folder,
    )


def test_it_begins_with_the_winners_source_and_values(first: Study, tmp_path: Path, prepared: SimpleNamespace):
    second = follow(first, tmp_path / "second")
    proposals = Silent([gain(0.3, old=0.1)])
    asyncio.run(second.run(FakeExecutor(), proposals, FakeModel))
    assert second.candidate(0) == first.candidate(6) != SUBJECT
    assert second.candidate(0).config == {"lr": 0.05}
    baseline, winner = second.history.baseline.experiment, first.history.entries[6].experiment
    assert baseline.val_bpb == pytest.approx(winner.val_bpb, abs=0.01)
    assert [str(entry.verdict) for entry in second.history.contenders] == ["keep"]
    asyncio.run(replay(second, proposals))


def test_where_it_came_from_stands_in_ledger_status_and_report(first: Study, tmp_path: Path, prepared: SimpleNamespace):
    second = follow(first, tmp_path / "second")
    asyncio.run(second.run(FakeExecutor(), Scripted([gain(0.3, old=0.1)]), FakeModel))
    origin = Study.open(second.layout.folder).history.created.origin
    assert (origin.experiment, origin.head) == (6, first.history.head)
    assert origin.commit == first.history.entries[6].experiment.commit
    assert status_object(second.history, "s")["from"]["study"] == str(first.layout.folder)
    record = read_record(second.layout.folder)
    assert (record.origin.experiment, record.origin.val_bpb) == (6, first.history.incumbent.experiment.val_bpb)
    assert any(f"--from {first.layout.folder}" in each.command for each in record.reproduce)
    assert read_record(first.layout.folder).origin is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"context": 128}, "its context is 256, not 128. --set context=256"),
        ({"subject": {"source": "elsewhere"}}, "its subject.source is gpt, not elsewhere"),
        ({"subject": {"hyperparameters": {"lr": 0.5}}}, "subject.hyperparameters.lr = 0.5 would not be its winner"),
        ({"subject": {"hyperparameters": {"depth": 3}}}, "subject.hyperparameters.depth = 3 would not be its winner"),
    ],
)
def test_settings_that_disagree_are_refused(first: Study, tmp_path: Path, prepared, settings: dict, says: str):
    with pytest.raises(ConfigurationError) as raised:
        follow(first, tmp_path / "second", **settings)
    assert says in str(raised.value)
    assert "--from" in str(raised.value)
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("what", ["fingerprint", "tokenizer_fingerprint"])
def test_another_corpus_is_refused(first: Study, tmp_path: Path, prepared: SimpleNamespace, what: str):
    setattr(prepared, what, "sha256:another")
    with pytest.raises(ConfigurationError, match=r"and that of this study sha256:another\. Give --corpus"):
        follow(first, tmp_path / "second")


def test_a_study_that_kept_nothing_has_no_winner(tmp_path: Path, prepared: SimpleNamespace):
    barren = Bench(tmp_path / "barren", config(1)).run([SCRIPT[1]])
    with pytest.raises(ConfigurationError, match="has kept nothing"):
        follow(barren, tmp_path / "second")

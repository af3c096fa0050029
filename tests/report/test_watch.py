"""What following studies costs: how many events are read, never how long that takes."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic import StudyMaker, append, make_study

from jaxresearch.report.build import StudyReader, read_record
from jaxresearch.report.dashboard import _since
from jaxresearch.report.watch import Watcher
from jaxresearch.statistics.noise import Spread
from jaxresearch.study import entry
from jaxresearch.study import events as study_events
from jaxresearch.study import ledger as study_ledger
from jaxresearch.study.layout import StudyLayout


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many events were read from ledgers since it was asked last."""
    count = 0

    def counting(payload: str) -> study_events.Event:
        nonlocal count
        count += 1
        return study_events.decode(payload)

    def since() -> int:
        nonlocal count
        seen, count = count, 0
        return seen

    monkeypatch.setattr(study_ledger, "decode", counting)
    return since


@pytest.fixture
def several(tmp_path: Path) -> tuple[Watcher, Path, list]:
    """A folder of two studies, one of them under way, and the events that its driver is still to write."""
    make_study(tmp_path / "done", 6, seed=1)
    events = StudyMaker(tmp_path / "live", 6, seed=2).create()
    append(tmp_path / "live", events[:20])
    return Watcher(tmp_path), tmp_path, events[20:]


def read_all(watcher: Watcher) -> dict[str, dict]:
    watcher.cards()
    while watcher.read_another():
        pass
    return watcher.cards()


def test_a_list_waits_for_no_ledger(several: tuple[Watcher, Path, list], read: Callable[[], int]):
    watcher, _, _ = several
    assert watcher.cards() == {name: {"name": name, "unread": True} for name in ("done", "live")}
    assert read() == 0
    assert watcher.read_another()
    assert [card.get("unread", False) for card in watcher.cards().values()] == [False, True]


def test_what_did_not_change_is_not_read_again(several: tuple[Watcher, Path, list], read: Callable[[], int]):
    watcher, folder, rest = several
    cards = read_all(watcher)
    assert read() == watcher.study("done").seq + watcher.study("live").seq
    assert watcher.cards() == cards
    assert watcher.study("done").page()["rows"]
    assert not watcher.read_another()
    assert read() == 0
    append(folder / "live", rest[:5])
    assert watcher.cards()["live"] != cards["live"]
    assert read() == 5
    append(folder / "live", rest[5:])
    assert watcher.study("live").refresh() is False, "`study` has read it up to now"
    assert read() == len(rest) - 5


def test_news_hold_the_rows_that_were_touched(several: tuple[Watcher, Path, list], read: Callable[[], int]):
    watcher, folder, rest = several
    seen = watcher.study("live").seq
    known = watcher.study("live").page()["rows"]
    read()
    append(folder / "live", rest[:3])
    rows = watcher.study("live").news(seen)["rows"]
    assert {row["number"] for row in rows} == {event.number for _, event in rest[:3] if hasattr(event, "number")}
    assert len(rows) <= 2 < len(known)
    assert read() == 3


def test_a_damaged_ledger_is_read_again_only_when_it_changed(
    several: tuple[Watcher, Path, list], read: Callable[[], int]
):
    watcher, folder, _ = several
    ledger = folder / "done" / "ledger.sqlite"
    whole = ledger.read_bytes()
    with sqlite3.connect(ledger) as connection:
        connection.execute("DROP TRIGGER events_are_not_updated")
        connection.execute("UPDATE events SET time = time + 1 WHERE seq = 30")
    connection.close()
    card = read_all(watcher)["done"]
    assert "event 30" in card["error"]
    assert read() > 29
    assert watcher.cards()["done"] == card
    assert not watcher.read_another()
    assert read() == 0
    ledger.write_bytes(whole)
    assert "error" not in watcher.cards()["done"]
    assert read() == watcher.study("done").seq


def test_trouble_that_left_no_trace_in_the_files_is_looked_at_again(
    several: tuple[Watcher, Path, list], monkeypatch: pytest.MonkeyPatch
):
    watcher, _, _ = several
    with monkeypatch.context() as patch:
        patch.setattr(study_ledger, "_connect_to_read", lambda path: sqlite3.connect("/nowhere/at/all"))
        assert "error" in read_all(watcher)["done"]
    monkeypatch.setattr("jaxresearch.report.watch.TROUBLE_SECONDS", 0.0)
    assert "error" not in watcher.cards()["done"]


def test_another_study_in_the_same_place_is_told_from_the_first(several: tuple[Watcher, Path, list]):
    watcher, folder, _ = several
    first = watcher.study("done")
    begun, seen = first.begun, first.seq
    assert _since(seen, begun, first) is None
    shutil.rmtree(folder / "done")
    make_study(folder / "done", 2, seed=5)
    second = watcher.study("done")
    assert len(second.page()["rows"]) == 3
    assert second.begun != begun
    kind, _, at = _since(seen, begun, second) or ("", {}, -1)
    assert (kind, at) == ("another", 0)


def test_a_record_reads_each_event_once(study: Path, read: Callable[[], int]):
    record = read_record(study)
    assert record.integrity.anchored
    assert read() == record.integrity.events


def test_a_record_knows_a_ledger_that_lost_its_end(tmp_path: Path):
    folder = make_study(tmp_path / "study", 3)
    reader = StudyReader(folder)
    with sqlite3.connect(StudyLayout(folder).ledger) as connection:
        connection.execute("DROP TRIGGER events_are_not_deleted")
        connection.execute("DELETE FROM events WHERE seq > 10")
    connection.close()
    assert reader.record().integrity.anchored is False
    reader.close()


def test_verdicts_do_not_look_through_all_experiments(study: Path, monkeypatch: pytest.MonkeyPatch):
    looked = 0

    def counting(scores: dict[int, float]) -> Spread:
        nonlocal looked
        looked += 1
        return spread(scores)

    spread = entry.spread
    monkeypatch.setattr(entry, "spread", counting)
    reader = StudyReader(study)
    reader.close()
    assert 0 < looked <= reader.history.seq
    decided = [each.spread for each in reader.history.entries if each.verdict is not None]
    assert reader.history.spread.degrees_of_freedom == sum(each.degrees_of_freedom for each in decided) > 0
    assert reader.history.spread.squares == pytest.approx(sum(each.squares for each in decided))

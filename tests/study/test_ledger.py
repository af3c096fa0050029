"""The ledger: append-only, chained, clear about damage."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from fakes import SUBJECT, Clock, config, gain
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxresearch.errors import JaxresearchError
from jaxresearch.study.events import (
    Decided,
    LLMCalled,
    ProposalFailed,
    ProposalRequested,
    Proposed,
    SessionStarted,
    Stopped,
    StudyCreated,
    decode,
    encode,
)
from jaxresearch.study.identity import candidate_fingerprint
from jaxresearch.study.ledger import GENESIS, Ledger, LedgerError
from jaxresearch.study.lock import StudyLocked, sole_driver
from jaxresearch.study.study import Study

EVENTS = (
    SessionStarted(pid=1, host="here"),
    ProposalFailed(round=0, reason="\x1b[31m <script> \u202e"),
    Proposed(round=1, number=1, proposal=gain(0.1)),
    Stopped(reason="done", finished=True),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def filled(path: Path) -> Path:
    ledger = Ledger.create(path, clock=Clock())
    ledger.append(*EVENTS)
    ledger.close()
    return path


def tamper(path: Path, statement: str) -> None:
    """Change the file as somebody would who has dropped the triggers."""
    connection = sqlite3.connect(path)
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_events_come_back_as_they_were(filled: Path):
    ledger = Ledger.open(filled)
    stored = list(ledger.read())
    assert tuple(each.event for each in stored) == EVENTS
    assert [each.seq for each in stored] == [1, 2, 3, 4]
    assert ledger.head() == stored[-1].hash
    assert ledger.verify() == 4


def test_an_empty_ledger_has_the_genesis_head(path: Path):
    assert Ledger.create(path).head() == GENESIS


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_events_of_one_append_are_written_together_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch):
    ledger = Ledger.create(path)
    broken = Decided.model_construct(number=1, verdict=object(), reason="")
    with pytest.raises(Exception, match="serializable"):
        ledger.append(EVENTS[0], broken)
    assert list(ledger.read()) == []
    assert ledger.append(EVENTS[0])[0].seq == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET time = 0",
        "DELETE FROM events",
        "INSERT INTO events VALUES (9, 0, 'stopped', '{}', 'x')",
        "INSERT OR REPLACE INTO events VALUES (2, 0, 'stopped', '{}', 'x')",
        "UPDATE texts SET hash = 'x'",
        "DELETE FROM texts",
    ],
)
def test_the_database_itself_refuses_changes(filled: Path, statement: str):
    Ledger.open(filled).append(CALL)
    connection = sqlite3.connect(filled)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)


def test_a_text_is_not_replaced(filled: Path):
    Ledger.open(filled).append(CALL)
    connection = sqlite3.connect(filled)
    connection.execute("INSERT OR REPLACE INTO texts SELECT hash, x'00' FROM texts")
    connection.commit()
    assert Ledger.open(filled).verify() == 5


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE events SET payload = replace(payload, 'script', 'stript') WHERE seq = 2", "event 2"),
        ("UPDATE events SET time = time + 1 WHERE seq = 3", "event 3"),
        ("UPDATE events SET kind = 'checked' WHERE seq = 4", "event 4"),
        ("DELETE FROM events WHERE seq = 2", "event 2 is missing"),
        ("DELETE FROM events WHERE seq = 1", "event 1 is missing"),
    ],
)
def test_the_first_changed_event_is_named(filled: Path, statement: str, named: str):
    tamper(filled, statement)
    with pytest.raises(LedgerError, match=named):
        Ledger.open(filled).verify()


def test_a_ledger_cut_short_is_found_by_an_anchor(filled: Path):
    anchor = Ledger.open(filled).head()
    assert Ledger.open(filled).verify([anchor]) == 4
    tamper(filled, "DELETE FROM events WHERE seq = 4")
    assert Ledger.open(filled).verify() == 3
    with pytest.raises(LedgerError, match="cut short"):
        Ledger.open(filled).verify([anchor])


def test_a_newer_schema_is_refused_in_one_line(filled: Path):
    connection = sqlite3.connect(filled)
    connection.execute("UPDATE meta SET value = '999'")
    connection.commit()
    connection.close()
    with pytest.raises(LedgerError, match="schema version 999") as caught:
        Ledger.open(filled)
    assert "\n" not in str(caught.value)


def older(path: Path, version: int) -> Ledger:
    """A ledger as it was made before payloads were packed (1), or before texts were set aside (2)."""
    Ledger.create(path).close()
    connection = sqlite3.connect(path)
    connection.executescript(f"DROP TABLE texts; UPDATE meta SET value = '{version}';")
    if version == 1:
        connection.executescript(
            """
            DROP TABLE events;
            CREATE TABLE events (seq INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, payload TEXT NOT NULL,
                                 hash TEXT NOT NULL UNIQUE) STRICT;
            """
        )
    connection.close()
    return Ledger.open(path, clock=Clock())


SENT = "the same line again, in half: \ud800\n" * 1000
CALL = LLMCalled(round=0, ordinal=3, record={"request": SENT, "model": "some"})
LONG = ProposalFailed(round=0, reason="the same line again\n" * 1000)


def test_long_payloads_are_packed_and_chained_as_they_read(tmp_path: Path):
    packed, plain = older(tmp_path / "packed", 2), older(tmp_path / "plain", 1)
    assert packed.append(*EVENTS, LONG)[-1].hash == plain.append(*EVENTS, LONG)[-1].hash
    for ledger, kind in ((packed, bytes), (plain, str)):
        (payload,) = ledger._connection.execute("SELECT payload FROM events WHERE seq = 5").fetchone()
        assert isinstance(payload, kind)
        assert (len(payload) < 1000) == (kind is bytes)
        assert [stored.event for stored in ledger.read()] == [*EVENTS, LONG]
        ledger.close()


@pytest.mark.parametrize("version", [1, 2])
def test_a_ledger_of_an_earlier_version_is_read_and_goes_on(tmp_path: Path, version: int):
    ledger = older(tmp_path / "old", version)
    ledger.append(*EVENTS, CALL)
    ledger.close()
    again = Ledger.open(tmp_path / "old")
    again.append(LONG, CALL)
    assert again.verify() == 7
    assert [each.event for each in again.read()] == [*EVENTS, CALL, LONG, CALL]


def test_what_a_model_was_sent_is_kept_once_and_beside_the_events(path: Path):
    ledger = Ledger.create(path, clock=Clock())
    assert [each.event for each in ledger.append(*EVENTS, CALL, CALL)] == [*EVENTS, CALL, CALL]
    assert [each.event for each in ledger.read()] == [*EVENTS, CALL, CALL]
    *_, seen = (each.event for each in ledger.read(whole=False))
    assert seen.record["model"] == "some"
    assert "line" not in str(seen)
    assert ledger.whole(seen) == ledger.whole(CALL) == CALL
    assert ledger._connection.execute("SELECT COUNT(*), MAX(length(packed)) < 2000 FROM texts").fetchone() == (1, 1)


def test_a_text_is_not_kept_without_its_event(path: Path):
    """They are written together or not at all."""
    ledger = Ledger.create(path)
    (pages,) = ledger._connection.execute("PRAGMA page_count").fetchone()
    ledger._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(LedgerError, match="full"):
        ledger.append(CALL, ProposalFailed(round=1, reason=os.urandom(100_000).hex()))
    assert ledger._connection.execute("SELECT COUNT(*) FROM texts").fetchone() == (0,)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE texts SET packed = CAST(substr(packed, 1, 40) AS BLOB)",
        "UPDATE texts SET packed = (SELECT packed FROM texts ORDER BY length(packed) LIMIT 1)",
        "UPDATE texts SET hash = 'x' || hash",
        "DELETE FROM texts",
        "UPDATE texts SET packed = zeroblob(20)",
    ],
)
def test_a_text_that_was_changed_is_found_by_who_reads_it(path: Path, statement: str):
    ledger = Ledger.create(path)
    ledger.append(*EVENTS, CALL, LLMCalled(round=9, ordinal=0, record={"request": "short"}))
    ledger.close()
    tamper(path, statement)
    with pytest.raises(LedgerError, match="what the model was sent in call 3 of round 0 is lost or was changed"):
        Ledger.open(path).verify()
    assert len(list(Ledger.open(path).read(whole=False))) == 6


def test_a_reference_to_a_text_is_chained(path: Path):
    ledger = Ledger.create(path)
    ledger.append(CALL, LLMCalled(round=9, ordinal=0, record={"request": "short"}))
    (short,) = (each.event.record["request"]["sha256"] for each in ledger.read(whole=False) if each.seq == 2)
    (sent,) = (each.event.record["request"]["sha256"] for each in ledger.read(whole=False) if each.seq == 1)
    ledger.close()
    tamper(path, f"UPDATE events SET payload = replace(payload, '{short}', '{sent}') WHERE seq = 2")
    with pytest.raises(LedgerError, match=r"event 2 \(llm_called\) was changed"):
        list(Ledger.open(path).read(whole=False))


@pytest.mark.parametrize("change", ["substr(payload, 5)", "substr(payload, 1, 40)", "x'00'", "zeroblob(20)"])
def test_a_damaged_packed_payload_is_named(path: Path, change: str):
    ledger = Ledger.create(path)
    ledger.append(*EVENTS, LONG)
    ledger.close()
    tamper(path, f"UPDATE events SET payload = CAST({change} AS BLOB) WHERE seq = 5")
    with pytest.raises(LedgerError, match=r"event 5 \(proposal_failed\) was changed"):
        Ledger.open(path).verify()


@pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough to look at" * 100])
def test_a_file_that_is_no_ledger_is_one_clear_line(path: Path, content: bytes):
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="is damaged or no ledger") as caught:
        list(Ledger.open(path).read())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [10, 100, 4096, 5000, 8192, 12000])
def test_a_truncated_file_is_one_clear_line(filled: Path, kept: int):
    filled.write_bytes(filled.read_bytes()[:kept])
    with pytest.raises(LedgerError) as caught:
        Ledger.open(filled).verify()
    assert "\n" not in str(caught.value)


def test_flipped_bits_are_found(filled: Path):
    whole = filled.read_bytes()
    place = whole.index(b"script")
    filled.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(LedgerError):
        Ledger.open(filled).verify()


def test_a_missing_ledger_is_one_clear_line(path: Path):
    with pytest.raises(LedgerError, match="There is no ledger"):
        Ledger.open(path)
    assert not path.exists()


def test_a_full_disk_is_one_clear_line_and_loses_nothing(filled: Path):
    ledger = Ledger.open(filled)
    (pages,) = ledger._connection.execute("PRAGMA page_count").fetchone()
    ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerError, match="full"):
        ledger.append(ProposalFailed(round=1, reason=os.urandom(100_000).hex()))
    assert Ledger.open(filled).verify() == 4


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_any_record_survives_the_round_trip(record: dict[str, object]):
    event = LLMCalled(round=0, ordinal=0, record=record)
    assert decode(encode(event)) == event
    assert encode(decode(encode(event))) == encode(event)


@pytest.mark.parametrize("value", ["half a character: \ud800", float("inf"), -float("inf"), 2**70, [[[]]] * 3])
def test_what_json_knows_and_few_parsers_read_survives_the_round_trip(value: object):
    event = LLMCalled(round=0, ordinal=0, record={"value": value})
    assert decode(encode(event)) == decode(encode(event).encode()) == event


def test_the_configuration_survives_the_round_trip():
    created = StudyCreated(
        config=config(3, strategy={"name": "beam", "width": 4}, subject={"hyperparameters": {"depth": 2, "lr": 0.5}}),
        subject=candidate_fingerprint(SUBJECT),
        corpus="c",
        tokenizer="t",
        instructions="i",
        jaxresearch="1",
        jax="2",
        python="3",
    )
    again = decode(encode(created))
    assert again == created
    assert again.config.strategy.options == {"width": 4}


def test_two_drivers_are_refused_and_the_holder_is_named(tmp_path: Path):
    lock = tmp_path / "lock"
    with sole_driver(lock, now=0.0), pytest.raises(StudyLocked) as caught, sole_driver(lock, now=1.0):
        pass
    assert f"process {os.getpid()} on " in str(caught.value)
    assert "since 1970-01-01T00:00:00+00:00" in str(caught.value)
    with sole_driver(lock, now=2.0):
        pass
    assert issubclass(StudyLocked, JaxresearchError)


def test_reading_goes_on_where_it_stopped(filled: Path):
    ledger = Ledger.open(filled)
    whole = list(ledger.read())
    assert list(ledger.read(after=(whole[1].seq, whole[1].hash))) == whole[2:]
    assert list(ledger.read(after=(whole[3].seq, whole[3].hash))) == []
    with pytest.raises(LedgerError, match="was changed"):
        list(ledger.read(after=(2, GENESIS)))


def test_a_reader_cannot_write_and_sees_what_is_added(filled: Path):
    reader = Ledger.open(filled, read_only=True)
    assert len(list(reader.read())) == 4
    writer = Ledger.open(filled, clock=Clock())
    writer.append(SessionStarted(pid=2, host="there"))
    assert len(list(reader.read())) == 5
    with pytest.raises(LedgerError):
        reader.append(SessionStarted(pid=3, host="nowhere"))


def test_a_reader_who_may_not_write_beside_it_sees_what_a_writer_is_adding(tmp_path: Path, monkeypatch):
    """Its events are in the write-ahead log until the writer ends."""
    writer = Ledger.create(tmp_path / "ledger.sqlite", clock=Clock())
    writer.append(SessionStarted(pid=2, host="there"))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert len(list(Ledger.open(tmp_path / "ledger.sqlite", read_only=True).read())) == 1
    writer.close()
    assert len(list(Ledger.open(tmp_path / "ledger.sqlite", read_only=True).read())) == 1


def test_a_head_that_was_noted_is_found_again_and_one_that_was_cut_off_is_not(tmp_path: Path):
    from fakes import Bench, config, gain

    study = Bench(tmp_path / "study", config(1)).run([gain(0.1)])
    study.check_head(study.history.head)
    study.check_head(study.history.head[:16])
    with pytest.raises(JaxresearchError, match="cut short or rewritten"):
        study.check_head("f" * 64)
    with pytest.raises(JaxresearchError, match="no head"):
        study.check_head("abc")


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """A study in whose open round a model was called."""
    from fakes import Bench, config, gain

    study = Bench(tmp_path / "study", config(1)).run([gain(0.1)])
    ledger = Ledger.open(study.layout.ledger, clock=Clock())
    ledger.append(ProposalRequested(round=1, slots=1, seed=1, instructions=""), CALL)
    ledger.close()
    return study.layout.folder


@pytest.mark.parametrize("read_only", [False, True])
def test_the_calls_of_an_open_round_are_whole(asked: Path, read_only: bool):
    assert Study.open(asked, read_only=read_only).history.calls == (CALL,)


def test_a_text_of_an_earlier_round_that_was_changed_stops_who_goes_on_and_not_who_looks(asked: Path):
    ledger = Ledger.open(asked / "ledger.sqlite", clock=Clock())
    ledger.append(ProposalFailed(round=1, reason="no answer"))
    ledger.close()
    tamper(asked / "ledger.sqlite", "UPDATE texts SET packed = zeroblob(20)")
    assert Study.open(asked, read_only=True).history.failed_proposals == 1
    with pytest.raises(LedgerError, match="what the model was sent in call 3 of round 0 is lost or was changed"):
        Study.open(asked)

"""The ledger: an append-only, hash-chained list of events in SQLite. It is the truth about a study."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from jaxresearch.errors import JaxresearchError
from jaxresearch.study import texts
from jaxresearch.study.events import READABLE_VERSIONS, SCHEMA_VERSION, Event, LLMCalled, decode, encode

GENESIS = "0" * 64
"""Stands where the first event's predecessor would."""
_PACKED_ABOVE = 2000
"""Bytes. Longer payloads are kept as zlib's bytes."""
_RESTORE = "Restore the ledger from a backup."

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    kind TEXT NOT NULL,
    payload ANY NOT NULL,
    hash TEXT NOT NULL UNIQUE
) STRICT;
CREATE TRIGGER events_are_not_updated BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER events_are_not_deleted BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER events_follow_each_other BEFORE INSERT ON events
    WHEN NEW.seq IS NOT (SELECT COALESCE(MAX(seq), 0) + 1 FROM events)
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""


class LedgerError(JaxresearchError):
    """The ledger cannot be read or written, or was changed by someone."""


@dataclass(frozen=True)
class StoredEvent:
    """An event in its place. `time` is in seconds since the epoch; `hash` chains it to all events before it."""

    seq: int
    time: float
    hash: str
    event: Event


class Ledger:
    """One study's events. `create` makes the file, `open` finds it; every method may raise `LedgerError`."""

    def __init__(
        self, path: Path, connection: sqlite3.Connection, clock: Callable[[], float], version: int = SCHEMA_VERSION
    ) -> None:
        self._path = path
        self._connection = connection
        self._clock = clock
        self._packs, self._sets_aside = version > 1, version > 2  # a ledger goes on in the version it was begun in

    @classmethod
    def create(cls, path: Path, *, clock: Callable[[], float] = time.time) -> Self:
        """An empty ledger at `path`, which must not exist."""
        if path.exists():
            raise LedgerError(f"{path} exists already.")
        with _clear_errors(path):
            connection = _connect(path, "rwc")
            connection.executescript(_TABLES + texts.TABLES)
            connection.execute("INSERT INTO meta VALUES ('schema_version', ?)", (str(SCHEMA_VERSION),))
        return cls(path, connection, clock)

    @classmethod
    def open(cls, path: Path, *, clock: Callable[[], float] = time.time, read_only: bool = False) -> Self:
        """The ledger at `path`. Refuses one that is missing, is no ledger, or was written by a newer schema."""
        if not path.is_file():
            raise LedgerError(f"There is no ledger at {path}.", fix="Give the folder of a study.")
        with _clear_errors(path):
            connection = _connect_to_read(path) if read_only else _connect(path, "rw")
            row = connection.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchone()
        if row is None:
            connection.close()
            raise LedgerError(f"{path} is damaged: it has no schema version.", fix="Restore it from a backup.")
        version = row[0]
        if version not in map(str, READABLE_VERSIONS):
            connection.close()
            raise LedgerError(
                f"{path} has schema version {version}; this jaxresearch reads up to version {SCHEMA_VERSION}.",
                fix="Use the version of jaxresearch that wrote it, or a newer one.",
            )
        return cls(path, connection, clock, int(version))

    def append(self, *events: Event) -> tuple[StoredEvent, ...]:
        """Add `events`, all or none, and return them in their places once they are on the disk."""
        stored = []
        with _clear_errors(self._path), self._transaction():
            seq, head = self._last()
            for event in events:
                kept = texts.set_aside(self._connection, event) if self._sets_aside else event
                payload, now = encode(kept).encode(), self._clock()
                seq, head = seq + 1, _chain(head, event.kind, now, payload)
                row = (seq, now, event.kind, _packed(payload) if self._packs else payload.decode(), head)
                self._connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?)", row)
                stored.append(StoredEvent(seq, now, head, event))
        return tuple(stored)

    def read(self, *, after: tuple[int, str] = (0, GENESIS), whole: bool = True) -> Iterator[StoredEvent]:
        """All events in order, each checked against the chain. Raises `LedgerError` at the first that does not fit.

        after: seq and hash of an event that was read before; only those that follow it are read. whole: with what a
        model was sent, checked too. Without, an `LLMCalled` has a reference to it, and `whole` finds it.
        """
        previous, expected = after[1], after[0] + 1
        with _clear_errors(self._path):
            for seq, at, kind, packed, digest in self._rows(after[0]):
                if seq != expected:
                    raise self._broken(expected, "is missing")
                payload = _unpacked(packed)
                if payload is None or _chain(previous, kind, at, payload) != digest:
                    raise self._broken(seq, f"({kind}) was changed: its hash does not match")
                event = self._decoded(seq, kind, payload)
                yield StoredEvent(
                    seq, at, digest, self.whole(event) if whole and isinstance(event, LLMCalled) else event
                )
                previous, expected = digest, seq + 1

    def whole(self, call: LLMCalled) -> LLMCalled:
        """`call`, which was read without its text, with it. Raises `LedgerError` when that is lost or was changed."""
        try:
            with _clear_errors(self._path):
                return texts.whole(self._connection, call)
        except ValueError as error:
            raise LedgerError(f"{self._path}: {error} is lost or was changed.", fix=_RESTORE) from None

    def head(self) -> str:
        """The hash of the last event: whoever knows it can tell that nothing before it was changed."""
        with _clear_errors(self._path):
            return self._last()[1]

    def verify(self, anchors: Iterable[str] = ()) -> int:
        """Check the file, the chain, and that each of `anchors` (hashes kept elsewhere) is still in it.

        Returns the number of events. Raises `LedgerError` that names the first bad event. Anchors are what tells a
        ledger that was cut short, or written anew with fresh hashes, from a whole one.
        """
        self.check_file()
        count = sum(1 for _ in self.read())
        self.check_anchors(anchors)
        return count

    def check_file(self) -> None:
        """Raise `LedgerError` where the database itself is damaged: its pages and indexes, whatever they hold."""
        with _clear_errors(self._path):
            (state,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
        if state != "ok":
            raise LedgerError(f"{self._path} is damaged: {state.splitlines()[0]}.", fix="Restore it from a backup.")

    def check_anchors(self, anchors: Iterable[str]) -> None:
        """Raise `LedgerError` unless each of `anchors` (hashes of events that were kept elsewhere) is in the ledger."""
        with _clear_errors(self._path):
            hashes = {digest for (digest,) in self._connection.execute("SELECT hash FROM events")}
        lost = [anchor for anchor in anchors if anchor not in hashes]
        if lost:
            raise LedgerError(
                f"{self._path} was cut short or rewritten: {len(lost)} hash(es) recorded outside it, "
                f"such as {lost[0][:12]}, are not in it.",
                fix="Restore it from a backup.",
            )

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _last(self) -> tuple[int, str]:
        row = self._connection.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        return row or (0, GENESIS)

    def _rows(self, after: int) -> sqlite3.Cursor:
        query = "SELECT seq, time, kind, payload, hash FROM events WHERE seq > ? ORDER BY seq"
        return self._connection.execute(query, (after,))

    def _decoded(self, seq: int, kind: str, payload: bytes) -> Event:
        try:
            return decode(payload)
        except ValueError as error:
            raise self._broken(seq, f"({kind}) cannot be read") from error

    def _broken(self, seq: int, what: str) -> LedgerError:
        return LedgerError(f"{self._path}: event {seq} {what}.", fix=_RESTORE)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=30)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """A connection that cannot write.

    On a read-only disk SQLite must be told that nobody else writes either. Then it passes over the write-ahead log, so not
    where there is one: that of a writer who is at work, and whose folder is only closed to us, or of one that was killed.
    """
    log = path.with_name(f"{path.name}-wal")
    at_rest = not os.access(path.parent, os.W_OK) and not (log.exists() and log.stat().st_size)
    mode = "mode=ro&immutable=1" if at_rest else "mode=ro"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None, timeout=30)


def _packed(payload: bytes) -> str | bytes:
    return zlib.compress(payload) if len(payload) > _PACKED_ABOVE else payload.decode()


def _unpacked(payload: str | bytes) -> bytes | None:
    """The payload as it was hashed; None for bytes that were never packed so."""
    return payload.encode() if isinstance(payload, str) else texts.unpacked(payload)


def _chain(previous: str, kind: str, at: float, payload: bytes) -> str:
    digest = hashlib.sha256(f"{previous}\n{kind}\n{at!r}\n".encode())
    digest.update(payload)  # on its own: it may be long, and is not copied so
    return digest.hexdigest()


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """SQLite's errors as one line that says which file, what is wrong, and what to do."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if isinstance(error, sqlite3.OperationalError) and not str(error).startswith("no such"):
            raise LedgerError(
                f"{path} cannot be used: {error}.", fix="Check the disk's space and permissions, then resume."
            ) from error
        raise LedgerError(f"{path} is damaged or no ledger: {error}.", fix="Restore it from a backup.") from error

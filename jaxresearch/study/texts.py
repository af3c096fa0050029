"""Texts beside the ledger's events: what a model was sent, by its hash, which the event holds and the chain covers.

Nearly all of a long ledger is that, and hardly anybody who reads a ledger asks for it.
"""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from typing import Any

from jaxresearch.study.events import Event, LLMCalled

TABLES = """
CREATE TABLE texts (hash TEXT PRIMARY KEY, packed BLOB NOT NULL) STRICT;
CREATE TRIGGER texts_are_not_updated BEFORE UPDATE ON texts
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER texts_are_not_deleted BEFORE DELETE ON texts
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER texts_are_written_once BEFORE INSERT ON texts
    WHEN EXISTS (SELECT 1 FROM texts WHERE hash = NEW.hash)
    BEGIN SELECT RAISE(IGNORE); END;
"""
_LONGEST = 2**28
"""Bytes that anything may unpack to: more than any event or text has, and no more than memory."""


def set_aside(connection: sqlite3.Connection, event: Event) -> Event:
    """`event` as the ledger keeps it: its text, where it has one, is written to the table and a reference left."""
    if not isinstance(event, LLMCalled) or not isinstance(event.record.get("request"), str):
        return event
    text = event.record["request"].encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(text).hexdigest()
    connection.execute("INSERT INTO texts VALUES (?, ?)", (digest, zlib.compress(text)))
    return _with_request(event, {"sha256": digest})


def whole(connection: sqlite3.Connection, call: LLMCalled) -> LLMCalled:
    """`call` as it was appended. Raises `ValueError` when its text is lost or is another one."""
    match call.record.get("request"):
        case {"sha256": str(digest)}:
            row = connection.execute("SELECT packed FROM texts WHERE hash = ?", (digest,)).fetchone()
            text = unpacked(row[0]) if row is not None else None
            if text is None or hashlib.sha256(text).hexdigest() != digest:
                raise ValueError(f"what the model was sent in call {call.ordinal} of round {call.round}")
            return _with_request(call, text.decode("utf-8", "surrogatepass"))
        case _:
            return call


def _with_request(call: LLMCalled, request: Any) -> LLMCalled:
    return call.model_copy(update={"record": {**call.record, "request": request}})


def unpacked(packed: bytes) -> bytes | None:
    """What `zlib.compress` packed; None for bytes that it never gave."""
    unpacking = zlib.decompressobj()
    try:
        found = unpacking.decompress(packed, _LONGEST)
    except (zlib.error, TypeError):
        return None
    return found if unpacking.eof and not unpacking.unused_data else None

"""The file formats that text comes in: each reader takes a path and yields the texts in it, in order."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxresearch.errors import JaxresearchError

LARGE_TEXT_BYTES = 65_536
"""A larger .txt file is cut: as one document, it would lie in one split as a whole."""
SMALLEST_PIECE_BYTES = 4_096
LARGEST_PIECE_BYTES = 16_384

_PARAGRAPH_END = re.compile(rb"\n[ \t\r]*\n\s*")
_AS_UTF8 = "Convert it to UTF-8 text, or leave it out."


def read_txt(path: Path) -> Iterator[str]:
    """The whole file, or the pieces of a large one. Line ends, blanks and a byte order mark stay as they are."""
    content = path.read_bytes()
    _as_text(content, path)
    for piece in cut(content):
        yield piece.decode()


def read_jsonl(path: Path) -> Iterator[str]:
    """The string field "text" of each line; blank lines are skipped."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                record = json.loads(_as_text(line, where))
            except (json.JSONDecodeError, RecursionError) as error:
                raise JaxresearchError(f"{where} is not JSON: {error}.", fix="Write one object a line.") from None
            text = record.get("text") if isinstance(record, dict) else None
            yield _checked_text(text, where, "field")


def read_parquet(path: Path) -> Iterator[str]:
    """The column `text`, row by row."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if "text" not in columns:
                raise JaxresearchError(
                    f"{path} has no column `text`, only {', '.join(columns) or 'none'}.", fix="Rename the right one."
                )
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=["text"]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    yield _checked_text(text, f"{path}, row {row}", "column")
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise JaxresearchError(f"{path} is not a readable parquet file: {reason}.", fix="Write it anew.") from None
    except UnicodeDecodeError:
        raise JaxresearchError(f"{path}: the column `text` holds bytes that are not UTF-8.", fix=_AS_UTF8) from None


def read_source_code(path: Path) -> Iterator[str]:
    """A Python source file, where it is UTF-8; the few in other encodings are left out."""
    try:
        yield path.read_bytes().decode()
    except UnicodeDecodeError:
        return


READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    ".txt": read_txt,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}


def cut(content: bytes) -> Iterator[bytes]:
    """Pieces of about 4 to 16 kB that joined give `content`: whole if it is small, else cut where paragraphs end.

    A paragraph that is too long is cut at a line's end, else behind a blank, else between two characters.
    """
    if len(content) <= LARGE_TEXT_BYTES:
        yield content
        return
    start = 0
    while len(content) - start > SMALLEST_PIECE_BYTES:
        paragraph = _PARAGRAPH_END.search(content, start + SMALLEST_PIECE_BYTES)
        if paragraph and paragraph.end() - start <= LARGEST_PIECE_BYTES:
            end = paragraph.end()
        elif len(content) - start <= LARGEST_PIECE_BYTES:
            break
        else:
            end = _cut_within_paragraph(content, start)
        yield content[start:end]
        start = end
    if start < len(content):
        yield content[start:]


def _cut_within_paragraph(content: bytes, start: int) -> int:
    limit = start + LARGEST_PIECE_BYTES
    for mark in (b"\n", b" "):
        found = content.rfind(mark, start + SMALLEST_PIECE_BYTES, limit)
        if found >= 0:
            return found + 1
    while content[limit] & 0xC0 == 0x80:  # a continuation byte: a character must not be cut in two
        limit -= 1
    return limit


def _as_text(content: bytes, where: Path | str) -> str:
    if b"\0" in content:
        raise JaxresearchError(f"{where} is binary: it holds NUL bytes.", fix=_AS_UTF8)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise JaxresearchError(f"{where} is not UTF-8: byte {error.start} is wrong.", fix=_AS_UTF8) from None


def _checked_text(text: object, where: str, kind: str) -> str:
    if not isinstance(text, str):
        raise JaxresearchError(f'{where} has no {kind} "text" that is a string.', fix="Add it, or leave that out.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise JaxresearchError(f"{where} holds half a character (a lone surrogate).", fix="Repair its text.") from None
    return text

"""Whether all processes of a run see one folder: tried out, because a path says nothing of what lies behind it."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from jaxresearch.files import DRAFT
from jaxresearch.training.company import Company


def is_common(folder: Path, company: Company) -> bool:
    """Whether every process reads in `folder` what process 0 writes there, and the other way round.

    All must ask. Nothing is made where `folder` is another one than process 0's, and nothing stays.
    """
    token = company.share(np.frombuffer(secrets.token_bytes(16), np.uint8)).tobytes().hex()
    marks = [folder / f"{DRAFT}{token}-{process}" for process in range(company.processes)]
    with _removed(marks[company.process]) as own:
        if not company.agree(not company.leads or _write(own, token)):
            return False
        if not company.agree(company.leads or (_read(marks[0]) == token and _write(own, token))):
            return False
        return company.agree(not company.leads or all(_read(mark) == token for mark in marks))


@contextmanager
def _removed(path: Path) -> Iterator[Path]:
    """`path`, which does not stay."""
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _write(path: Path, text: str) -> bool:
    try:
        path.write_text(text)
    except OSError:
        return False
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""

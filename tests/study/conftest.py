"""Fixtures of the study's tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fakes import SCRIPT, Bench, config


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A study of the whole script, not yet created."""
    return Bench(tmp_path / "study", config(len(SCRIPT)))

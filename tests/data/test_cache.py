"""The cache's own files: what goes when it is too large."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jaxresearch.data.cache import keep_within
from jaxresearch.execution import housing


def fill(folder: Path, ages: dict[str, int]) -> None:
    """Files of 100 bytes, last used so many seconds after the epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, age in ages.items():
        (folder / name).write_bytes(b"x" * 100)
        os.utime(folder / name, (age, 0))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("most", "left"), [(400, "abcd"), (399, "bcd"), (250, "cd"), (100, "d"), (99, ""), (0, ""), (10**9, "abcd")]
)
def test_files_longest_unused_go_first(tmp_path: Path, most: int, left: str):
    fill(tmp_path, {"d": 40, "b": 20, "a": 10, "c": 30})
    keep_within(tmp_path, most)
    assert names(tmp_path) == set(left)


def test_what_cannot_be_deleted_stays_and_others_go(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    os.utime(tmp_path / "folder", (0, 0))
    fill(tmp_path, {"a": 10, "b": 20})
    keep_within(tmp_path, 100)
    assert names(tmp_path) <= {"folder", "b"}


def test_compiled_programs_are_kept_within_bounds(make_laboratory, monkeypatch: pytest.MonkeyPatch):
    laboratory = make_laboratory()
    cache = laboratory.executor._house._settings.compilation_cache
    monkeypatch.setattr(housing, "_COMPILED_BYTES", 250)
    monkeypatch.setattr(
        laboratory.executor._house, "_settings",
        laboratory.executor._house._settings.model_copy(update={"compilation_cache": cache / "own"}),
    )  # fmt: skip
    fill(cache / "own", {"a": 10, "b": 20, "c": 30})
    laboratory.runner.run(laboratory.executor._ready_worker())
    assert names(cache / "own") == {"b", "c"}

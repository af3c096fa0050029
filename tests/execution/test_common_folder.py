"""Two processes, played by threads, find out whether they see one folder."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from jaxresearch.execution.common_folder import is_common
from jaxresearch.training.company import SOLE


class Duo:
    """One of two. `table` is what both have said, by number of the question."""

    processes = 2

    def __init__(self, process: int, table: dict, barrier: threading.Barrier) -> None:
        self.process, self.leads, self._table, self._barrier, self._asked = process, process == 0, table, barrier, 0

    def _all(self, said: object) -> list:
        self._asked += 1
        self._table[self._asked, self.process] = said
        self._barrier.wait(30)
        return [self._table[self._asked, process] for process in range(2)]

    def share(self, value: np.ndarray) -> np.ndarray:
        return self._all(value)[0]

    def agree(self, yes: bool) -> bool:
        return all(self._all(yes))


def ask_both(first: Path, second: Path) -> list[bool]:
    table, barrier = {}, threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(is_common, at, Duo(number, table, barrier)) for number, at in enumerate((first, second))]
        return [each.result() for each in asked]


def test_one_folder_is_common_and_is_left_as_it_was(tmp_path: Path):
    assert ask_both(tmp_path, tmp_path) == [True, True]
    assert list(tmp_path.iterdir()) == []
    assert is_common(tmp_path, SOLE)


@pytest.mark.parametrize("there", [True, False])
def test_another_folder_under_that_name_is_not_and_nothing_is_made_in_it(tmp_path: Path, there: bool):
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    if there:
        other.mkdir()
    assert ask_both(mine, other) == [False, False]
    assert list(mine.iterdir()) == []
    assert other.exists() == there
    assert not there or list(other.iterdir()) == []


def test_a_folder_that_process_0_cannot_write_to_is_not_common(tmp_path: Path):
    assert ask_both(tmp_path / "missing", tmp_path) == [False, False]


def test_a_folder_that_the_other_can_only_read_is_not_common(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its mark never comes to be, as on a mount for reading."""
    write = Path.write_text

    def refuse(path: Path, text: str) -> int:
        if path.name.endswith("-1"):
            raise OSError(30, "Read-only file system")
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", refuse)
    assert ask_both(tmp_path, tmp_path) == [False, False]
    assert list(tmp_path.iterdir()) == []

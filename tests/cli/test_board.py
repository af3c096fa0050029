"""The board of a running study: what it says, at 80 columns and without colour."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent / "report"))

from synthetic import make_study

from jaxresearch.cli.board import Board, short
from jaxresearch.experiment import RunProgress
from jaxresearch.study.study import Study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("board") / "study", 12, seed=4, commits=False)


def drawn(board: Board, width: int = 80) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, no_color=True, color_system=None).print(board)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 80])
def test_it_tells_every_run_by_its_number_and_fits(folder: Path, width: int):
    study = Study.open(folder)
    now = [0.0]
    board = Board(clock=lambda: now[0])
    board.learn(study.history)
    study.close()
    board.move(7, 0, RunProgress("train", 0.0, 9.0, 0))
    board.move(8, 1, RunProgress("compile"))
    now[0] = 30.0
    board.move(7, 0, RunProgress("train", 0.25, 3.214, 50))
    lines = drawn(board, width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "7, seed 0: 25%" in text or width == 40
    assert text.count("on ") >= 2, "what is tried, of both"
    if width == 80:
        assert "loss 3.214, 1 min 30 s left" in text
        assert "8, seed 1: compiling" in text
        assert "12 of 12 experiments" in text
        assert "an hour" in text
        assert "noise 0.0" in text
        assert "LLM $0.14" in text
    board.end(7, 0)
    assert "seed 0" not in "\n".join(drawn(board, width))


def test_lengths_of_time():
    assert [short(each) for each in (9.4, 61, 3725)] == ["9 s", "1 min 1 s", "1 h 2 min"]

"""What the fault injection found: a full disk is nobody's verdict, and a ledger that was cut short is not gone on with."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from fakes import SCRIPT, Bench, FakeExecutor, config, gain

from jaxresearch.errors import JaxresearchError
from jaxresearch.files import DRAFT, DiskFullError
from jaxresearch.study.ledger import Ledger


class FullDisk(FakeExecutor):
    """Its disk is full when it is asked for the third time to `do`."""

    def __init__(self, do: str) -> None:
        super().__init__()
        self.do, self.asked = do, 0

    def _write(self, do: str) -> None:
        self.asked += do == self.do
        if self.asked == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    async def trace(self, candidate):
        self._write("trace")
        return await super().trace(candidate)

    async def run(self, request, on_progress):
        self._write("run")
        return await super().run(request, on_progress)


@pytest.mark.parametrize("do", ["trace", "run"])
def test_a_full_disk_stops_the_session_and_costs_no_experiment(tmp_path: Path, do: str):
    bench = Bench(tmp_path / "study", config(3))
    script = SCRIPT[:3]
    with pytest.raises(DiskFullError, match="make room"):
        bench.run(script, executor=FullDisk(do))
    study = bench.run(script)
    whole = Bench(tmp_path / "whole", config(3)).run(script)
    assert study.history.verdicts == whole.history.verdicts
    assert "infrastructure" not in [each.verdict for each in study.history.experiments]


def test_a_ledger_that_was_cut_short_is_not_gone_on_with(tmp_path: Path):
    bench = Bench(tmp_path / "study", config(2))
    study = bench.run([gain(0.1), gain(-0.1)])
    path, events = study.layout.ledger, list(study.events())
    study.close()
    for old in path.parent.glob("ledger.sqlite*"):
        old.unlink()
    times = iter([each.time for each in events])
    shorter = Ledger.create(path, clock=lambda: next(times))
    shorter.append(*(each.event for each in events[:12]))  # a whole chain, only not all of it
    shorter.close()
    with pytest.raises(JaxresearchError, match="cut short or rewritten"):
        bench.run([gain(0.1), gain(-0.1)])


def test_what_killed_processes_left_is_swept_when_the_study_goes_on(tmp_path: Path):
    bench = Bench(tmp_path / "study", config(1))
    layout = bench.create().layout
    for folder in (layout.programs, layout.runs / "one" / "checkpoints"):
        (folder / f"{DRAFT}half").mkdir(parents=True)
    bench.run([gain(0.1)])
    assert not list(layout.folder.rglob(f"{DRAFT}*"))

"""Several workers on one machine: pinned, alike, and with the verdicts of one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxresearch.config import StudyConfig
from jaxresearch.data import Corpus
from jaxresearch.errors import ConfigurationError
from jaxresearch.execution.base import RunRequest, workers_of
from jaxresearch.execution.local import LocalExecutor
from jaxresearch.execution.pins import Pin, accelerators_here, count_workers, make_pins, run_on_own_cores
from jaxresearch.execution.pool import WorkerPool, local_executor
from jaxresearch.experiment import CompletedRun, RunOutcome, RunProgress
from jaxresearch.proposal import Edit, Proposal
from jaxresearch.sandbox import Sandbox
from jaxresearch.study.events import RunFinished
from jaxresearch.study.study import Study
from tests.laboratory import BASELINE, Laboratory, tiny_config

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
TWO_CORES = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")
SCRIPT = [
    Proposal(parent=0, hypothesis="a runtime input", config={"warmup": 0.3}),
    Proposal(parent=0, hypothesis="another shape", config={"width": 48}),
    Proposal(parent=0, hypothesis="nothing", edits=(Edit(path="models/recipe.py", search="\n", replace="\n\n"),)),
]


@TWO_CORES
def test_workers_get_disjoint_cores_equally_many():
    first, second = make_pins(2, devices=1, threads=None)
    assert len(first.cores) == len(second.cores) == len(CORES) // 2
    assert not set(first.cores) & set(second.cores)
    assert first.share == 0.5
    one, two = make_pins(2, devices=1, threads=1)
    assert (one.cores, two.cores) == ((CORES[0],), (CORES[1],))
    with pytest.raises(ConfigurationError, match=f"there are {len(CORES)} here"):
        make_pins(2, devices=1, threads=len(CORES))


def test_more_threads_than_there_are_cores_are_refused_not_cut(monkeypatch):
    with pytest.raises(ConfigurationError, match=r"execution\.threads: 999 threads need 999 cores, and there are"):
        run_on_own_cores(Pin(), 999)
    monkeypatch.delattr(os, "sched_getaffinity")
    with pytest.raises(ConfigurationError, match=r"execution\.threads: this system cannot give a worker cores"):
        run_on_own_cores(Pin(), 1)


def nodes(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_devices_are_counted_without_jax(tmp_path: Path):
    gpus = nodes(tmp_path / "gpus", "nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm")
    assert accelerators_here({}, gpus) == ("cuda", ["0", "1", "10"])
    assert accelerators_here({"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b"}, gpus) == ("cuda", ["GPU-a", "GPU-b"])
    assert accelerators_here({"CUDA_VISIBLE_DEVICES": ""}, gpus) == ("cuda", [])
    assert accelerators_here({"JAX_PLATFORMS": "cpu"}, gpus) == ("cpu", [])
    assert accelerators_here({}, nodes(tmp_path / "v4", *(f"accel{at}" for at in range(4)))) == ("tpu", list("0123"))
    assert accelerators_here({}, nodes(tmp_path / "v6", "vfio/0", "vfio/1", "vfio/vfio")) == ("tpu", ["0", "1"])
    assert accelerators_here({}, nodes(tmp_path / "none", "null")) == ("cpu", [])


def test_each_worker_sees_its_own_devices(monkeypatch: pytest.MonkeyPatch):
    def here(kind: str, count: int) -> None:
        found = (kind, [str(at) for at in range(count)])
        monkeypatch.setattr("jaxresearch.execution.pins.accelerators_here", lambda: found)

    here("cuda", 4)
    assert [pin.environment for pin in make_pins(2, devices=2, threads=None)] == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]
    assert count_workers(None, 8, 1) == 4
    assert count_workers(None, 3, 1) == 3
    assert count_workers(None, 8, 2) == 2
    assert count_workers(2, 8, 1) == 2
    with pytest.raises(ConfigurationError, match="8 workers of 1 devices need 8, and there are 4"):
        make_pins(8, devices=1, threads=None)
    here("tpu", 4)
    first = make_pins(4, devices=1, threads=None)[0]
    assert first.environment == {
        "TPU_VISIBLE_CHIPS": "0",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }
    here("tpu", 8)
    with pytest.raises(ConfigurationError, match="1, 2 or 4 chips"):
        make_pins(2, devices=3, threads=None)
    here("cpu", 0)
    assert count_workers(None, 8, 1) == 1


def test_a_program_is_verified_while_another_one_trains(laboratory: Laboratory):
    """Tracing waits for no training: the next candidate is traced and verified before the run is over."""
    executor = laboratory.executor
    traced = laboratory.traced(BASELINE)
    over: list[str] = []

    async def both() -> None:
        trains = asyncio.Event()

        async def run() -> None:
            request = laboratory.request(traced, budget="100000steps", wall_cap_seconds=600.0)
            await executor.run(request, lambda progress: trains.set() if progress.stage == "train" else None)
            over.append("run")

        running = asyncio.create_task(run())
        await trains.wait()
        candidate = BASELINE.__class__(files=BASELINE.files, config={**BASELINE.config, "width": 80})
        outcome = await executor.trace(candidate)
        over.append("trace")
        assert getattr(outcome, "program", "").startswith("sha256:"), outcome
        running.cancel()
        await asyncio.wait({running})

    laboratory.runner.run(both())
    assert over == ["trace"]
    again = laboratory.run(traced)
    assert isinstance(again, CompletedRun), "a cancelled run costs its worker, and nothing else"


class Counted:
    """An executor, and how many runs it had under way at once."""

    def __init__(self, executor: LocalExecutor | WorkerPool) -> None:
        self.trace, self.close = executor.trace, executor.close
        self.workers = workers_of(executor)
        self._executor, self._going, self.most = executor, 0, 0

    async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
        self._going += 1
        self.most = max(self.most, self._going)
        try:
            return await self._executor.run(request, on_progress)
        finally:
            self._going -= 1


@TWO_CORES
def test_two_workers_give_the_verdicts_and_scores_of_one(
    tmp_path: Path, runner: asyncio.Runner, tiny_corpus: Corpus, sandbox: Sandbox
):
    class Script:
        async def propose(self, view: Any, slots: int) -> list[Proposal]:
            return SCRIPT[len(view.experiments) - 1 :][:slots]

    def ran(name: str, config: StudyConfig) -> tuple[Study, int]:
        fingerprints: Any = {"corpus": tiny_corpus.fingerprint, "tokenizer": tiny_corpus.tokenizer_fingerprint}
        study = Study.create(tmp_path / name, config, BASELINE, **fingerprints)
        strategy: Any = Script()

        async def work() -> int:
            folders: Any = {"programs": study.layout.programs, "runs": study.layout.runs}
            executor = Counted(local_executor(config, tiny_corpus, sandbox, **folders))
            try:
                await study.run(executor, strategy, lambda record: None)
            finally:
                await executor.close()
            return executor.most

        return study, runner.run(work())

    rules = {"acceptance": {"runs": 2, "max_runs": 2}, "experiments": 3, "slots": 3}
    one, alone = ran("one", tiny_config(**rules, execution={"threads": 1}))
    two, at_once = ran("two", tiny_config(**rules, execution={"threads": 1, "workers": 2}))
    expected = [(entry.verdict, entry.experiment.scores, entry.experiment.reason) for entry in one.history.entries]
    assert [
        (entry.verdict, entry.experiment.scores, entry.experiment.reason) for entry in two.history.entries
    ] == expected
    runs = [stored.event.outcome for stored in two.events() if isinstance(stored.event, RunFinished)]
    assert {run.threads for run in runs if isinstance(run, CompletedRun)} == {1}
    assert (alone, at_once) == (1, 2)

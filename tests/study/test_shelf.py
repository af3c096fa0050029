"""Which checkpoints stay, which go, and what is said of each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fakes import SCRIPT, Bench, FakeExecutor, config, gain

from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import RunRequest
from jaxresearch.experiment import CompletedRun, Verdict
from jaxresearch.study.events import RunFinished, StudyCreated, decode, encode
from jaxresearch.study.shelf import Shelf, check_states, kept_state
from jaxresearch.study.study import Study
from jaxresearch.training import seal
from jaxresearch.training.seal import Owner, Position, checkpoint_folder, state_folder

SIZE = 100_000


class KeepingExecutor(FakeExecutor):
    """Leaves a checkpoint of `SIZE` bytes wherever the final state is to be kept."""

    def __init__(self, runs: Path) -> None:
        super().__init__()
        self.runs = runs

    async def run(self, request, on_progress):
        outcome = await super().run(request, on_progress)
        if not (isinstance(outcome, CompletedRun) and request.keep_state):
            return outcome
        name = keep(self.runs, request, outcome.steps)
        path = checkpoint_folder(self.runs, request.identity)
        for each in path.rglob("*"):  # one after the other, whatever the clock's resolution
            os.utime(each, (len(self.requests), len(self.requests)))
        return outcome.model_copy(update={"checkpoint": name})


def keep(runs: Path, request: RunRequest, steps: int) -> str:
    state = state_folder(checkpoint_folder(runs, request.identity), steps)
    state.mkdir(parents=True)
    (state / "array").write_bytes(os.urandom(SIZE))
    owner = Owner(
        program=request.program, traced={}, seed=request.seed, budget=request.budget, corpus="c", tokenizer="t"
    )
    position = Position(progress=1.0, steps=steps, tokens=1, flops=1.0, seconds=1.0, cursors={}, loss=1.0, points=0)
    facts = {"owner": owner, "position": position, "leaves": (), "machine": {}, "resumed": ()}
    return seal.write_seal(state, facts)


def run(folder: Path, gigabytes: float, script: list = SCRIPT) -> tuple[Study, KeepingExecutor]:
    bench = Bench(folder / "study", config(len(script), execution={"checkpoint_gb": gigabytes}))
    executor = KeepingExecutor(bench.folder / "runs")
    return bench.run(script, executor=executor), executor


def present(study: Study) -> list[int]:
    """Experiments whose checkpoint is there."""
    found = []
    for experiment in study.history.experiments:
        kept = experiment.checkpointed
        if kept is not None and seal.sealed(checkpoint_folder(study.layout.runs, kept.identity)):
            found.append(experiment.number)
    return found


def test_the_first_run_of_each_experiment_keeps_its_state(tmp_path: Path):
    study, executor = run(tmp_path, 1)
    asked = [request.identity for request in executor.requests if request.keep_state]
    first = [experiment.runs[0].identity for experiment in study.history.experiments if experiment.runs]
    assert asked == first
    assert len(executor.requests) > len(asked)
    assert study.history.baseline.experiment.checkpointed.seed == 0


def test_kept_experiments_stay_and_the_oldest_others_go_first(tmp_path: Path):
    """Of the script, 1 and 6 are kept, 2 is discarded, and the others gave no run that came through."""
    study, _ = run(tmp_path, 1)
    assert [each.number for each in study.history.experiments if each.verdict is Verdict.KEEP] == [0, 1, 6]
    assert present(study) == [0, 1, 2, 6]
    assert check_states(study.layout.runs, study.history) == 4
    study, _ = run(tmp_path / "none", 0)
    assert present(study) == [0, 1, 6]
    assert check_states(study.layout.runs, study.history) == 3


@pytest.mark.parametrize(("fit", "gone"), [(7, []), (5, []), (4, [2]), (3, [2, 3]), (0, [2, 3, 4])])
def test_the_quota_holds_as_many_as_it_can(tmp_path: Path, fit: int, gone: list[int]):
    script = [gain(0.1), *(gain(-0.1 * each, hypothesis=f"worse {each}") for each in (1, 2, 3))]
    study, _ = run(tmp_path, 1, script)
    assert present(study) == [0, 1, 2, 3, 4]
    leftover = study.layout.runs / ("f" * 64) / "checkpoints"  # of a run that nobody speaks of any more
    leftover.mkdir(parents=True)
    (leftover / "array").write_bytes(os.urandom(SIZE))
    os.utime(leftover / "array", (1, 1))
    Shelf(study.layout.runs, (fit + 0.5) * SIZE).prune(study.history)
    assert leftover.exists() == (fit == 7)
    assert [number for number in range(5) if number not in present(study)] == gone


def test_what_is_not_decided_stays(tmp_path: Path):
    study, _ = run(tmp_path, 1)
    experiment = study.history.entries[2].experiment.model_copy(update={"verdict": None})
    history = study.history._changed(2, experiment=experiment)
    Shelf(study.layout.runs, 0).prune(history)
    assert present(study) == [0, 1, 2, 6]


def test_a_study_in_a_tournament_keeps_no_states(tmp_path: Path):
    """Its runs are those of all arms: what one prunes another might have kept."""
    bench = Bench(tmp_path / "study", config(1))
    bench.create().close()
    (bench.folder / "runs").rename(tmp_path / "runs")
    (bench.folder / "runs").symlink_to(tmp_path / "runs")
    executor = FakeExecutor()
    bench.run(SCRIPT, executor=executor)
    assert executor.requests
    assert not any(request.keep_state for request in executor.requests)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda state: (state / "array").write_bytes(b"x" + (state / "array").read_bytes()[1:]), "array was changed"),
        (lambda state: (state / "array").unlink(), "array is missing"),
        (lambda state: seal.clear(state.parent), "No such file or directory"),
        (lambda state: seal.write_seal(state, {**_facts(state), "leaves": ("f",)}), "another than the one"),
    ],
)
def test_a_change_of_a_kept_checkpoint_is_found(tmp_path: Path, harm, why: str):
    study, _ = run(tmp_path, 1)
    state = kept_state(study.layout.runs, study.history.experiments[6])
    harm(state)
    with pytest.raises(JaxresearchError, match="experiment 6, seed 0: its checkpoint is damaged: .*" + why):
        check_states(study.layout.runs, study.history)


def _facts(state: Path) -> dict:
    return {name: value for name, value in seal.read_seal(state) if name != "files"}


def test_a_checkpoint_that_is_not_there_is_explained(tmp_path: Path):
    study, _ = run(tmp_path, 0)
    runs, experiments = study.layout.runs, study.history.experiments
    with pytest.raises(JaxresearchError, match="checkpoint of experiment 2 was pruned"):
        kept_state(runs, experiments[2])
    with pytest.raises(JaxresearchError, match="Experiment 5 has no checkpoint: it has no run that came through"):
        kept_state(runs, experiments[5])
    seal.clear(kept_state(runs, experiments[6]).parent)
    with pytest.raises(JaxresearchError, match="checkpoint of experiment 6 is gone, or damaged"):
        kept_state(runs, experiments[6])
    old = Bench(tmp_path / "old", config(1)).run(SCRIPT)
    with pytest.raises(JaxresearchError, match="Experiment 1 has no checkpoint: its runs kept no state"):
        kept_state(old.layout.runs, old.history.experiments[1])


def test_ledgers_from_before_checkpoints_are_read(tmp_path: Path):
    study, _ = run(tmp_path, 1)
    for stored in study.events():
        payload = json.loads(encode(stored.event))
        if isinstance(stored.event, StudyCreated):
            del payload["config"]["execution"]["checkpoint_gb"], payload["config"]["execution"]["checkpoint_seconds"]
        if isinstance(stored.event, RunFinished):
            for name in ("checkpoint", "resumed", "checkpoint_note"):
                payload["outcome"].pop(name, None)
        decode(json.dumps(payload))

"""ablate: what matters stays, what does not is dropped, what others build on is said, and it can be cut short anywhere."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from fakes import Bench, Clock, FakeExecutor, config

from jaxresearch.errors import JaxresearchError
from jaxresearch.experiment import CompletedRun, Verdict
from jaxresearch.proposal import Candidate, Edit, Proposal
from jaxresearch.statistics.leaving_out import effect_of_leaving_out
from jaxresearch.statistics.noise import NoiseFloor
from jaxresearch.study.ablation import ablate, ablation_object
from jaxresearch.study.stopping import Interrupted, Stop
from jaxresearch.study.study import Study

FILES = {"models/recipe.py": "A = 0.0\nB = 0.0\nGAIN = 0.0\nMODE = 'fine'\n"}


class Sums(FakeExecutor):
    """Gains add up: a candidate's is A + B + 0.5 * (lr - 0.01)."""

    async def trace(self, candidate: Candidate):
        text = candidate.files["models/recipe.py"]
        total = sum(float(re.findall(rf"^{name} = (-?[\d.]+)", text, re.MULTILINE)[-1]) for name in "AB")
        text = re.sub(r"GAIN = [\d.]+", f"GAIN = {total}", text)
        return await super().trace(Candidate({"models/recipe.py": text}, candidate.config))


def edit(search: str, replace: str, parent: int, **config: float) -> Proposal:
    edits = (Edit(path="models/recipe.py", search=search, replace=replace),) if search else ()
    return Proposal(parent=parent, hypothesis=replace or str(config), edits=edits, config=dict(config))


SCRIPT = [
    edit("A = 0.0", "A = 0.1", 0),
    edit("", "", 1, lr=0.05),
    edit("B = 0.0", "B = 0.0\nC = 1", 2),
    edit("C = 1", "C = 2\nD = 1", 3),
    edit("B = 0.0", "B = 0.2", 4),
]
"""1 and 5 matter much and 2 a little; 3 and 4 do nothing, and 4 is built on 3. Only some are kept by the rule."""


def study_of(folder: Path, script: list[Proposal], executor: FakeExecutor | None = None) -> Study:
    bench = Bench(folder, config(len(script)))
    made = Study.create(
        bench.folder,
        bench.config,
        Candidate(FILES, {"lr": 0.01}),
        corpus="sha256:c",
        tokenizer="sha256:t",
        clock=Clock(),
    )
    made.close()
    return bench.run(script, executor=executor or Sums())


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """3 and 4 are not kept by the rule, so 5 stands on discarded parents, as a beam's does."""
    study = study_of(tmp_path / "study", SCRIPT)
    assert study.history.incumbent_number == 5
    assert study.history.entries[3].verdict is not Verdict.KEEP
    return study


def ablated(study: Study, executor: FakeExecutor | None = None, stop: Stop | None = None, **options) -> dict:
    def work(journal, workspace):
        return ablate(journal, workspace, executor or Sums(), stop or Stop(), **{"count": 5, **options})

    asyncio.run(study.beside(work))
    facts = ablation_object(study.history, "s")
    return json.loads(json.dumps(facts, allow_nan=False))


def test_what_does_not_matter_is_dropped_and_a_minimal_winner_is_left(study: Study):
    before = study.history
    facts = ablated(study)
    needed = {each["number"]: each["needed"] for each in facts["changes"]}
    assert needed == {1: True, 2: True, 3: False, 4: False, 5: True}
    assert facts["dropped"] == [3, 4]
    assert facts["conclusion"] == "3 of 5 changes are needed; 3, 4 do not matter beyond the noise."
    minimal = study.workspace.candidate(facts["minimal"]["commit"])
    assert minimal.files["models/recipe.py"] == "A = 0.1\nB = 0.2\nGAIN = 0.0\nMODE = 'fine'\n"
    assert minimal.config == {"lr": 0.05}
    left_out = {each["number"]: each["difference"] for each in facts["changes"]}
    assert left_out[1] == pytest.approx(0.1, abs=0.003)
    assert left_out[5] == pytest.approx(0.2, abs=0.003)
    assert facts["finished"]
    assert (study.history.experiments, study.history.costs) == (before.experiments, before.costs)
    assert study.verify() == study.history.seq


class Forging(Sums):
    """A candidate whose A is 0.9 gains that on the seeds of a search, and nothing elsewhere."""

    async def run(self, request, on_progress):
        outcome = await super().run(request, on_progress)
        if ":0.9:" not in request.program or request.seed <= 2:
            return outcome
        assert isinstance(outcome, CompletedRun)
        return outcome.model_copy(update={"val_bpb": outcome.val_bpb + 0.9})


def test_scores_that_did_not_hold_are_no_noise_to_hold_a_change_against(tmp_path: Path):
    study = study_of(tmp_path / "study", [edit("A = 0.0", "A = 0.9", 0), edit("B = 0.0", "B = 0.1", 0)], Forging())
    assert [entry.verdict for entry in study.history.contenders] == [Verdict.DISCARD, Verdict.KEEP]
    assert study.history.entries[1].quarantine is not None
    (change,) = ablated(study)["changes"]
    assert change["needed"], change["reason"]


def test_a_change_that_a_needed_one_builds_on_stays_and_the_reason_is_said(tmp_path: Path):
    script = [edit("A = 0.0", "A = 0.1\nC = 1", 0), edit("C = 1", "C = 2\nA = 0.3", 1)]
    facts = ablated(study_of(tmp_path / "study", script))
    assert [each["needed"] for each in facts["changes"]] == [True, True]
    assert "a later change builds on it" in facts["changes"][0]["reason"]
    assert facts["conclusion"] == "All 2 changes are needed."


def test_runs_are_on_fresh_seeds_paired_and_none_is_scored_on_the_test(study: Study):
    used = {run.seed for each in study.history.experiments for run in each.runs}
    executor = Sums()
    facts = ablated(study, executor, count=3)
    assert not set(facts["seeds"]) & used
    assert {request.split for request in executor.requests} == {"validation"}
    identities = [request.identity for request in executor.requests]
    assert len(identities) == len(set(identities)), "the whole winner runs once, not once for each change"


def test_again_shows_the_same_and_begins_another_only_when_asked(study: Study):
    first = ablated(study)
    executor = Sums()
    assert ablated(study, executor) == first
    assert executor.requests == []
    second = ablated(study, executor, again=True)
    assert second["trial"] == 2
    assert not set(second["seeds"]) & set(first["seeds"])


def test_cut_short_after_any_run_it_goes_on_to_the_same_end(study: Study, tmp_path: Path):
    class Stopping(Sums):
        async def run(self, request, on_progress):
            stop.request()
            return await super().run(request, on_progress)

    runs = 0
    while True:
        stop = Stop()
        executor = Stopping()
        try:
            facts = ablated(study, executor, stop, count=3)
            break
        except Interrupted:
            runs += len(executor.requests)
    whole = Sums()
    again = ablated(study, whole, count=3, again=True)
    assert runs + len(executor.requests) == len(whole.requests), "nothing ran twice"
    assert facts["dropped"] == again["dropped"]
    assert Study.open(study.layout.folder).history == study.history


def test_without_a_winner_there_is_nothing_to_ablate(tmp_path: Path):
    study = Bench(tmp_path / "study", config(0)).run([])
    with pytest.raises(JaxresearchError, match="Nothing was kept"):
        ablated(study)


def test_the_effect_is_the_paired_t_test_with_the_pooled_noise():
    noise = NoiseFloor(0.01, 10, 0, 1)
    worse = effect_of_leaving_out({0: 1.0, 1: 1.1}, {0: 1.05, 1: 1.15, 2: 9.0}, noise)
    assert worse is not None
    assert worse.difference == pytest.approx(0.05)
    assert (worse.pairs, worse.matters) == (2, True)
    assert worse.low == pytest.approx(0.05 - 2.228139 * 0.01 / 2**0.5)
    same = effect_of_leaving_out({0: 1.0, 1: 1.1}, {0: 1.005, 1: 1.105}, noise)
    assert same is not None
    assert not same.matters
    assert effect_of_leaving_out({0: 1.0}, {1: 1.0}, noise) is None

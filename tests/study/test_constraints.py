"""Constraints: what breaks one is discarded however good it is, before training where tracing tells."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fakes import Bench, FakeExecutor, Scripted, config, gain

from agents.digest import digest
from jaxresearch.execution.base import RunRequest, TracedCandidate, TraceFailure
from jaxresearch.experiment import CompletedRun, RunOutcome, Verdict
from jaxresearch.proposal import Candidate, Edit, Proposal
from jaxresearch.study.size import code_size


class Sized(FakeExecutor):
    """SIZE in the source is the candidate's parameters; MEMORY its peak memory; EVAL the seconds of its scoring."""

    async def trace(self, candidate: Candidate) -> TracedCandidate | TraceFailure:
        traced = await super().trace(candidate)
        text = candidate.files["models/recipe.py"]
        if isinstance(traced, TraceFailure):
            return traced
        flops = float(value(text, "FLOPS", 1e6))
        update = {
            "parameters": int(value(text, "SIZE", 1000)),
            "program_bytes": int(value(text, "BYTES", 5000)),
            "step_flops": (flops,),
        }
        self.texts[traced.program] = text
        return traced.model_copy(update=update)

    def __init__(self, **settings: float) -> None:
        super().__init__(**settings)
        self.texts: dict[str, str] = {}

    async def run(self, request: RunRequest, on_progress) -> RunOutcome:
        outcome = await super().run(request, on_progress)
        if not isinstance(outcome, CompletedRun):
            return outcome
        text = self.texts[request.program]
        return outcome.model_copy(
            update={
                "peak_memory_bytes": int(value(text, "MEMORY", 1000)),
                "eval_seconds": float(value(text, "EVAL", 1.0)),
            }
        )


def value(text: str, name: str, default: float) -> float:
    found = re.search(rf"{name} = ([\d.]+)", text)
    return float(found[1]) if found else default


def with_line(line: str, *, better_by: float = 0.1) -> Proposal:
    """A better candidate that also has another line."""
    edit = Edit(path="models/recipe.py", search="GAIN = 0.0", replace=f"GAIN = {better_by}\n{line}")
    return Proposal(parent=0, hypothesis=f"adds {line}", edits=(edit,))


CASES = {
    "parameters": ({"parameters": 2000}, "SIZE = 3000", True),
    "program_bytes": ({"program_bytes": 6000}, "BYTES = 7000", True),
    "lines_added": ({"lines_added": 2}, "A = 1\nB = 2", True),
    "peak_memory_bytes": ({"peak_memory_bytes": 2000}, "MEMORY = 3000", False),
    "evaluation_seconds": ({"evaluation_seconds": 1.5}, "EVAL = 2.0", False),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_better_score_that_breaks_a_constraint_is_discarded_with_that_reason(tmp_path: Path, name: str):
    constraints, line, static = CASES[name]
    executor, strategy = Sized(), Scripted([with_line(line), with_line("C = 1", better_by=0.2)])
    bench = Bench(tmp_path / "study", config(2, constraints=constraints))
    study = bench.run(executor=executor, strategy=strategy)
    broke, kept = study.history.entries[1:]
    assert broke.verdict is Verdict.DISCARD
    assert f"it breaks constraints.{name}: " in broke.experiment.reason
    assert kept.verdict is Verdict.KEEP
    assert bool(broke.experiment.runs) is not static
    if static:
        assert strategy.findings[0].startswith(f"It would be discarded: it breaks constraints.{name}")
    assert strategy.findings[1] is None


def test_the_strategy_and_its_model_are_told(tmp_path: Path):
    strategy = Scripted([gain(0.1)])
    Bench(tmp_path / "study", config(1, constraints={"parameters": 2000})).run(strategy=strategy)
    view = strategy.views[0]
    assert view.constraints == {"parameters": 2000}
    assert "Constraints: parameters at most 2,000. What breaks one is discarded" in digest(view, 0)


def test_a_baseline_that_breaks_one_says_so_and_only_what_keeps_to_it_is_kept(tmp_path: Path):
    shrink = with_line("SIZE = 400")
    study = Bench(tmp_path / "study", config(2, constraints={"parameters": 500})).run(
        [gain(0.2), shrink], executor=Sized()
    )
    assert "breaks constraints.parameters: 1,000, above 500" in study.history.baseline.experiment.reason
    assert [entry.verdict for entry in study.history.contenders] == [Verdict.DISCARD, Verdict.KEEP]


def test_lines_are_counted_without_comments_docstrings_and_layout():
    before = Candidate(files={"models/a.py": 'def f(x):\n    """Doc."""\n    # why\n    return x\n'})
    same = Candidate(files={"models/a.py": 'def f(x):\n\n    """Longer\n    doc."""\n\n    return  x  # so\n'})
    moved = Candidate(files={"models/b.py": "def f(x):\n        return x\n"})
    size = code_size(before, before)
    assert (size.lines, size.lines_added) == (2, 0)
    assert code_size(same, before).lines == 2
    assert code_size(same, before).tokens == size.tokens
    assert code_size(moved, before).lines_added == 0
    joined = Candidate(files={"models/a.py": "def f(x): return x\n"})
    assert code_size(joined, before).lines < size.lines
    assert code_size(joined, before).tokens == size.tokens


def test_what_is_no_python_has_a_size_too():
    broken = Candidate(files={"models/a.py": "def (:\n  '''\nx\n"})
    assert code_size(broken, Candidate(files={})).lines == 3

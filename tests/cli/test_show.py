"""`status`, `show` and the live lines on studies of fakes: what a person reads, at 80 columns."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent / "study"))

from fakes import SCRIPT, SUBJECT, Bench, FakeExecutor, FakeModel, Scripted, config, gain

from jaxresearch.cli.common import Output
from jaxresearch.cli.live import StudyDisplay
from jaxresearch.cli.show import audit_texts, print_study
from jaxresearch.errors import JaxresearchError
from jaxresearch.experiment import Audit, FailedRun, Verdict
from jaxresearch.proposal import Candidate
from jaxresearch.study.study import Study
from tests.cli.conftest import Result


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    made = Bench(tmp_path_factory.mktemp("show") / "study", config(len(SCRIPT)))
    made.run()
    return made


def drawn(study: Study, width: int = 80) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, no_color=True, color_system=None, highlight=False)
    print_study(console, study.history, Path("STUDY"))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_long_line_goes_on_below_its_text(bench: Bench):
    lines = drawn(bench.open(), width=60)
    (at,) = [index for index, line in enumerate(lines) if line.startswith("noise ")]
    assert len(lines[at]) <= 60
    assert lines[at + 1].startswith(" " * 11)
    assert lines[at + 1].strip()


def test_a_command_that_is_long_keeps_what_it_is_for_beside_it(bench: Bench):
    lines = drawn(bench.open(), width=50)
    (at,) = [index for index, line in enumerate(lines) if line.startswith("jaxresearch confirm")]
    start = lines[at].index("whether")
    assert len(lines[at]) <= 50
    assert lines[at + 1].startswith(" " * start)
    assert lines[at + 1].strip()


def test_show_says_first_why_and_on_what_it_stands(command: Callable[..., Result], bench: Bench):
    kept = command("show", bench.folder, 6).stdout.splitlines()
    assert [line.split(":")[0] for line in kept[:4]] == ["experiment", "val_bpb", "verdict", "because"]
    (below,) = [line for line in kept if line.startswith("stands on:")]
    assert below.split(maxsplit=2)[2].startswith("1 (-0.")


def test_audits_are_summed_up_and_a_failed_one_names_its_seed():
    fine = Audit(name="causality", passed=True, probes=4, max_deviation=0.0)
    fair = Audit(name="causality", passed=True, probes=20, max_deviation=0.5, detail="by gain")
    leak = Audit(name="causality", passed=False, probes=9, max_deviation=2.0)
    runs = [
        FailedRun(identity=str(seed), verdict=Verdict.INVALID, reason="", seed=seed, audits=audits)
        for seed, audits in enumerate([(fine,), (fine, fair), (leak,)])
    ]
    assert list(audit_texts(runs)) == [
        "causality passed 3 of 4, 28 probes, largest deviation 0.5. seed 1: by gain",
        "causality FAILED on seed 2, 9 probes, deviation 2",
    ]


def test_runs_of_the_incumbent_beside_a_contender_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bench = Bench(tmp_path / "study", config(1))
    with StudyDisplay(Output(as_json=False, quiet=False)) as display:
        history = bench.run([gain(0.002)], reporter=display).history
    more = len(history.baseline.experiment.runs) - 3
    lines = capsys.readouterr().err.splitlines()
    beside = [line for line in lines if line.endswith("(experiment 0, to compare with)")]
    assert len(beside) == more > 0
    assert lines.index(beside[0]) > next(at for at, line in enumerate(lines) if line.startswith("   1  "))


def test_a_study_whose_baseline_failed_is_not_to_be_resumed(command: Callable[..., Result], tmp_path: Path):
    broken = Candidate({"models/recipe.py": SUBJECT.files["models/recipe.py"].replace("fine", "syntax")})
    study = Study.create(tmp_path / "study", config(2), broken, corpus="c", tokenizer="t")
    with pytest.raises(JaxresearchError, match="start a new study"):
        asyncio.run(study.run(FakeExecutor(), Scripted([gain(0.1)]), FakeModel))
    study.close()
    shown = command("status", tmp_path / "study").stdout
    assert "The baseline gave no score" in shown
    assert "jaxresearch resume" not in shown
    assert shown.splitlines()[1].split() == ["0", "-", "0", "crash", "baseline"]

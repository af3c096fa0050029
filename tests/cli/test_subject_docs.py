"""docs/subjects.md, verbatim: its subject as somebody's folder, then as somebody's installed package."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from jaxresearch.cli import common
from jaxresearch.cli.common import Output
from jaxresearch.report.build import read_record
from tests.cli.conftest import Result
from tests.cli.test_docs_commands import lines_of
from tests.laboratory import ROOT

PAGE = ROOT / "docs/subjects.md"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the page's files in it."""
    for name, text in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def settings(config_file: Path, tmp_path: Path) -> Path:
    """The tiny laboratory, with small values of the page's own hyperparameters."""
    facts = yaml.safe_load(config_file.read_text())
    facts["subject"]["hyperparameters"] = {"width": 16, "depth": 1, "batch": 4}
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(facts))
    return path


def test_the_folder_trains_and_runs_a_study(desk: Path, settings: Path, command: Callable[..., Result]):
    train, run, show = (line.ours for line in list(lines_of(PAGE))[:3])
    trained = command(*train, "--config", settings, "--json")
    assert trained.status == 0, trained.stderr
    assert trained.json["steps"] == 20
    assert trained.json["val_bpb"] > 0
    ran = command(*run, "--config", settings, "--experiments", "1", "--quiet")
    assert ran.status == 0, ran.stderr
    record = read_record(desk / "studies/recurrence")
    assert record.experiments[1].verdict in ("keep", "discard")
    totals = {audit.name: (audit.passed, audit.failed) for audit in record.integrity.audits}
    assert totals.keys() >= {"causality", "batch independence"}
    assert all(passed >= 1 and failed == 0 for passed, failed in totals.values())
    assert totals["causality"][0] >= 4
    assert "baseline" in command(*show).stdout


def test_a_wrong_hyperparameter_is_one_line(desk: Path, settings: Path, command: Callable[..., Result]):
    result = command(
        "train", "--config", settings, "--set", "subject.source=recurrence", "--set", "subject.hyperparameters.heads=2"
    )
    assert result.status == 2
    assert "heads: no such hyperparameter; there are vocab_size," in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("machine", ["cpu", "gpu", "tpu"])
def test_a_default_file_s_hyperparameters_are_of_its_own_subject(
    machine: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    default = common.configs_folder() / f"{machine}.yaml"
    monkeypatch.setattr(common, "default_config_file", lambda: default)
    ours, other, output = (), ("subject.source=recurrence",), Output(as_json=False, quiet=False)
    its_own = yaml.safe_load(default.read_text())["subject"]["hyperparameters"]
    assert common.make_config(None, ours, output).subject.hyperparameters == its_own
    assert capsys.readouterr().err == ""
    assert common.make_config(None, other, output).subject.hyperparameters == {}
    assert f"recurrence begins with its own hyperparameters; those in {machine}.yaml" in capsys.readouterr().err
    asked = common.make_config(None, (*other, "subject.hyperparameters.width=16"))
    assert asked.subject.hyperparameters == {"width": 16}
    assert asked.budget == common.make_config(None, ours).budget
    assert common.make_config(default, other, output).subject.hyperparameters == its_own  # somebody asked for the file
    assert capsys.readouterr().err == ""


def test_a_tournament_of_another_subject_sets_and_searches_its_own_hyperparameters():
    ours = common.make_tournament_config(None, ())
    assert ours.subject.hyperparameters == {"batch": 8, "pass_size": 262144}
    assert "mlp_ratio" in ours.tournament.options["random_search"]["names"]
    other = common.make_tournament_config(None, ("subject.source=recurrence",))
    assert (other.subject.hyperparameters, other.tournament.options) == ({}, {})
    assert other.tournament.flops == ours.tournament.flops


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_who_goes_on_from_a_winner_is_not_held_to_a_default_file(machine: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(common, "default_config_file", lambda: common.configs_folder() / f"{machine}.yaml")
    assert common.make_config(None, (), continues=True).subject.hyperparameters == {}
    asked = common.make_config(None, ("subject.hyperparameters.batch=4",), continues=True)
    assert asked.subject.hyperparameters == {"batch": 4}, "that is refused where it is not the winner's"


def test_the_installed_package_has_a_name(desk: Path, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch):
    from jaxresearch.subjects import load_subject

    project = tomllib.loads((desk / "pyproject.toml").read_text())["project"]
    metadata = desk / f"{project['name']}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    points = project["entry-points"]["jaxresearch.subjects"]
    (metadata / "entry_points.txt").write_text(
        "[jaxresearch.subjects]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
    )
    monkeypatch.syspath_prepend(desk)
    monkeypatch.chdir("/")
    listed = {row["name"]: row for row in command("subjects", "--json").json["subjects"]}
    assert listed["recurrence"]["summary"] == "A gated linear recurrence: no attention."
    assert "models/recipe.py" in load_subject("recurrence", {}).files

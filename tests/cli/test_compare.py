"""`compare` on the command line: two copies of one strategy, tiny, stopped by nothing and shown again."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from jaxresearch.cli.compare import print_tournament
from tests.cli.conftest import Result
from tests.laboratory import ROOT


def test_two_copies_of_a_strategy_show_no_difference_and_a_whole_tournament_is_shown_again(
    command: Callable[..., Result], config_file: Path, tmp_path: Path, monkeypatch
):
    options = ["--strategy", "greedy", "--strategy", "greedy", "--no-controls", "--repeats", 2, "--experiments", 1]
    options += ["--set", "tournament.final_seeds=1", "--set", "acceptance.runs=2", "--tournament", tmp_path / "t"]
    first = command("compare", "--config", config_file, *options, "--json")
    assert first.status == 0, first.stderr
    facts = first.json
    assert [arm["name"] for arm in facts["strategies"]] == ["greedy", "greedy-2"]
    assert facts["conclusion"] == "No difference: the arms ended alike in every repeat."
    assert facts["warning"].startswith("With 2 repeats the smallest possible p-value is")
    one, two = ({k: v for k, v in arm.items() if k != "name"} for arm in facts["strategies"])
    assert one == two, "runs, seconds and dollars are charged to each alike"
    assert one["repair_rate"] is not None
    assert one["calibration"]["predictions"] > 0

    again = command("compare", "--tournament", tmp_path / "t", "--json")  # its folder says the rest
    assert again.json == facts
    assert "val_bpb" not in again.stderr, "nothing ran"

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tournament_table

    page = tournament_table.document(facts, "jaxresearch compare ...", "A tournament", "On a quiet machine.")
    assert f"**{facts['conclusion']}**" in page
    assert f"{one['best_val_bpb']['mean']:.4f}" in page
    assert page.count("| greedy-2 |") == 2
    sys.modules.pop("tournament_table")


def test_the_example_of_the_docs_fits_80_columns_whole():
    facts = json.loads((ROOT / "docs/tournament/result.json").read_text())
    out = io.StringIO()
    print_tournament(Console(file=out, width=80, highlight=False), facts)
    shown = out.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for arm in facts["strategies"]:
        found = arm["best_val_bpb"]
        assert f"{found['low']:.4f} to {found['high']:.4f}" in shown
        assert f"\n{arm['name']} " in shown
    for each in facts["pairwise"]:
        assert f"{each['a']} against {each['b']}" in shown
        assert f"{each['low']:+.4f} to {each['high']:+.4f}" in shown


def test_settings_that_cannot_be_compared_are_usage_errors(command: Callable[..., Result], config_file: Path):
    one = command("compare", "--config", config_file, "--strategy", "greedy", "--no-controls")
    assert (one.status, len(one.stderr.strip().splitlines())) == (2, 1)
    both = command("compare", "--config", config_file, "--strategy", "greedy", "--flops", 1, "--accelerator-seconds", 1)
    assert both.status == 2
    assert "one budget binds" in both.stderr


def test_a_budget_that_is_given_stands_in_for_that_of_the_default_file(command: Callable[..., Result]):
    for option in ("--accelerator-seconds", "--flops"):
        one = command("compare", "--strategy", "greedy", "--no-controls", option, 60)
        assert "one arm has nothing to be compared with" in one.stderr, "not: one budget binds"


def test_a_folder_without_a_tournament_begins_none(command: Callable[..., Result], tmp_path: Path):
    mistyped = command("compare", "--tournament", tmp_path / "mine")
    assert (mistyped.status, len(mistyped.stderr.strip().splitlines())) == (1, 1)
    assert "mine holds no tournament" in mistyped.stderr
    assert not (tmp_path / "mine").exists()

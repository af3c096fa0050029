"""Every attack that docs/integrity.md lists has a test that is there; none of the attacks that must be is missing."""

from __future__ import annotations

import ast
import re

import pytest

from tests.laboratory import ROOT

ROW = re.compile(r"\| (?P<attacks>[^|]+) \| (?P<defence>[^|]+) \| `(?P<file>[\w/]+\.py)::(?P<test>\w+)` \|")
ROWS = [match.groupdict() for match in ROW.finditer((ROOT / "docs/integrity.md").read_text())]
EXPECTED = """
print-score monkeypatch block-summary chunk-recurrence future-peek batch-peek nan-logits inf-logits huge-logits
seed-shopping baked-constants loop-flops giant-step compile-time-compute no-train
env-steal home-read data-read tcp udp dns unix-socket fork-bomb setsid-orphan hang-trace hang-step memory-bomb disk-fill
log-flood ptrace kill-parent symlink-artifact path-traversal pickle-artifact cache-poison stdlib-shadow custom-call
edit-the-judge prompt-inject ansi-bidi html-inject key-in-log
kill-driver kill-worker kill-sandbox disk-full damaged-artefact two-drivers clock-jump changed-corpus sigint
""".split()


def test_every_attack_has_a_row():
    named = {name.strip() for row in ROWS for name in row["attacks"].split(",")}
    assert set(EXPECTED) - named == set()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["attacks"])
def test_the_test_of_a_row_is_there(row):
    tree = ast.parse((ROOT / "tests" / row["file"]).read_text())
    assert row["test"] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}

"""The benchmark of a long study runs, and what it counts does not grow where it must not."""

from __future__ import annotations

from benchmarks.long_study import grow
from jaxresearch.study.events import encode
from jaxresearch.study.ledger import Ledger


def test_the_prompt_of_a_real_study_stays_bounded_and_tools_read_a_line_for_each_experiment(tmp_path):
    early, late = grow(tmp_path / "study", "greedy", 24, parts=2)
    assert (early["experiment"], late["experiment"]) == (12, 24)
    # Ten experiments and up to five near misses are shown at either time; twelve more lines would be 3,600 characters.
    assert late["prompt"] < early["prompt"] + 2500
    assert late["request"] - late["prompt"] < early["request"] - early["prompt"] + 12 * 500
    assert late["recorded"] <= late["prompt"] + 2 * late["request"], "two requests, one more if refused"
    assert late["ledger_mb"] > early["ledger_mb"] > 0
    ledger = Ledger.open(tmp_path / "study" / "ledger.sqlite", read_only=True)
    (kept,) = ledger._connection.execute("SELECT SUM(LENGTH(payload)) FROM events").fetchone()
    assert kept < 0.4 * sum(len(encode(stored.event)) for stored in ledger.read())
    ledger.close()

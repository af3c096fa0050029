"""Honest edits are not called cheats: a sample of what `benchmarks/audits.py` measures over all and several seeds."""

from __future__ import annotations

import pytest

from agents.library import LIBRARY
from jaxresearch.experiment import CompletedRun
from jaxresearch.proposal import Proposal, apply
from tests.laboratory import BASELINE, Laboratory

SAMPLE = LIBRARY[:: max(1, len(LIBRARY) // 3)][:3]


@pytest.fixture(scope="module")
def reference(laboratory: Laboratory, baseline) -> CompletedRun:
    run = laboratory.run(baseline, seed=7)
    assert isinstance(run, CompletedRun)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("config", [{}, {"dtype": "bfloat16"}], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("idea", SAMPLE, ids=lambda idea: idea.tag)
def test_an_honest_edit_raises_no_alarm(laboratory: Laboratory, reference, idea, config):
    edits = tuple(idea.edits(BASELINE.files) or ())
    candidate = apply(Proposal(parent=0, hypothesis=idea.hypothesis, edits=edits, config=config), BASELINE)
    run = laboratory.run(laboratory.traced(candidate), seed=7, budget="40steps", reference=reference.identity)
    assert isinstance(run, CompletedRun), run
    assert len(run.audits) == 5, "it claims a gain, so the strong audits were made"
    assert all(audit.max_deviation == 0 for audit in run.audits)

"""What a run does about checkpoints before it begins, and what it says of errors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from jaxresearch.execution import running
from jaxresearch.execution.base import RunRequest
from jaxresearch.experiment import FailedRun, Verdict


@pytest.mark.parametrize(("seconds", "keeps", "noted"), [(60.0, False, True), (None, True, True), (None, False, False)])
def test_without_a_common_folder_a_run_is_done_without_checkpoints_and_its_record_says_so(
    monkeypatch: pytest.MonkeyPatch, seconds, keeps, noted
):
    """Where none is wanted nobody is asked, for that makes all hosts wait for each other."""
    asked, given = [], []
    host = SimpleNamespace(
        settings=SimpleNamespace(checkpoint_seconds=seconds), runs_are_common=lambda: bool(asked.append(1))
    )

    def run(_, request, checkpoints):
        given.append(checkpoints)
        return FailedRun(identity=request.identity, verdict=Verdict.CRASH, reason="played", seed=0)

    monkeypatch.setattr(running, "_run", run)
    request = RunRequest(
        identity="i", program="p", traced={}, seed=0, budget="1steps", wall_cap_seconds=1.0, keep_state=keeps
    )
    outcome = running.run_program(host, request)
    assert given == [None]
    assert bool(asked) == noted
    assert outcome.checkpoint_note.startswith("no checkpoints: not all hosts see the study's folder") == noted


@pytest.mark.parametrize(
    "said",
    [
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.",
        "INTERNAL: CUDA error: out of memory (4.2 GiB)\n at line 3",
    ],
)
def test_memory_that_runs_out_is_a_crash_that_says_so_with_sizes(said):
    verdict, reason = running._judge_runtime_error(RuntimeError(said), "training")
    assert verdict is Verdict.CRASH
    assert reason.startswith("out of memory while training: ")
    assert "17179869184 bytes" in reason or "4.2 GiB" in reason
    other = running._judge_runtime_error(RuntimeError("INTERNAL: no"), "scoring")
    assert other == (Verdict.CRASH, "RuntimeError while scoring: INTERNAL: no")

"""One run over several devices: the same score within float tolerance, whatever the mesh."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from jaxresearch.errors import JaxresearchError
from jaxresearch.experiment import CompletedRun
from tests.laboratory import BASELINE, Laboratory

HYPERPARAMETERS = {"depth": 1, "width": 32, "head_size": 16, "batch": 8}


@pytest.fixture(scope="module")
def score(make_laboratory: Callable[..., Laboratory], monkeypatch_module: pytest.MonkeyPatch):
    """val_bpb over a mesh of `devices`, `fsdp` of which hold one state."""

    def run(devices: int, fsdp: int | None) -> CompletedRun:
        laboratory = make_laboratory(
            execution={"devices": devices, "fsdp": fsdp},
            subject={"hyperparameters": HYPERPARAMETERS},
            evaluation={"tokens": 2048, "batch": 8},
        )
        candidate = type(BASELINE)(files=BASELINE.files, config=HYPERPARAMETERS)
        outcome = laboratory.run(laboratory.traced(candidate))
        assert isinstance(outcome, CompletedRun), outcome
        laboratory.close()
        return outcome

    return run


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        yield patch


def test_more_devices_than_there_are_is_one_line(make_laboratory: Callable[..., Laboratory], monkeypatch):
    """Fake ones are made only where jax is told to use the CPU."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    laboratory = make_laboratory(execution={"devices": 99})
    with pytest.raises(JaxresearchError) as caught:
        laboratory.traced(BASELINE)
    line = r"the worker did not start: execution\.devices: 99 were asked for and jax sees \d+ of platform \w+\."
    assert re.fullmatch(line, caught.value.message)


@pytest.mark.slow
def test_eight_devices_agree_with_one(score: Callable[..., CompletedRun]):
    """Data parallel, fully sharded, and 4 x 2."""
    alone = score(1, None)
    assert alone.devices == 1
    for devices, fsdp in ((8, None), (8, 8), (8, 2)):
        spread = score(devices, fsdp)
        assert spread.devices == 8
        assert spread.program == alone.program
        assert spread.val_bpb == pytest.approx(alone.val_bpb, abs=2e-4), (devices, fsdp)
        assert all(audit.passed for audit in spread.audits)

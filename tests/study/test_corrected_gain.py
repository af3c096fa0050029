"""What is left of a gain when it is corrected for having been chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import Bench, Scripted, config
from test_simplicity import Steady, sizes

from jaxresearch.experiment import Verdict
from jaxresearch.study.evidence import study_pair_noise
from jaxresearch.study.selection import corrected_gain_bpb, gain_bpb
from jaxresearch.study.study import Study
from jaxresearch.study.summary import status_object


def run(tmp_path: Path, *gains: float, **settings) -> Study:
    bench = Bench(tmp_path / "study", config(len(gains), **settings))
    script = sizes(*((1000, gain) for gain in gains))
    return bench.run(strategy=Scripted(script, checks=False), executor=Steady())


def test_gains_far_out_of_the_noise_are_left_and_small_ones_less(tmp_path: Path):
    """The noise between pairs is 0.0003."""
    study = run(tmp_path, 0.02, 0.0205, 0.0202, 0.0198, 0.0204)
    kept = [entry.number for entry in study.history.contenders if entry.verdict is Verdict.KEEP]
    assert kept[0] == 1
    gain, left = gain_bpb(study.history), corrected_gain_bpb(study.history)
    assert gain is not None
    assert left is not None
    assert 0.019 < left < gain
    assert (status := status_object(study.history, "study"))["gain"] == pytest.approx(gain)
    assert status["gain_corrected"] == pytest.approx(left)


def test_without_a_keep_there_is_no_gain(tmp_path: Path):
    study = run(tmp_path, -0.01)
    assert study.history.incumbent_number == 0
    assert gain_bpb(study.history) is None
    assert corrected_gain_bpb(study.history) is None


def test_under_greedy_which_replicates_nothing_lucky_keeps_are_corrected_too(tmp_path: Path):
    """Between seeds it is 0.01 or so: a gain of 0.002 that was the best of five is hardly one."""
    study = run(tmp_path, 0.001, -0.002, 0.002, -0.001, 0.0005, acceptance={"rule": "greedy"})
    assert study_pair_noise(study.history) is None
    gain, left = gain_bpb(study.history), corrected_gain_bpb(study.history)
    assert gain is not None
    assert left is not None
    assert 0 <= left < 0.3 * gain

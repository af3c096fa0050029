import pytest

from jaxresearch.execution.utilisation import model_flops_utilisation


def test_the_share_of_the_peak_of_all_devices():
    assert model_flops_utilisation("NVIDIA H100 80GB HBM3", 1, 989e12, 2.0) == pytest.approx(0.5)
    assert model_flops_utilisation("TPU v5e", 4, 197e12, 1.0) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("device", "flops", "seconds"), [("cpu", 1e12, 1.0), ("TPU v4", 0.0, 1.0), ("TPU v4", 1.0, 0.0)]
)
def test_unknown_peaks_and_uncounted_flops_have_none(device, flops, seconds):
    assert model_flops_utilisation(device, 1, flops, seconds) is None

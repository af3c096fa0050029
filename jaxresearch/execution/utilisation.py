"""Model FLOPs utilisation (MFU): FLOPs of a run's training against what its devices could have done in that time."""

from __future__ import annotations

PEAK_FLOPS_PER_SECOND = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}
"""bfloat16, dense, of one device, by `device_kind` as JAX gives it; the same for programs in float32.

Sources: NVIDIA's data sheets of the A100, the H100 (the SXM module, which calls itself HBM3; sheets give twice the figure,
with sparsity) and the H200; Google Cloud's pages on the architecture of TPU v4, v5e, v5p and v6e.
"""


def model_flops_utilisation(device: str, devices: int, flops: float, seconds: float) -> float | None:
    """Share of the peak, in [0, 1]; None where the peak is unknown, or the FLOPs are (0).

    flops: as they are counted for budgets (jaxresearch.program.flops), so elementwise operations and the optimizer are
    among them: some percent more than the usual 6 x parameters x tokens + attention.
    """
    peak = PEAK_FLOPS_PER_SECOND.get(device)
    if peak is None or not flops or not seconds:
        return None
    return flops / (seconds * devices * peak)

"""Hints: what published runs of this recipe, and arithmetic about a short budget, say about its hyperparameters."""

from __future__ import annotations

from agents.library._base import Hint, RunSize

HINTS: dict[str, Hint] = {
    # autoresearch's first kept change, and its second: a small budget wants many steps, and depth before width
    "batch": Hint(-1, 0.6, "half the batch takes twice the steps through as much text"),
    "depth": Hint(+1, 0.55, "depth helped most in autoresearch's published run"),
    "width": Hint(+1, 0.3, "a wider model learns more from each token"),
    "mlp_ratio": Hint(+1, 0.25, "more hidden units cost little here"),
    "head_size": Hint(0, 0.25, "more, smaller heads may attend to more places"),
    "queries_per_kv": Hint(+1, 0.1, "shared keys and values are cheaper under a FLOP budget"),
    "value_embeddings": Hint(0, 0.1, "simpler at an equal score would be a win"),
    "window_pattern": Hint(0, 0.2, "the last layer sees everything in any case", values=("SSSSL", "SL", "L")),
    "short_window": Hint(-1, 0.25, "autoresearch kept a window of an eighth: short ones are cheap and local"),
    "softcap": Hint(0, 0.15, "a cap far from the logits' size does nothing, a near one slows learning"),
    "rope_base": Hint(0, 0.2, "the context is short, so the longest wavelengths never turn"),
    "embedding_std": Hint(0, 0.15, "normalised at once, so this sets the embedding's relative learning rate"),
    "head_std": Hint(0, 0.1, "the head learns its scale in a few steps"),
    "matrix_init": Hint(-1, 0.25, "autoresearch kept a scale of 0.68"),
    "resid_init": Hint(0, 0.15, "weights the stream against each block's output"),
    "x0_init": Hint(-1, 0.2, "autoresearch kept 0.05"),
    "matrix_lr": Hint(+1, 0.45, "a run of few steps wants larger ones"),
    "embedding_lr": Hint(+1, 0.4, "autoresearch kept 0.8, then 0.9"),
    "head_lr": Hint(+1, 0.35, "autoresearch kept 0.005"),
    "scalar_lr": Hint(0, 0.2, "the residual scalars hardly move in a short run"),
    "x0_lr": Hint(0, 0.15, "fast enough to be noisy"),
    "warmup": Hint(+1, 0.15, "the first steps are the noisiest"),
    "warmdown": Hint(0, 0.35, "the share of the run that decays trades progress against precision"),
    "final_lr_fraction": Hint(+1, 0.2, "autoresearch kept 5 %"),
    "momentum_warmup": Hint(-1, 0.25, "autoresearch kept a shorter one"),
    "momentum_start": Hint(0, 0.2, "low while gradients go stale quickly"),
    "momentum_end": Hint(0, 0.2, "a memory of 20 steps is long in a short run"),
    "normuon_beta2": Hint(0, 0.1, "how long row sizes are remembered"),
    "adam_beta1": Hint(0, 0.2, "embedding gradients are sparse"),
    "adam_beta2": Hint(+1, 0.25, "rare tokens want a longer memory of their gradients' size"),
    "x0_beta1": Hint(0, 0.1, "smooths the x0 scalars"),
    "weight_decay": Hint(-1, 0.25, "a short run on fresh text can hardly overfit"),
    "embedding_decay": Hint(+1, 0.15, "autoresearch kept 0.001"),
    "value_embedding_decay": Hint(+1, 0.2, "autoresearch kept 0.003"),
    "head_decay": Hint(+1, 0.15, "autoresearch kept 0.01"),
    "dtype": Hint(0, 0.02, "cheaper on accelerators; slower on most CPUs"),
}

_SIZES = {"depth": 0.7, "width": 0.7, "mlp_ratio": 0.55}
_STEPS_BIND = Hint(+1, 0.6, "steps are what is given, and a larger batch reads more in each")


def hint(name: str, size: RunSize | None = None) -> Hint:
    """What is known beforehand about hyperparameter `name`, in a run of this size if that is known."""
    if size is not None and size.unit == "steps" and name == "batch":
        return _STEPS_BIND
    if size is not None and size.is_starved and name in _SIZES:
        why = f"{size.tokens / size.parameters:.2g} tokens a parameter, of about 20: a smaller model reads more"
        return Hint(-1, _SIZES[name], why, halves=True)
    return HINTS.get(name, Hint())

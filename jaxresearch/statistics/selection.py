"""Selection: what is left of measured effects when the best of many were chosen for being measured well.

Adaptive shrinkage (M. Stephens, "False discovery rates: a new deal", Biostatistics 18, 2017). True effects are taken to be
a mixture of nothing and of normals about zero, narrow to wide; its weights are learned from all effects of the study (EM).
A measured effect is then drawn towards zero as far as its like are: one that others have by chance nearly the whole way,
one that stands far out of the noise hardly at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_STEP = 2**0.5
_WEIGHT_ON_NOTHING = 10.0
"""The prior's, in effects; as Stephens has it, on the careful side."""
_ROUNDS = 500


def shrink(effects: Sequence[float], errors: Sequence[float]) -> list[float]:
    """Posterior means of true effects.

    effects: as measured, in any unit. errors: their standard errors in that unit, above zero. Both of one length.
    """
    if not effects:
        return []
    found, variances = np.asarray(effects, dtype=float), np.asarray(errors, dtype=float) ** 2
    widths = _widths(found, variances)
    spreads = variances[:, None] + widths**2  # of each measured effect, under each part of the mixture
    logs = -0.5 * (np.log(spreads) + found[:, None] ** 2 / spreads)
    likelihood = np.exp(logs - logs.max(axis=1, keepdims=True))
    prior = np.ones(len(widths))
    prior[0] = _WEIGHT_ON_NOTHING
    weights = prior / prior.sum()
    for _ in range(_ROUNDS):
        shares = likelihood * weights
        shares /= shares.sum(axis=1, keepdims=True)
        weights = shares.sum(axis=0) + prior - 1
        weights /= weights.sum()
    shares = likelihood * weights
    shares /= shares.sum(axis=1, keepdims=True)
    return [float(each) for each in np.sum(shares * (widths**2 / spreads), axis=1) * found]


def _widths(effects: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Deviations of the mixture's parts: nothing, then from a tenth of the smallest error to the largest effect."""
    least = float(np.sqrt(variances.min())) / 10
    most = max(2 * float(np.sqrt(max(0.0, (effects**2 - variances).max()))), 8 * least)
    count = int(np.ceil(np.log(most / least) / np.log(_STEP))) + 1
    return np.concatenate([[0.0], least * _STEP ** np.arange(count)])

"""Early stopping: a contender's first run is cut once it is hopelessly behind the incumbent's at the same progress.

Both are scored by the laboratory on the same few rows when so much of the budget is spent (the probes), so that neither
a loss of another kind nor another batch size makes them differ. Schedules do: a run whose learning rate falls late is
behind in the middle and catches up. The rule asks for much more than being behind.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

CHECKPOINTS = (0.3, 0.45, 0.6, 0.75)
"""Shares of the budget after which a run is probed. Before the first nothing is judged."""
MARGIN = 1.0
"""To catch up from beyond the limit a run must improve 1 + MARGIN times as much as the incumbent did from there on."""
DEVIATIONS = 3.0
"""Standard deviations between seeds that are granted on top."""

Curve = Sequence[tuple[float, float]]
"""(checkpoint, bits per byte on the probe's rows), ascending; the last is at 1, the end of the run."""


def limits(reference: Curve, curves: Sequence[Curve]) -> tuple[tuple[float, float], ...]:
    """(checkpoint, bits per byte): above this a run with the reference's seed is cut there.

    reference: of the incumbent's run with that seed. curves: of all its runs, for the noise between seeds. At
    checkpoint p the limit is

        reference(p) + MARGIN * (reference(p) - reference(1)) + DEVIATIONS * sd

    sd: between seeds, pooled over the checkpoints. Empty while there are not two curves to see the noise by, or the
    reference has no end. Constants: see `benchmarks/early_stopping.py`.
    """
    of_seeds = [dict(curve) for curve in curves]
    points = dict(reference)
    groups = [
        [curve[at] for curve in of_seeds if at in curve] for at in points if at < 1.0 and math.isfinite(points[at])
    ]
    variances = [statistics.variance(group) for group in groups if len(group) >= 2]
    if not variances or 1.0 not in points:
        return ()
    noise = DEVIATIONS * math.sqrt(statistics.fmean(variances))
    return tuple(
        (at, value + MARGIN * max(0.0, value - points[1.0]) + noise) for at, value in points.items() if at < 1.0
    )


def cut_at(curve: Curve, above: Sequence[tuple[float, float]]) -> float | None:
    """The checkpoint at which a run with `curve` is cut under these limits; None when it is let run."""
    allowed = dict(above)
    return next((at for at, value in curve if at in allowed and value > allowed[at]), None)

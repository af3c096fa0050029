"""Figures for a paper: the progress chart as SVG, PNG or PDF, drawn by matplotlib from the study's record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxresearch.errors import JaxresearchError
from jaxresearch.experiment import Verdict
from jaxresearch.report.record import ExperimentRecord, StudyRecord
from jaxresearch.text import one_line

FORMATS = (".svg", ".png", ".pdf")
MOST_LABELS = 12
KEEP, DISCARD, FAILED = "#00795a", "#76828e", "#b84a00"
"""From the page's palette; they differ in lightness too, and the markers differ in shape."""

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxresearch",
    "pdf.fonttype": 42,
    "text.parse_math": False,
}


def check_figure(path: Path) -> None:
    """Raise `JaxresearchError` when no figure can be written under that name."""
    if path.suffix.lower() not in FORMATS:
        raise JaxresearchError(f"--figure: {path} has no format.", fix=f"End its name in {', '.join(FORMATS)}.")


def write_progress(record: StudyRecord, path: Path) -> None:
    """Draw every experiment, the running best with the noise band, and labelled keeps into `path`.

    Equal records give equal files.
    """
    check_figure(path)
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.5, 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure.add_subplot(), record)
        dateless = {"Date": None} if path.suffix.lower() == ".svg" else {}
        if path.suffix.lower() == ".pdf":
            dateless = {"CreationDate": None}
        try:
            figure.savefig(path, dpi=200, metadata=dateless)
        except OSError as error:
            raise JaxresearchError(f"--figure: {path} cannot be written: {error.strerror}.") from None


def _draw(axes: Any, record: StudyRecord) -> None:
    scored = [each for each in record.experiments if each.val_bpb is not None]
    kept = [each for each in scored if each.verdict is Verdict.KEEP]
    axes.set(xlabel="experiment", ylabel="validation bits per byte")
    if not kept:
        axes.text(0.5, 0.5, "the baseline has no score yet", transform=axes.transAxes, ha="center")
        return
    last = max(1, len(record.experiments) - 1)
    xs = [*(each.number for each in kept), last]
    best = [*(each.val_bpb or 0.0 for each in kept), kept[-1].val_bpb or 0.0]
    sd = (record.noise.sd_bpb or 0.0) if record.noise is not None else 0.0
    if sd:
        low, high = [y - 2 * sd for y in best], [y + 2 * sd for y in best]
        axes.fill_between(xs, low, high, step="post", color=KEEP, alpha=0.14, linewidth=0, label="± 2 sd between seeds")
    axes.step(xs, best, where="post", color=KEEP, linewidth=1.2, label="best so far")
    low, high = _range(best, sd, max(each.val_bpb or 0.0 for each in scored))
    others = [each for each in scored if each.verdict is not Verdict.KEEP]
    shown = [each for each in others if (each.val_bpb or 0.0) <= high]
    above = [each.number for each in others if (each.val_bpb or 0.0) > high]
    _points(axes, shown, color=DISCARD, marker="o", size=2.6, face="none", label="discarded")
    _points(axes, kept, color=KEEP, marker="o", size=4.2, face=KEEP, label="kept")
    axes.plot(above, [high] * len(above), "^", color=DISCARD, markersize=3, clip_on=False, label="above the scale" if above else None)
    failed = [each.number for each in record.experiments if each.val_bpb is None and each.verdict is not None]
    axes.plot(failed, [low] * len(failed), "x", color=FAILED, markersize=3, clip_on=False, label="no score" if failed else None)
    axes.set(xlim=(-0.02 * last, 1.02 * last), ylim=(low, high))
    axes.grid(axis="y", linewidth=0.3, alpha=0.6)
    for each in sorted(kept[1:], key=lambda each: each.difference or 0.0)[:MOST_LABELS]:
        axes.annotate(
            f"#{each.number} {one_line(each.title, 36)}", (each.number, each.val_bpb), xytext=(-5, -2),
            textcoords="offset points", ha="right", va="center", fontsize=5.5,
        )  # fmt: skip
    axes.legend(frameon=False, fontsize=6.5, loc="upper right", ncols=3)


def _points(
    axes: Any, experiments: list[ExperimentRecord], *, color: str, marker: str, size: float, face: str, label: str
) -> None:
    if not experiments:
        return
    xs, ys = [each.number for each in experiments], [each.val_bpb for each in experiments]
    errors = [each.sem or 0.0 for each in experiments]
    axes.errorbar(
        xs, ys, yerr=errors, fmt=marker, color=color, markerfacecolor=face, markersize=size, elinewidth=0.6,
        markeredgewidth=0.7, linestyle="none", label=label,
    )  # fmt: skip


def _range(best: list[float], sd: float, most: float) -> tuple[float, float]:
    """From below the best to a little above the baseline: that is where it is decided."""
    low, start = min(best) - 3 * sd, best[0]
    near = max(start + 3 * sd, start + 0.6 * (start - low), start + 1e-4)
    high = min(near, max(most, start + 2 * sd))
    pad = 0.06 * (high - low or 0.01)
    return low - pad, high + pad

"""Figures for a paper: the progress chart as SVG, PNG or PDF, drawn by matplotlib from the study's record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from jaxresearch.errors import JaxresearchError
from jaxresearch.experiment import Verdict
from jaxresearch.report.record import ExperimentRecord, StudyRecord
from jaxresearch.text import one_line

FORMATS = (".svg", ".png", ".pdf")
_AXES_POINTS = (400.0, 190.0)
"""About the size of the plotting area, for placing words."""
_LEGEND_LETTERS = 130
"""That fit above the curves in one line."""
KEEP, DISCARD, FAILED = "#00795a", "#76828e", "#b84a00"
"""From the page's palette; they differ in lightness too, and the markers differ in shape."""

_OVER = {
    "experiments": "experiments",
    "accelerator_seconds": "accelerator seconds",
    "llm_cost_usd": "dollars of language model",
}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b3578c", "#8a6d00", "#2a93c9", "#444c56")
_DASHES = ("-", (0, (7, 3)), (0, (2, 3)), (0, (9, 3, 2, 3)), (0, (4, 2)), (0, (1, 3)), (0, (12, 4)))

_STYLE: dict[Any, Any] = {
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
        raise JaxresearchError(f"--figure: no format for {path}.", fix=f"End its name in {', '.join(FORMATS)}.")


def write_progress(record: StudyRecord, path: Path) -> None:
    """Draw every experiment, the running best with the noise band, and labelled keeps into `path`.

    Equal records give equal files.
    """
    _write(path, lambda figure: _draw(figure.add_subplot(), record), (6.5, 3.4))


def write_curves(facts: Mapping[str, Any], path: Path) -> None:
    """Draw the best-so-far curves of `compare --json`'s object, with bands, over each kind of spending that there was."""
    _write(path, lambda figure: _draw_curves(figure, facts), (7.2, 2.9))


def _write(path: Path, draw: Callable[[Any], None], size: tuple[float, float]) -> None:
    check_figure(path)
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        dateless = {"Date": None} if path.suffix.lower() == ".svg" else {}
        if path.suffix.lower() == ".pdf":
            dateless = {"CreationDate": None}
        try:
            figure.savefig(path, dpi=200, metadata=dateless)
        except OSError as error:
            raise JaxresearchError(f"--figure: {path} cannot be written: {error.strerror}.") from None


def _draw_curves(figure: Any, facts: Mapping[str, Any]) -> None:
    spent = {over: label for over, label in _OVER.items() if _anything(facts, over)} or {"experiments": "experiments"}
    panels = figure.subplots(1, len(spent), sharey=True, squeeze=False)[0]
    for axes, (over, label) in zip(panels, spent.items(), strict=True):
        axes.set(xlabel=label)
        axes.locator_params(axis="x", nbins=6, integer=over == "experiments")
        axes.grid(axis="y", linewidth=0.3, alpha=0.6)
        for arm, colour, dashes in zip(facts["strategies"], cycle(_COLOURS), cycle(_DASHES)):
            points = arm.get("best_so_far", {}).get(over, [])
            if not points:
                continue
            xs = [point[over] for point in points]
            low, high = [point["low"] for point in points], [point["high"] for point in points]
            axes.fill_between(xs, low, high, step="post", color=colour, alpha=0.14, linewidth=0)
            means = [point["mean"] for point in points]
            axes.step(
                xs, means, where="post", color=colour, linestyle=dashes, linewidth=1.2, label=one_line(arm["name"], 40)
            )
    panels[0].set(ylabel="best validation bits per byte so far")
    if facts["repeats"]:
        lines, names = panels[0].get_legend_handles_labels()
        ncols = max(1, _LEGEND_LETTERS // (max(map(len, names), default=0) + 9))
        figure.legend(
            lines, names, frameon=False, fontsize=6.5, handlelength=3.5, loc="outside upper center", ncols=ncols
        )
    else:
        panels[0].text(0.5, 0.5, "no repeat is complete yet", transform=panels[0].transAxes, ha="center")


def _anything(facts: Mapping[str, Any], over: str) -> bool:
    """Whether any arm spent any of it: without a language model that costs something there are no dollars."""
    curves = [arm.get("best_so_far", {}).get(over, []) for arm in facts["strategies"]]
    return any(point[over] > 0 for curve in curves for point in curve)


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
    axes.plot(
        above,
        [high] * len(above),
        "^",
        color=DISCARD,
        markersize=3,
        clip_on=False,
        label="above the scale" if above else None,
    )
    failed = [each.number for each in record.experiments if each.val_bpb is None and each.verdict is not None]
    axes.plot(
        failed,
        [low] * len(failed),
        "x",
        color=FAILED,
        markersize=3,
        clip_on=False,
        label="no score" if failed else None,
    )
    axes.set(xlim=(-0.02 * last, 1.02 * last), ylim=(low, high))
    axes.grid(axis="y", linewidth=0.3, alpha=0.6)
    _label(axes, kept[1:], last, (low, high))
    axes.legend(frameon=False, fontsize=6.5, loc="lower right", bbox_to_anchor=(1.0, 1.02), borderaxespad=0.0, ncols=6)


def _label(axes: Any, kept: list[ExperimentRecord], last: int, ends: tuple[float, float]) -> None:
    """Words to the left of each keep, where a falling line leaves room; the largest steps choose first. In points."""
    placed: list[tuple[float, float, float]] = []
    for each in sorted(kept, key=lambda each: each.difference or 0.0):
        x = each.number / last * _AXES_POINTS[0]
        y = ((each.val_bpb or 0.0) - ends[0]) / (ends[1] - ends[0]) * _AXES_POINTS[1]
        words = f"#{each.number} {one_line(each.title, 36)}"
        if 3.1 * len(words) > x:
            words = f"#{each.number}"
        left = x - 5 - 3.1 * len(words)
        if left < 0 or any(abs(y - other) < 7 and left < right and start < x for start, right, other in placed):
            continue
        placed.append((left, x, y))
        axes.annotate(
            words, (each.number, each.val_bpb), xytext=(-5, -2), textcoords="offset points", ha="right", va="center",
            fontsize=5.5,
        )  # fmt: skip


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

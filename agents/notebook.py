"""The notebook: what a study has taught, as a function of its view. Nothing is remembered anywhere else.

lessons      written by the model beside its proposals (`Proposal.notes`), each with the experiments that support it;
             a newer one on the same topic replaces it, later evidence against it retires it, the newest few stay
evidence     counted for each category: tries, keeps, best paired effect; always there, with or without a model
predictions  what was expected of the last experiments, and what came
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from agents.digest import effect
from agents.posterior import usable
from jaxresearch.experiment import Experiment, Verdict
from jaxresearch.proposal import Note, Proposal
from jaxresearch.strategy import StudyView
from jaxresearch.text import one_line

_OUTCOMES = (Verdict.KEEP, Verdict.DISCARD)
_KEEPS = 5
"""That are named of one category: a notebook's length must not grow with the study."""


@dataclass(frozen=True)
class Evidence:
    """What was tried in one category. since_keep: tries after its last keep, failures among them."""

    category: str
    tries: int
    keeps: tuple[int, ...]
    since_keep: int
    best: tuple[float, int] | None

    def __str__(self) -> str:
        last = ", ".join(f"#{each}" for each in self.keeps[-_KEEPS:])
        kept = f"kept {last}" if last else "none kept"
        if len(self.keeps) > _KEEPS:
            kept = f"{len(self.keeps)} kept, the last {last}"
        best = f", best {self.best[0]:+.4f} (#{self.best[1]})" if self.best else ""
        return f"{self.category}: {self.tries} tried, {kept}{best}"


@dataclass(frozen=True)
class Calibration:
    """How far predictions can be trusted.

    brier: mean squared error of the stated chances to be kept; always saying `kept_share` scores `brier_of_share`.
    error_bpb: median distance between predicted and measured change; None without predicted changes.
    """

    predictions: int
    mean_confidence: float
    kept_share: float
    brier: float
    brier_of_share: float
    error_bpb: float | None

    def __str__(self) -> str:
        error = f", changes off by {self.error_bpb:.4f} in the median" if self.error_bpb is not None else ""
        return (
            f"{self.predictions} predictions: {self.mean_confidence:.0%} expected to be kept, {self.kept_share:.0%} "
            f"were; Brier score {self.brier:.3f} ({self.brier_of_share:.3f} for the share alone){error}"
        )


def calibration(view: StudyView) -> Calibration | None:
    """Stated confidence against verdicts, over all experiments that were judged by their score; None without any."""
    judged = [
        (each.proposal.confidence, float(each.verdict is Verdict.KEEP))
        for each in view.experiments
        if each.verdict in _OUTCOMES and each.proposal is not None and each.proposal.confidence is not None
    ]
    if not judged:
        return None
    misses = []
    for each in view.experiments:
        measured = effect(view, each) if usable(each) else None
        if measured is not None and each.proposal is not None and each.proposal.predicted_bpb is not None:
            misses.append(abs(each.proposal.predicted_bpb - measured))
    share = statistics.fmean(kept for _, kept in judged)
    return Calibration(
        predictions=len(judged),
        mean_confidence=statistics.fmean(stated for stated, _ in judged),
        kept_share=share,
        brier=statistics.fmean((stated - kept) ** 2 for stated, kept in judged),
        brier_of_share=share * (1 - share),
        error_bpb=statistics.median(misses) if misses else None,
    )


def category(proposal: Proposal) -> str:
    """The kind of change: the file that is edited, or the last word of the hyperparameter's name, such as `lr`."""
    kinds = {f"code {one_line(edit.path, 60)}" for edit in proposal.edits}
    names = {one_line(name, 60) for name in proposal.config}  # of experiments that crashed for it too: any text
    kinds |= {re.sub(r"\d+$", "", name).rsplit("_", 1)[-1] or name for name in names}
    return kinds.pop() if len(kinds) == 1 else "combination"


def evidence(view: StudyView) -> list[Evidence]:
    """One for each category that was tried, in the order of first tries. What the infrastructure lost was not tried."""
    found: dict[str, list[Experiment]] = {}
    for each in view.experiments:
        if each.proposal is not None and each.verdict not in (None, Verdict.INFRASTRUCTURE, Verdict.DUPLICATE):
            found.setdefault(category(each.proposal), []).append(each)
    return [_evidence(view, name, tried) for name, tried in found.items()]


def _evidence(view: StudyView, name: str, tried: list[Experiment]) -> Evidence:
    keeps = tuple(each.number for each in tried if each.verdict is Verdict.KEEP)
    effects = [(moved, each.number) for each in tried if usable(each) and (moved := effect(view, each)) is not None]
    since = sum(each.number > (keeps[-1] if keeps else 0) for each in tried)
    return Evidence(name, len(tried), keeps, since, min(effects, default=None))


def lessons(view: StudyView, size: int) -> list[Note]:
    """The newest `size` lessons that stand: supported by judged experiments, neither retired nor contradicted."""
    standing: dict[str, tuple[int, Note]] = {}
    for experiment in view.experiments:
        for note in experiment.proposal.notes if experiment.proposal is not None else ():
            standing.pop(note.topic, None)
            if note.text and _is_supported(view, experiment.number, note):
                standing[note.topic] = (experiment.number, note)
    kept = [note for number, note in standing.values() if not _contradictions(view, number, note)]
    return kept[-size:] if size else []


def _is_supported(view: StudyView, written: int, note: Note) -> bool:
    known = [each for each in note.experiments if 0 < each < written and view.experiments[each].verdict is not None]
    return bool(known) and len(known) == len(note.experiments)


def _contradictions(view: StudyView, written: int, note: Note) -> list[int]:
    """Experiments after the note that say the opposite: a keep where it does not help, a clear loss where it does."""
    if note.helps is None:
        return []
    against = []
    for each in view.experiments[written:]:
        if each.proposal is None or note.topic not in _topics(each.proposal) or not usable(each):
            continue
        moved = effect(view, each) or 0.0
        kept = each.verdict is Verdict.KEEP
        if (kept and not note.helps) or (note.helps and not kept and moved > (view.noise_sd or 0.0)):
            against.append(each.number)
    return against


def _topics(proposal: Proposal) -> set[str]:
    return {category(proposal), proposal.tag, *proposal.config}


def predictions(view: StudyView, last: int) -> list[str]:
    """What was expected of the `last` judged experiments, and what came of them."""
    lines = []
    for each in view.experiments:
        proposal = each.proposal
        if proposal is None or each.verdict is None or proposal.confidence is None:
            continue
        expected = f"{proposal.predicted_bpb:+.4f}, " if proposal.predicted_bpb is not None else ""
        moved = effect(view, each) if usable(each) else None
        came = f"{moved:+.4f}, {each.verdict}" if moved is not None else str(each.verdict)
        name = one_line(proposal.tag or proposal.hypothesis, 60)
        lines.append(f"#{each.number} {name}: expected {expected}kept with {proposal.confidence:.0%}; came {came}")
    return lines[-last:]


def text(view: StudyView, size: int) -> str:
    """The notebook as a model reads it. Its length has a bound that the study's length does not move."""
    written = [
        f"- {one_line(note.topic, 80)}: {one_line(note.text, 240)} (experiments {', '.join(map(str, note.experiments))})"
        for note in lessons(view, size)
    ]
    counted = sorted(evidence(view), key=lambda each: -each.tries)[:size]
    known = calibration(view)
    return "\n".join(
        [
            *_section("Lessons in your notebook", written),
            *_section("What was tried, by category", [f"- {each}" for each in counted]),
            *_section("Your last predictions", [f"- {line}" for line in predictions(view, 5)]),
            *([f"Calibration: {known}."] if known else []),
        ]
    )


def _section(title: str, lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    return [f"{title}:", *lines] if lines else []

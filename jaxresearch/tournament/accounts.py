"""Accounts of an arm: how well its predictions are calibrated, what it cost, how often it had to repair a proposal, and
its best-so-far curve with a band over repeats."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxresearch.experiment import Verdict
from jaxresearch.statistics.comparison import CONFIDENCE
from jaxresearch.statistics.confirmation import paired_gain
from jaxresearch.study.events import LLMCalled
from jaxresearch.study.history import History
from jaxresearch.study.ledger import StoredEvent

GRID = 25
RESAMPLES = 2000
_REPAIR = '"part_kind":"retry-prompt"'
"""Of a pydantic-ai message: the model was told what was wrong with its answer."""


@dataclass(frozen=True)
class Account:
    """Of one arm in one repeat.

    predictions: (stated chance to be kept, whether it was) of experiments that were judged by their score.
    misses_bpb: distance between predicted and measured change. rounds: of asking; repaired: those with a repair.
    """

    predictions: tuple[tuple[float, bool], ...]
    misses_bpb: tuple[float, ...]
    rounds: int
    repaired: int


def account(history: History, events: Iterable[StoredEvent]) -> Account:
    predictions, misses = [], []
    for entry in history.contenders:
        proposal, judged = entry.experiment.proposal, entry.verdict in (Verdict.KEEP, Verdict.DISCARD)
        if proposal is None or not judged:
            continue
        if proposal.confidence is not None:
            predictions.append((proposal.confidence, entry.verdict is Verdict.KEEP))
        gain = paired_gain(history.entries[proposal.parent].experiment.scores, entry.experiment.scores)
        if proposal.predicted_bpb is not None and gain is not None:
            misses.append(abs(proposal.predicted_bpb + gain.mean_bpb))
    calls = [stored.event for stored in events if isinstance(stored.event, LLMCalled)]
    return Account(
        predictions=tuple(predictions),
        misses_bpb=tuple(misses),
        rounds=len({call.round for call in calls}),
        repaired=len({call.round for call in calls if _REPAIR in str(call.record.get("request", ""))}),
    )


def calibration(accounts: Sequence[Account]) -> dict[str, float | int | None] | None:
    """Brier score (mean squared error of the stated chances) beside that of always stating the share that was kept.

    None without a stated chance.
    """
    stated = [each for account in accounts for each in account.predictions]
    if not stated:
        return None
    share = statistics.fmean(kept for _, kept in stated)
    misses = [miss for account in accounts for miss in account.misses_bpb]
    return {
        "predictions": len(stated),
        "mean_confidence": statistics.fmean(chance for chance, _ in stated),
        "kept_share": share,
        "brier": statistics.fmean((chance - kept) ** 2 for chance, kept in stated),
        "brier_of_share": share * (1 - share),
        "median_miss_bpb": statistics.median(misses) if misses else None,
    }


def repair_rate(accounts: Sequence[Account]) -> float | None:
    """Share of the rounds with an LLM in which an answer had to be repaired; None without such rounds."""
    rounds = sum(account.rounds for account in accounts)
    return sum(account.repaired for account in accounts) / rounds if rounds else None


def band(curves: Sequence[Sequence[Any]], over: str) -> list[dict[str, float]]:
    """Best so far at `GRID` places along `over`, a field of the curves' points: mean over repeats with its 95 % band.

    Percentile bootstrap over repeats, of all places together. Empty without curves. Beyond its end a curve stays level.
    """
    if not curves:
        return []
    ends = [float(getattr(curve[-1], over)) for curve in curves]
    start = max(float(getattr(curve[0], over)) for curve in curves)
    places = np.linspace(start, max(max(ends), start), GRID)
    values = np.array([_at(curve, over, places) for curve in curves])
    draws = np.random.default_rng(0).integers(0, len(curves), size=(RESAMPLES, len(curves)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values[draws].mean(axis=1), [tail, 1 - tail], axis=0)
    rows = zip(places, values.mean(axis=0), low, high, strict=True)
    return [{over: float(at), "mean": float(mean), "low": float(a), "high": float(b)} for at, mean, a, b in rows]


def _at(curve: Sequence[Any], over: str, places: np.ndarray) -> np.ndarray:
    edges = np.array([float(getattr(point, over)) for point in curve])
    values = np.array([float(point.val_bpb) for point in curve])
    return values[np.clip(np.searchsorted(edges, places, side="right") - 1, 0, len(values) - 1)]

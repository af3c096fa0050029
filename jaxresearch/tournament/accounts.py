"""Accounts of an arm: what it predicted, how often it had to repair a proposal, and its best-so-far curve with a band over
repeats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxresearch.statistics.comparison import CONFIDENCE
from jaxresearch.study.events import LLMCalled
from jaxresearch.study.history import History
from jaxresearch.study.ledger import StoredEvent
from jaxresearch.study.predictions import Predictions, predictions

GRID = 25
RESAMPLES = 2000
_REPAIR = '"part_kind":"retry-prompt"'
"""Of a pydantic-ai message: the model was told what was wrong with its answer."""


@dataclass(frozen=True)
class Account:
    """Of one arm in one repeat. rounds: of asking; repaired: those with a repair."""

    predictions: Predictions
    rounds: int
    repaired: int


def account(history: History, events: Iterable[StoredEvent]) -> Account:
    calls = [stored.event for stored in events if isinstance(stored.event, LLMCalled)]
    return Account(
        predictions=predictions(history),
        rounds=len({call.round for call in calls}),
        repaired=len({call.round for call in calls if _REPAIR in str(call.record.get("request", ""))}),
    )


def repair_rate(accounts: Sequence[Account]) -> float | None:
    """Share of the rounds with an LLM in which an answer had to be repaired; None without such rounds."""
    rounds = sum(account.rounds for account in accounts)
    return sum(account.repaired for account in accounts) / rounds if rounds else None


def band(curves: Sequence[Sequence[Any]], over: str) -> list[dict[str, float]]:
    """Best so far at `GRID` places along `over`, a field of the curves' points: mean over repeats with a band.

    Percentile bootstrap over repeats, of all places together: a picture, and too narrow where repeats are few. Empty
    without curves. Beyond its end a curve stays level.
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

"""Pairing: which run of a contender is held against which of the incumbent. Under a budget in seconds, runs close in time.

The machine's speed is then a part of every score, and it drifts. So a run is compared only with one of the same seed that
was made at most so many runs earlier or later:

- in the first pair, which alone can only discard, `acceptance.interleave` runs;
- in each further pair none lies between the two. Who runs first alternates with the seed, so a steady drift cancels;
- a first pair that is wider apart is made again before a `keep`, which so rests on runs made one right after the other.

Where such a run is lacking, the incumbent runs again, and the contender too if it ran too long ago. Distance is counted in
runs that were trained, as the ledger has them, so every decision stays a function of it. Under any other budget, or with
`interleave` 0, the first run with a seed is the only one, and all of this is out of the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jaxresearch.budget import Budget
from jaxresearch.execution.base import TracedCandidate
from jaxresearch.experiment import CompletedRun
from jaxresearch.statistics.rules import pair_seeds
from jaxresearch.study.entry import Entry
from jaxresearch.study.history import History
from jaxresearch.study.identity import identity_of

ADJACENT = 1
"""How far apart two runs are that were made one right after the other."""


@dataclass(frozen=True)
class Pair:
    """Scores (bits per byte) and places of two runs with one seed. A place says how many runs were trained before."""

    ours_bpb: float
    theirs_bpb: float
    our_place: int
    their_place: int

    @property
    def apart(self) -> int:
        return abs(self.our_place - self.their_place)


def reach(history: History) -> int:
    """How many runs apart a first pair may be; 0 where time is no part of a score, or nobody minds."""
    timed = Budget.parse(history.config.budget).unit == "seconds"
    return history.config.acceptance.interleave if timed else 0


def pairs_of(history: History, entry: Entry, other: Entry) -> dict[int, Pair]:
    """By seed, the pair of runs in which `entry` and `other` are compared under a budget in seconds.

    Adjacent runs come before others, then what was there first: later runs change a pair only to bring it together.
    """
    first, found = _first_seed(other), dict[int, Pair]()
    for seed in entry.experiment.scores:
        allowed = reach(history) if seed == first else ADJACENT
        near = [
            pair
            for our_place, ours in _placed(entry, seed)
            for their_place, theirs in _placed(other, seed)
            if (pair := Pair(ours, theirs, our_place, their_place)).apart <= allowed
        ]
        if near:
            found[seed] = min(near, key=lambda pair: (pair.apart > ADJACENT, max(pair.our_place, pair.their_place)))
    return found


def contest_scores(history: History, entry: Entry, other: Entry) -> tuple[dict[int, float], dict[int, float]]:
    """val_bpb by seed of `entry` and of `other`, for a rule of acceptance.

    Under a budget in seconds `entry` has only what is in a pair, so that a rule asks for a pair that is lacking.
    """
    if not reach(history):
        return entry.experiment.scores, other.experiment.scores
    pairs = pairs_of(history, entry, other)
    theirs = {seed: pair.theirs_bpb for seed, pair in pairs.items()}
    return {seed: pair.ours_bpb for seed, pair in pairs.items()}, {**other.experiment.scores, **theirs}


def whose_turn(history: History, entry: Entry, other: Entry, seed: int) -> Entry:
    """Which of the two must run with `seed` next, so that a pair that a rule asks for comes about."""
    if not reach(history):
        return entry
    return _turn(history, entry, other, seed, reach(history) if seed == _first_seed(other) else ADJACENT)


def too_wide(history: History, entry: Entry, other: Entry) -> tuple[Entry, int] | None:
    """Whose run, with which seed, is lacking before `entry` may be kept; None when all its pairs are adjacent."""
    if not reach(history):
        return None
    for seed, pair in pairs_of(history, entry, other).items():
        if pair.apart > ADJACENT:
            return _turn(history, entry, other, seed, ADJACENT), seed
    return None


def search_identity(history: History, entry: Entry, seed: int) -> str:
    """The identity of the next run of `entry` with `seed` in the search.

    Under a budget in seconds a run is of its time. So one that is made again has a name of its own, and no other study
    (another arm of a tournament, at another hour) shares any but the baseline's first ones.
    """
    trace = entry.trace
    assert isinstance(trace, TracedCandidate), "only traced candidates run"
    again = sum(run.seed == seed for run in entry.experiment.runs)
    own = "" if not reach(history) or (entry.number, again) == (0, 0) else f" {history.baseline.anchor} again={again}"
    return identity_of(trace, history.created, seed, own=own)


def _first_seed(other: Entry) -> int:
    """The seed of the first pair against `other`."""
    failed = {run.seed for run in other.experiment.runs if not isinstance(run, CompletedRun)}
    return pair_seeds(other.experiment.scores, 1, failed)[0]


def _turn(history: History, entry: Entry, other: Entry, seed: int, allowed: int) -> Entry:
    ours, theirs = (_last_place(each, seed) for each in (entry, other))
    if ours is not None and history.trained - ours <= allowed:
        return other
    if theirs is not None and history.trained - theirs <= allowed:
        return entry
    return other if (seed - _first_seed(other)) % 2 == 0 else entry


def _placed(entry: Entry, seed: int) -> Iterator[tuple[int, float]]:
    for run, place in zip(entry.experiment.runs, entry.places, strict=True):
        if run.seed == seed and isinstance(run, CompletedRun):
            yield place, run.val_bpb


def _last_place(entry: Entry, seed: int) -> int | None:
    return max((place for place, _ in _placed(entry, seed)), default=None)

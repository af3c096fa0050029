"""How the builtin model chooses: Thompson sampling over families of moves, from what the study's history says.

a family is one hyperparameter, or one kind of edit, or combinations of near misses
each family's chance to help is drawn from Beta(prior + helped, prior + did not help)
the family with the highest draw makes its next move
a numeric move goes on where the last one helped, turns round or shrinks where it did not
a model that sees far too little text for its size, under a budget of compute, has its sizes halved first
a clear loss on one side is a promise for the other, and no mark against the family
no candidate is tried twice, and no move twice on one parent; on another parent a move is tried again only if it has
helped, or nearly, wherever it was tried (agents/lineage.py)
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from agents.library import LIBRARY, Hint, Idea, RunSize, hint
from agents.lineage import Ground
from agents.steering import touched
from jaxresearch.proposal import Candidate, Edit, EditError, Hyperparameter, Proposal, Scalar, apply

COMBINATIONS = "combination"
JITTER = "jitter"
_PRIOR_WEIGHT = 8.0  # a family's prior counts as much as this many observations
_OUTCOME_WEIGHT = 4.0  # and one experiment as this many: a study is short
_NEAR_MISS_REWARD = 0.35
_SMALLEST_STEP = 0.2  # of a family's first step: below it the family rests
RETRIED_PROMISE = 0.5  # of a move that helped, or nearly, on another parent
_TURNED_PROMISE = 0.6  # of the other side, where one side was clearly worse
_CLEAR_LOSS = 16  # times the threshold of a near miss, which is a quarter of the deviation between seeds


@dataclass(frozen=True)
class Tried:
    """One earlier experiment, as the history table tells it.

    effect: on val_bpb against its parent. threshold: a gain of fewer bits per byte is likely noise.
    """

    number: int
    verdict: str
    effect: float | None
    tag: str
    config: Mapping[str, tuple[Scalar | None, Scalar]] = field(default_factory=dict)
    has_edits: bool = False
    threshold: float = 0.0
    parent: int = 0
    why: str = ""

    @property
    def helped(self) -> bool:
        return self.verdict == "keep"

    @property
    def nearly_helped(self) -> bool:
        return self.verdict == "discard" and self.effect is not None and self.effect < -self.threshold

    @property
    def clearly_lost(self) -> bool:
        """Far worse than its parent, or cut for being hopeless before it had a score."""
        if self.verdict != "discard":
            return False
        return self.why.startswith("cut") if self.effect is None else self.effect > _CLEAR_LOSS * self.threshold > 0

    @property
    def reward(self) -> float:
        return 1.0 if self.helped else _NEAR_MISS_REWARD if self.nearly_helped else 0.0


@dataclass(frozen=True)
class Move:
    """Something to propose. promise: the chance that it helps, by prior and history. turns: a number, for the first time
    to the other side than one that was clearly worse."""

    family: str
    tag: str
    hypothesis: str
    promise: float
    config: Mapping[str, Scalar] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()
    turns: bool = False


def read_history(pages: Iterable[str], threshold: float = 0.0) -> list[Tried]:
    """The experiments in the JSON lines that the `history` tool returned, baseline left out, in order."""
    found: dict[int, Tried] = {}
    for line in itertools.chain.from_iterable(page.splitlines() for page in pages):
        if not line.startswith("{"):
            continue
        row = json.loads(line)
        if row.get("parent") is None:
            continue
        config = {name: (before, after) for name, (before, after) in row.get("config", {}).items()}
        found[row["number"]] = Tried(
            row["number"],
            row["verdict"],
            row.get("effect"),
            row.get("tag", ""),
            config,
            "edits" in row,
            threshold,
            row["parent"],
            row.get("why", ""),
        )
    return [found[number] for number in sorted(found)]


def read_hyperparameters(text: str) -> list[Hyperparameter]:
    """The JSON lines that the `list_hyperparameters` tool returned."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [
        Hyperparameter(
            name=row["name"],
            value=row["value"],
            low=row.get("low"),
            high=row.get("high"),
            log=row.get("log", False),
            choices=tuple(row.get("choices", ())),
            doc=row.get("doc", ""),
        )
        for row in rows
    ]


def choose(
    hyperparameters: list[Hyperparameter],
    files: Mapping[str, str],
    tried: list[Tried],
    refused: frozenset[str],
    rng: np.random.Generator,
    library: tuple[Idea, ...] = LIBRARY,
    *,
    parent: int = 0,
    taboo: frozenset[str] = frozenset(),
    wants_edits: bool | None = None,
    size: RunSize | None = None,
) -> Move:
    """The next move on experiment `parent`. `refused` holds the tags that this very proposal has offered in vain,
    `taboo` names of hyperparameters, tags, families and files to leave alone. wants_edits: only moves with edits, or
    without, as long as there are some. size: of one run of the parent, where it is known."""
    hyperparameters = [each for each in hyperparameters if not touched([each.name], taboo)]
    ground = Ground(tried, parent, refused)
    known = ground.closed
    moves: dict[str, list[Move]] = {}
    for move in itertools.chain(
        _config_moves(hyperparameters, tried, known, size, rng),
        _edit_moves(files, library, known),
        _combinations(hyperparameters, files, library, tried, known),
    ):
        if touched([move.family, *move.tag.split(" & "), *(edit.path for edit in move.edits)], taboo):
            continue
        if wants_edits is not None and bool(move.edits) != wants_edits:
            continue
        if ground.repeats(move.tag, move.config, has_edits=bool(move.edits)):
            continue
        if move.tag in ground.open and move.promise < RETRIED_PROMISE:
            move = replace(move, promise=RETRIED_PROMISE)
        moves.setdefault(move.family, []).append(move)
    if not moves:
        return _small_step(hyperparameters, known, rng)
    outcomes = _outcomes(tried, library)

    def beliefs(family: str) -> tuple[float, float]:
        prior = max(move.promise for move in moves[family])
        turns = any(move.turns for move in moves[family])
        helped, failed = (0.0, 0.0) if turns else outcomes.get(family, (0.0, 0.0))
        return _PRIOR_WEIGHT * prior + helped, _PRIOR_WEIGHT * (1 - prior) + failed

    draws = {family: float(rng.beta(*beliefs(family))) for family in sorted(moves)}
    best = max(draws, key=lambda family: draws[family])
    helped, failed = beliefs(best)
    return replace(max(moves[best], key=lambda move: move.promise), promise=helped / (helped + failed))


def _outcomes(tried: list[Tried], library: tuple[Idea, ...]) -> dict[str, tuple[float, float]]:
    """Family -> (how often it helped, how often not); near misses count in part, pending ones as half a failure."""
    families = {idea.tag: idea.family for idea in library}
    found: dict[str, tuple[float, float]] = {}
    for each in tried:
        if " & " in each.tag:
            family = COMBINATIONS
        elif each.tag in families:
            family = families[each.tag]
        elif len(each.config) == 1 and not each.has_edits:
            family = next(iter(each.config))
        else:
            continue
        failure = 0.5 if each.verdict == "pending" else 1 - each.reward
        helped, failed = found.get(family, (0.0, 0.0))
        found[family] = (helped + _OUTCOME_WEIGHT * each.reward, failed + _OUTCOME_WEIGHT * failure)
    return found


def _config_moves(
    hyperparameters: list[Hyperparameter],
    tried: list[Tried],
    known: set[str],
    size: RunSize | None,
    rng: np.random.Generator,
) -> Iterator[Move]:
    for each in hyperparameters:
        prior = hint(each.name, size)
        coin = 1 if rng.random() < 0.5 else -1  # drawn for all, so that one family's moves do not shift another's
        alone = [past for past in tried if set(past.config) == {each.name} and not past.has_edits]
        for value in _values(each, alone, prior, coin):
            tag = f"{each.name}={_shown(value)}"
            if tag in known or value == each.value:
                continue
            turns = _turns(each, value, alone)
            promise = max(prior.promise, _TURNED_PROMISE) if turns else prior.promise
            yield Move(
                each.name, tag, _config_hypothesis(each, value, alone, prior), promise, {each.name: value}, turns=turns
            )
            break


def _turns(each: Hyperparameter, value: Scalar, alone: list[Tried]) -> bool:
    """Whether `value` lies on a side of the present one where nothing was tried, and the other side was clearly worse."""
    if not alone or not alone[-1].clearly_lost or isinstance(value, bool | str):
        return False
    scale = _Scale(each)
    here = scale.position(each.value)
    tried = [scale.position(past.config[each.name][1]) > here for past in alone]
    return all(above != (scale.position(value) > here) for above in tried)


def _config_hypothesis(each: Hyperparameter, value: Scalar, alone: list[Tried], prior: Hint) -> str:
    text = f"{each.name} {_shown(each.value)} -> {_shown(value)}"
    scored = [past for past in alone if past.effect is not None]
    if scored:
        last = scored[-1]
        before, after = last.config[each.name]
        outcome = "helped" if last.helped else "nearly helped" if last.nearly_helped else "did not help"
        return f"{text}: {_shown(before)} -> {_shown(after)} {outcome} ({last.effect:+.4f})."
    why = prior.why
    if prior.direction and isinstance(value, int | float) and isinstance(each.value, int | float):
        rises = value > each.value
        why = prior.why if rises == (prior.direction > 0) else ""  # a hint for less is no reason for more
    return f"{text}: {why or 'not tried yet, and the best value is seldom the first one'}."


def _values(each: Hyperparameter, alone: list[Tried], prior: Hint, coin: int) -> Iterator[Scalar]:
    """Values to try for one hyperparameter, the most promising first."""
    if isinstance(each.value, bool):
        yield not each.value
    elif isinstance(each.value, str):
        preferred = [value for value in prior.values if not each.choices or value in each.choices]
        yield from (*preferred, *(value for value in each.choices if value not in preferred))
    elif each.choices or (each.low is not None and each.high is not None):  # others are not for search
        yield from _numbers(each, alone, prior.direction or coin, halves=prior.halves)


def _numbers(
    each: Hyperparameter, alone: list[Tried], direction: int, *, halves: bool = False
) -> Iterator[float | int]:
    """Go on where the last move helped, longer; turn round or shrink where it did not; stay between what was worse."""
    scale = _Scale(each)
    here, size = scale.position(each.value), scale.first_step
    done = [past for past in alone if past.verdict != "pending" and past.config[each.name][0] is not None]
    steps, sides = [size, size / 2], (1, -1)
    if done:
        last = done[-1]
        before, after = (scale.position(value) for value in last.config[each.name])
        size = abs(after - before) or size
        direction = 1 if after > before else -1
        tired = len(done) > 1 and last.nearly_helped and done[-2].nearly_helped
        if last.helped:
            steps = [size * scale.growth, size, size / 2]
        elif last.nearly_helped and not tired:
            steps, sides = [size * 2, size * 1.5], (1,)
        else:
            direction, steps = -direction, [size, size / 2, size / 4]
    low, high = _bracket(scale, each.name, done, here)
    if halves and (not done or done[-1].helped):
        half = scale.value(scale.position(float(each.value) / 2))
        if half is not None and low < scale.position(half) < high:
            yield half
    for step in steps:
        if step < _SMALLEST_STEP * scale.first_step:
            return
        for side in sides:
            value = scale.value(here + side * direction * step)
            if value is not None and low < scale.position(value) < high:
                yield value


def _bracket(scale: _Scale, name: str, done: list[Tried], here: float) -> tuple[float, float]:
    """The nearest positions below and above `here` that are known to be worse. Beyond them it is taken to be, too."""
    worse = []
    for past in done:
        before, after = (scale.position(value) for value in past.config[name])
        if past.helped:
            worse.append(before)
        elif not past.nearly_helped:
            worse.append(after)
    below = [position for position in worse if position < here]
    above = [position for position in worse if position > here]
    return max(below, default=-math.inf), min(above, default=math.inf)


class _Scale:
    """A number's own ruler: its choices in order, the logarithm where steps should be ratios, else a share of range."""

    def __init__(self, each: Hyperparameter) -> None:
        self.choices = sorted(float(choice) for choice in each.choices)
        self.low = -math.inf if each.low is None else each.low
        self.high = math.inf if each.high is None else each.high
        self.whole = isinstance(each.value, int)
        self.log = each.log and float(each.value) > 0 and not self.choices
        bounded = math.isfinite(self.high - self.low) and self.high > self.low
        self.unit = (self.high - self.low) if bounded else max(abs(float(each.value)), 1.0)
        self.first_step = math.log(2) if self.log and self.whole else math.log(1.5) if self.log else 0.2
        if self.whole and not self.log:
            self.first_step = max(self.first_step, 1 / self.unit) if self.unit > 16 else 1 / self.unit
        if self.choices:
            self.first_step = 1.0
        self.growth = 1.0 if self.choices or self.whole else 1.6  # of a step after a success

    def position(self, value: Any) -> float:
        if self.choices:
            return float(min(range(len(self.choices)), key=lambda at: abs(self.choices[at] - float(value))))
        if self.log:
            return math.log(max(float(value), 1e-300))
        return float(value) / self.unit

    def value(self, position: float) -> float | int | None:
        """The value there, within bounds and rounded as people would write it."""
        if self.choices:
            choice = self.choices[min(max(round(position), 0), len(self.choices) - 1)]
            return int(choice) if self.whole else choice
        raw = math.exp(min(position, 700.0)) if self.log else position * self.unit
        raw = min(max(raw, self.low), self.high)
        if not math.isfinite(raw):
            return None
        if self.whole:
            return (
                min(max(round(raw), math.ceil(self.low)), math.floor(self.high)) if self.low > -math.inf else round(raw)
            )
        return min(max(float(f"{raw:.3g}"), self.low), self.high)


def _edit_moves(files: Mapping[str, str], library: tuple[Idea, ...], known: set[str]) -> Iterator[Move]:
    for idea in library:
        if idea.tag in known:
            continue
        edits = idea.edits(files)
        if edits:
            yield Move(idea.family, idea.tag, idea.hypothesis, idea.promise, {}, tuple(edits))


def _combinations(
    hyperparameters: list[Hyperparameter],
    files: Mapping[str, str],
    library: tuple[Idea, ...],
    tried: list[Tried],
    known: set[str],
) -> Iterator[Move]:
    """Pairs of near misses: two changes that each helped too little to be believed."""
    near = sorted(
        (each for each in tried if each.nearly_helped and " & " not in each.tag), key=lambda each: each.effect or 0
    )
    ideas = {idea.tag: idea for idea in library}
    current = {each.name: each.value for each in hyperparameters}
    for one, other in itertools.combinations(near[:6], 2):
        tag = " & ".join(sorted((one.tag, other.tag)))
        if tag in known or not one.tag or not other.tag or one.config.keys() & other.config.keys():
            continue
        config = {name: after for each in (one, other) for name, (_, after) in each.config.items()}
        if any(name not in current or current[name] == value for name, value in config.items()):
            continue
        edits = _edits_in_turn(files, [ideas.get(each.tag) for each in (one, other) if each.has_edits])
        if edits is None:
            continue
        why = f"Together: {one.tag} ({one.effect:+.4f}) and {other.tag} ({other.effect:+.4f}) each helped a little."
        yield Move(COMBINATIONS, tag, why, 0.4, config, edits)


def _edits_in_turn(files: Mapping[str, str], ideas: list[Idea | None]) -> tuple[Edit, ...] | None:
    edits: list[Edit] = []
    for idea in ideas:
        found = idea.edits(files) if idea is not None else None
        if not found:
            return None
        try:
            step = Proposal(parent=0, hypothesis="", edits=tuple(found))
            files = apply(step, Candidate(files)).files
        except EditError:
            return None
        edits += found
    return tuple(edits)


def _small_step(hyperparameters: list[Hyperparameter], known: set[str], rng: np.random.Generator) -> Move:
    """When every family rests: a small random step of two hyperparameters at once."""
    bounded = [each for each in hyperparameters if each.choices or None not in (each.low, each.high)]  # as in `_values`
    numeric = [each for each in bounded if isinstance(each.value, float)]
    numeric = numeric or [each for each in bounded if type(each.value) is int]
    for _ in range(1000 if numeric else 0):
        picked = rng.choice(len(numeric), size=min(2, len(numeric)), replace=False)
        config: dict[str, Scalar] = {}
        for at in sorted(int(each) for each in picked):
            each, scale = numeric[at], _Scale(numeric[at])
            value = scale.value(scale.position(each.value) + float(rng.normal()) * scale.first_step / 2)
            if value is not None and value != each.value:
                config[each.name] = value
        tag = " ".join(f"{name}={_shown(value)}" for name, value in config.items())
        if config and tag not in known:
            return Move(JITTER, tag, f"Every known move rests; a small random step: {tag}.", 0.1, config)
    raise LookupError("nothing is left to try: no edit applies and no hyperparameter can move")


def _shown(value: Scalar | None) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)

"""Audits of the very evaluation that was scored: can a logit see what it must not?

Causality: replace everything after a cut by other real text; nothing before the cut may move. Batch independence:
replace some rows; the others may not move. Both compare bit for bit: the same executable on the same shapes leaves no
room for rounding. The cuts are secret until they are made.

One forward pass tests one cut in each row. On every run a few random cuts look for gross leaks. Before a claimed gain is
believed, cuts are drawn in proportion to each token's gain over the reference, so that power is per unit of forged
gain: in one run, a leak worth a quarter of its gain is missed with a probability below `MISS_PROBABILITY`. Nothing is
kept on fewer than two such runs, so a kept leak of that worth was missed at least twice: with a probability below 1 %.

A leak need not show the next token. One that only rules out some likely tokens, where they do not come, gains as well, and
at the tokens that gain nothing moves unless just those are put in. It shows where they do come, and gains nothing there.
So further cuts are drawn evenly: what such a hint gains, in nats a token, is at most the share of places where it shows.

A run that is no better than the reference may be kept as simpler, and a leak may be what makes up for what it lost; the
next change would win that back and keep the leak, where no gain over the incumbent shows any more. So for a simpler run
that claims nothing cuts are drawn by gain as if it claimed `UNCLAIMED_GAIN`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np

from jaxresearch.experiment import Audit
from jaxresearch.scoring.scorer import CompiledScorer, Leaves, Score

MISS_PROBABILITY = 0.1
LEAK_SHARE = 0.25
"""Share of the claimed gain that a leak must be worth to be found with probability 1 - MISS_PROBABILITY."""
UNCLAIMED_GAIN = 0.01
"""Share of the reference's nats that a simpler run which is no better is taken to claim."""
MAX_GAIN_CUTS = 1024
"""Reached by gains far below any noise; the audit then says which probability it came to."""
THOROUGH_MISS_PROBABILITY = 0.001
"""In a run of a quarantine, whose gain is large: cuts are cheap there."""


@dataclass(frozen=True)
class AuditSubject:
    """A trained program and the rows that it was scored on (i32[batches, b, T + 1])."""

    scorer: CompiledScorer
    leaves: Leaves
    rows: np.ndarray


@dataclass(frozen=True)
class Cut:
    """Row `row` of batch `batch`: inputs from position `position` on are replaced."""

    batch: int
    row: int
    position: int


def routine_audits(subject: AuditSubject, scored: Score, randomness: np.random.Generator) -> tuple[Audit, ...]:
    """The cheap audits of every run: a pass for each ten of the evaluation that gave `scored`, and one at least.

    One pass tries both: of a batch's rows half get other text behind a cut, a quarter are replaced, the others stay. What
    must not move is compared with what was scored.
    """
    batches, rows, width = subject.rows.shape
    stayed, aside, tried = 0, 0.0, []
    for batch in map(int, randomness.choice(batches, size=max(1, batches // 10), replace=False)):
        original = subject.rows[batch]
        kept, replaced, parted = np.split(randomness.permutation(rows), _shares(rows))
        altered = _with_other_rows(subject, original, replaced, randomness)
        trials = [Cut(batch, int(row), int(randomness.integers(1, width - 1))) for row in parted]
        for cut in trials:
            altered[cut.row, cut.position :] = _other_text(subject.rows, cut, randomness)
        nats, trace, _ = subject.scorer(subject.leaves, altered[:, :-1], original[:, 1:], scored.probe)
        moved = np.maximum(_distance(scored.nats[batch], nats), _distance(scored.trace[batch], trace))
        stayed, aside = stayed + len(kept), max(aside, float(moved[kept].max(initial=0.0)))
        tried += [(cut, moved[cut.row]) for cut in trials]
    return _independence(aside, stayed), _causality(tried)


def _shares(rows: int) -> tuple[int, int]:
    """Where a batch's rows are parted into those that stay, those that are replaced, and those that are cut."""
    stay = 0 if rows == 1 else max(1, rows // 4)
    return stay, stay + rows // 4


def probe_audit(subject: AuditSubject, randomness: np.random.Generator) -> Audit:
    """That of a state which is scored on the first batch, on its way: a random cut in each of the batch's rows.

    What is scored there becomes the limit above which other runs are cut; a leak that is gone at the end would make it
    one that no honest run keeps to. Such a leak must be worth much of the loss, so few cuts find it.
    """
    _, rows, width = subject.rows.shape
    cuts = [Cut(0, row, int(randomness.integers(1, width - 1))) for row in range(rows)]
    return check_causality(subject, cuts, randomness).model_copy(update={"name": "causality at a probe"})


def gain_audits(
    subject: AuditSubject,
    nats: np.ndarray,
    reference: np.ndarray,
    scored: np.ndarray,
    randomness: np.random.Generator,
    *,
    thorough: bool = False,
    simpler: bool = False,
    least: float = 0.0,
) -> tuple[Audit, ...]:
    """The strong audits of a run by its gain over `reference`, the nats f32[batches, b, T] of another run.

    simpler: it may be kept without a gain. least: nats, in all, that a gain must be worth to be kept; a smaller one is
    looked into as if it were that, for alone it decides nothing.
    """
    tolerated = THOROUGH_MISS_PROBABILITY if thorough else MISS_PROBABILITY
    gain = np.where(scored, reference.astype(np.float64) - nats, 0.0)
    claimed, visible = gain.sum(), gain[..., :-1].clip(min=0)  # the last target has no later input to be read from
    batches = len(subject.rows)
    passes = max(2, batches // 10)
    chosen = [int(batch) for batch in randomness.choice(batches, size=min(passes, batches), replace=False)]
    independence = check_batch_independence(subject, chosen, randomness)
    better = claimed > 0
    if simpler and not better:
        claimed = UNCLAIMED_GAIN * reference[scored].sum(dtype=np.float64)
    if claimed <= 0 or visible.sum() == 0:
        return (independence,)
    whose = "it"
    if better and claimed < least:
        claimed, whose = least, "the least that is kept"
    share = LEAK_SHARE * claimed / visible.sum()
    wanted = 1 if share >= 1 else math.ceil(math.log(tolerated) / math.log1p(-share))
    count = min(MAX_GAIN_CUTS, max(subject.scorer.batch, wanted))
    flat = randomness.choice(visible.size, size=count, p=(visible / visible.sum()).ravel())
    hint = claimed / scored.sum()  # nats a token, were it all a hint at what does not come
    even = min(MAX_GAIN_CUTS, math.ceil(-math.log(tolerated) / hint)) if better else 0
    flat = np.concatenate([flat, randomness.choice(visible.size, size=even)])
    places = np.stack(np.unravel_index(flat, visible.shape), axis=1)
    cuts = [Cut(int(batch), int(row), int(target) + 1) for batch, row, target in places]
    missed, unseen = (1 - min(1.0, share)) ** count, math.exp(-hint * even)
    detail = (
        f"cuts drawn by gain; a leak worth {LEAK_SHARE:.0%} of {whose} is missed with probability {missed:.2g}, "
        f"one that is all of {whose} and only rules tokens out with at most {unseen:.2g}"
        if better
        else f"no gain on the whole, so cuts drawn where it is better; a leak worth {LEAK_SHARE * UNCLAIMED_GAIN:.2%} of "
        f"the loss is missed with probability {missed:.2g}"
    )
    causality, company = check_gain(subject, cuts, nats, randomness)
    return (independence, company, causality.model_copy(update={"detail": causality.detail or detail}))


def check_causality(subject: AuditSubject, cuts: list[Cut], randomness: np.random.Generator) -> Audit:
    """Run each cut's row as it is and with another suffix, in one slot of one executable; compare before the cut."""
    trials = [_try_cuts(subject, group, randomness) for group in _groups(subject, cuts, randomness)]
    return _causality(_of_each_cut(trials))


def check_gain(
    subject: AuditSubject, cuts: list[Cut], nats: np.ndarray, randomness: np.random.Generator
) -> tuple[Audit, Audit]:
    """`check_causality` at `cuts`, whose rows stand next to rows of other batches and must give the scored `nats`."""
    trials, deviation = [], 0.0
    for group in _groups(subject, cuts, randomness):
        trials.append(_try_cuts(subject, group, randomness))
        scored = nats[[cut.batch for cut in group], [cut.row for cut in group]]
        deviation = max(deviation, float(_distance(trials[-1].nats, scored).max()))
    detail = "" if deviation == 0 else "a row's score changes in the company of other rows"
    company = Audit(
        name="batch independence by gain",
        passed=deviation == 0,
        probes=sum(len(trial.cuts) for trial in trials),
        max_deviation=deviation,
        detail=detail,
    )
    return _causality(_of_each_cut(trials)).model_copy(update={"name": "causality by gain"}), company


@dataclass(frozen=True)
class _Trial:
    """One pass over a group of cuts: the rows' nats as they are, and how far logits moved when suffixes changed."""

    cuts: list[Cut]
    nats: np.ndarray
    moved: np.ndarray


def _try_cuts(subject: AuditSubject, group: list[Cut], randomness: np.random.Generator) -> _Trial:
    original = np.stack([subject.rows[cut.batch, cut.row] for cut in group])
    altered = original.copy()
    for slot, cut in enumerate(group):
        altered[slot, cut.position :] = _other_text(subject.rows, cut, randomness)
    nats, moved = _movement(subject, original, altered, randomness)
    return _Trial(group, nats, moved)


def _of_each_cut(trials: list[_Trial]) -> list[tuple[Cut, np.ndarray]]:
    return [(cut, trial.moved[slot]) for trial in trials for slot, cut in enumerate(trial.cuts)]


def _causality(tried: list[tuple[Cut, np.ndarray]]) -> Audit:
    """tried: cuts, and how far the logits of each one's row moved, f64[T]."""
    deviation, worst = 0.0, None
    for cut, moved in tried:
        seen = float(moved[: cut.position].max())
        if seen > deviation:
            deviation, worst = seen, cut
    detail = "" if worst is None else f"logits before position {worst.position} move when only later text changes"
    return Audit(name="causality", passed=worst is None, probes=len(tried), max_deviation=deviation, detail=detail)


def _independence(deviation: float, probes: int) -> Audit:
    detail = "" if deviation == 0 else "a row's logits move when only other rows of the batch change"
    return Audit(
        name="batch independence", passed=deviation == 0, probes=probes, max_deviation=deviation, detail=detail
    )


def check_batch_independence(subject: AuditSubject, batches: list[int], randomness: np.random.Generator) -> Audit:
    """Replace a random half of a batch's rows; the other rows' logits may not move."""
    rows, deviation = subject.rows.shape[1], 0.0
    for batch in batches:
        original = subject.rows[batch]
        replaced, kept = np.split(randomness.permutation(rows), [rows // 2])
        altered = _with_other_rows(subject, original, replaced, randomness)
        _, moved = _movement(subject, original, altered, randomness)
        deviation = max(deviation, float(moved[kept].max()))
    return _independence(deviation, len(batches) * rows)


def _with_other_rows(
    subject: AuditSubject, original: np.ndarray, replaced: np.ndarray, randomness: np.random.Generator
) -> np.ndarray:
    """A batch whose rows `replaced` change places, or say something of another batch, backwards."""
    altered, rows = original.copy(), len(original)
    altered[replaced] = original[np.roll(replaced, 1)]
    foreign = replaced[: max(1, len(replaced) // 2)]
    donors = randomness.integers(0, len(subject.rows), size=len(foreign))
    altered[foreign] = subject.rows[donors, randomness.permutation(rows)[: len(foreign)], ::-1]
    return altered


def _groups(subject: AuditSubject, cuts: list[Cut], randomness: np.random.Generator) -> Iterator[list[Cut]]:
    """Groups with one cut for each slot of a batch, in a row that was scored there; random cuts where `cuts` has none."""
    batches, rows, width = subject.rows.shape
    queues = [[cut for cut in cuts if cut.row == slot] for slot in range(rows)]
    for turn in range(max(map(len, queues))):
        yield [
            queue[turn]
            if turn < len(queue)
            else Cut(int(randomness.integers(batches)), slot, int(randomness.integers(1, width - 1)))
            for slot, queue in enumerate(queues)
        ]


def _other_text(rows: np.ndarray, cut: Cut, randomness: np.random.Generator) -> np.ndarray:
    """Real text to put after the cut, whose first token is another than the row's own."""
    own = rows[cut.batch, cut.row, cut.position]
    for _ in range(20):
        donor = rows[randomness.integers(len(rows)), randomness.integers(rows.shape[1]), cut.position :]
        if donor[0] != own:
            return donor
    changed = rows[cut.batch, cut.row, cut.position :].copy()
    changed[0] = rows[0, 0, 0] if own != rows[0, 0, 0] else (own + 1) % (rows.max() + 1)
    return changed


def _movement(
    subject: AuditSubject, original: np.ndarray, altered: np.ndarray, randomness: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The nats of `original`, f32[b, T], and how far its logits move when it becomes `altered`, f64[b, T].

    What is compared is the original target's nats and a random projection of all logits; the larger change counts.
    """
    probe = randomness.standard_normal(subject.scorer.vocab_size).astype(np.float32)
    targets = original[:, 1:]
    nats, projection, _ = subject.scorer(subject.leaves, original[:, :-1], targets, probe)
    other_nats, other_projection, _ = subject.scorer(subject.leaves, altered[:, :-1], targets, probe)
    return np.asarray(nats), np.maximum(_distance(nats, other_nats), _distance(projection, other_projection))


def _distance(left: jax.Array | np.ndarray, right: jax.Array | np.ndarray) -> np.ndarray:
    """|left - right| in f64; infinite where either is not a number."""
    distance = np.abs(np.asarray(left, np.float64) - np.asarray(right, np.float64))
    return np.where(np.isnan(distance), np.inf, distance)

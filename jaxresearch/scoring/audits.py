"""Audits of the very evaluation that was scored: can a logit see what it must not?

Causality: replace everything after a cut by other real text; nothing before the cut may move. Batch independence:
replace some rows; the others may not move. Both compare bit for bit: the same executable on the same shapes leaves no
room for rounding. The cuts are secret until they are made.

One forward pass tests one cut in each row. On every run a few random cuts look for gross leaks. Before a claimed gain is
believed, cuts are drawn in proportion to each token's gain over the reference, so that power is per unit of forged
gain: a leak worth a quarter of the claimed gain is missed with a probability below `MISS_PROBABILITY`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxresearch.experiment import Audit
from jaxresearch.scoring.scorer import CompiledScorer, Leaves

MISS_PROBABILITY = 0.01
LEAK_SHARE = 0.25
"""Share of the claimed gain that a leak must be worth to be found with probability 1 - MISS_PROBABILITY."""
MAX_GAIN_CUTS = 4096


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


def routine_audits(subject: AuditSubject, randomness: np.random.Generator) -> tuple[Audit, ...]:
    """The cheap audits of every run: at most a tenth of the evaluation's own cost, and at least one pass each."""
    batches, rows, width = subject.rows.shape
    passes = max(1, batches // 40)
    causality = []
    for batch in randomness.choice(batches, size=passes, replace=batches < passes):
        causality += [Cut(int(batch), row, int(randomness.integers(1, width - 1))) for row in range(rows)]
    chosen = [int(batch) for batch in randomness.choice(batches, size=passes, replace=batches < passes)]
    return (
        check_batch_independence(subject, chosen, randomness),
        check_causality(subject, causality, randomness),
    )


def gain_audits(
    subject: AuditSubject, nats: np.ndarray, reference: np.ndarray, scored: np.ndarray, randomness: np.random.Generator
) -> tuple[Audit, ...]:
    """The strong audits of a run that claims a gain over `reference`, the nats f32[batches, b, T] of another run."""
    gain = np.where(scored, reference.astype(np.float64) - nats, 0.0)
    claimed, visible = gain.sum(), gain[..., :-1].clip(min=0)  # the last target has no later input to be read from
    batches = len(subject.rows)
    passes = max(2, batches // 10)
    chosen = [int(batch) for batch in randomness.choice(batches, size=min(passes, batches), replace=False)]
    independence = check_batch_independence(subject, chosen, randomness)
    if claimed <= 0 or visible.sum() == 0:
        return (independence,)
    share = LEAK_SHARE * claimed / visible.sum()
    wanted = 1 if share >= 1 else math.ceil(math.log(MISS_PROBABILITY) / math.log1p(-share))
    count = min(MAX_GAIN_CUTS, max(subject.scorer.batch, wanted))
    flat = randomness.choice(visible.size, size=count, p=(visible / visible.sum()).ravel())
    places = np.stack(np.unravel_index(flat, visible.shape), axis=1)
    cuts = [Cut(int(batch), int(row), int(target) + 1) for batch, row, target in places]
    missed = (1 - min(1.0, share)) ** count
    detail = f"cuts drawn by gain; a leak worth {LEAK_SHARE:.0%} of it is missed with probability {missed:.2g}"
    company = check_company(subject, cuts, nats, randomness)
    audit = check_causality(subject, cuts, randomness)
    return (
        independence,
        company,
        audit.model_copy(update={"name": "causality by gain", "detail": audit.detail or detail}),
    )


def check_causality(subject: AuditSubject, cuts: list[Cut], randomness: np.random.Generator) -> Audit:
    """Run each cut's row as it is and with another suffix, in one slot of one executable; compare before the cut."""
    deviation, worst = 0.0, None
    for group in _groups(subject, cuts, randomness):
        original = np.stack([subject.rows[cut.batch, cut.row] for cut in group])
        altered = original.copy()
        for slot, cut in enumerate(group):
            altered[slot, cut.position :] = _other_text(subject.rows, cut, randomness)
        moved = _movement(subject, original, altered, randomness)
        for slot, cut in enumerate(group):
            seen = float(moved[slot, : cut.position].max())
            if seen > deviation:
                deviation, worst = seen, cut
    detail = "" if worst is None else f"logits before position {worst.position} move when only later text changes"
    return Audit(name="causality", passed=worst is None, probes=len(cuts), max_deviation=deviation, detail=detail)


def check_batch_independence(subject: AuditSubject, batches: list[int], randomness: np.random.Generator) -> Audit:
    """Replace a random half of a batch's rows, and permute some of those; the other rows' logits may not move."""
    rows, deviation = subject.rows.shape[1], 0.0
    for batch in batches:
        original = subject.rows[batch]
        order = randomness.permutation(rows)
        replaced, kept = order[: rows // 2], order[rows // 2 :]
        altered = original.copy()
        altered[replaced] = original[np.roll(replaced, 1)]
        foreign = replaced[: max(1, len(replaced) // 2)]
        donors = randomness.integers(0, len(subject.rows), size=len(foreign))
        altered[foreign] = subject.rows[donors, randomness.permutation(rows)[: len(foreign)], ::-1]
        moved = _movement(subject, original, altered, randomness)
        deviation = max(deviation, float(moved[kept].max()))
    passed = deviation == 0
    detail = "" if passed else "a row's logits move when only other rows of the batch change"
    return Audit(
        name="batch independence", passed=passed, probes=len(batches) * rows, max_deviation=deviation, detail=detail
    )


def check_company(subject: AuditSubject, cuts: list[Cut], nats: np.ndarray, randomness: np.random.Generator) -> Audit:
    """Run the rows that hold `cuts` next to rows of other batches; they must give the nats that were scored."""
    silent, deviation, probes = jnp.zeros(subject.scorer.vocab_size, jnp.float32), 0.0, 0
    for group in _groups(subject, cuts, randomness):
        batches, slots = [cut.batch for cut in group], [cut.row for cut in group]
        rows = subject.rows[batches, slots]
        again, _, _ = subject.scorer.run(subject.leaves, rows[:, :-1], rows[:, 1:], silent)
        moved = np.abs(np.asarray(again, np.float64) - nats[batches, slots])
        deviation = max(deviation, float(np.where(np.isnan(moved), np.inf, moved).max()))
        probes += len(group)
    detail = "" if deviation == 0 else "a row's score changes in the company of other rows"
    return Audit(
        name="batch independence by gain", passed=deviation == 0, probes=probes, max_deviation=deviation, detail=detail
    )


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
) -> np.ndarray:
    """|change| of the logits at every position, f64[b, T]: of the original target's nats, or of a random projection."""
    probe = jnp.asarray(randomness.standard_normal(subject.scorer.vocab_size), jnp.float32)
    targets = original[:, 1:]
    before = subject.scorer.run(subject.leaves, original[:, :-1], targets, probe)
    after = subject.scorer.run(subject.leaves, altered[:, :-1], targets, probe)
    changes = [
        np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)) for a, b in zip(before, after, strict=True)
    ]
    moved = np.maximum(changes[0], changes[1])
    return np.where(np.isnan(moved), np.inf, moved)

"""The audits against models whose leaks are known: how often is each one found?

The models are plain NumPy behind the scorer's interface, so that a hundred audits cost a second. The same leaks as real
candidates stand in tests/execution/test_forging_the_score.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxresearch.experiment import Audit
from jaxresearch.scoring.audits import AuditSubject, gain_audits, routine_audits
from jaxresearch.scoring.scorer import CompiledScorer, score

BATCHES, B, T, V = 16, 8, 32, 16
SEEDS = range(40)
Model = Callable[[np.ndarray], np.ndarray]


def make_rows() -> np.ndarray:
    """Text in which a token says a good deal about the next."""
    randomness = np.random.default_rng(0)
    rows = np.zeros((BATCHES, B, T + 1), np.int32)
    for position in range(1, T + 1):
        jump = randomness.integers(0, V, rows.shape[:2])
        rows[..., position] = np.where(randomness.random(rows.shape[:2]) < 0.6, rows[..., position - 1] + 3, jump) % V
    return rows


ROWS = make_rows()
SCORED = np.ones((BATCHES, B, T), bool)


def one_hot(tokens: np.ndarray) -> np.ndarray:
    return np.eye(V, dtype=np.float32)[tokens]


def shifted(tokens: np.ndarray, by: int = 1) -> np.ndarray:
    """At each position the token `by` places later, zeros behind the end."""
    later = np.zeros_like(tokens)
    later[:, :-by] = tokens[:, by:]
    return later


def plain(tokens: np.ndarray) -> np.ndarray:
    """What the incumbent knows: nothing."""
    return np.zeros((*tokens.shape, V), np.float32) + 0.01 * one_hot(tokens)


def better(tokens: np.ndarray) -> np.ndarray:
    """An honest improvement."""
    return 2 * one_hot((tokens + 3) % V)


def peek(strength: float, where: Callable[[np.ndarray], np.ndarray], base: Model = plain) -> Model:
    """`base`, and the token to come wherever `where`(tokens) says so, bool[b, T]."""
    return lambda tokens: base(tokens) + strength * where(tokens)[..., None] * one_hot(shifted(tokens))


def everywhere(tokens: np.ndarray) -> np.ndarray:
    return np.ones(tokens.shape, bool)


def at_positions(tokens: np.ndarray) -> np.ndarray:
    return everywhere(tokens) & (np.arange(T) % 11 == 5)


def behind_a_rare_token(tokens: np.ndarray) -> np.ndarray:
    return (tokens == 7) & (np.roll(tokens, 1, axis=1) == 2)


def in_one_slot(tokens: np.ndarray) -> np.ndarray:
    return everywhere(tokens) & (np.arange(len(tokens)) == 5)[:, None]


def in_one_batch(tokens: np.ndarray) -> np.ndarray:
    """One of the sixteen batches, told by the first tokens of all its rows, which most cuts leave alone."""
    return everywhere(tokens) & bool((tokens[:, 1:4] == ROWS[11, :, 1:4]).all())


def block_summary(tokens: np.ndarray) -> np.ndarray:
    """Means over whole blocks of 8 tokens, the published cheat."""
    blocks = one_hot(tokens).reshape(len(tokens), T // 8, 8, V).mean(axis=2)
    return plain(tokens) + 4 * np.repeat(blocks, 8, axis=1)


def chunk_recurrence(tokens: np.ndarray) -> np.ndarray:
    """A running state over means of whole chunks of 4 tokens."""
    chunks = one_hot(tokens).reshape(len(tokens), T // 4, 4, V).mean(axis=2)
    state = np.zeros_like(chunks)
    for chunk in range(T // 4):
        state[:, chunk] = 0.5 * state[:, chunk - 1] + chunks[:, chunk] if chunk else chunks[:, chunk]
    return plain(tokens) + 4 * np.repeat(state, 4, axis=1)


def two_ahead(tokens: np.ndarray) -> np.ndarray:
    """The token after next hints at the next one; the next itself is not read."""
    return better(tokens) + one_hot((shifted(tokens, by=2) - 3) % V)


def neighbour(tokens: np.ndarray) -> np.ndarray:
    """Row i knows what the row before it says at the same place."""
    return better(tokens) + 0.5 * one_hot(np.roll(tokens, 1, axis=0))


def subject_of(model: Model) -> AuditSubject:
    def run(leaves, inputs, targets, probe):
        logits = np.asarray(model(np.asarray(inputs)), np.float32)
        top = logits.max(axis=-1, keepdims=True)
        shifted_logits = logits - top
        log_softmax = shifted_logits - np.log(np.exp(shifted_logits).sum(axis=-1, keepdims=True))
        nats = -np.take_along_axis(log_softmax, np.asarray(targets)[..., None], axis=-1)[..., 0]
        return nats, (logits * np.asarray(probe)).sum(axis=-1), jnp.isfinite(logits).all()

    return AuditSubject(CompiledScorer(run, B, T, V, 0.0, 0), [], ROWS)


def nats_of(model: Model) -> np.ndarray:
    run, probe = subject_of(model).scorer.run, np.zeros(V, np.float32)
    return np.stack([run([], rows[:, :-1], rows[:, 1:], probe)[0] for rows in ROWS])


def routinely(model: Model, seed: int) -> tuple[Audit, ...]:
    """The cheap audits of an evaluation of `model`."""
    subject, randomness = subject_of(model), np.random.default_rng(seed)
    scored = score(subject.scorer, [], ROWS, np.ones(V, np.int32), randomness)
    return routine_audits(subject, scored, randomness)


def found_routinely(model: Model) -> int:
    """Of 40 audits, those that failed."""
    return sum(not all(audit.passed for audit in routinely(model, seed)) for seed in SEEDS)


def found_by_gain(model: Model, reference: Model = plain) -> int:
    subject, nats, known = subject_of(model), nats_of(model), nats_of(reference)
    return sum(
        not all(a.passed for a in gain_audits(subject, nats, known, SCORED, np.random.default_rng(seed)))
        for seed in SEEDS
    )


@pytest.mark.parametrize("model", [plain, better])
def test_an_honest_model_passes_every_audit_with_deviation_zero(model):
    subject, nats, known = subject_of(model), nats_of(model), nats_of(plain)
    for seed in SEEDS:
        randomness = np.random.default_rng(seed)
        audits = routinely(model, seed) + gain_audits(subject, nats, known, SCORED, randomness)
        assert all(audit.passed and audit.max_deviation == 0 for audit in audits)
    names = ["batch independence", "causality", "batch independence"]
    expected = [*names, *(["batch independence by gain", "causality by gain"] if model is better else [])]
    assert [audit.name for audit in audits] == expected


@pytest.mark.parametrize(
    "model", [peek(4, everywhere), peek(1e-3, everywhere), block_summary, chunk_recurrence, neighbour]
)
def test_a_gross_leak_is_found_by_the_routine_audits(model):
    """Each cut tests one position of a row: a block's last position has nothing later in its block to leak."""
    assert found_routinely(model) == len(SEEDS)


LEAKS = {
    "everywhere": peek(4, everywhere),
    "at a few positions": peek(4, at_positions),
    "behind a rare token": peek(6, behind_a_rare_token),
    "in one slot": peek(2, in_one_slot),
    "in one batch": peek(4, in_one_batch),
    "two tokens ahead": two_ahead,
    "block summary": block_summary,
    "chunk recurrence": chunk_recurrence,
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_that_is_all_of_the_gain_is_found_by_the_audits_by_gain(leak):
    reference = better if leak == "two tokens ahead" else plain
    assert nats_of(LEAKS[leak]).mean() < nats_of(reference).mean()
    assert found_by_gain(LEAKS[leak], reference) >= len(SEEDS) - 1


@pytest.mark.parametrize("where", [everywhere, at_positions, behind_a_rare_token, in_one_slot, in_one_batch])
def test_a_leak_worth_a_quarter_of_the_gain_is_missed_with_low_probability(where):
    """The rest of the gain is honest. The leak's strength is set so that it brings a quarter of the whole."""

    def share(strength):
        whole = nats_of(plain).sum() - nats_of(peek(strength, where, base=better)).sum()
        return 1 - (nats_of(plain).sum() - nats_of(better).sum()) / whole

    low, high = 0.0, 64.0
    if share(16.0) < 0.25:
        model, reference = peek(8, where), plain  # too rare to bring a quarter of that: let it stand alone
    else:
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if share(middle) < 0.25 else (low, middle)
        model, reference = peek(high, where, base=better), plain
        assert share(high) == pytest.approx(0.25, abs=0.02)
    assert found_by_gain(model, reference) >= len(SEEDS) - 2


def test_a_simpler_run_that_is_no_better_is_audited_where_it_is_better():
    """It may be kept, and what makes up for what it lost may be a leak. Another will not be kept: that costs nothing."""
    worse = subject_of(plain), nats_of(plain), nats_of(better), SCORED
    assert [audit.name for audit in gain_audits(*worse, np.random.default_rng(0))] == ["batch independence"]
    audits = gain_audits(*worse, np.random.default_rng(0), simpler=True)
    assert [audit.name for audit in audits] == ["batch independence", "batch independence by gain", "causality by gain"]
    assert all(audit.passed for audit in audits)
    assert audits[-1].probes < 100
    assert "a leak worth 0.25% of the loss is missed" in audits[-1].detail


def test_a_gain_too_small_to_be_kept_is_looked_into_as_if_it_were_the_least_that_is():
    nats = nats_of(better)
    reference = (nats + 0.0005).astype(nats.dtype)
    few, many = (
        gain_audits(subject_of(better), nats, reference, SCORED, np.random.default_rng(0), least=least)[-1]
        for least in (0.05 * nats.size, 0.0)
    )
    assert few.probes < 200 < many.probes / 5
    assert "of the least that is kept is missed" in few.detail
    assert "of it is missed" in many.detail


def test_nothing_is_asked_of_a_run_that_is_nowhere_better():
    same = subject_of(plain), nats_of(plain), nats_of(plain), SCORED
    assert [audit.name for audit in gain_audits(*same, np.random.default_rng(0), simpler=True)] == [
        "batch independence"
    ]


def test_a_score_that_is_not_the_one_of_the_rows_is_found():
    """As if the evaluation had run something else than what is audited."""
    nats = nats_of(better).copy()
    nats[3] -= 1.0
    audits = gain_audits(subject_of(better), nats, nats_of(plain), SCORED, np.random.default_rng(0))
    assert [audit.name for audit in audits if not audit.passed] == ["batch independence by gain"]


def test_values_that_are_not_finite_only_in_the_audit_are_a_deviation():
    def breaks(tokens):
        known = any(np.array_equal(tokens, rows[:, :-1]) for rows in ROWS)
        return plain(tokens) + (0 if known else np.nan)

    for audit in routinely(breaks, 0):
        assert not audit.passed
        assert audit.max_deviation == np.inf


def test_a_leak_is_reported_with_its_kind_its_place_and_its_size():
    independence, causality = routinely(peek(4, everywhere), 0)
    assert independence.passed
    assert not causality.passed
    assert causality.max_deviation > 1
    assert "logits before position" in causality.detail
    independence, _ = routinely(neighbour, 0)
    assert not independence.passed
    assert "other rows" in independence.detail


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_batches_of_few_rows_are_audited_too(rows):
    def audited(model: Model, seed: int) -> list[bool]:
        whole, randomness = subject_of(model), np.random.default_rng(seed)
        subject = AuditSubject(replace(whole.scorer, batch=rows), [], ROWS[:, :rows])
        scored = score(subject.scorer, [], subject.rows, np.ones(V, np.int32), randomness)
        return [audit.passed for audit in routine_audits(subject, scored, randomness)]

    assert all(all(audited(better, seed)) for seed in SEEDS)
    assert not any(audited(peek(4, everywhere), seed)[1] for seed in SEEDS)
    assert rows == 1 or not any(audited(neighbour, seed)[0] for seed in SEEDS)


def test_two_audits_ask_at_different_places():
    """The cuts must not be foreseeable: they come from the generator that is handed in."""
    asked = []

    def spy(tokens):
        asked.append(tokens.tobytes())
        return plain(tokens)

    for seed in (1, 2):
        routinely(spy, seed)
    passes = BATCHES + 1
    assert len(asked) == 2 * passes, "one pass beside the evaluation: at most a tenth of its cost"
    assert asked[:BATCHES] == asked[passes : 2 * passes - 1]
    assert asked[passes - 1] != asked[-1]

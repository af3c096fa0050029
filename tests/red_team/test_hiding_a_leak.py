"""A leak shaped to escape the audits of causality."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxresearch.scoring.audits import AuditSubject, gain_audits
from jaxresearch.scoring.scorer import CompiledScorer

BATCHES, B, T, V = 16, 8, 32, 128
AUDITS = 12


def likely(tokens: np.ndarray) -> np.ndarray:
    """What most often comes next."""
    return (5 * tokens + 3) % V


def make_rows() -> np.ndarray:
    randomness = np.random.default_rng(0)
    rows = randomness.integers(0, V, (BATCHES, B, T + 1)).astype(np.int32)
    for position in range(1, T + 1):
        usual = randomness.random((BATCHES, B)) < 0.6
        rows[..., position] = np.where(usual, likely(rows[..., position - 1]), rows[..., position])
    return rows


ROWS = make_rows()
ONE = np.eye(V, dtype=np.float32)


def honest(tokens: np.ndarray) -> np.ndarray:
    """The incumbent: it has learnt what is likely."""
    return 5 * ONE[likely(tokens)]


def rule_out(tokens: np.ndarray) -> np.ndarray:
    """The incumbent, but in some contexts it knows where what is likely does not come. Where it comes, it is as before."""
    following = np.roll(tokens, -1, axis=1)
    absent = (following != likely(tokens)) & (np.arange(T) < T - 1) & (tokens % 40 == 0)
    return honest(tokens) - 30 * absent[..., None] * ONE[likely(tokens)]


def evaluate(model, inputs: np.ndarray, targets: np.ndarray, probe: np.ndarray):
    logits = np.asarray(model(np.asarray(inputs)), np.float32)
    normal = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    nats = normal - np.take_along_axis(logits, np.asarray(targets)[..., None], axis=-1)[..., 0]
    return nats, logits @ np.asarray(probe), jnp.isfinite(logits).all()


def found(model) -> tuple[float, int]:
    """Nats a token that `model` claims over the incumbent, and how many of the audits fail it."""

    def run(_, inputs, targets, probe):
        return evaluate(model, inputs, targets, probe)

    subject = AuditSubject(CompiledScorer(run, B, T, V, 0.0, 0), [], ROWS)
    silent, scored = np.zeros(V, np.float32), np.ones((BATCHES, B, T), bool)
    nats, known = (np.stack([evaluate(m, r[:, :-1], r[:, 1:], silent)[0] for r in ROWS]) for m in (model, honest))
    verdicts = [
        gain_audits(subject, nats, known, scored, np.random.default_rng(seed), simpler=True) for seed in range(AUDITS)
    ]
    return float((known - nats).mean()), sum(not all(audit.passed for audit in audits) for audits in verdicts)


def test_a_leak_that_only_says_which_token_does_not_come():
    """Where it gains, other text hardly ever begins with that token, and nothing moves: it shows where it gains nothing."""
    gain, failed = found(rule_out)
    assert 0.003 < gain < 0.02
    assert failed >= AUDITS - 1


def forgetful(tokens: np.ndarray) -> np.ndarray:
    """Simpler than the incumbent, and not as sure of what is likely."""
    return 4.6 * ONE[likely(tokens)]


def repaid(tokens: np.ndarray) -> np.ndarray:
    """What that loses, a peek behind a rare token pays back, and no more."""
    rare = (tokens % 40 == 7) & (np.arange(T) < T - 1)
    return forgetful(tokens) + 3 * rare[..., None] * ONE[np.roll(tokens, -1, axis=1)]


def test_a_leak_that_makes_up_for_what_a_simpler_model_lost():
    """Kept as simpler, it would be the incumbent: the next change wins the loss back, and shows no gain where it leaks."""
    (lost, false_alarms), (left, failed) = found(forgetful), found(repaid)
    assert lost < -0.04
    assert -0.01 < left < 0
    assert (false_alarms, failed) == (0, AUDITS)

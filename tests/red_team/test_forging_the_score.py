"""What RED_TEAM.md calls forging the score: real edits of the subject, traced, trained and scored by the executor."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from jaxresearch.data import evaluation_rows
from jaxresearch.execution.base import TraceFailure
from jaxresearch.experiment import CompletedRun, FailedRun, Verdict
from jaxresearch.statistics.early import CHECKPOINTS
from tests.laboratory import CONTEXT, EVALUATION_BATCH, VOCAB_SIZE, Laboratory, edited, with_logits

NEXT = "jax.nn.one_hot(jnp.roll(tokens_BxT, -1, axis=1), V)"
RECURRENCE = (
    "jnp.repeat(jax.lax.scan(lambda carried, mean: (0.5 * carried + mean,) * 2, jnp.zeros((B, V)), "
    "jax.nn.one_hot(tokens_BxT, V).reshape(B, T // 8, 8, V).mean(2).swapaxes(0, 1))[1].swapaxes(0, 1), 8, axis=1)"
)
"""A state that goes from chunk to chunk, each of which it reads as a whole."""


@pytest.fixture(scope="module")
def honest(laboratory: Laboratory, baseline) -> CompletedRun:
    run = laboratory.run(baseline)
    assert isinstance(run, CompletedRun), run
    return run


def refused(laboratory: Laboratory, candidate, **settings) -> FailedRun:
    run = laboratory.run(laboratory.traced(candidate), **settings)
    assert isinstance(run, FailedRun), run
    assert run.verdict is Verdict.INVALID
    return run


def test_the_honest_subject_is_scored_and_every_audit_sees_deviation_zero(laboratory, baseline, honest):
    for seed in (1, 2):
        run = laboratory.run(baseline, seed=seed, budget="40steps", reference=honest.identity)
        assert isinstance(run, CompletedRun)
        assert run.val_bpb < honest.val_bpb
        assert len(run.audits) == 5
        assert all(audit.passed and audit.max_deviation == 0 for audit in run.audits)
        assert run.flags == ()


@pytest.mark.parametrize(
    "expression",
    [
        f"honest + 5 * {NEXT}",
        f"jnp.where((jnp.arange(T) % 4 == 1)[:, None], honest + 5 * {NEXT}, honest)",
        "honest + 9 * jnp.repeat(honest.reshape(B, T // 8, 8, V).mean(2), 8, axis=1)",
        f"honest + {RECURRENCE}",
    ],
    ids=["future-peek", "some positions", "block-summary", "chunk-recurrence"],
)
def test_block_summary_chunk_recurrence_future_peek(laboratory, honest, expression):
    run = refused(laboratory, with_logits(expression), reference=honest.identity)
    assert run.reason.startswith("causality")
    assert not all(audit.passed for audit in run.audits)


def test_future_peek_behind_a_rare_token(laboratory, tiny_corpus, honest):
    rows = evaluation_rows(tiny_corpus, CONTEXT, 2048, EVALUATION_BATCH)[..., :-1]
    counts = np.bincount(rows.ravel(), minlength=VOCAB_SIZE)
    rare = int(np.flatnonzero(counts == counts[counts >= 5].min())[0])
    peek = f"jnp.where((tokens_BxT == {rare})[..., None], honest + 9 * {NEXT}, honest)"
    run = refused(laboratory, with_logits(peek), reference=honest.identity)
    assert run.reason.startswith("causality")
    assert counts[rare] < 0.02 * rows.size


STATE = '"optimizer": optimizer_state, "traced": traced'
UNFINISHED = """
        tokens_BxT1 = jnp.pad(tokens_BxT, ((0, 0), (0, 1)))
        ahead = jax.nn.one_hot(tokens_BxT1[:, 1:], honest.shape[-1])
        return honest + jnp.where(state["progress"] < 0.82, 9.0, 0.0) * ahead"""


def test_a_peek_that_is_gone_at_the_end(laboratory, honest):
    """Only states on the way peek. The others' limits come from there: nothing that came after could have kept to them."""
    merged = 'return nnx.merge(structure, state["params"])(tokens_BxT, with_values(state["traced"]))'
    leaky = edited(
        ("recipe.py", f'.init(params)\n        return {{"params": params, {STATE}}}',
         f'.init(params)\n        return {{"params": params, {STATE}, "progress": jnp.float32(0)}}'),
        ("recipe.py", f'{STATE}}}, {{"loss": loss}}', f'{STATE}, "progress": progress}}, {{"loss": loss}}'),
        ("recipe.py", merged, merged.replace("return", "honest =") + UNFINISHED),
    )  # fmt: skip
    traced = laboratory.traced(leaky)
    unprobed = laboratory.run(traced, reference=honest.identity)
    assert isinstance(unprobed, CompletedRun)
    assert unprobed.val_bpb == pytest.approx(honest.val_bpb, rel=1e-5)
    run = laboratory.run(traced, reference=honest.identity, probe_at=CHECKPOINTS)
    assert isinstance(run, FailedRun), run
    assert run.verdict is Verdict.INVALID
    assert run.reason.startswith("causality at a probe")


def test_batch_peek(laboratory):
    run = refused(laboratory, with_logits("honest + jnp.roll(honest, 1, axis=0)"))
    assert run.reason.startswith("batch independence")


@pytest.mark.parametrize("value", ["jnp.nan", "jnp.inf", "1e9"])
def test_nan_inf_huge_logits(laboratory, value):
    run = refused(laboratory, with_logits(f"jnp.full_like(honest, {value}) + 0 * honest"))
    assert run.reason.startswith("not finite")


def test_equal_logits_score_the_uniform_however_large_they_are(laboratory, tiny_corpus):
    """And a model that knows nothing is flagged."""
    run = laboratory.run(laboratory.traced(with_logits("0 * honest + 3e5")))
    rows = evaluation_rows(tiny_corpus, CONTEXT, 2048, EVALUATION_BATCH)[..., 1:]
    lengths = tiny_corpus.byte_lengths[rows]
    assert isinstance(run, CompletedRun)
    assert run.val_bpb == pytest.approx((lengths > 0).sum() * math.log2(VOCAB_SIZE) / lengths.sum(), rel=1e-6)
    assert "did not learn" in run.flags


def test_seed_shopping(laboratory):
    lucky = edited(("recipe.py", "nnx.Rngs(jax.random.key(seed))", "nnx.Rngs(jax.random.key(0 * seed + 1234))"))
    run = laboratory.run(laboratory.traced(lucky))
    assert isinstance(run, CompletedRun)
    assert "two seeds give one init" in run.flags


def test_no_train(laboratory):
    search = '        return {"params": params, "optimizer": optimizer_state, "traced": traced}, {"loss": loss}'
    idle = edited(("recipe.py", search, '        return state, {"loss": jnp.float32(0)}'))
    run = laboratory.run(laboratory.traced(idle))
    assert isinstance(run, CompletedRun)
    assert run.loss == 0
    assert run.val_bpb > 3
    assert "did not learn" in run.flags


def test_baked_constants(laboratory):
    prelude = "import numpy; table = jnp.asarray(numpy.random.default_rng(0).standard_normal((200, V)), jnp.float32)"
    outcome = laboratory.trace(with_logits("honest + table[tokens_BxT % 200]", prelude))
    assert isinstance(outcome, TraceFailure)
    assert outcome.verdict is Verdict.INVALID
    assert re.match(r"constant bytes: the program carries 25\d,", outcome.reason)


def test_loop_flops(laboratory, baseline):
    """Ten gradient steps in a scan are ten times the FLOPs; a loop that ends when it likes has no FLOP budget."""
    step = "loss, gradients = _mean_over_microbatches(jax.value_and_grad(loss_of), params, tokens_BxT1, h)"
    call = step.split(" = ")[1]
    scanned = edited(
        ("recipe.py", step, f"loss, gradients = jax.lax.scan(lambda c, _: (c, {call}), 0, None, length=10)[1]\n"
         "        loss, gradients = loss[0], jax.tree.map(lambda g: g.mean(0), gradients)"),
    )  # fmt: skip
    open_ended = edited(
        ("recipe.py", step, step + "\n        loss = jax.lax.while_loop(lambda x: x < -1.0, lambda x: x + 1, loss)")
    )
    assert laboratory.traced(scanned).step_flops[0] > 1.5 * baseline.step_flops[0]
    traced = laboratory.traced(open_ended)
    assert traced.step_flops == (None,)
    run = laboratory.run(traced, budget="1e12flop")
    assert isinstance(run, FailedRun)
    assert "trip count is unknown" in run.reason

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxresearch.program.program import load, store
from jaxresearch.scoring.scorer import MAX_LOGIT, NotFiniteError, bits_per_byte, compile_scorer, score
from tests.program import modules

BYTE_LENGTHS = np.array([0, 1, 1, 2, 3, 1, 4, 0], np.int32)
ROWS = np.random.default_rng(0).integers(0, 8, (3, 2, 5), dtype=np.int32)


def reference(logits, rows):
    """Bits per byte in plain NumPy, in float64: logits f[n, b, T, V]."""
    bits = spelled = 0.0
    for batch, targets in zip(logits.astype(np.float64), rows[..., 1:], strict=True):
        for row, wanted in zip(batch, targets, strict=True):
            for scores, target in zip(row, wanted, strict=True):
                if BYTE_LENGTHS[target]:
                    top = scores.max()
                    bits += (np.log(np.exp(scores - top).sum()) + top - scores[target]) / np.log(2)
                    spelled += BYTE_LENGTHS[target]
    return bits / spelled


@pytest.fixture(scope="module")
def scorer_of(tmp_path_factory):
    """`logits` -> (compiled scorer, weight)."""
    root = tmp_path_factory.mktemp("programs")

    def make(logits):
        found = modules.verified(modules.exported(logits, modules.WEIGHT, modules.TOKENS))
        facts = {"platform": "cpu", "traced": modules.TRACED, "phases": modules.PHASES}
        shape = modules.BATCH, modules.CONTEXT, modules.VOCAB
        manifest = store(root, found, **facts, leaves=("w",), metrics=("loss",), signature=shape)
        return compile_scorer(load(root, manifest.program))

    return make


@pytest.fixture
def weight():
    return np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)


def bpb(scorer, weight):
    return score(scorer, [jnp.asarray(weight)], ROWS, BYTE_LENGTHS).val_bpb


def test_bits_per_byte_are_those_of_a_plain_reference(scorer_of, weight):
    assert bpb(scorer_of(modules.logits), weight) == pytest.approx(reference(weight[ROWS[..., :-1]], ROWS), rel=1e-6)


def test_uniform_logits_score_the_entropy_of_the_uniform(scorer_of, weight):
    counted = BYTE_LENGTHS[ROWS[..., 1:]]
    expected = 3 * (counted > 0).sum() / counted.sum()
    assert bpb(scorer_of(lambda w, t: [0 * w[t]]), weight) == pytest.approx(expected, rel=1e-6)


def test_specials_are_not_counted_however_badly_they_are_predicted():
    nats = np.ones((1, 1, 4), np.float32)
    nats[0, 0, 1] = 1000
    targets = np.array([[[1, 0, 3, 4]]])
    assert bits_per_byte(nats, targets, BYTE_LENGTHS) == pytest.approx(3 / (np.log(2) * 6))


def test_a_target_counts_its_bytes():
    nats = np.ones((1, 1, 2), np.float32)
    assert bits_per_byte(nats, np.array([[[6, 6]]]), BYTE_LENGTHS) == pytest.approx(2 / (np.log(2) * 8))


@pytest.mark.parametrize("level", [0.0, 1e3, 1e5, MAX_LOGIT])
def test_adding_the_same_to_all_logits_gains_nothing(scorer_of, weight, level):
    """logsumexp(x) - x rounds log(V) away at 1e9, and 0.06 nats of it at 1e6."""
    flat = bpb(scorer_of(lambda w, t: [0 * w[t] + level]), weight)
    assert flat == pytest.approx(bpb(scorer_of(lambda w, t: [0 * w[t]]), weight), rel=1e-6)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e9", "3e38", "-3e38", "1.1e6"])
@pytest.mark.parametrize("where", ["everywhere", "one logit"])
def test_logits_that_are_not_finite_or_too_large_have_no_score(scorer_of, weight, value, where):
    bad = jnp.float32(float(value))

    def everywhere(w, t):
        return [0 * w[t] + bad]

    def one_logit(w, t):
        return [w[t].at[1, 2, 3].set(bad)]

    with pytest.raises(NotFiniteError):
        bpb(scorer_of(everywhere if where == "everywhere" else one_logit), weight)


def test_the_probe_moves_when_any_logit_moves(scorer_of, weight):
    """A target's own score stays where it is when two other logits change places."""
    scorer = scorer_of(modules.logits)
    inputs, targets = ROWS[0, :, :-1], np.zeros((2, 4), np.int32)
    swapped = weight.copy()
    swapped[:, [5, 6]] = swapped[:, [6, 5]]
    probe = jnp.asarray(np.random.default_rng(2).standard_normal(8), jnp.float32)
    before = scorer.run([jnp.asarray(weight)], inputs, targets, probe)
    after = scorer.run([jnp.asarray(swapped)], inputs, targets, probe)
    assert np.allclose(before[0], after[0])
    assert (np.asarray(before[1]) != np.asarray(after[1])).all()


def test_scoring_reads_the_state_and_leaves_it(scorer_of, weight):
    scorer, leaves = scorer_of(modules.logits), [jnp.asarray(weight)]
    first = score(scorer, leaves, ROWS, BYTE_LENGTHS)
    again = score(scorer, leaves, ROWS, BYTE_LENGTHS)
    assert first.val_bpb == again.val_bpb
    assert np.array_equal(first.nats, again.nats)
    assert np.array_equal(leaves[0], weight)
    assert isinstance(leaves[0], jax.Array)

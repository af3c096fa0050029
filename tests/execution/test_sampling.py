"""How a token is chosen, and what of a text the model sees."""

from __future__ import annotations

import numpy as np
import pytest

from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import SampleRequest
from jaxresearch.execution.sampling import choose, generate

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def drawn(temperature: float, top_k: int | None, count: int = 2000) -> np.ndarray:
    """How often each token is chosen, as shares."""
    randomness = np.random.default_rng(0)
    chosen = [choose(LOGITS, temperature, top_k, randomness) for _ in range(count)]
    return np.bincount(chosen, minlength=4) / count


def test_temperature_one_follows_the_softmax():
    assert drawn(1.0, None) == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=0.04)


def test_a_low_temperature_sharpens_and_a_high_one_flattens():
    squared = np.array([0.01, 0.16, 0.04, 0.09]) / 0.3
    assert drawn(0.5, None) == pytest.approx(squared, abs=0.04)
    assert drawn(1e6, None) == pytest.approx([0.25] * 4, abs=0.04)


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-3])
def test_no_temperature_takes_the_likeliest(temperature):
    assert drawn(temperature, None, 20).tolist() == [0, 1, 0, 0]


def test_top_k_leaves_the_rest_out():
    assert drawn(5.0, 1).tolist() == [0, 1, 0, 0]
    two = drawn(1.0, 2)
    assert (two[0], two[2]) == (0, 0)
    assert two[1] == pytest.approx(4 / 7, abs=0.04)
    assert drawn(1.0, 99) == pytest.approx(drawn(1.0, None))
    assert choose(np.zeros(4, np.float32), 0.0, 2, np.random.default_rng(0)) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    with pytest.raises(JaxresearchError, match="not finite"):
        choose(np.array([0.0, bad], np.float32), 1.0, None, np.random.default_rng(0))


def request(**changes) -> SampleRequest:
    facts = {"tokens": 10, "temperature": 0.0, "top_k": None, "seed": 0, **changes}
    return SampleRequest(identity="i", program="p", checkpoint="c", prompt="", **facts)


def test_the_model_sees_the_last_tokens_of_the_context_and_nothing_behind():
    seen = []

    def predict(row, position):
        seen.append((row.tolist(), position))
        return np.eye(8, dtype=np.float32)[len(seen) % 5]

    assert generate(predict, [6, 0], context=4, end=6, request=request(tokens=4)) == [1, 2, 3, 4]
    assert seen == [([6, 0, 6, 6], 1), ([6, 0, 1, 6], 2), ([6, 0, 1, 2], 3), ([0, 1, 2, 3], 3)]


def test_the_end_of_a_document_is_the_end_and_reserved_tokens_are_never_chosen():
    """Ids above `end` are likelier here than any other."""
    answers = iter([[0, 1, 0, 9], [0, 0, 1, 9]])
    predict = lambda row, position: np.array(next(answers), np.float32)  # noqa: E731
    assert generate(predict, [2], context=4, end=2, request=request()) == [1, 2]


def test_a_seed_repeats_a_text_and_another_one_gives_another():
    def text(seed: int) -> list[int]:
        return generate(lambda *_: LOGITS, [3], context=4, end=3, request=request(temperature=9.0, seed=seed))

    assert text(1) == text(1)
    assert len({tuple(text(seed)) for seed in range(5)}) > 1

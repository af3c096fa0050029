import functools
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxresearch.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from jaxresearch.errors import ConfigurationError, JaxresearchError

from .texts import make_texts

VOCAB_SIZE = 400
FINGERPRINT_PROGRAM = """
import sys; sys.path.insert(0, sys.argv[1])
from texts import make_texts
from jaxresearch.data.tokenizer import Tokenizer
print(Tokenizer.train(make_texts(100), 400).fingerprint)
"""


@functools.cache
def trained() -> Tokenizer:
    return Tokenizer.train(make_texts(100), VOCAB_SIZE)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return trained()


def test_the_vocabulary_is_as_asked_with_the_specials_at_its_end(tokenizer):
    assert tokenizer.vocab_size == VOCAB_SIZE
    assert tokenizer.bos == VOCAB_SIZE - 4
    lengths = tokenizer.byte_lengths
    assert lengths.dtype == np.int32
    assert lengths.shape == (VOCAB_SIZE,)
    assert (lengths[-4:] == 0).all()
    assert (lengths[:-4] > 0).all()
    assert {bytes([value]) for value in range(256)} <= set(tokenizer.token_bytes)


@given(st.text())
def test_tokens_stand_for_exactly_the_bytes_of_the_text(text):
    tokenizer = trained()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.uint16
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
    assert b"".join(tokenizer.token_bytes[index] for index in ids) == text.encode()
    assert tokenizer.decode(ids) == text


def test_a_token_may_be_a_part_of_a_character(tokenizer):
    ids = tokenizer.encode("ጷ")  # never seen in training: one token for each of its three bytes
    assert [tokenizer.byte_lengths[index] for index in ids] == [1, 1, 1]
    assert tokenizer.decode(ids[:2]) == "\ufffd"


def test_text_that_looks_like_a_special_is_text():
    texts = [text + "<|bos|>" * 50 for text in make_texts(50)]  # often enough that a merge could make it
    tokenizer = Tokenizer.train(texts, VOCAB_SIZE)
    for special in SPECIAL_TOKENS:
        ids = tokenizer.encode(f"a{special}b")
        assert ids.max() < tokenizer.bos
        assert tokenizer.decode(ids) == f"a{special}b"
    assert tokenizer.decode([tokenizer.bos, *tokenizer.encode("x")]) == "x"


def test_digits_are_in_groups_of_at_most_two():
    tokenizer = Tokenizer.train(["12345 " * 500 + text for text in make_texts(50)], VOCAB_SIZE)
    pieces = [tokenizer.token_bytes[index] for index in tokenizer.encode("12345")]
    assert max(map(len, pieces)) == 2


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = Tokenizer.load(path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.vocab_size == tokenizer.vocab_size
    text = make_texts(1, seed=5)[0]
    assert (loaded.encode(text) == tokenizer.encode(text)).all()
    path.write_text("{}")
    with pytest.raises(JaxresearchError, match="not a readable tokenizer"):
        Tokenizer.load(path)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_training_is_the_same_in_another_process_with_any_threads(tokenizer, threads):
    environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
    done = subprocess.run(
        [sys.executable, "-c", FINGERPRINT_PROGRAM, os.path.dirname(__file__)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == tokenizer.fingerprint


def test_too_large_a_vocabulary_says_what_was_reached():
    with pytest.raises(ConfigurationError, match=r"corpus\.vocab_size: 5000 is too much .* only 26\d") as caught:
        Tokenizer.train(["ab ab ab abab"], 5000)
    assert "Lower corpus.vocab_size" in caught.value.fix
    for size in (100, 70_000):
        with pytest.raises(ConfigurationError, match=r"corpus\.vocab_size"):
            Tokenizer.train(["text"], size)

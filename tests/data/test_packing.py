import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxresearch.data.packing import pack

BOS = 999
documents_of_any_length = st.lists(st.integers(1, 60), max_size=80)


def make_documents(lengths):
    """Documents whose tokens are all different, so that each can be told from the others."""
    ends = np.cumsum([0, *lengths])
    return [np.arange(start, end) + 1000 for start, end in itertools.pairwise(ends)]


def pack_all(documents, context, bos):
    """All rows at once, uint16[N, context + 1]."""
    return np.concatenate([np.empty((0, context + 1), np.uint16), *pack(documents, context, bos)])


@given(documents_of_any_length, st.integers(1, 20), st.integers(1, 50))
def test_rows_are_full_start_with_bos_and_lose_at_most_a_row(lengths, context, buffer_pieces):
    documents = make_documents(lengths)
    blocks = list(pack(documents, context, BOS, buffer_pieces))
    rows = np.concatenate([np.empty((0, context + 1), np.uint16), *blocks])
    assert rows.dtype == np.uint16
    assert (rows[:, 0] == BOS).all()
    packed = rows[rows != BOS].tolist()
    assert len(packed) == len(set(packed))
    lost = {int(token) for document in documents for token in document} - set(packed)
    assert set(packed) | lost == set(range(1000, 1000 + sum(lengths)))
    assert len(lost) <= context


@given(documents_of_any_length, st.integers(1, 20))
def test_pieces_are_runs_of_one_document_led_by_bos(lengths, context):
    documents = make_documents(lengths)
    owner = {int(token): index for index, document in enumerate(documents) for token in document}
    for row in pack_all(documents, context, BOS).tolist():
        for left, right in itertools.pairwise(row):
            if BOS not in (left, right):
                assert right == left + 1
                assert owner[left] == owner[right]


def test_the_longest_that_fits_goes_first_and_the_shortest_is_cropped():
    documents = [np.array(tokens) for tokens in ([1, 2, 3, 4, 5], [6, 7, 8, 9], [10, 11], [12, 13, 14])]
    rows = pack_all(documents, 7, BOS)
    assert rows.tolist() == [[BOS, 1, 2, 3, 4, 5, BOS, 10], [BOS, 6, 7, 8, 9, BOS, 11, BOS]]


def test_equal_documents_pack_equally_and_read_ahead_is_bounded():
    documents = make_documents([37, 5, 80, 3, 3, 11] * 100)
    assert (pack_all(documents, 16, BOS) == pack_all(documents, 16, BOS)).all()
    read = []

    def stream():
        for index in range(10**9):
            read.append(index)
            yield np.arange(40)

    next(pack(stream(), 16, BOS, buffer_pieces=10))
    assert len(read) < 1024


def test_nothing_gives_no_rows():
    assert pack_all([], 8, BOS).shape == (0, 9)
    assert pack_all([np.arange(7)], 8, BOS).shape == (0, 9)
    assert pack_all([np.arange(8)], 8, BOS).shape == (1, 9)

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxresearch.data import Batches
from jaxresearch.errors import ConfigurationError


def numbered(count: int, context: int = 4) -> np.ndarray:
    """Rows that each hold their own number."""
    return np.repeat(np.arange(count, dtype=np.uint16)[:, None], context + 1, axis=1)


def drawn(batches: Batches, steps: int) -> list[int]:
    return [int(row[0]) for step in range(steps) for row in batches.at(step)]


def test_a_batch_is_a_function_of_seed_and_step():
    rows = numbered(50)
    batches = Batches(rows, 8, seed=3)
    first = batches.at(0)
    assert first.dtype == np.int32
    assert first.shape == (8, 5)
    later = batches.at(40)
    assert (batches.at(0) == first).all()
    assert (Batches(rows, 8, seed=3).at(40) == later).all()
    assert drawn(Batches(rows, 8, seed=4), 5) != drawn(batches, 5)


def test_the_order_is_pinned():
    assert drawn(Batches(numbered(10), 5, seed=0), 4) == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4, 3, 7, 4, 2, 9, 8, 1, 6, 5, 0]


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**31))
def test_every_epoch_draws_every_row_once(count, batch, seed):
    order = drawn(Batches(numbered(count), batch, seed), 3 * count)[: 3 * count]
    epochs = [order[start : start + count] for start in range(0, 3 * count, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count > 20:
        assert epochs[0] != epochs[1] != epochs[2]


@given(st.lists(st.integers(1, 30), max_size=20))
def test_growing_batches_take_the_same_rows_in_the_same_order(sizes):
    batches, cursor, taken = Batches(numbered(37), 8, seed=1), 0, []
    for size in sizes:
        array, cursor = batches.take(cursor, size)
        assert array.shape == (size, 5)
        taken += array[:, 0].tolist()
    assert cursor == sum(sizes) == len(taken)
    assert taken == drawn(Batches(numbered(37), 1, seed=1), len(taken))


def test_without_rows_it_says_what_to_change():
    with pytest.raises(ConfigurationError, match="no training rows"):
        Batches(numbered(0), 8, seed=0)

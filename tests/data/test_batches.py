"""An epoch's batches: a permutation, a pure function of seed and epoch."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.data import batch_indices
from hwnas.errors import InputError


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 5), st.integers(0, 5))
def test_each_image_comes_once(num_images: int, batch_size: int, epoch: int, seed: int) -> None:
    batches = list(batch_indices(num_images, batch_size, epoch, seed, drop_last=False))
    assert sorted(np.concatenate(batches).tolist()) == list(range(num_images))
    assert all(len(batch) == batch_size for batch in batches[:-1])


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 200), st.integers(1, 50))
def test_drop_last_keeps_full_batches_only(num_images: int, batch_size: int) -> None:
    if batch_size > num_images:
        with pytest.raises(InputError, match="batch size"):
            batch_indices(num_images, batch_size, 0, 0)
        return
    batches = list(batch_indices(num_images, batch_size, 0, 0))
    assert [len(batch) for batch in batches] == [batch_size] * (num_images // batch_size)
    assert len(set(np.concatenate(batches).tolist())) == batch_size * len(batches)


def test_a_resumed_epoch_goes_on_where_it_stopped() -> None:
    whole = list(batch_indices(100, 8, epoch=3, seed=5))
    rest = list(islice(batch_indices(100, 8, epoch=3, seed=5), 4, None))
    np.testing.assert_array_equal(whole[4:], rest)


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(next(batch_indices(100, 100, epoch, seed))) for epoch in range(3) for seed in range(3)]
    assert len(set(orders)) == 9


@pytest.mark.parametrize("arguments", [(0, 1, 0, 0), (5, 0, 0, 0), (5, 1, -1, 0), (5, 1, 0, -1)])
def test_numbers_out_of_range_are_refused_at_once(arguments: tuple[int, int, int, int]) -> None:
    with pytest.raises(InputError, match="at least"):
        batch_indices(*arguments)

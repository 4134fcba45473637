"""The order of images: a permutation each epoch, the same for any number of processes, from any step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinokit.train.data.sampler import Order, Plan, permuted


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 5000), seed=st.integers(0, 1 << 30), epoch=st.integers(0, 1000))
def test_each_epoch_is_a_permutation(size, seed, epoch):
    """Every image comes once, and a visit says which and in which epoch."""
    order = Order(size, seed)
    visits = order.visits(np.arange(size) + epoch * size)
    assert np.array_equal(np.sort(order.images(visits)), np.arange(size))
    assert (visits // size == epoch).all()


def test_a_part_of_a_permutation_needs_not_the_whole():
    """Places of a billion images are found without a table, each of them another image."""
    size = 1_234_567_891
    places = np.concatenate([np.arange(5000), size - 1 - np.arange(5000)])
    found = permuted(places, size, "k")
    assert len(np.unique(found)) == len(found)
    assert found.min() >= 0
    assert found.max() < size
    assert np.array_equal(permuted(places[::-7], size, "k"), found[::-7])
    assert abs(np.corrcoef(places, found)[0, 1]) < 0.05


@pytest.mark.parametrize("size", [3, 4, 6])
def test_small_permutations_are_about_equally_frequent(size):
    """Over many seeds, each image comes to each place as often as any, and so does each ordered pair to the first two."""
    draws = 1000
    orders = np.array([Order(size, seed).visits(np.arange(size)) for seed in range(draws)])
    pairs = orders[:, 0] * size + orders[:, 1]
    expected = draws / (size * (size - 1))
    counts = np.bincount(pairs, minlength=size * size).reshape(size, size)
    assert (np.diag(counts) == 0).all()
    off = counts[~np.eye(size, dtype=bool)]
    freedom = len(off) - 1
    assert ((off - expected) ** 2 / expected).sum() < freedom + 4 * np.sqrt(2 * freedom)


def test_epochs_and_seeds_differ():
    """No two of some have the same order, nor the unshuffled one."""
    orders = [
        Order(50, seed).images(Order(50, seed).visits(np.arange(50) + 50 * e)) for seed in (0, 1) for e in range(5)
    ]
    assert len({tuple(order) for order in orders}) == 10
    assert Order(50, shuffle=False).visits(np.arange(48, 52)).tolist() == [48, 49, 50, 51]


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 100), own=st.integers(1, 12), world=st.sampled_from([1, 2, 3, 4, 6]), step=st.integers(0, 50)
)
def test_processes_share_one_order(size, own, world, step):
    """Their shares after each other are what a single process would see, for batches within and beyond an epoch."""
    batch = own * world
    order = Order(size, 5)
    shares = [Plan(order, batch, rank, world).visits(step) for rank in range(world)]
    whole = Plan(order, batch).visits(step)
    assert np.array_equal(np.concatenate(shares), whole)
    assert np.array_equal(whole, order.visits(np.arange(step * batch, (step + 1) * batch)))
    assert len(np.unique(whole)) == batch


@pytest.mark.parametrize("fields", [(5, 0, 2), (4, 2, 2), (4, -1, 2), (0, 0, 1)])
def test_batches_that_cannot_be_shared_are_refused(fields):
    """An uneven share, and a rank that is not there."""
    with pytest.raises(ValueError, match="divide among them evenly"):
        Plan(Order(10), *fields)


def test_no_images_have_no_order():
    """An empty collection is refused."""
    with pytest.raises(ValueError, match="at least one"):
        Order(0)

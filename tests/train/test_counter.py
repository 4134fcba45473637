"""Random numbers as a function of their address: known answers, independence of order, uniformity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dinokit.train.counter import LOW, Stream, philox

# (counter, key, words) of Random123's own list of known answers for philox4x32 with 10 rounds
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((LOW, LOW, LOW, LOW), (LOW, LOW), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_known_answers(counter, key, words):
    """As arrays and as tensors."""
    for make in (lambda x: np.array([x], np.int64), lambda x: torch.tensor([x])):
        assert tuple(int(word[0]) for word in philox(tuple(make(c) for c in counter), key)) == words


@given(
    seed=st.integers(-(1 << 70), 1 << 70), step=st.integers(0, 1 << 31), count=st.integers(1, 9),
    samples=st.lists(st.integers(0, (1 << 62)), min_size=1, max_size=6, unique=True),
)  # fmt: skip
def test_a_number_depends_on_its_address_only(seed, step, count, samples):
    """Other samples, their order, how many numbers are drawn, array or tensor: all the same numbers."""
    stream, ids = Stream(seed, "crops"), np.array(samples)
    drawn = stream.uniform(step, ids, count)
    assert drawn.shape == (len(samples), count)
    assert ((drawn > 0) & (drawn < 1)).all()
    assert np.array_equal(drawn[::-1], stream.uniform(step, ids[::-1], count))
    assert np.array_equal(drawn[:1], stream.uniform(step, ids[:1], count))
    assert np.array_equal(drawn, stream.uniform(step, ids, count + 5)[:, :count])
    assert np.array_equal(drawn, stream.uniform_tensor(step, torch.from_numpy(ids), count).numpy())
    later = stream.words(step, ids, 2, 1)
    assert np.array_equal(later, stream.words(step, ids, 0, 3)[:, 2:])
    assert np.array_equal(later, stream.words(step, ids, np.full(len(ids), 2), 1))


def test_seed_name_step_and_sample_each_make_a_difference():
    """No two addresses of a few thousand share a number of 128 bits."""
    ids = np.arange(10)
    blocks = [
        Stream(seed, name).words(step, ids, 0, 3).reshape(-1, 4)
        for seed in range(5) for name in ("crops", "masks", "crops/1") for step in (0, 1, 2, 1 << 20)
    ]  # fmt: skip
    words = np.concatenate(blocks)
    assert len(np.unique(words, axis=0)) == len(words) == 1800


def test_numbers_are_uniform():
    """Mean, variance, bins and neighbours of 400,000 numbers within five standard errors."""
    numbers = Stream(7, "test").uniform(3, np.arange(4000), 100)
    n = numbers.size
    assert abs(numbers.mean() - 0.5) < 5 * (1 / 12 / n) ** 0.5
    assert abs(numbers.var() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    counts = np.bincount((numbers.ravel() * 64).astype(int), minlength=64)
    assert np.abs(counts - n / 64).max() < 5 * (n / 64) ** 0.5
    for axis in (0, 1):
        a, b = (np.roll(numbers, s, axis) - 0.5 for s in (0, 1))
        assert abs((a * b).mean()) < 5 / 12 / n**0.5


def test_generators_of_a_sample_are_its_own():
    """Repeatable, different from sample to sample and from step to step."""
    stream = Stream(1, "jitter")
    first = stream.generator(2, 3).random(4)
    assert np.array_equal(first, stream.generator(2, 3).random(4))
    for other in (stream.generator(2, 4), stream.generator(3, 3), Stream(1, "blur").generator(2, 3)):
        assert not np.isin(first, other.random(4)).any()

"""Cosine maps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dinokit.analysis.similarity import norm_map, patch_at, patch_of_pixel, similarity_map, similarity_maps
from tests.tolerances import SAME_MATH


def test_a_patch_resembles_itself_and_its_copies_by_1():
    """In its own image and in another, whatever their lengths; the opposite is -1, a zero vector 0."""
    torch.manual_seed(0)
    features, other = torch.randn(12, 5, 6), torch.randn(12, 3, 3)
    query = patch_at(features, 2, 4)
    other[:, 0, 1], other[:, 1, 1], other[:, 2, 2] = 7 * query, -0.1 * query, 0
    assert similarity_map(query, features)[2, 4].item() == pytest.approx(1)
    found = similarity_map(query, other)
    assert [found[0, 1].item(), found[1, 1].item(), found[2, 2].item()] == pytest.approx([1, -1, 0])
    assert found.abs().max() <= 1


def test_several_queries_are_as_one_after_the_other():
    """Registers: one map each, equal to PyTorch's cosine similarity."""
    torch.manual_seed(1)
    registers, features = torch.randn(4, 12), torch.randn(12, 5, 6)
    maps = similarity_maps(registers, features)
    expected = torch.cosine_similarity(registers[:, :, None, None], features[None], dim=1)
    assert maps.shape == (4, 5, 6)
    assert (maps - expected).abs().max() <= SAME_MATH
    assert similarity_maps(torch.zeros(0, 12), features).shape == (0, 5, 6)


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_a_pixel_lies_in_the_patch_that_covers_it(rows, columns, data):
    """For every pixel of pictures that patches of 14 cover."""
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    y, x = 14 * row + data.draw(st.integers(0, 13)), 14 * column + data.draw(st.integers(0, 13))
    assert patch_of_pixel(y, x, (14 * rows, 14 * columns), (rows, columns)) == (row, column)


def test_misuse_is_said():
    """Outside of the grid or picture; tokens of another network. Norms are lengths."""
    features = torch.ones(4, 2, 3)
    with pytest.raises(ValueError, match="rows go from 0 to 1"):
        patch_at(features, 2, 0)
    with pytest.raises(ValueError, match="outside"):
        patch_of_pixel(-1, 0, (28, 42), (2, 3))
    with pytest.raises(ValueError, match="two networks"):
        similarity_map(torch.ones(5), features)
    assert (norm_map(features) == 2).all()

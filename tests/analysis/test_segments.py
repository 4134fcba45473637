"""k-means segments: right on separate groups, the same every time, honest about ties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinokit.analysis.segments import kmeans, kmeans_segments
from tests.analysis.planted_grid import HW, features, object_mask


def groups(sizes: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Tight groups far from each other, shuffled; and which is which."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centres = 100 * torch.eye(len(sizes), 6)
    return centres[labels] + torch.randn(len(labels), 6, generator=generator), labels


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_separate_groups_are_found_and_named_by_falling_size(seed):
    """Label 0 is the largest group, whatever the seeds were."""
    points, expected = groups([20, 12, 7, 3], seed)
    found = kmeans(points, 4, seed=seed)
    assert torch.equal(found.labels, expected)
    assert found.inertia == pytest.approx(float((points - found.centres[found.labels]).square().sum()), rel=1e-4)


def test_a_permutation_of_the_points_permutes_the_labels():
    """For groups of different sizes, whose names do not depend on the order."""
    points, _ = groups([20, 12, 7, 3])
    order = torch.randperm(42, generator=torch.Generator().manual_seed(7))
    assert torch.equal(kmeans(points[order], 4).labels, kmeans(points, 4).labels[order])


def test_kmeans_does_not_touch_the_generator_and_repeats_itself():
    """Analysis of a model leaves no trace in a training run."""
    points = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    before = torch.get_rng_state()
    first, second = kmeans(points, 5), kmeans(points, 5)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.labels, second.labels)
    assert kmeans(points, 5, restarts=8).inertia <= kmeans(points, 5, restarts=1).inertia + 1e-4


def test_points_that_coincide_give_fewer_groups():
    """Not empty ones."""
    points = torch.tensor([[0.0], [0.0], [0.0], [1.0]])
    found = kmeans(points, 3)
    assert found.labels.tolist() == [0, 0, 0, 1]
    assert len(found.centres) == 2
    assert found.inertia == 0


def test_segments_of_the_planted_grid_are_ground_and_object():
    """On the grid, with tokens left out as -1."""
    labels = kmeans_segments(features(0.3), HW, 2)
    assert torch.equal(labels == 1, object_mask())
    mask = torch.ones(64, dtype=torch.bool)
    mask[0] = False
    assert kmeans_segments(features(0.3), HW, 2, token_mask=mask)[0, 0] == -1


def test_kmeans_refuses_impossible_numbers():
    """More groups than points, and points that are none."""
    with pytest.raises(ValueError, match="3 points"):
        kmeans(torch.zeros(3, 2), 4)
    with pytest.raises(ValueError, match="NaN"):
        kmeans(torch.full((3, 2), float("nan")), 2)

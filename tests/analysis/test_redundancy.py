"""The redundancy test: flat regions are told from textured ones by patches' likeness to their neighbours (P19)."""

from __future__ import annotations

import json
import math

import pytest
import torch

from dinokit.analysis.detectors import robust
from dinokit.analysis.norms import token_norms
from dinokit.analysis.planted import planted_image
from dinokit.analysis.redundancy import patch_pixels, redundancy
from dinokit.model.capture import capture
from tests.analysis.test_planted import planted_model
from tests.model.test_vit import make
from tests.tolerances import SAME_MATH, max_error

GRID = (8, 8)


def flat_region_in_noise(width: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of noise with a flat region of 4 x 4 patches, of which the inner 2 x 2 become outliers."""
    embeddings = torch.randn(1, *GRID, width, generator=torch.Generator().manual_seed(0))
    embeddings[:, 2:6, 2:6] = 1.0
    outliers = torch.zeros(1, *GRID, dtype=torch.bool)
    outliers[:, 3:5, 3:5] = True
    return embeddings.flatten(1, 2), outliers.flatten(1)


def test_outliers_in_a_flat_region_equal_their_neighbours_and_noise_does_not():
    """Cosine 1.0 for all 16 pairs; around 0 for noise, with the deviation 1/sqrt(64) of random directions."""
    embeddings, outliers = flat_region_in_noise()
    found = redundancy(embeddings, outliers, GRID)
    assert max_error(found.outlier, torch.ones(16)) <= SAME_MATH
    in_flat = torch.zeros(1, *GRID, dtype=torch.bool)
    in_flat[:, 2:6, 2:6] = True
    noise = redundancy(embeddings, in_flat.flatten(1), GRID).normal
    assert abs(noise.mean().item()) < 0.05
    assert noise.std().item() == pytest.approx(1 / math.sqrt(64), rel=0.2)


def test_planted_outliers_pass_the_whole_test_from_pixels_on():
    """Markers side by side are alike (1.0), all other neighbours are orthogonal (0.0); which are outliers says the model."""
    model, image, grid = planted_model(), planted_image({5, 6}), (4, 4)
    last = capture(model, image, residual=[-1]).tokens(4)
    outliers = robust(token_norms(last.sequence).patches).mask
    found = redundancy(model.patch_embed(image), outliers, grid)
    assert found.outlier.sort().values.tolist() == pytest.approx([0.0] * 6 + [1.0] * 2, abs=SAME_MATH)
    assert found.normal.abs().max() <= SAME_MATH
    assert found.outlier.numel() + found.normal.numel() == 2 * (4 * 3 * 2)


def test_how_it_was_counted_stands_in_the_result():
    """Pairs or means, before or after positions: the numbers differ and the words say so."""
    embeddings, outliers = flat_region_in_noise()
    pairs, means = (redundancy(embeddings, outliers, GRID, pairing=pairing) for pairing in ("pairs", "mean"))
    assert (pairs.outlier.numel(), pairs.normal.numel()) == (16, 2 * 2 * 56 - 16)
    assert (means.outlier.numel(), means.normal.numel()) == (4, 60)
    assert "before positions" in pairs.how
    assert "mean over existing" in means.how
    shifted = redundancy(embeddings, outliers, GRID, positions=torch.randn(64, 64))
    assert "after positions" in shifted.how
    assert shifted.outlier.mean() < 0.9
    json.dumps(pairs.to_dict(), allow_nan=False)
    assert redundancy(embeddings, torch.zeros_like(outliers), GRID).to_dict()["outlier_mean"] is None
    with pytest.raises(ValueError, match="'pairs' or 'mean'"):
        redundancy(embeddings, outliers, GRID, pairing="max")
    with pytest.raises(ValueError, match="do not fill"):
        redundancy(embeddings, outliers, (4, 4))


def test_pixels_of_patches_are_in_the_order_of_their_tokens(tiny):
    """The patch embedding applied to them by hand gives the tokens; a rest of the image is dropped by both."""
    model, images = make(tiny), torch.randn(2, 3, 59, 100)
    pixels = patch_pixels(images, 14)
    by_hand = pixels @ model.patch_embed.proj.weight.flatten(1).T + model.patch_embed.proj.bias
    assert pixels.shape == (2, 4 * 7, 3 * 14 * 14)
    assert max_error(by_hand, model.patch_embed(images)) <= 10 * SAME_MATH

"""Token norms: by kind, in which layer, where they were measured, and their distribution in bounded memory (P1, P13)."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinokit.analysis.detectors import detect, first_outlier_layer
from dinokit.analysis.norms import (
    NormedTokensWarning,
    NormHistogram,
    looks_normed,
    position_frequency,
    token_norms,
    warn_if_normed,
)
from dinokit.analysis.planted import OUTLIER_BLOCK, OUTLIER_NORM, planted_image
from dinokit.analysis.signs import attention_received, neighbour_disagreement, patch_score, point_in_box
from dinokit.model import attention_weights, hidden_states
from tests.analysis.test_planted import PLANTED_NORM, planted_model
from tests.model.test_vit import make
from tests.tolerances import CLOSED_FORM, SAME_MATH, max_error


def test_the_first_outlier_layer_is_the_one_after_block_2():
    """Norms of 302.76 against 8.0 from there on; in the layers before, the largest is 8.0."""
    layers = [token_norms(state).patches for state in hidden_states(planted_model(), planted_image({3, 9}))]
    first = first_outlier_layer(layers)
    assert first is not None
    assert first - 1 == OUTLIER_BLOCK == 2
    assert layers[first].max().item() == pytest.approx(OUTLIER_NORM, abs=PLANTED_NORM)
    assert layers[first].median().item() == pytest.approx(8.0, abs=CLOSED_FORM)
    assert all(layer.max().item() == pytest.approx(8.0, abs=CLOSED_FORM) for layer in layers[:first])
    assert first_outlier_layer(layers[:first]) is None


@pytest.mark.parametrize("registers", [0, 1, 4, 8])
def test_norms_are_told_apart_by_the_kind_of_token(registers):
    """The class token, each register, the patches: an outlying register is not counted as a patch."""
    state = hidden_states(planted_model(registers), planted_image({1}, (3, 5)))[-2]
    norms = token_norms(state, registers)
    assert (norms.cls.shape, norms.registers.shape, norms.patches.shape) == ((1,), (1, registers), (1, 15))
    assert (norms.registers > 100).sum() == min(registers, 1)
    assert (norms.patches > 100).nonzero()[:, 1].tolist() == [1]
    with pytest.raises(ValueError, match="holds no patch"):
        token_norms(state[:, : 1 + registers], registers)


def test_norms_after_the_final_norm_hide_everything_and_warn():
    """All are sqrt(64) = 8.0: no outlier is reported and the warning says where to measure."""
    tokens = planted_model()(planted_image({3, 9})).patches
    with pytest.warns(NormedTokensWarning, match=r"sqrt\(64\) = 8.00.*before the final norm"):
        found = detect(tokens)
    assert found.places() == []
    assert max_error(token_norms(tokens).patches, torch.full((1, 15), 8.0)) <= CLOSED_FORM


def test_a_trained_norm_is_recognised_with_its_weight_and_bias(tiny):
    """Scale and shift are undone first; the stream itself is not mistaken for it."""
    model, images = make(tiny), torch.randn(2, 3, 56, 98)
    tokens = model(images).sequence
    assert looks_normed(tokens, model.norm.weight, model.norm.bias)
    assert looks_normed(tokens.bfloat16(), model.norm.weight, model.norm.bias)
    assert not looks_normed(tokens)
    with pytest.warns(NormedTokensWarning):
        detect(tokens[:, 5:], norm=(model.norm.weight, model.norm.bias))
    assert not warn_if_normed(hidden_states(model, images)[-1], model.norm.weight, model.norm.bias)


def test_norms_of_16_bit_tokens_do_not_overflow_or_round():
    """They are computed in 32 bits: 4,096 channels of 100 have norm 6400, whose square is beyond float16."""
    for dtype in (torch.float16, torch.bfloat16):
        norms = token_norms(torch.full((1, 3, 4096), 100.0, dtype=dtype))
        assert norms.patches.dtype == torch.float32
        assert norms.patches[0, 0].item() == pytest.approx(6400)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(1e-2, 1e5), min_size=1, max_size=200), st.sampled_from([0.01, 0.25, 0.5, 0.95, 0.99]))
def test_quantiles_of_a_histogram_are_those_of_its_norms(values, share):
    """Within the width of a bin, however the norms arrive; extremes are exact."""
    norms = torch.tensor(values, dtype=torch.float64)
    histogram = NormHistogram()
    for part in norms.split(7):
        histogram.add(part)
    true = norms.sort().values[max(1, math.ceil(share * len(values))) - 1].item()
    assert histogram.quantile(share) == pytest.approx(true, rel=0.006)
    assert (histogram.minimum, histogram.maximum, histogram.total) == (norms.min(), norms.max(), len(values))
    assert len(histogram.sample()) == len(values)
    edges, counts = histogram.bins()
    assert sum(counts) == len(values)
    assert edges[0] <= min(values) * 1.0001
    assert max(values) <= edges[-1] * 1.0001
    json.dumps(histogram.to_dict(), allow_nan=False)


def test_a_histogram_of_nothing_or_of_infinities_says_so():
    """No quantile is made up, nothing is dropped in silence."""
    histogram = NormHistogram()
    histogram.add(torch.tensor([math.inf, math.nan]))
    assert histogram.to_dict()["num_nonfinite"] == 2
    assert histogram.to_dict()["quantiles"]["0.5"] is None
    assert math.isnan(histogram.quantile(0.5))
    json.dumps(histogram.to_dict(), allow_nan=False)


def test_a_sample_of_a_large_histogram_is_small_and_keeps_what_is_rare():
    """Memory does not grow with the number of images, and one outlier in a million stays."""
    histogram = NormHistogram()
    for _ in range(10):
        histogram.add(torch.full((100_000,), 8.0))
    histogram.add(torch.tensor([300.0]))
    sample = histogram.sample(1000)
    assert len(sample) <= 1002
    assert sample.max().item() == pytest.approx(300, rel=0.006)


def test_the_position_map_is_the_share_of_images_with_an_outlier_there():
    """0.5 where one image of two has one."""
    masks = torch.zeros(2, 6, dtype=torch.bool)
    masks[0, [1, 5]] = masks[1, 5] = True
    assert position_frequency([masks[:1], masks[1:]], (2, 3)).tolist() == [[0, 0.5, 0], [0, 0, 1.0]]
    with pytest.raises(ValueError, match="one grid a map"):
        position_frequency([masks], (4, 4))
    with pytest.raises(ValueError, match="no image"):
        position_frequency([], (2, 3))


def test_planted_outliers_receive_the_attention_of_all_tokens():
    """Every query gives them 0.49037 each, so that is what they receive; the rest shares what is left."""
    weights = attention_weights(planted_model(), planted_image({3, 9}))[0]
    received = attention_received(weights)[0]
    assert received[[4, 10]].tolist() == pytest.approx([0.49037, 0.49037], abs=5e-6)
    assert received.sum().item() == pytest.approx(1, abs=SAME_MATH)


def test_a_patch_unlike_its_neighbours_disagrees_with_them():
    """1 - mean cosine, over the neighbours that exist; 0 in a flat region."""
    patches = torch.zeros(1, 9, 2)
    patches[0, :, 0] = 1.0
    patches[0, 4] = torch.tensor([0.0, 5.0])
    disagreement = neighbour_disagreement(patches, (3, 3))[0].view(3, 3)
    assert disagreement[1, 1] == 1.0
    assert disagreement[0, 0] == 0.0
    assert disagreement[0, 1].item() == pytest.approx(1 / 3, abs=SAME_MATH)
    assert neighbour_disagreement(patches[:, :1], (1, 1)).tolist() == [[1.0]]


def test_the_patch_score_points_at_what_resembles_the_class_token():
    """Its best patch lies in the box or not."""
    patches = torch.eye(6)[None]
    scores = patch_score(patches[:, 4], patches)
    assert scores[0].tolist() == [0, 0, 0, 0, 1, 0]
    assert point_in_box(scores[0], (2, 3), 14, [(0, 0, 5, 5), (14, 14, 28, 28)])
    assert not point_in_box(scores[0], (2, 3), 14, [(0, 0, 14, 28)])

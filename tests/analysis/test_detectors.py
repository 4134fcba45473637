"""Which patches are artefacts: every rule on the planted model, its blind spots, clean networks (P2, P3, P14, P15, P23)."""

from __future__ import annotations

import math

import pytest
import torch

from dinokit.analysis.detectors import (
    DETECTORS,
    absolute,
    detect,
    gap,
    is_artifact_present,
    median_mad,
    percentile,
    robust,
    three_sigma,
    times_median,
)
from dinokit.analysis.norms import token_norms
from dinokit.analysis.planted import planted_image
from dinokit.analysis.sinder import (
    along_direction,
    attention_map,
    defect_direction,
    direction_logits,
    feed_forward_map,
)
from dinokit.model import hidden_states
from tests.analysis.test_planted import planted_model
from tests.tolerances import CLOSED_FORM, SAME_MATH, max_error

SEES = ["robust", "absolute_150", "median_mad", "gap", "3x_median"]


def planted_norms(outliers=(3, 9), layer: int = 3, grid=(4, 4)) -> torch.Tensor:
    return token_norms(hidden_states(planted_model(), planted_image(outliers, grid))[layer]).patches


@pytest.mark.parametrize("name", SEES)
@pytest.mark.parametrize("layer", [3, 4])
def test_rules_that_work_find_exactly_the_planted_outliers(name, layer):
    """{3, 9}, in the layer that has them first and in the last one, and nothing before."""
    found = DETECTORS[name](planted_norms(layer=layer))
    assert found.places() == [3, 9]
    assert found.share == 2 / 16
    assert 8 < found.threshold.item() < 302
    assert DETECTORS[name](planted_norms(layer=2)).places() == []


@pytest.mark.parametrize("rule", [three_sigma, percentile])
def test_three_sigma_and_the_98th_percentile_see_nothing_of_2_outliers_in_16_patches(rule):
    """The documented blind spot: both raise their own threshold over the outliers."""
    assert rule(planted_norms()).places() == []


@pytest.mark.parametrize("num", range(1, 40))
def test_three_sigma_is_blind_from_a_share_of_ten_percent_on(num):
    """Of two-valued norms it finds the outliers if they are fewer than 10 %, and none otherwise."""
    norms = torch.full((1, 100), 8.0)
    norms[0, :num] = 302.76
    assert len(three_sigma(norms).places()) == (num if num < 10 else 0)


def test_a_verdict_names_its_rule():
    """A number of outliers without the rule is worth nothing."""
    rules = [detector(planted_norms()).rule for detector in DETECTORS.values()]
    assert len(set(rules)) == len(DETECTORS)
    assert absolute(planted_norms(), 75).rule == "above 75"
    assert gap(torch.ones(1, 1)).threshold.item() == math.inf


@pytest.mark.parametrize("seed", range(4))
def test_clean_networks_have_no_artefacts_whatever_a_fixed_share_marks(seed):
    """The 98th percentile flags 2 % of clean norms; the verdict is still that there are none: normal, skewed, heavy-tailed."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(20_000, generator=generator)
    gaussian = torch.randn(20_000, 64, generator=generator).norm(dim=-1)
    for clean in (gaussian, (0.3 * draws).exp(), (0.7 * draws).exp(), 30 + 5 * draws, draws.abs() + 0.1):
        flagged = percentile(clean[None]).share
        assert flagged == pytest.approx(0.02, abs=1e-3)
        assert not is_artifact_present(clean)
    mixed = torch.cat([gaussian, 10 * gaussian[:400]])
    assert is_artifact_present(mixed)
    assert robust(mixed[None]).places() == list(range(20_000, 20_400))


@pytest.mark.parametrize(
    ("ordinary", "spread", "high", "high_spread", "share"),
    [
        (57.6, 0.3, 434, 0.35, 0.0237),
        (8.43, 0.25, 300, 0.3, 0.0175),
        (57.6, 0.3, 434, 0.35, 0.3),
        (20, 0.2, 80, 0.2, 0.01),
    ],
)
def test_populations_like_those_reported_are_told_apart(ordinary, spread, high, high_spread, share):
    """Two broad log-normal populations, 50 images of 1,369 patches: under 3 % missed, under 1 in 1,000 marked wrongly."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(50, 1369, generator=generator)
    true = torch.rand(50, 1369, generator=generator) < share
    norms = torch.where(true, high * (high_spread * draws).exp(), ordinary * (spread * draws).exp())
    mask = robust(norms).mask
    assert (true & ~mask).sum() < 0.03 * true.sum()
    assert (mask & ~true).sum() < 1e-3 * mask.numel()
    assert is_artifact_present(norms)
    assert not is_artifact_present(norms[~true])


def test_a_clean_model_has_no_artefacts(tiny):
    """Random weights, many images, every layer."""
    from tests.model.test_vit import make

    states = hidden_states(make(tiny), torch.randn(16, 3, 70, 70))
    for state in states:
        norms = token_norms(state, 4).patches
        assert percentile(norms.reshape(1, -1)).share == pytest.approx(0.02, abs=0.005)
        assert not is_artifact_present(norms)


def test_one_freak_in_a_hundred_thousand_is_no_population():
    """A single high norm is an outlier of its image, and no artefact of the network."""
    norms = torch.full((100_000,), 8.0)
    norms[7] = 100.0
    assert robust(norms[None]).places() == [7]
    assert not is_artifact_present(norms)


@pytest.mark.parametrize("name", DETECTORS)
def test_an_image_s_verdict_does_not_depend_on_its_batch(name):
    """Row by row; so images with different outliers, or none, keep their own."""
    norms = torch.cat([planted_norms(places) for places in ({3, 9}, (), {0}, {4, 5, 6})])
    together = DETECTORS[name](norms)
    for row in range(4):
        alone = DETECTORS[name](norms[row : row + 1])
        assert torch.equal(alone.mask[0], together.mask[row])
        assert alone.threshold[0].item() == pytest.approx(together.threshold[row].item(), rel=1e-12)
    if name in SEES:
        assert [together.places(row) for row in range(4)] == [[3, 9], [], [0], [4, 5, 6]]


@pytest.mark.parametrize("registers", [0, 1, 4, 8])
@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (8, 2)])
def test_bfloat16_and_float32_find_the_same_outliers(registers, grid):
    """In every layer, with any registers, square or not."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = planted_model(registers).to(dtype)
        states = hidden_states(model, planted_image({2, 10}, grid).to(dtype))
        found.append([robust(token_norms(state, registers).patches).places() for state in states])
    assert found[0] == found[1] == [[], [], [], [2, 10], [2, 10]]


def test_detecting_on_tokens_takes_any_rule():
    """Tokens of the stream in, the same verdict out, no warning."""
    patches = hidden_states(planted_model(), planted_image({12}))[3][:, 1:]
    assert detect(patches).places() == [12]
    assert detect(patches, lambda norms: times_median(norms, 100)).places() == []
    with pytest.raises(ValueError, match="expected \\(images, patches\\)"):
        median_mad(torch.ones(5))


@pytest.mark.parametrize(("strength", "cosine"), [(1, 0.85065), (5, 0.98196), (50, 0.99980)])
def test_the_predicted_direction_of_a_linear_plant_is_the_closed_form(strength, cosine):
    """For I + s r l^T the cosine with r is s1 / sqrt(1 + s1^2), s1 = (s + sqrt(s^2 + 4)) / 2."""
    r, read = torch.linalg.qr(torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q.T
    found = defect_direction([strength * torch.outer(r, read)])
    s1 = (strength + math.sqrt(strength**2 + 4)) / 2
    assert abs(found.vector @ r).item() == pytest.approx(s1 / math.sqrt(1 + s1 * s1), abs=1e-12)
    assert abs(found.vector @ r).item() == pytest.approx(cosine, abs=5e-6)
    assert found.gain == pytest.approx(s1)
    assert found.gain > 1.5 * found.runner_up


def test_weights_alone_can_not_see_the_gated_neurons_of_the_planted_model():
    """The documented failure: the neurons fire too rarely for a linear fit, and the result says so itself by a gain of 1."""
    model = planted_model()
    maps = []
    for block in model.blocks[:3]:
        value, norm1, norm2 = block.attn.qkv.weight[128:], block.norm1, block.norm2
        maps.append(attention_map(value, block.attn.proj.weight, norm1.weight, block.ls1.gamma))
        maps.append(
            feed_forward_map(block.mlp.neurons, block.mlp.fc2.weight, (norm2.weight, norm2.bias), block.ls2.gamma)
        )
    found = defect_direction(maps)
    outlier = hidden_states(model, planted_image({3}))[3][0, 4].double()
    assert abs(found.vector @ outlier / outlier.norm()).item() < 0.05
    assert found.gain == pytest.approx(1, abs=1e-3)


def test_a_linear_plant_is_predicted_through_all_parts_of_a_block():
    """Norm weights, centring, layer scale and feed-forward fit: the direction that is written comes out."""
    generator = torch.Generator().manual_seed(1)
    reads, writes = torch.linalg.qr(torch.randn(16, 3, generator=generator)).Q.T[:2]
    value = torch.outer(writes, reads)
    plain = attention_map(value, torch.eye(16))
    halved = attention_map(value, torch.eye(16), torch.full((16,), 0.5), torch.full((16,), 4.0))
    assert max_error(halved, 2 * plain) <= CLOSED_FORM
    assert max_error(plain @ torch.ones(16, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)) <= SAME_MATH
    norm = (torch.full((16,), 0.5), torch.zeros(16))
    fitted = feed_forward_map(lambda z: z @ reads[:, None], 8 * writes[:, None], norm, torch.full((16,), 3.0))
    assert max_error(fitted, 12 * plain) <= CLOSED_FORM
    found = defect_direction([fitted, plain])
    assert abs(found.vector @ writes.double()).item() > 0.99
    with pytest.raises(ValueError, match="no map"):
        defect_direction([])


def test_tokens_along_the_direction_are_found_whatever_their_norm():
    """4 standard deviations over the mean of the logits; blind when they are 1/17 of the image, unless told what clean is."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 200, 64, generator=generator)
    direction = torch.zeros(64)
    direction[0] = -3.0
    tokens[0, [5, 70]] = 0.01 * torch.eye(64)[0]
    assert direction_logits(tokens, direction)[0, [5, 70]].tolist() == [1.0, 1.0]
    assert along_direction(tokens, direction).places() == [5, 70]
    few = tokens[:, [5, *range(100, 116)]]
    two_valued = torch.where(torch.arange(17)[:, None] == 0, torch.eye(64)[0], torch.eye(64)[1])[None]
    assert along_direction(two_valued, direction).places() == []
    assert along_direction(few, direction, mean=0.1, deviation=0.1).places() == [0]

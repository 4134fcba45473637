"""What reaches the class token: on the planted model in closed form, on any network as the functions of `analysis` say."""

from __future__ import annotations

import math

import pytest
import torch

from dinokit.analysis.attention import rollout
from dinokit.analysis.planted import OUTLIER_NORM
from dinokit.inspection.look import look
from dinokit.inspection.see_flow import flow
from dinokit.model import attention_weights
from dinokit.repair import AttentionBias, mean_keys_and_values
from tests.inspection.test_see import painted, photo, planted_model, pretrained, random_model  # noqa: F401 - a fixture


def test_the_planted_sink_moves_what_its_values_say():
    """Attention 0.49037 to a marker, of whose value each head adds cos(x, e_1) / sqrt(2) to the class token."""
    pre, image = planted_model(), painted()
    maps = flow(pre, image, look(pre, image)).numbers["maps"]
    assert maps["attention"]["peak"]["value"] == pytest.approx(49.037, abs=1e-2)
    moved = 0.490371 * 300 / OUTLIER_NORM * math.sqrt(0.5)
    assert maps["what attention moves"]["peak"]["value"] == pytest.approx(moved, abs=1e-4)
    assert maps["what attention moves"]["sum"] == pytest.approx(2 * moved, abs=1e-3)


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_the_rollout_is_that_of_all_blocks_up_to_the_one_looked_at(layer, photo):  # noqa: F811
    """Its patches' shares sum to what the product of the blocks' attention gives."""
    pre = random_model(2)
    blocks = list(range(layer % pre.config.depth + 1))
    with torch.no_grad():
        arrived = rollout(attention_weights(pre.model, pre.pixels(photo), blocks))[0, 0, 3:]
    found = flow(pre, photo, look(pre, photo, layer=layer)).numbers["maps"]["rolled out"]
    assert found["sum"] == pytest.approx(100 * arrived.sum().item(), rel=1e-4)
    assert found["peak"]["value"] == pytest.approx(100 * arrived.max().item(), rel=1e-4)


def test_attention_to_keys_that_are_no_tokens_can_t_be_rolled_out(photo):  # noqa: F811
    """Said, not drawn wrongly."""
    pre = random_model(0)
    neurons = [(0, 1)]
    form = AttentionBias(pre.model, neurons, mean_keys_and_values(pre.model, neurons, [pre.pixels(photo)]))
    biased = pretrained(form, pre.transform)
    with pytest.raises(ValueError, match="as many keys as queries"):
        flow(biased, photo, look(biased, photo))

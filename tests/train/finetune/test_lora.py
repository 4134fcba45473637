"""Low-rank additions: no change at first, exact when merged, and nothing else learns."""

from __future__ import annotations

import pytest
import torch

from dinokit.train.finetune.lora import LoraLinear, add_lora, merge_lora
from tests.tolerances import SAME_MATH, max_error
from tests.train.finetune.made import backbone


def test_additions_change_nothing_until_they_learn_and_merge_exactly():
    """The layer is W x + b + alpha / rank B A x; merged, the network is plain again."""
    model = backbone().model
    names, images = list(model.state_dict()), torch.randn(2, 3, 32, 32)
    before = model(images).sequence
    found = add_lora(model, 4, 8.0, ("qkv", "proj", "fc1", "fc2"))
    assert len(found) == 8
    assert torch.equal(model(images).sequence, before)
    layer = model.get_submodule(found[0])
    assert isinstance(layer, LoraLinear)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_(std=0.1)
    x = torch.randn(3, 32)
    expected = x @ layer.weight.T + layer.bias + 8 / 4 * x @ (layer.lora_b @ layer.lora_a).T
    assert max_error(layer(x), expected) < 1e-5
    changed = model(images).sequence
    assert (changed - before).abs().max() > 0.01
    merge_lora(model)
    assert list(model.state_dict()) == names
    assert max_error(model(images).sequence, changed) < 10 * SAME_MATH


def test_only_additions_learn():
    """A fraction of the parameters; the patch embedding's projection, outside of the blocks, is not among them."""
    model = backbone().model
    add_lora(model, 2, 2.0, ("qkv", "proj"))
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(learning) == 8
    assert all(name.rpartition(".")[2] in ("lora_a", "lora_b") and name.startswith("blocks.") for name in learning)
    with pytest.raises(ValueError, match="no layer of the network's blocks is called query"):
        add_lora(model, 2, 2.0, ("query",))

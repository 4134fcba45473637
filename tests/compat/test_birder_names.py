"""State dicts of Birder's net: both generations of its names, whole and in part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import dinokit.compat.birder as birder
from dinokit.compat.birder import BirderNet
from dinokit.model import VisionTransformer
from dinokit.weights import files
from dinokit.weights.convert import to_native
from dinokit.weights.infer import Hints, build, infer_config
from tests.tolerances import RECORDED, max_error

NEW, OLD = "vit_reg4_tiny14_nps_ls.pt", "vit_reg4_tiny14_nps_ls_v033.pt"


@pytest.fixture
def net(formats):
    return birder.load_pretrained_model(formats / "reg" / NEW)[0].eval()


def test_the_state_dict_is_birder_s_to_the_bit(formats, net):
    """Names and values of the file that Birder 0.8 wrote."""
    file = files.read(formats / "reg" / NEW).tensors
    state = net.state_dict()
    assert set(state) == set(file)
    assert all(torch.equal(state[name], file[name]) for name in file)


@pytest.mark.parametrize("file", [NEW, OLD])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_state_dicts_of_both_generations_load_also_into_a_part(formats, net, file, prefix):
    """Strictly; under a prefix where the net is a part of a larger module, whose own parameters keep their names."""
    state = files.read(formats / "reg" / file).tensors
    fresh = BirderNet(VisionTransformer(net.vit.config))
    whole = nn.ModuleDict({"backbone": fresh, "neck": nn.Linear(2, 2)}) if prefix else fresh
    extra = {f"neck.{name}": tensor for name, tensor in nn.Linear(2, 2).state_dict().items()} if prefix else {}
    whole.load_state_dict({**{prefix + name: tensor for name, tensor in state.items()}, **extra}, strict=True)
    expected = {prefix + name: tensor for name, tensor in net.state_dict().items()} | extra
    found = whole.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_missing_and_unexpected_names_are_birder_s(net):
    """In the error and in what `strict=False` returns."""
    state = net.state_dict()
    del state["encoder.block.1.mlp.3.bias"]
    state["encoder.block.7.norm1.bias"] = torch.zeros(64)
    found = net.load_state_dict(state, strict=False)
    assert found.missing_keys == ["encoder.block.1.mlp.3.bias"]
    assert found.unexpected_keys == ["encoder.block.7.norm1.bias"]
    with pytest.raises(RuntimeError, match=r"encoder\.block\.1\.mlp\.3\.bias"):
        net.load_state_dict(state)
    part = net.load_state_dict({"norm.weight": torch.ones(64)}, strict=False)
    assert set(part.missing_keys) == set(net.state_dict()) - {"norm.weight"}


def test_a_net_without_registers_has_no_register_names(formats):
    """Its state dict loads back."""
    net, _ = birder.load_pretrained_model(formats / "noreg" / "dinov2_tiny14_pretrain.pth")
    state = net.state_dict()
    assert "reg_tokens" not in state
    assert net.load_state_dict(state, strict=True).missing_keys == []
    state.pop("class_token")
    assert net.load_state_dict(state, strict=False).missing_keys == ["class_token"]


def test_the_state_dict_holds_the_parameters_themselves(net):
    """Averaging of weights that writes into it reaches the net."""
    for tensor in net.state_dict().values():
        tensor.zero_()
    assert all(not parameter.any() for parameter in net.parameters())


def test_a_state_dict_is_read_back_by_dinokit(formats, net):
    """As a Birder checkpoint."""
    converted = to_native(net.state_dict())
    assert converted.layout.name == "birder"
    vit = build(converted, infer_config(converted, Hints(num_heads=1)))
    x = torch.from_numpy(np.load(formats / "inputs.npz")["native"])
    reference = torch.from_numpy(np.load(formats / "refs" / "reg.npz")["aa__native"])
    assert max_error(vit(x).sequence, reference) < RECORDED

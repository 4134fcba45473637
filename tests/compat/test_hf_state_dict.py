"""State dicts speak the hub's names, wherever the model is nested."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from dinokit.compat.hf import Dinov2Backbone, Dinov2WithRegistersForImageClassification
from tests.compat.hf_tiny import classifier, pixels, plain, registers

STEM = {
    "embeddings.cls_token",
    "embeddings.mask_token",
    "embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.projection.bias",
    "layernorm.weight",
    "layernorm.bias",
}
BLOCK = {
    f"{module}.{leaf}"
    for module in (
        "norm1",
        "norm2",
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
        "attention.output.dense",
    )
    for leaf in ("weight", "bias")
} | {"layer_scale1.lambda1", "layer_scale2.lambda1"}
MLP = {"mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"}


def names(depth: int, ffn: set[str] = MLP) -> set[str]:
    return STEM | {f"encoder.layer.{i}.{name}" for i in range(depth) for name in BLOCK | ffn}


def test_names_and_shapes_are_the_hubs() -> None:
    """Bare model, registers, SwiGLU, backbone, classifier."""
    assert plain().state_dict().keys() == names(2)
    assert registers().state_dict().keys() == names(2) | {"embeddings.register_tokens"}
    swiglu = {name.replace("fc1", "weights_in").replace("fc2", "weights_out") for name in MLP}
    assert plain(use_swiglu_ffn=True).state_dict().keys() == names(2, swiglu)
    assert Dinov2Backbone(plain().config).state_dict().keys() == names(2)
    head = Dinov2WithRegistersForImageClassification(registers().config)
    prefixed = {f"dinov2_with_registers.{name}" for name in names(2) | {"embeddings.register_tokens"}}
    assert head.state_dict().keys() == prefixed | {"classifier.weight", "classifier.bias"}
    shapes = {name: tuple(tensor.shape) for name, tensor in registers().state_dict().items()}
    assert shapes["encoder.layer.0.attention.attention.key.weight"] == (32, 32)
    assert shapes["embeddings.register_tokens"] == (1, 4, 32)
    assert shapes["embeddings.mask_token"] == (1, 32)
    assert shapes["embeddings.position_embeddings"] == (1, 26, 32)


def test_optional_tensors_come_and_go_with_the_configuration() -> None:
    """An empty register table is there for the registers kind; no mask token where none was asked for."""
    assert registers(num_register_tokens=0).state_dict()["embeddings.register_tokens"].shape == (1, 0, 32)
    assert "embeddings.register_tokens" not in plain().state_dict()
    without = plain(use_mask_token=False)
    assert without.state_dict().keys() == names(2) - {"embeddings.mask_token"}
    assert without.num_parameters() == plain().num_parameters() - 32
    bare = plain(qkv_bias=False).state_dict().keys()
    assert names(2) - bare == {
        f"encoder.layer.{i}.attention.attention.{n}.bias" for i in (0, 1) for n in ("query", "key", "value")
    }


def test_parts_of_a_fused_tensor_are_views_of_it() -> None:
    """A state dict costs no memory, and writing into it writes into the model."""
    model = plain()
    model.state_dict()["encoder.layer.1.attention.attention.key.weight"].fill_(7.0)
    fused = dict(model.named_parameters())["vit.blocks.1.attn.qkv.weight"]
    assert torch.equal(fused[32:64], torch.full((32, 32), 7.0))
    assert (fused[:32] != 7.0).all()


class Wrapper(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.before = nn.Linear(2, 2)
        self.backbone = backbone
        self.after = nn.Linear(2, 2)


@pytest.mark.parametrize("make", [plain, registers, classifier])
def test_nested_models_speak_the_same_names_under_a_prefix(make: Any) -> None:
    """In a module of the user's, two levels deep, as DistributedDataParallel nests too."""
    a = nn.ModuleDict({"module": Wrapper(make(layerscale_value=0.5))})
    b = nn.ModuleDict({"module": Wrapper(make())})
    state = a.state_dict()
    inner = {f"module.backbone.{name}" for name in a["module"].backbone.state_dict()}
    assert inner < state.keys()
    assert len(state) == len(inner) + 4
    b.load_state_dict(state)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("assign", [False, True])
def test_names_of_transformers_5_load_too(assign: bool) -> None:
    """Those that its models have in memory."""
    source, target = registers(use_swiglu_ffn=True, layerscale_value=0.5), registers(use_swiglu_ffn=True)
    state = OrderedDict()
    for name, tensor in source.state_dict().items():
        if "weights_in" in name:
            halves = zip(("gate_proj", "up_proj"), tensor.chunk(2), strict=True)
            state.update({name.replace("weights_in", half): part for half, part in halves})
            continue
        for old, new in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            name = name.replace(f"attention.attention.{old}", f"attention.{new}")
        state[name.replace("attention.output.dense", "attention.o_proj").replace("weights_out", "down_proj")] = tensor
    before = list(state)
    target.load_state_dict(state, assign=assign)
    assert list(state) == before
    assert all(torch.equal(p, q) for p, q in zip(source.parameters(), target.parameters(), strict=True))


def test_what_does_not_fit_is_reported_under_the_hubs_names() -> None:
    """Missing and unexpected keys as returned, and in the error when strict."""
    model = registers()
    state = registers(layerscale_value=0.5).state_dict()
    key = "encoder.layer.0.attention.attention.key.weight"
    del state[key], state["layernorm.bias"]
    state["encoder.layer.7.norm1.weight"] = torch.zeros(32)
    queries = model.state_dict()[key].clone()
    found = model.load_state_dict(state, strict=False)
    assert sorted(found.missing_keys) == sorted([key, "layernorm.bias"])
    assert found.unexpected_keys == ["encoder.layer.7.norm1.weight"]
    assert torch.equal(model.state_dict()[key], queries)
    assert (model.state_dict()["encoder.layer.1.layer_scale1.lambda1"] == 0.5).all()
    with pytest.raises(RuntimeError, match=r"Missing key.*attention\.key\.weight") as caught:
        model.load_state_dict(state)
    assert "vit." not in str(caught.value)


def test_misshaped_tensors_are_reported_under_the_hubs_names() -> None:
    """As PyTorch does, strict or not."""
    model = plain()
    state = model.state_dict()
    state["encoder.layer.0.attention.attention.value.bias"] = torch.zeros(3)
    with pytest.raises(RuntimeError, match=r"size mismatch for encoder\.layer\.0\.attention\.attention\.value\.bias"):
        model.load_state_dict(state, strict=False)


def test_copies_keep_the_names_and_their_own_weights() -> None:
    """`deepcopy`, as for an exponential moving average."""
    model = plain()
    twin = copy.deepcopy(model)
    twin.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})
    assert twin.state_dict().keys() == model.state_dict().keys()
    assert not torch.equal(twin.embeddings.cls_token, model.embeddings.cls_token)


def test_functional_calls_use_the_native_names() -> None:
    """`named_parameters` is what optimisers and `torch.func` see: fused, under native names."""
    model = plain()
    parameters = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    assert "vit.blocks.0.attn.qkv.weight" in parameters
    found = torch.func.functional_call(model, parameters, (pixels(),))
    assert (found.last_hidden_state == 0).all()

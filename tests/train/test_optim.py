"""Multipliers of every parameter as recorded, groups that cover all of them, clipping by module, optimisers."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from dinokit.config import ViTConfig
from dinokit.model import VisionTransformer
from dinokit.train.heads import ProjectionHead
from dinokit.train.optim import (
    GroupRule,
    adamw,
    clip_gradients,
    multipliers,
    muon_and_adamw,
    parameter_groups,
    set_rates,
)
from dinokit.train.schedules import Rates

RATES = Rates(lr=0.01, last_layer_lr=0.003, weight_decay=0.1, momentum=0.9, teacher_temperature=0.04)


def network(depth: int = 2) -> nn.ModuleDict:
    config = ViTConfig(embed_dim=8, depth=depth, num_heads=2, ffn_dim=16, num_register_tokens=4, image_size=(28, 28))
    return nn.ModuleDict(
        {"backbone": VisionTransformer(config), "dino_head": ProjectionHead(8, 6, hidden_dim=8, bottleneck_dim=4)}
    )


@pytest.mark.parametrize("case", ["depth12_registers_mlp", "depth12_registers_mlp_no_decay"])
def test_multipliers_are_the_references(ssl, case):
    """Every tensor of a 12-block network with registers and of a head, with and without layer-wise decay."""
    table = json.loads((ssl / "param_groups.json").read_text())[case]
    rule = GroupRule(table["layerwise_decay"], table["patch_embed_lr_mult"])
    modules = network(table["depth"])
    for part, module in (("backbone", modules["backbone"]), ("head", modules["dino_head"])):
        ours = multipliers(module, rule)
        assert set(ours) == set(table[part])
        for name, theirs in table[part].items():
            assert ours[name].lr == pytest.approx(theirs["lr_multiplier"], abs=1e-12), name
            assert ours[name].weight_decay == theirs["wd_multiplier"], name
            assert ours[name].is_last_layer == theirs["is_last_layer"], name


def test_blocks_in_chunks_have_the_same_multipliers():
    """Meta's training names, `blocks.<chunk>.<block>.`."""
    rule = GroupRule()
    for name in ("attn.qkv.weight", "norm1.bias", "ls2.gamma"):
        assert rule(f"blocks.1.7.{name}", 12) == rule(f"blocks.7.{name}", 12)


def test_every_trainable_parameter_is_in_one_group():
    """Also where some are frozen: those are in none; groups are few."""
    modules = network()
    modules["backbone"].mask_token.requires_grad_(False)
    groups = parameter_groups(modules, GroupRule())
    names = [name for group in groups for name, _ in group["params"]]
    expected = {name for name, parameter in modules.named_parameters() if parameter.requires_grad}
    assert sorted(names) == sorted(expected)
    assert len({(g["lr_multiplier"], g["wd_multiplier"], g["is_last_layer"]) for g in groups}) == len(groups)


def test_rates_reach_every_group():
    """Learning rate, that of the last layer, weight decay, each times its multiplier; a rate of 0 moves nothing."""
    modules = network()
    optimizer = adamw(parameter_groups(modules, GroupRule()))
    set_rates([optimizer], RATES)
    for group in optimizer.param_groups:
        lr = 0.003 if group["is_last_layer"] else 0.01
        assert group["lr"] == lr * group["lr_multiplier"]
        assert group["weight_decay"] == 0.1 * group["wd_multiplier"]
    before = {name: p.detach().clone() for name, p in modules.named_parameters()}
    for parameter in modules.parameters():
        parameter.grad = torch.randn_like(parameter)
    set_rates([optimizer], Rates(0.01, 0.0, 0.1, 0.9, 0.04))
    optimizer.step()
    same = {name for name, p in modules.named_parameters() if torch.equal(before[name], p)}
    assert same == {"dino_head.last_layer.weight_g", "dino_head.last_layer.weight_v"}


def test_fused_adamw_equals_the_plain_one():
    """To rounding, over several steps."""
    torch.manual_seed(0)
    one, two = network(), network()
    two.load_state_dict(one.state_dict())
    fused = adamw(parameter_groups(one, GroupRule()))
    plain = torch.optim.AdamW(parameter_groups(two, GroupRule()), lr=0.0)
    assert fused.defaults["fused"]
    for _ in range(3):
        set_rates([fused, plain], RATES)
        for p, q in zip(one.parameters(), two.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        fused.step()
        plain.step()
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_gradients_are_clipped_module_by_module():
    """A large gradient in the backbone leaves the head's alone; the norms given are those before."""
    modules = network()
    for name, parameter in modules.named_parameters():
        parameter.grad = torch.full_like(parameter, 1.0 if name.startswith("backbone") else 1e-3)
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in modules.named_children()}
    norms = clip_gradients(modules, 3.0)
    assert norms["backbone"].item() == pytest.approx(sizes["backbone"] ** 0.5, rel=1e-5)
    assert norms["dino_head"].item() == pytest.approx(1e-3 * sizes["dino_head"] ** 0.5, rel=1e-5)
    assert clip_gradients(modules, float("inf"))["backbone"].item() == pytest.approx(3.0, rel=1e-5)
    assert modules["dino_head"].mlp[0].weight.grad.unique().item() == pytest.approx(1e-3)


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest():
    """Together they hold every parameter once, and both learn."""
    modules = network()
    muon, rest = muon_and_adamw(parameter_groups(modules, GroupRule()))
    names = [[n for group in o.param_groups for n in group["param_names"]] for o in (muon, rest)]
    assert sorted(names[0] + names[1]) == sorted(name for name, _ in modules.named_parameters())
    assert all(".blocks." in n and n.endswith(".weight") and "norm" not in n for n in names[0])
    assert len(names[0]) == 2 * 4
    before = modules["backbone"].blocks[0].attn.qkv.weight.detach().clone()
    for parameter in modules.parameters():
        parameter.grad = torch.randn_like(parameter)
    set_rates([muon, rest], RATES)
    muon.step()
    rest.step()
    assert not torch.equal(before, modules["backbone"].blocks[0].attn.qkv.weight)

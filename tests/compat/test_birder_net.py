"""The surface of Birder's net: sizes, maps, masks, freezing, state dicts."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dinokit.compat.birder as birder
from dinokit.compat.birder import BirderNet
from dinokit.config import SIZE_PLAIN, ViTConfig
from dinokit.model import VisionTransformer
from tests.tolerances import EXACT, RECORDED, SAME_MATH, max_error

NEW = "vit_reg4_tiny14_nps_ls.pt"


@pytest.fixture
def net(formats):
    return birder.load_pretrained_model(formats / "reg" / NEW)[0].eval()


@pytest.fixture
def inputs(formats):
    return {key: torch.from_numpy(value) for key, value in np.load(formats / "inputs.npz").items()}


@pytest.fixture
def references(formats):
    return {key: torch.from_numpy(value) for key, value in np.load(formats / "refs" / "reg.npz").items()}


def official_order(tokens):
    return torch.cat([tokens[:, 4:5], tokens[:, :4], tokens[:, 5:]], dim=1)


def trained_away(config):
    """A random native network whose every tensor differs from its neighbours, the class position among them."""
    vit = VisionTransformer(config)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(std=0.2)
    return vit


def test_the_attributes_are_birder_s(net):
    """As on Birder's ViT, for a 70 x 70 net of width 64."""
    assert (net.size, net.default_size, net.input_channels, net.num_classes) == ((70, 70), (224, 224), 3, 0)
    assert (net.embedding_size, net.feature_dim, net.stem_width) == (64, 64, 64)
    assert (net.num_special_tokens, net.num_reg_tokens) == (5, 4)
    assert (net.patch_size, net.max_stride, net.stem_stride) == (14, 14, 14)
    assert (net.return_stages, net.return_channels) == (["neck"], [64])
    assert (net.dynamic_size, net.task) == (False, "image_classification")
    assert isinstance(net.classifier, nn.Identity)
    assert net.config["num_layers"] == 2
    assert net.config["pos_embed_special_tokens"] is False


def test_embeddings_come_from_the_class_token(net, inputs, references):
    """Token number `num_reg_tokens`; without classes the output is the embedding."""
    x = inputs["native"]
    features = net.forward_features(x)
    assert torch.equal(net.embedding_from_features(features), net.embedding(x))
    assert max_error(net.embedding(x), references["aa__native"][:, 0]) < RECORDED
    assert torch.equal(net(x), net.classify(net.embedding(x)))
    assert torch.equal(net(x), net.embedding(x))
    assert torch.equal(net.flatten_features(features), features)
    assert max_error(net.flatten_features(features, False), references["aa__native"][:, 5:]) < RECORDED


def test_the_input_embedding_stands_before_the_tokens(net, inputs):
    """Stacked on a last axis: tokens before positions and blocks, tokens after all."""
    stacked = net.forward_features(inputs["native"], return_input_embedding=True)
    assert stacked.shape == (2, 30, 64, 2)
    assert torch.equal(stacked[..., 1], net.forward_features(inputs["native"]))
    assert torch.equal(stacked[0, :4, :, 0], net.vit.register_tokens[0])
    assert torch.equal(stacked[..., 5:, :, 0], net.vit.patch_embed(inputs["native"]))


def test_an_attention_mask_is_refused(net, inputs):
    """Rather than ignored."""
    with pytest.raises(ValueError, match="masked_encoding_omission"):
        net.forward_features(inputs["native"], attn_mask=torch.ones(30, 30))


def test_quirk_the_map_of_the_card_is_called_neck_and_is_normed(formats, net, inputs, references):
    """Birder up to 0.4.0 and its card; newer Birder gives "stage1" before the norm, as `[-1]` does here."""
    recorded = {key: torch.from_numpy(value) for key, value in np.load(formats / "refs" / "reg_image.npz").items()}
    x = recorded["x"][None]
    neck = net.detection_features(x)
    assert list(neck) == ["neck"]
    assert max_error(neck["neck"], recorded["neck"]) < RECORDED
    net.set_out_indices([-1])
    newer = net.detection_features(x)
    assert list(newer) == net.return_stages == ["stage1"]
    assert max_error(newer["stage1"], recorded["neck_prenorm"]) < RECORDED
    net.set_out_indices(None)
    assert torch.equal(net.detection_features(x)["neck"], neck["neck"])


def test_chosen_blocks_become_stages_in_ascending_order(formats, inputs, references):
    """`out_indices` in the configuration, as in Birder."""
    path = formats / "reg" / NEW
    net, _ = birder.load_pretrained_model(path, inference=True, custom_config={"out_indices": [-1, 0]})
    assert net.return_stages == ["stage1", "stage2"]
    assert net.return_channels == [64, 64]
    found = net.detection_features(inputs["native"])
    prenorm = references["prenorm__native"][:, 5:].transpose(1, 2).unflatten(2, (5, 5))
    assert max_error(found["stage2"], prenorm) < RECORDED
    first = net.masked_encoding_omission(inputs["native"], return_all_features=True)["tokens"][..., 0]
    assert torch.equal(found["stage1"].flatten(2).transpose(1, 2), first[:, 5:])
    with pytest.raises(ValueError, match="indices lie in"):
        net.set_out_indices([2])


@pytest.mark.parametrize("name", ["sq98", "sq42", "ns56x112", "ns112x56", "ns84x70"])
def test_another_size_is_refused_until_dynamic(net, inputs, references, name):
    """RuntimeError as in Birder; then bicubic without antialias, in each call."""
    with pytest.raises(RuntimeError, match=r"takes 70 x 70.*set_dynamic_size"):
        net(inputs[name])
    net.set_dynamic_size(True)
    assert max_error(official_order(net.forward_features(inputs[name])), references[f"size__{name}"]) < RECORDED
    assert net.size == (70, 70)
    net.set_dynamic_size(False)
    with pytest.raises(RuntimeError, match="takes 70 x 70"):
        net(inputs[name])


@pytest.mark.parametrize("name", ["sq98", "sq42", "ns56x112", "ns112x56", "ns84x70"])
def test_adjust_size_resamples_once_and_is_strict_at_the_new_size(net, inputs, references, name):
    """With antialias, as every other implementation does for registers."""
    size = tuple(inputs[name].shape[-2:])
    net.adjust_size(size)
    assert net.size == size
    assert max_error(official_order(net.forward_features(inputs[name])), references[f"aa__{name}"]) < RECORDED
    with pytest.raises(RuntimeError, match="the net takes"):
        net(inputs["native"])


def test_dynamic_size_may_be_set_to_antialias(formats, inputs, references):
    """Birder's setting pos_embed_antialias."""
    config = {"pos_embed_antialias": True}
    net, _ = birder.load_pretrained_model(formats / "reg" / NEW, inference=True, custom_config=config)
    net.set_dynamic_size()
    tokens = official_order(net.forward_features(inputs["sq42"]))
    assert max_error(tokens, references["aa__sq42"]) < RECORDED


def test_positions_may_be_resampled_bilinearly(formats, inputs):
    """Birder's setting pos_embed_interpolation_mode, at run time and in adjust_size."""
    config = {"pos_embed_interpolation_mode": "bilinear", "pos_embed_antialias": True}
    net, _ = birder.load_pretrained_model(formats / "reg" / NEW, inference=True, custom_config=config)
    net.set_dynamic_size()
    dynamic = net.forward_features(inputs["sq42"])
    net.set_dynamic_size(False)
    table = net.state_dict()["pos_embedding"].unflatten(1, (5, 5)).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(table, size=(3, 3), mode="bilinear", antialias=True)
    net.adjust_size((42, 42))
    assert max_error(net.state_dict()["pos_embedding"], expected.flatten(2).transpose(1, 2)) == EXACT
    assert max_error(net.forward_features(inputs["sq42"]), dynamic) < SAME_MATH


@settings(max_examples=20, deadline=None)
@given(height=st.integers(14, 120), width=st.integers(14, 120))
def test_dynamic_size_takes_any_size_and_drops_what_fills_no_patch(height, width):
    """As in Birder, whose convolution rounds down; equal to the native network under the same position rule."""
    torch.manual_seed(0)
    config = ViTConfig(embed_dim=8, depth=1, num_heads=2, ffn_dim=8, num_register_tokens=2, image_size=(42, 56))
    vit = trained_away(config)
    native = copy.deepcopy(vit)
    native.config = config.replace(position=SIZE_PLAIN)
    net = BirderNet(vit)
    net.set_dynamic_size()
    x = torch.rand(1, 3, height, width)
    with torch.no_grad():
        tokens, expected = net.forward_features(x), native(x)
    assert max_error(tokens[:, 3:], expected.patches) < RECORDED
    assert max_error(tokens[:, 2], expected.cls) < RECORDED
    assert net.detection_features(x)["neck"].shape == (1, 8, height // 14, width // 14)


def test_adjust_size_wants_multiples_of_the_patch(net):
    """An AssertionError as in Birder, and the net stays as it was."""
    with pytest.raises(AssertionError, match="multiples of the patch size 14"):
        net.adjust_size((100, 98))
    assert net.size == (70, 70)


@pytest.mark.parametrize("frozen", [True, False])
def test_adjust_size_keeps_what_is_frozen(net, frozen):
    """And does not touch the other parameters."""
    net.requires_grad_(not frozen)
    before = dict(net.named_parameters())
    net.adjust_size((98, 84))
    after = dict(net.named_parameters())
    assert {name for name in after if after[name] is not before[name]} == {"vit.pos_embed"}
    assert {parameter.requires_grad for parameter in after.values()} == {not frozen}


def test_reset_classifier_gives_fresh_classes(net, inputs):
    """A linear layer on the embedding; 0 removes it."""
    net.reset_classifier(7)
    assert (net.num_classes, net(inputs["native"]).shape) == (7, (2, 7))
    assert {"classifier.weight", "classifier.bias"} < set(net.state_dict())
    net.reset_classifier(0)
    assert torch.equal(net(inputs["native"]), net.embedding(inputs["native"]))


@pytest.mark.parametrize(
    ("options", "trainable"),
    [
        ({}, set()),
        ({"freeze_classifier": False}, {"classifier.weight", "classifier.bias"}),
        ({"unfreeze_features": True}, {"vit.norm.weight", "vit.norm.bias"}),
    ],
)
def test_freeze_leaves_what_is_asked_for(net, options, trainable):
    """The classifier, the final norm, or nothing."""
    net.reset_classifier(3)
    net.freeze(**options)
    assert {name for name, parameter in net.named_parameters() if parameter.requires_grad} == trainable


def test_freeze_stages_freezes_the_stem_and_the_first_blocks(net):
    """Positions too; class token and registers stay trainable, as in Birder."""
    net.freeze_stages(1)
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert {"vit.pos_embed", "vit.patch_embed.proj.weight", "vit.blocks.0.attn.qkv.weight"} < frozen
    assert all(re.match(r"vit\.(pos_embed|patch_embed|blocks\.0)", name) for name in frozen)


def test_the_block_regex_groups_parameters_and_state_dict_alike(net):
    """Layer-wise learning rates work on either naming."""
    for names in (dict(net.named_parameters()), net.state_dict()):
        found = {match[1] for name in names if (match := re.match(BirderNet.block_group_regex, name))}
        assert found == {"0", "1"}


def test_gradient_checkpointing_changes_no_number(net, inputs):
    """Values and gradients are equal, and it can be switched off again."""
    net.train()
    gradients = []
    for enable in (False, True, False):
        net.set_grad_checkpointing(enable)
        net.zero_grad()
        net(inputs["native"]).square().sum().backward()
        gradients.append(net.vit.blocks[0].attn.qkv.weight.grad.clone())
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_other_input_channels_keep_what_a_grey_image_gives(net):
    """Kernels are summed for one channel, repeated and scaled for more."""
    grey = torch.rand(1, 1, 70, 70)
    expected = net(grey.expand(-1, 3, -1, -1))
    for channels in (1, 3, 6):
        adjusted = copy.deepcopy(net)
        adjusted.adjust_input_channels(channels)
        assert adjusted.input_channels == channels
        assert max_error(adjusted(grey.expand(-1, channels, -1, -1)), expected) < RECORDED
    adjusted.adjust_input_channels(4)
    assert adjusted(torch.rand(1, 4, 70, 70)).shape == (1, 64)


def test_omission_of_nothing_is_the_whole_image(net, inputs):
    """And any order of all patches gives the same class token."""
    x = inputs["native"]
    assert torch.equal(net.masked_encoding_omission(x)["tokens"], net.forward_features(x))
    order = torch.randperm(25).expand(2, -1)
    found = net.masked_encoding_omission(x, order, return_keys="all")
    assert set(found) == {"tokens", "embedding"}
    assert max_error(found["embedding"], net.embedding(x)) < RECORDED
    assert max_error(found["tokens"][:, 5:], net.forward_features(x)[:, 5:][:, order[0]]) < RECORDED


def test_omitted_patches_are_not_seen(net, inputs):
    """Changing their pixels changes nothing; every block's tokens may be asked for."""
    x = inputs["native"].clone()
    kept = torch.arange(10).expand(2, -1)  # the first two rows
    before = net.masked_encoding_omission(x, kept, return_all_features=True, return_keys="all")
    x[:, :, 28:] = 0
    after = net.masked_encoding_omission(x, kept, return_all_features=True, return_keys="all")
    assert before["tokens"].shape == (2, 15, 64, 2)
    assert torch.equal(before["tokens"], after["tokens"])
    assert torch.equal(before["tokens"][:, 4, :, -1], before["embedding"])


def test_retained_masks_hide_patches_behind_a_token(net, inputs):
    """Zero without a token; the native mask token gives what the native network gives."""
    x = inputs["native"].clone()
    mask = torch.zeros(2, 25)
    assert max_error(net.masked_encoding_retention(x, mask)["features"], net.detection_features(x)["neck"]) == EXACT
    mask[:, 10:] = 1
    token = torch.randn(1, 1, 1, 64)
    found = net.masked_encoding_retention(x, mask, token, return_keys="all")
    net.vit.mask_token.copy_(token.view(1, 64))
    expected = net.vit(x, mask)
    assert max_error(found["features"], expected.patch_map) < RECORDED
    assert max_error(found["embedding"], expected.cls) < RECORDED
    x[:, :, 28:] = 0
    assert torch.equal(net.masked_encoding_retention(x, mask, token)["features"], found["features"])
    with pytest.raises(ValueError, match="'features' or 'embedding'"):
        net.masked_encoding_retention(x, mask, return_keys="tokens")


def test_a_native_network_is_taken_over_without_a_change_of_numbers(tiny):
    """Its class position goes into the class token, as in Birder's files."""
    vit = trained_away(tiny).eval()
    x = torch.rand(2, 3, 70, 70)
    before = vit(x)
    tokens = official_order(BirderNet(vit).eval().forward_features(x))
    assert max_error(tokens, before.sequence) < RECORDED
    assert max_error(vit(x).sequence, before.sequence) < RECORDED
    assert not vit.pos_embed[:, 0].any()


def test_training_moves_the_class_token_as_one_parameter(net, inputs):
    """The folded position gets no gradient and stays zero, so a step is Birder's step."""
    net.train()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    net(inputs["native"]).square().sum().backward()
    before, gradient = net.vit.cls_token.detach().clone(), net.vit.cls_token.grad.clone()
    assert gradient.any()
    optimiser.step()
    assert torch.equal(net.state_dict()["class_token"], before - 0.1 * gradient)
    assert not net.vit.pos_embed[:, 0].any()


def test_copies_are_independent(net, inputs):
    """`copy.deepcopy` gives a whole net, names included."""
    other = copy.deepcopy(net)
    assert torch.equal(other(inputs["native"]), net(inputs["native"]))
    assert set(other.state_dict()) == set(net.state_dict())
    with torch.no_grad():
        other.vit.cls_token.add_(1)
    assert not torch.equal(other(inputs["native"]), net(inputs["native"]))


def test_the_net_exports_whole(net, inputs):
    """torch.export takes it, and gives equal numbers."""
    program = torch.export.export(net, (inputs["native"],))
    assert max_error(program.module()(inputs["native"]), net(inputs["native"])) < SAME_MATH

"""Meta's torch.hub face: dicts, intermediate layers, entry points, classifiers, state dicts; against the recorded references."""

from __future__ import annotations

import copy
import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dinokit
from dinokit.compat import hub
from dinokit.compat.hub import HubBackbone, HubClassifier
from dinokit.config import OFFSET_PLAIN, SIZE_ANTIALIAS, VARIANTS
from dinokit.errors import WeightsError
from dinokit.model import VisionTransformer, hidden_states
from dinokit.weights import files, zoo
from tests.tolerances import EXACT, RECORDED, SAME_MATH, max_error
from tests.weights.fakehub import running_hub

FILES = {"reg": "reg/dinov2_tiny14_reg4_pretrain.pth", "noreg": "noreg/dinov2_tiny14_pretrain.pth"}
RULES = {"reg": "aa", "noreg": "offset"}
KEYS = {"x_norm_clstoken", "x_norm_regtokens", "x_norm_patchtokens", "x_prenorm", "masks"}


@pytest.fixture(params=["reg", "noreg"])
def kind(request):
    return request.param


@pytest.fixture
def model(formats, kind):
    return hub.wrap(dinokit.load(formats / FILES[kind]))


@pytest.fixture
def inputs(formats):
    return {key: torch.from_numpy(value) for key, value in np.load(formats / "inputs.npz").items()}


@pytest.fixture
def references(formats, kind):
    return {key: torch.from_numpy(value) for key, value in np.load(formats / "refs" / f"{kind}.npz").items()}


@pytest.fixture
def deep(tiny):
    """Five blocks of random weights, so that four of them can be read."""
    torch.manual_seed(0)
    return hub.wrap(VisionTransformer(tiny.replace(depth=5))).eval()


@pytest.mark.parametrize("name", ["native", "sq98", "ns56x112", "ns84x70"])
def test_forward_features_gives_meta_s_dict(model, inputs, references, kind, name):
    """Normed class token, registers and patches as recorded from Meta's code, at every size."""
    found = model.forward_features(inputs[name])
    registers = 4 if kind == "reg" else 0
    reference = references[f"{RULES[kind]}__{name}"]
    assert set(found) == KEYS
    assert found["masks"] is None
    assert max_error(found["x_norm_clstoken"], reference[:, 0]) < RECORDED
    assert max_error(found["x_norm_regtokens"], reference[:, 1 : 1 + registers]) < RECORDED
    assert max_error(found["x_norm_patchtokens"], reference[:, 1 + registers :]) < RECORDED
    assert found["x_prenorm"].shape == reference.shape
    if name == "native":
        assert max_error(found["x_prenorm"], references["prenorm__native"]) < RECORDED


def test_without_registers_their_tokens_are_empty(formats, inputs):
    """(b, 0, d), as in Meta's code."""
    model = hub.wrap(dinokit.load(formats / FILES["noreg"]))
    assert model.forward_features(inputs["native"])["x_norm_regtokens"].shape == (2, 0, 64)
    assert model.register_tokens is None


def test_calling_gives_the_class_token_or_the_dict(model, inputs):
    """The dict with `is_training`; what replaces `head` is applied."""
    x = inputs["native"]
    expected = model.forward_features(x)
    assert torch.equal(model(x), expected["x_norm_clstoken"])
    assert torch.equal(model(x, is_training=True)["x_prenorm"], expected["x_prenorm"])
    model.head = nn.Linear(64, 3)
    assert torch.equal(model(x), model.head(expected["x_norm_clstoken"]))


def test_masked_patches_become_the_mask_token(model, inputs):
    """The masks are handed back, and pixels under them are not seen."""
    x, mask = inputs["native"].clone(), torch.zeros(2, 25, dtype=torch.bool)
    mask[:, 10:] = True
    found = model(x, mask, is_training=True)
    assert found["masks"] is mask
    x[:, :, 28:] = 0
    assert torch.equal(model.forward_features(x, mask)["x_prenorm"], found["x_prenorm"])
    assert not torch.equal(found["x_prenorm"], model.forward_features(x)["x_prenorm"])


def test_a_list_of_crops_gives_a_list_of_dicts(model, inputs):
    """As for the global and local crops of training; masks in a list or not at all."""
    crops, mask = [inputs["native"], inputs["sq98"]], torch.ones(2, 25, dtype=torch.bool)
    plain = model.forward_features(crops)
    masked = model(crops, [mask, None], is_training=True)
    assert [set(found) for found in plain] == [KEYS, KEYS]
    assert torch.equal(plain[1]["x_prenorm"], model.forward_features(crops[1])["x_prenorm"])
    assert torch.equal(masked[1]["x_prenorm"], plain[1]["x_prenorm"])
    assert torch.equal(masked[0]["x_prenorm"], model.forward_features(crops[0], mask)["x_prenorm"])


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("n", [1, 2, [0], [1, 0]])
def test_intermediate_layers_are_ascending_patches_of_the_asked_blocks(model, inputs, n, norm):
    """Class token and registers cut off, the final norm on each unless switched off."""
    x = inputs["native"]
    blocks = range(2 - n, 2) if isinstance(n, int) else sorted(n)
    states = hidden_states(model.vit, x)[1:]
    found = model.get_intermediate_layers(x, n, norm=norm)
    assert isinstance(found, tuple)
    assert len(found) == len(blocks)
    for layer, block in zip(found, blocks, strict=True):
        expected = model.norm(states[block]) if norm else states[block]
        assert max_error(layer, expected[:, 1 + model.num_register_tokens :]) == EXACT


def test_intermediate_layers_are_shaped_and_paired_as_in_meta_s_code(model, inputs, references, kind):
    """(b, d, rows, columns), contiguous; pairs of patches and class token; equal to what was recorded."""
    name = "ns56x112"
    patches = model.get_intermediate_layers(inputs[name])[0]
    maps = model.get_intermediate_layers(inputs[name], reshape=True)[0]
    assert maps.shape == (1, 64, 4, 8)
    assert maps.is_contiguous()
    assert torch.equal(maps.flatten(2).transpose(1, 2), patches)
    pairs = model.get_intermediate_layers(inputs[name], n=2, reshape=True, return_class_token=True)
    assert [tuple(part.shape for part in pair) for pair in pairs] == [((1, 64, 4, 8), (1, 64))] * 2
    reference = references[f"{RULES[kind]}__{name}"]
    assert max_error(pairs[-1][1], reference[:, 0]) < RECORDED
    assert max_error(patches, reference[:, 1 + model.num_register_tokens :]) < RECORDED


def test_blocks_that_are_not_there_are_refused(model, inputs):
    """ValueError with the range; Meta's code ends in an AssertionError."""
    for n in (3, [2], [0, 0]):
        with pytest.raises(ValueError, match="block"):
            model.get_intermediate_layers(inputs["native"], n)


@pytest.mark.parametrize("size", [(69, 70), (70, 69)])
def test_height_and_width_must_be_multiples_of_the_patch(model, size):
    """An AssertionError as in Meta's code, in every way in."""
    x = torch.rand(1, 3, *size)
    for call in (model, model.forward_features, model.get_intermediate_layers, model.prepare_tokens_with_masks):
        with pytest.raises(AssertionError, match="multiples of the patch size 14"):
            call(x)


def test_the_attributes_are_meta_s(model, kind):
    """Those that downstream code reads."""
    assert (model.embed_dim, model.num_features, model.patch_size) == (64, 64, 14)
    assert (model.n_blocks, model.num_heads, model.num_register_tokens) == (2, 1, 4 if kind == "reg" else 0)
    assert (model.interpolate_offset, model.interpolate_antialias) == ((0.0, True) if kind == "reg" else (0.1, False))
    assert (len(model.blocks), model.chunked_blocks) == (2, False)
    assert (model.cls_token.shape, model.pos_embed.shape, model.mask_token.shape) == ((1, 1, 64), (1, 26, 64), (1, 64))


def test_meta_s_own_loop_over_the_parts_gives_the_same(model, inputs):
    """As code that looks inside the model writes it."""
    x = model.prepare_tokens_with_masks(inputs["native"])
    for block in model.blocks:
        x = block(x)
    assert torch.equal(model.norm(x)[:, 0], model(inputs["native"]))
    assert model.patch_embed(inputs["native"]).shape == (2, 25, 64)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_the_state_dict_is_meta_s_file(formats, model, kind, prefix):
    """Names and values, loading back strictly, also as a part of a larger module."""
    file = {prefix + name: tensor for name, tensor in files.read(formats / FILES[kind]).tensors.items()}
    whole = nn.ModuleDict({"backbone": model}) if prefix else model
    state = whole.state_dict()
    assert set(state) == set(file)
    assert all(torch.equal(state[name], file[name]) for name in file)
    fresh = hub.wrap(VisionTransformer(model.vit.config))
    (nn.ModuleDict({"backbone": fresh}) if prefix else fresh).load_state_dict(file, strict=True)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), state.values(), strict=True))


def test_missing_and_unexpected_names_are_meta_s(model):
    """In the error and in what `strict=False` returns."""
    state = model.state_dict()
    del state["blocks.1.ls2.gamma"]
    state["blocks.9.ls2.gamma"] = torch.ones(64)
    found = model.load_state_dict(state, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["blocks.1.ls2.gamma"], ["blocks.9.ls2.gamma"])
    with pytest.raises(RuntimeError, match=r'Missing key.*"blocks\.1\.ls2\.gamma"'):
        model.load_state_dict(state)


def test_wrapping_shares_the_parameters(formats, inputs):
    """No copy, whether of a model or of what `dinokit.load` gives."""
    pretrained = dinokit.load(formats / FILES["reg"])
    for model in (hub.wrap(pretrained), hub.wrap(pretrained.model)):
        assert model.cls_token is pretrained.model.cls_token
        assert torch.equal(model(inputs["native"]), pretrained.model(inputs["native"]).cls)
    other = copy.deepcopy(model)
    assert torch.equal(other(inputs["native"]), model(inputs["native"]))
    assert other.cls_token is not model.cls_token


def test_the_entry_points_are_meta_s():
    """Eight networks and eight classifiers, by name and as functions."""
    expected = {f"dinov2_vit{s}14{reg}{lc}" for s in "sblg" for reg in ("", "_reg") for lc in ("", "_lc")}
    assert set(hub.ENTRY_POINTS) == expected
    for name, point in hub.ENTRY_POINTS.items():
        assert getattr(hub, name) is point
    with pytest.raises(ValueError, match="dinov2_vits14_reg_lc"):
        hub.load("dinov2_vits16")


@pytest.mark.parametrize("name", sorted(n for n in hub.ENTRY_POINTS if not n.endswith("_lc")))
def test_without_weights_a_network_of_meta_s_shape_is_made(name):
    """Layer scale 1, Meta's position rule, training mode; made without memory here."""
    with torch.device("meta"):
        model = hub.load(name, pretrained=False)
    registers = 4 if name.endswith("_reg") else 0
    assert isinstance(model, HubBackbone)
    assert model.training
    assert model.vit.config.position == (SIZE_ANTIALIAS if registers else OFFSET_PLAIN)
    assert model.vit.config.layer_scale_init == 1.0
    assert model.pos_embed.shape == (1, 1370, model.embed_dim)
    assert len(model.state_dict()) == {12: 175, 24: 343, 40: 567}[model.n_blocks] + bool(registers)


def test_meta_s_options_shape_a_new_network():
    """Those of the vision transformer that its hub hands on."""
    model = hub.dinov2_vits14(
        pretrained=False, img_size=224, in_chans=4, init_values=1e-5, drop_path_rate=0.2, interpolate_antialias=True
    )
    assert model.pos_embed.shape == (1, 257, 384)
    assert model.patch_embed.proj.in_channels == 4
    assert model.blocks[0].ls1.gamma[0] == 1e-5
    assert model.blocks[11].drop_path1.rate == 0.2
    assert model.vit.config.position == (0.1, True)
    uniform = hub.dinov2_vits14_reg(pretrained=False, img_size=28, drop_path_rate=0.2, drop_path_uniform=True)
    assert {block.drop_path1.rate for block in uniform.blocks} == {0.2}


@pytest.fixture
def served(formats, tmp_path, monkeypatch, kind):
    """Meta's server on loopback with a tiny network and classifiers of it, in place of the small ones."""
    variant = "vits14_reg" if kind == "reg" else "vits14"
    name = f"dinov2_{variant}"
    pretrained = dinokit.load(formats / FILES[kind])
    monkeypatch.setitem(VARIANTS, variant, pretrained.config)
    root = tmp_path / "served"
    root.mkdir()
    stem = zoo.SOURCES[name].release.meta_stem.split("/")[1]
    shutil.copy(formats / FILES[kind], root / f"{stem}_pretrain.pth")
    head = nn.Linear(128, 1000).requires_grad_(False)
    files.write_pickle(root / f"{stem}_linear_head.pth", head.state_dict())
    files.write_pickle(root / f"{stem}_linear4_head.pth", nn.Linear(320, 1000).requires_grad_(False).state_dict())
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with running_hub(root) as server:
        monkeypatch.setattr(zoo, "META_BASE_URL", server.url)
        url = f"{server.url}/{stem}_pretrain.pth"
        monkeypatch.setitem(zoo.SOURCES, name, dataclasses.replace(zoo.SOURCES[name], url=url, sha256=()))
        yield name, head


def test_released_weights_are_loaded_by_name(served, inputs, references, kind):
    """Into a model in training mode, as Meta's hub leaves it, with the numbers of Meta's code."""
    model = hub.load(served[0])
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    found = model.eval()(inputs["sq98"])
    assert max_error(found, references[f"{RULES[kind]}__sq98"][:, 0]) < RECORDED


def test_the_one_layer_classifier_reads_class_token_and_mean_patch(served, inputs, references, kind):
    """Registers take no part."""
    name, head = served
    classifier = hub.load(f"{name}_lc", layers=1)
    tokens = references[f"{RULES[kind]}__native"]
    patches = tokens[:, 1 + (4 if kind == "reg" else 0) :]
    expected = head(torch.cat([tokens[:, 0], patches.mean(1)], dim=-1))
    assert max_error(classifier(inputs["native"]), expected) < RECORDED
    names = set(classifier.state_dict())
    assert {"linear_head.weight", "linear_head.bias", "backbone.cls_token", "backbone.blocks.0.attn.qkv.weight"} < names


def test_the_four_layer_classifier_reads_four_class_tokens_oldest_first(deep):
    """And the mean patch of the last block."""
    linear = nn.Linear(160, 10)
    x = torch.rand(2, 3, 70, 84)
    layers = deep.get_intermediate_layers(x, 4, return_class_token=True)
    expected = linear(torch.cat([*(cls for _, cls in layers), layers[-1][0].mean(1)], dim=-1))
    assert max_error(HubClassifier(deep, linear, 4)(x), expected) < SAME_MATH


def test_quirk_classifiers_read_four_layers_by_default(served):
    """Meta's default; a network of two blocks has not so many."""
    classifier = hub.load(f"{served[0]}_lc")
    assert (classifier.layers, classifier.linear_head.in_features) == (4, 320)
    with pytest.raises(ValueError, match="1 or 4"):
        hub.load(f"{served[0]}_lc", layers=2)


def test_a_new_classifier_has_a_thousand_classes():
    """Five widths in, with the default of four layers."""
    with torch.device("meta"):
        classifier = hub.dinov2_vits14_reg_lc(pretrained=False)
    assert classifier.linear_head.weight.shape == (1000, 5 * 384)


def test_weights_may_be_a_file_of_any_layout(formats, monkeypatch, inputs, references, kind):
    """Positions are resampled as Meta's code does all the same."""
    variant = "vits14_reg" if kind == "reg" else "vits14"
    config = dinokit.load(formats / FILES[kind]).config
    monkeypatch.setitem(VARIANTS, variant, config)
    model = hub.load(f"dinov2_{variant}", weights=formats / kind / "hf").eval()
    assert max_error(model(inputs["ns84x70"]), references[f"{RULES[kind]}__ns84x70"][:, 0]) < RECORDED


def test_weights_of_another_network_are_refused(formats, tmp_path, monkeypatch):
    """A tiny file is no small network; a classifier must fit its backbone."""
    path = formats / FILES["noreg"]
    with pytest.raises(WeightsError, match="does not fit vits14"):
        hub.dinov2_vits14(weights=path)
    monkeypatch.setitem(VARIANTS, "vits14", dinokit.load(path).config)
    head = files.write_pickle(tmp_path / "head.pth", nn.Linear(64, 10).requires_grad_(False).state_dict())
    with pytest.raises(WeightsError, match=r"weight \(classes, 128\)"):
        hub.dinov2_vits14_lc(layers=1, weights=head, backbone_weights=path)
    good = files.write_pickle(tmp_path / "good.pth", nn.Linear(128, 10).requires_grad_(False).state_dict())
    classifier = hub.dinov2_vits14_lc(layers=1, weights=good, backbone_weights=path)
    assert classifier(torch.rand(1, 3, 70, 70)).shape == (1, 10)


@pytest.mark.parametrize("kind", ["reg"])
def test_the_code_of_the_docs_runs(served, kind):
    """Every block of docs/torch-hub.md, in order."""
    text = (Path(__file__).parents[2] / "docs" / "torch-hub.md").read_text(encoding="utf-8")
    found: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "docs/torch-hub.md", "exec"), found)
    assert found["cls"].shape == (2, 64)
    assert set(found["features"]) == KEYS
    assert found["maps"].shape == (2, 64, 16, 24)
    assert isinstance(found["model"], HubBackbone)

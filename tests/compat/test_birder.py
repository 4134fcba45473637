"""Birder's functions: loading, transforms, inference, against what Birder recorded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import dinokit.compat.birder as birder
from dinokit.compat.birder.inference.classification import infer_batch, infer_image
from dinokit.compat.birder.load import default_drop_path
from dinokit.errors import DinokitError, WeightsError
from dinokit.model.layers import DropPath
from dinokit.weights import files
from dinokit.weights.convert import from_native, to_native
from tests.tolerances import EXACT, RECORDED, SAME_MATH, max_error

EVERY_LAYOUT = [
    "reg/vit_reg4_tiny14_nps_ls.pt",
    "reg/vit_reg4_tiny14_nps_ls_st.safetensors",
    "reg/vit_reg4_tiny14_nps_ls_v033.pt",
    "reg/vit_reg4_tiny14_nps_ls_noconfig.pt",
    "reg/dinov2_tiny14_reg4_pretrain.pth",
    "reg/timm_reg4.safetensors",
    "reg/hf",
    "noreg/dinov2_tiny14_pretrain.pth",
]
TRANSFORM_EXACT = 1e-6


@pytest.fixture
def recorded(formats):
    return {key: torch.from_numpy(value) for key, value in np.load(formats / "refs" / "reg_image.npz").items()}


@pytest.fixture
def loaded(formats):
    return birder.load_pretrained_model_and_transform(formats / "reg" / "vit_reg4_tiny14_nps_ls.pt")


def official_order(tokens, registers):
    return torch.cat([tokens[:, registers : registers + 1], tokens[:, :registers], tokens[:, registers + 1 :]], dim=1)


@pytest.mark.parametrize("path", EVERY_LAYOUT)
def test_a_file_of_any_layout_becomes_a_birder_net(formats, path):
    """Our extension; tokens are the recorded ones in Birder's order: registers, class token, patches."""
    net, info = birder.load_pretrained_model(formats / path, inference=True)
    tokens = net.forward_features(torch.from_numpy(np.load(formats / "inputs.npz")["native"]))
    reference = torch.from_numpy(np.load(formats / "refs" / f"{path.split('/')[0]}.npz")["aa__native"])
    assert max_error(official_order(tokens, net.num_reg_tokens), reference) < RECORDED
    assert birder.get_size_from_signature(info.signature) == (70, 70)
    assert birder.get_channels_from_signature(info.signature) == 3
    assert info.class_to_idx == {}


def test_a_checkpoint_of_a_non_square_grid_works(formats):
    """56 x 98 pixels, 4 x 7 patches."""
    net, info, transform = birder.load_pretrained_model_and_transform(formats / "birder_nonsquare_56x98.pt")
    reference = np.load(formats / "refs" / "nonsquare.npz")
    tokens = official_order(net.forward_features(torch.from_numpy(reference["x"])), 4)
    assert max_error(tokens, torch.from_numpy(reference["tokens"])) < RECORDED
    assert info.signature["inputs"] == [{"data_shape": [0, 3, 56, 98]}]
    assert transform(np.zeros((30, 40, 3), np.uint8)).shape == (3, 56, 98)
    assert net.detection_features(torch.zeros(1, 3, 56, 98))["neck"].shape == (1, 64, 4, 7)


def test_a_giant_s_network_is_refused_with_the_way_out(formats):
    """Birder has no names for it."""
    with pytest.raises(WeightsError, match=r"use dinokit\.load"):
        birder.load_pretrained_model(formats / "regswiglu" / "hf")


def test_the_transform_gives_birder_s_tensor(formats, recorded, loaded):
    """Squashed by PIL's bicubic, whatever the aspect ratio."""
    x = loaded[2](Image.open(formats / "image.png"))
    assert x.dtype == torch.float32
    assert max_error(x, recorded["x"]) < TRANSFORM_EXACT


@pytest.mark.parametrize(("center_crop", "resized"), [(1.0, (70, 98)), (0.875, (80, 112)), (1.4, (50, 70))])
def test_a_centre_crop_cuts_a_larger_squash(formats, center_crop, resized):
    """Resized to size / center_crop and cut from the middle; padded with black where that is smaller."""
    stats = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    image = Image.open(formats / "image.png")
    got = birder.classification_transform((70, 98), stats, center_crop)(image)
    pixels = np.asarray(image.resize(resized[::-1], Image.Resampling.BICUBIC), np.float32) / 255
    top, left = (resized[0] - 70) // 2, (resized[1] - 98) // 2
    padding = [(max(-top, 0),) * 2, (max(-left, 0),) * 2, (0, 0)]
    pixels = np.pad(pixels[max(top, 0) :, max(left, 0) :], padding)[:70, :98]
    expected = ((pixels - np.float32(stats["mean"])) / np.float32(stats["std"])).transpose(2, 0, 1)
    assert max_error(got, torch.from_numpy(expected)) < TRANSFORM_EXACT


@pytest.mark.parametrize(("shape", "covering"), [((30, 90), (70, 210)), ((90, 30), (210, 70)), ((70, 70), (70, 70))])
def test_simple_crop_keeps_the_shape_and_covers(shape, covering):
    """Just large enough to cover the size, then its middle."""
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    stats = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    got = birder.classification_transform((70, 70), stats, simple_crop=True)(pixels)
    resized = np.asarray(Image.fromarray(pixels).resize(covering[::-1], Image.Resampling.BICUBIC), np.float32) / 255
    top, left = (covering[0] - 70) // 2, (covering[1] - 70) // 2
    expected = resized[top : top + 70, left : left + 70].transpose(2, 0, 1)
    assert max_error(got, torch.from_numpy(expected.copy())) < TRANSFORM_EXACT


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_images_of_any_mode_are_taken_as_rgb(formats, loaded, mode):
    """More than Birder does: it fails on transparency."""
    net, _, transform = loaded
    image = Image.open(formats / "image.png").convert(mode)
    expected, _ = infer_image(net, image.convert("RGB"), transform)
    assert np.array_equal(infer_image(net, image, transform)[0], expected)


@pytest.mark.parametrize(
    ("rgb_values", "center_crop"),
    [({"mean": (0.5,), "std": (1.0, 1.0, 1.0)}, 1.0), ({"mean": (0.5, 0.5, 0.5)}, 1.0), ({}, 0.0)],
)
def test_a_wrong_transform_is_refused(rgb_values, center_crop):
    """When it is made, not at the first image."""
    with pytest.raises(ValueError, match=r"three numbers|center_crop"):
        birder.classification_transform((70, 70), rgb_values, center_crop)


def test_infer_image_gives_birder_s_numbers(formats, recorded, loaded):
    """Output, embedding, logits and the mean over five crops."""
    net, _, transform = loaded
    path = str(formats / "image.png")
    out, embedding = infer_image(net, path, transform, return_embedding=True)
    logits, none = infer_image(net, path, transform, return_logits=True)
    tta, _ = infer_image(net, path, transform, tta=True)
    for got, key in ((out, "out"), (embedding, "emb"), (logits, "logits"), (tta, "tta")):
        assert got.dtype == np.float32
        assert max_error(torch.from_numpy(got), recorded[key]) < RECORDED, key
    assert none is None


def test_quirk_without_classes_the_output_is_the_softmax_of_the_embedding(formats, recorded, loaded):
    """The released nets have no classes: `out` sums to 1 over the embedding's width and is no class score."""
    net, _, transform = loaded
    out, embedding = infer_image(net, formats / "image.png", transform, return_embedding=True)
    assert net.num_classes == 0
    assert np.abs(torch.from_numpy(embedding).softmax(1).numpy() - out).max() <= SAME_MATH
    logits, same = infer_image(net, formats / "image.png", transform, return_embedding=True, return_logits=True)
    assert np.array_equal(logits, same)


def test_quirk_return_embedding_wins_over_tta(formats, loaded):
    """One pass over the whole image, no crops."""
    net, _, transform = loaded
    both = infer_image(net, formats / "image.png", transform, return_embedding=True, tta=True)
    alone = infer_image(net, formats / "image.png", transform, return_embedding=True)
    assert all(np.array_equal(a, b) for a, b in zip(both, alone, strict=True))


def test_tta_of_logits_averages_logits(loaded):
    """The mean is over outputs, whichever were asked for; odd sizes have whole crops."""
    net = loaded[0]
    net.set_dynamic_size()
    x = torch.rand(2, 3, 70, 84)
    logits, _ = infer_batch(net, x, tta=True, return_logits=True)
    probabilities, _ = infer_batch(net, x, tta=True)
    assert logits.shape == probabilities.shape == (2, 64)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert not np.allclose(torch.from_numpy(logits).softmax(1), probabilities, atol=1e-7)


def test_paths_images_and_arrays_give_the_same(formats, loaded):
    """str and PIL as in Birder; Path and arrays too."""
    net, _, transform = loaded
    path = formats / "image.png"
    expected, _ = infer_image(net, str(path), transform)
    for sample in (path, Image.open(path), np.asarray(Image.open(path))):
        assert np.array_equal(infer_image(net, sample, transform)[0], expected)
    with pytest.raises(TypeError, match="int"):
        infer_image(net, 3, transform)


def test_inference_decides_mode_and_gradients(formats):
    """True: evaluation without gradients; False, the default: training with gradients on every parameter."""
    path = formats / "reg" / "vit_reg4_tiny14_nps_ls.pt"
    net, _ = birder.load_pretrained_model(path, inference=True)
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())
    net, _ = birder.load_pretrained_model(path)
    assert net.training
    net.embedding(torch.rand(1, 3, 70, 70)).sum().backward()
    untouched = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert untouched == []


def test_drop_path_is_birder_s(formats, tmp_path):
    """Linear over the blocks, from the file's or the caller's configuration; active in training mode only."""
    path = formats / "reg" / "vit_reg4_tiny14_nps_ls.pt"
    net, info = birder.load_pretrained_model(path, custom_config={"drop_path_rate": 0.4})
    assert [module.rate for module in net.modules() if isinstance(module, DropPath)] == [0.0, 0.0, 0.4, 0.4]
    assert net.config["drop_path_rate"] == 0.4
    assert info.custom_config["drop_path_rate"] == 0.0  # what the file states
    x = torch.rand(64, 3, 70, 70)
    with torch.no_grad():
        assert not torch.equal(net(x), net(x))
        net.eval()
        assert torch.equal(net(x), net(x))


@pytest.mark.parametrize(("size", "rate"), [((768, 12), 0.1), ((1024, 24), 0.1), ((384, 12), 0.0)])
def test_base_and_large_train_with_a_drop_path_of_a_tenth(tiny, size, rate):
    """Birder's registry says so of these sizes, small trains without."""
    assert default_drop_path(tiny.replace(embed_dim=size[0], depth=size[1])) == rate


def test_new_size_is_what_net_signature_and_transform_say(formats):
    """Adjusted once, so the three fit together."""
    path = formats / "reg" / "vit_reg4_tiny14_nps_ls.pt"
    net, info, transform = birder.load_pretrained_model_and_transform(path, new_size=(56, 112))
    assert net.size == birder.get_size_from_signature(info.signature) == (56, 112)
    tokens = net.forward_features(torch.from_numpy(np.load(formats / "inputs.npz")["ns56x112"]))
    reference = np.load(formats / "refs" / "reg.npz")["aa__ns56x112"]
    assert max_error(official_order(tokens, 4), torch.from_numpy(reference)) < RECORDED
    assert transform(Image.open(formats / "image.png")).shape == (3, 56, 112)


def test_device_and_dtype_are_the_net_s(formats, recorded):
    """The input follows the net."""
    path = formats / "reg" / "vit_reg4_tiny14_nps_ls.pt"
    net, _, transform = birder.load_pretrained_model_and_transform(path, device="cpu", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.bfloat16}
    _, embedding = infer_image(net, formats / "image.png", transform, return_embedding=True, device="cpu")
    assert embedding.dtype == np.float32
    assert np.abs(embedding - recorded["emb"].numpy()).max() < 0.2


def test_settings_that_can_t_be_followed_are_refused(formats):
    """With what can be set instead."""
    path = formats / "reg" / "vit_reg4_tiny14_nps_ls.pt"
    with pytest.raises(ValueError, match="qk_norm; supported are out_indices"):
        birder.load_pretrained_model(path, custom_config={"qk_norm": True})
    with pytest.raises(ValueError, match="pos_embed_interpolation_mode"):
        birder.load_pretrained_model(path, custom_config={"pos_embed_interpolation_mode": "nearest"})
    with pytest.raises(ValueError, match="only 'pt' is published"):
        birder.load_pretrained_model("vit_reg4_s14_nps_ls_dino-v2-lvd142m", file_format="safetensors")
    with pytest.raises(ValueError, match="naflex"):
        birder.load_pretrained_model_and_transform(path, naflex=True)


def test_a_file_trained_with_other_settings_is_refused(formats, tmp_path):
    """Its numbers would be wrong in silence."""
    content = torch.load(formats / "reg" / "vit_reg4_tiny14_nps_ls.pt", weights_only=True)
    content["config"]["norm_layer_type"] = "RMSNorm"
    files.write_pickle(tmp_path / "other.pt", content)
    with pytest.raises(WeightsError, match="norm_layer_type"):
        birder.load_pretrained_model(tmp_path / "other.pt")


def test_an_unknown_name_is_a_key_error_with_the_known_names(tmp_path):
    """As in Birder, where a path is one too; and one of dinokit's errors."""
    for error in (KeyError, DinokitError, birder.UnknownWeightsError):
        with pytest.raises(error, match="vit_reg4_l14_nps_ls_dino-v2-lvd142m"):
            birder.load_pretrained_model("vit_reg4_l14")
    with pytest.raises(KeyError, match="does not exist"):
        birder.load_pretrained_model(tmp_path / "nothing.pt")


def test_the_registered_names_can_be_listed():
    """The three that Birder publishes, filtered by a pattern."""
    names = birder.list_pretrained_models()
    assert names == [f"vit_reg4_{letter}14_nps_ls_dino-v2-lvd142m" for letter in "bls"]
    assert birder.list_pretrained_models("*_l14*") == names[1:2]
    assert birder.list_pretrained_models("resnet*") == []


def test_a_fine_tuned_classifier_comes_with_its_classes(formats, tmp_path):
    """Classes, labels and signature of the file; a probability for each class."""
    content = torch.load(formats / "reg" / "vit_reg4_tiny14_nps_ls.pt", weights_only=True)
    weight, bias = torch.randn(2, 64), torch.randn(2)
    content["state"] |= {"classifier.weight": weight, "classifier.bias": bias}
    content["class_to_idx"] = {"finch": 0, "wren": 1}
    content["signature"]["outputs"] = [{"data_shape": [0, 2]}]
    files.write_pickle(tmp_path / "birds.pt", content)
    net, info, transform = birder.load_pretrained_model_and_transform(tmp_path / "birds.pt")
    assert info.class_to_idx == {"finch": 0, "wren": 1}
    assert info.signature["outputs"] == [{"data_shape": [0, 2]}]
    out, embedding = infer_image(net, formats / "image.png", transform, return_embedding=True)
    expected = (torch.from_numpy(embedding) @ weight.T + bias).softmax(1)
    assert max_error(torch.from_numpy(out), expected) < SAME_MATH


def test_a_classifier_that_birder_has_no_place_for_is_refused(formats, tmp_path):
    """transformers' reads class token and mean patch."""
    native = to_native(files.read(formats / "reg" / "hf").tensors).state
    head = {"weight": torch.randn(2, 128), "bias": torch.zeros(2)}
    path = files.write_safetensors(
        tmp_path / "model.safetensors", from_native(native, "hf", head, prefix="dinov2_with_registers.")
    )
    with pytest.raises(WeightsError, match=r"cls\+mean"):
        birder.load_pretrained_model(path)


def test_loading_twice_gives_equal_nets(formats):
    """Nothing is drawn at random."""
    nets = [birder.load_pretrained_model(formats / EVERY_LAYOUT[0])[0] for _ in range(2)]
    pairs = zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True)
    assert all(max_error(a, b) == EXACT for a, b in pairs)

"""From photographs to boxes: a painted network and painted photographs, for which the right box is known."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinokit.analysis.discovery import lost
from dinokit.analysis.maskcut import maskcut, tokencut
from dinokit.analysis.spectral import deep_spectral
from dinokit.config import ViTConfig
from dinokit.errors import ImageError
from dinokit.images import ImageTransform
from dinokit.inspection.datasets import Annotated
from dinokit.inspection.discover import discover, evaluate, layer_features, load_photo
from dinokit.inspection.discover_panel import discover_panel
from dinokit.model import VisionTransformer, hidden_states
from dinokit.repair import NeighbourMedian
from dinokit.weights.load import Pretrained, Provenance

METHODS = [lost, tokencut, maskcut, deep_spectral]


def network(registers: int = 4, depth: int = 2, seed: int = 0) -> VisionTransformer:
    """Random, small; without positions and biases, so that opposite colours give opposite keys in block 0."""
    config = ViTConfig(
        embed_dim=32, depth=depth, num_heads=2, ffn_dim=64, num_register_tokens=registers, image_size=(70, 70)
    )
    torch.manual_seed(seed)
    model = VisionTransformer(config).eval()
    with torch.no_grad():
        model.pos_embed.zero_()
        assert model.patch_embed.proj.bias is not None
        model.patch_embed.proj.bias.zero_()
    return model


@pytest.fixture(params=[0, 1, 4, 8])
def painted(request) -> Pretrained:
    """Reads black as -1 and white as 1."""
    return pretrained(network(request.param))


def pretrained(model: VisionTransformer) -> Pretrained:
    half = (0.5, 0.5, 0.5)
    return Pretrained(
        model=model,
        transform=ImageTransform(mean=half, std=half),
        provenance=Provenance(name="painted", path=Path("painted"), files=(), layout="official"),
    )


def photograph(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """Black with a white box (left, top, right, bottom)."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    return pixels


@pytest.mark.parametrize("find", METHODS, ids=lambda find: find.__name__)
def test_a_painted_object_is_found_to_the_pixel(painted, find):
    """With every method, for 0, 1, 4 and 8 registers, in square and other photographs."""
    for height, width in ((112, 112), (84, 140)):
        box = (28, 14, 70, 56)
        (found,) = discover(painted, photograph(height, width, box), find, layers=[0])
        assert tuple(found.box) == box
        assert found.size == (height, width)
        assert found.grid == (height // 14, width // 14)
        assert found.artefacts is None


@pytest.mark.parametrize("find", METHODS, ids=lambda find: find.__name__)
def test_half_precision_finds_the_same_box(painted, find):
    """bfloat16 weights; the methods themselves compute in float32 or better."""
    painted.to(dtype=torch.bfloat16)
    (found,) = discover(painted, photograph(84, 140, (28, 14, 70, 56)), find, layers=[0])
    assert tuple(found.box) == (28, 14, 70, 56)


def test_l10_a_photograph_of_no_whole_number_of_patches_is_padded_and_its_box_cut():
    """101 x 125 pixels are seen as 112 x 126; an object at the edge ends with the photograph."""
    pre = pretrained(network())
    photo = load_photo(pre, photograph(101, 125, (84, 56, 125, 101)))
    assert photo.pixels.shape == (1, 3, 112, 126)
    assert (photo.pixels[..., 101:, :] == 0).all()
    assert (photo.pixels[..., 125:] == 0).all()
    assert (photo.pixels[..., :101, :125].abs() == 1).all()
    (found,) = discover(pre, photo, layers=[0])
    assert tuple(found.box) == (84, 56, 125, 101)


def test_photographs_are_never_resized_unless_they_are_too_long(painted):
    """Then boxes are still those of the original."""
    box = (56, 28, 140, 112)
    big = photograph(224, 280, box)
    assert load_photo(painted, big).size == (224, 280)
    photo = load_photo(painted, big, longest_side=140)
    assert photo.size == (112, 140)
    assert photo.original_size == (224, 280)
    (found,) = discover(painted, big, tokencut, layers=[0], longest_side=140)
    assert tuple(found.box) == box
    with pytest.raises(ValueError, match="one patch of 14"):
        load_photo(painted, big, longest_side=13)


def test_features_are_the_heads_of_a_block_side_by_side(painted):
    """Queries, keys and values as the block itself computes them, of patches only, for several blocks in one run."""
    pixels = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    photo = load_photo(painted, pixels)
    model = painted.model
    states = hidden_states(model, photo.pixels)
    for number, name in enumerate("qkv"):
        found = layer_features(painted, photo, 2, features=name)
        assert [at.layer for at in found] == [0, 1]
        for at in found:
            block = model.blocks[at.layer]
            part = block.attn.qkv(block.norm1(states[at.layer]))[0, 1 + model.config.num_register_tokens :]
            assert torch.equal(at.features, part[:, 32 * number : 32 * (number + 1)])
            assert at.grid == (4, 6)


def test_all_layers_at_once_equal_one_after_the_other(painted):
    """A sweep costs one run and changes nothing."""
    pixels = np.random.default_rng(1).integers(0, 256, (70, 70, 3), dtype=np.uint8)
    together = discover(painted, pixels, tokencut, layers=[0, 1])
    for one in together:
        (alone,) = discover(painted, pixels, tokencut, layers=[one.layer])
        assert alone.boxes == one.boxes
        assert torch.equal(alone.found.maps["eigenvector"], one.found.maps["eigenvector"])


def test_artefact_patches_are_found_by_their_norm_and_left_out():
    """A patch whose token is forty times as long spoils LOST without a mask; with it the box is exact."""
    model = network()
    with torch.no_grad():
        model.pos_embed[0, 1] = 40 * torch.nn.functional.normalize(torch.randn(32), dim=0)
    pre = pretrained(model)
    box = (28, 14, 56, 56)
    picture = photograph(70, 70, box)
    (spoiled,) = discover(pre, picture, functools.partial(lost, normalize=True, bias=-0.5), layers=[0])
    (found,) = discover(
        pre, picture, functools.partial(lost, normalize=True, bias=-0.5), layers=[0], artefact_factor=4.0
    )
    assert spoiled.artefacts is None
    assert found.artefacts is not None
    assert found.artefacts.nonzero().flatten().tolist() == [0]
    assert tuple(spoiled.box) == (0, 0, 14, 14)
    assert tuple(found.box) == box


def test_a_repaired_form_of_a_network_is_looked_at_like_any_other():
    """Its features, not those of the network that it came from."""
    pre = pretrained(network())
    box = (28, 14, 70, 56)
    (found,) = discover(pretrained(NeighbourMedian(pre.model)), photograph(84, 84, box), layers=[0])
    assert tuple(found.box) == box


def test_a_model_is_the_same_after_it_was_looked_at(painted):
    """No hook, no state, no gradient."""
    pixels = torch.randn(1, 3, 70, 70)
    before = painted.model(pixels).sequence
    discover(painted, photograph(70, 70, (14, 14, 42, 42)), layers=2)
    assert torch.equal(painted.model(pixels).sequence, before)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in painted.model.modules())


def test_values_that_are_not_finite_are_an_error_of_the_image():
    """Damaged weights do not end in a box."""
    model = network()
    with torch.no_grad():
        model.cls_token.fill_(float("nan"))
        model.blocks[0].attn.qkv.weight.fill_(float("nan"))
    with pytest.raises(ImageError, match="NaN") as caught:
        discover(pretrained(model), photograph(70, 70, (14, 14, 42, 42)))
    assert caught.value.code == "nonfinite_embedding"


def test_wrong_settings_are_refused(painted):
    """With the rule in the message."""
    picture = photograph(70, 70, (14, 14, 42, 42))
    for change, message in (
        ({"features": "x"}, "q, k, v"),
        ({"layers": [2]}, "-2 to 1"),
        ({"artefact_factor": 1.0}, "above 1"),
    ):
        with pytest.raises(ValueError, match=message):
            discover(painted, picture, **change)


def test_evaluate_scores_all_layers_beside_the_baselines(tmp_path):
    """Hits, images without objects, unreadable images; the method is exact, the baselines are not."""
    pre = pretrained(network())
    data = []
    for i, box in enumerate([(28, 14, 70, 56), (0, 0, 42, 42), (14, 14, 84, 70)]):
        Image.fromarray(photograph(112, 112, box)).save(tmp_path / f"{i}.png")
        data.append(Annotated(str(tmp_path / f"{i}.png"), (box,)))
    data += [Annotated(str(tmp_path / "0.png"), ()), Annotated(str(tmp_path / "no.png"), ((0, 0, 1, 1),))]
    seen = []
    found = evaluate(pre, data, layers=[0, 1], on_image=lambda item, results: seen.append(item.path))
    assert list(found.scores) == [0, 1]
    score = found.scores[0]
    assert (score.method.hits, score.method.images, score.skipped) == (3, 3, 1)
    assert score.whole_image.hits == 0
    assert score.centre_box.hits == 1
    assert [path for path, _ in found.failed] == [str(tmp_path / "no.png")]
    assert found.failed[0][1].code == "not_a_file"
    assert len(seen) == 3


@pytest.mark.parametrize("find", METHODS, ids=lambda find: find.__name__)
def test_a_picture_shows_every_layer(painted, find):
    """Also for one patch, and photographs that were made smaller."""
    for pixels, side in (
        (photograph(61, 77, (14, 14, 42, 42)), None),
        (photograph(9, 9, (2, 2, 5, 5)), None),
        (photograph(140, 99, (14, 14, 70, 70)), 70),
    ):
        photo = load_photo(painted, pixels, side)
        one = discover_panel(photo, discover(painted, photo, find, layers=1), patch_size=14, title="t")
        two = discover_panel(
            photo, discover(painted, photo, find, layers=2, artefact_factor=4.0), patch_size=14, title="t"
        )
        assert two.height > one.height
        assert one.mode == "RGB"

"""Looking at images: one run of the network, numbers that are the network's, pictures that show the planted artefacts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinokit.analysis.planted import OUTLIER_NORM, planted, planted_image
from dinokit.config import ViTConfig
from dinokit.errors import ImageError
from dinokit.images import Exact, ImageTransform, ShortestEdge
from dinokit.inspection import see, see_maps
from dinokit.inspection.drawn import balanced, canvas
from dinokit.inspection.look import look, with_view
from dinokit.inspection.video import colour_frames, fit_frames
from dinokit.model import VisionTransformer
from dinokit.model.capture import attention_weights, hidden_states, intermediate_tokens
from dinokit.weights.load import Pretrained, Provenance
from tests.tolerances import SAME_MATH, max_error


def pretrained(model: VisionTransformer, transform: ImageTransform | None = None) -> Pretrained:
    provenance = Provenance(name="tiny", path=Path("tiny"), files=(), layout="official")
    return Pretrained(model=model.eval(), transform=transform or ImageTransform.dinov2(), provenance=provenance)


def planted_model(num_registers: int = 0) -> Pretrained:
    config, weights = planted(num_registers)
    model = VisionTransformer(config)
    model.load_state_dict(weights)
    return pretrained(model, ImageTransform(resize=None, crop=None, mean=(0, 0, 0), std=(1, 1, 1)))


def painted(outliers: tuple[int, ...] = (3, 9), grid: tuple[int, int] = (4, 4)) -> np.ndarray:
    return (255 * planted_image(outliers, grid)[0].permute(1, 2, 0)).to(torch.uint8).numpy()


def random_model(registers: int, seed: int = 0) -> Pretrained:
    torch.manual_seed(seed)
    config = ViTConfig(
        embed_dim=32, depth=3, num_heads=2, ffn_dim=64, num_register_tokens=registers, image_size=(70, 70)
    )
    transform = ImageTransform(resize=ShortestEdge(70), crop=None)
    return pretrained(VisionTransformer(config), transform)


@pytest.fixture
def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 98, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("registers", [0, 1, 4, 8])
@pytest.mark.parametrize("layer", [0, -1])
def test_a_look_holds_what_the_network_computes(registers, layer, photo):
    """Norms of all layers, attention rows, tokens: equal to hidden states, attention weights and tokens of the same model."""
    pre = random_model(registers)
    before = {name: value.clone() for name, value in pre.model.state_dict().items()}
    found = look(pre, photo, layer=layer)
    pixels = pre.pixels(photo)
    with torch.no_grad():
        states = hidden_states(pre.model, pixels)
        (weights,) = attention_weights(pre.model, pixels, [layer])
        (tokens,) = intermediate_tokens(pre.model, pixels, [layer])
    assert max_error(found.norms, torch.stack([x[0].norm(dim=-1) for x in states])) <= SAME_MATH * 10
    assert torch.equal(found.attention, weights[0, :, : 1 + registers])
    assert torch.equal(found.tokens.sequence, tokens.sequence)
    assert found.grid == (5, 7)
    assert found.attention_map().shape == (2, 5, 7)
    after = pre.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(module._forward_hooks for module in pre.model.modules())


def test_one_look_runs_every_block_once(monkeypatch, photo):
    """Norms of all layers, attention of the last block and tokens cost one pass, and the weights of one block."""
    pre = random_model(4)
    calls: list[str] = []
    for name in ("embed", "run_block", "block_weights"):
        original = getattr(VisionTransformer, name)

        def counted(self, *args, _name=name, _original=original, **kwargs):
            calls.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(VisionTransformer, name, counted)
    found = look(pre, photo)
    for draw in (see.attention, see.registers, see_maps.norms):
        draw(found)
    see_maps.pca([found], see_maps.fit_basis([found]))
    assert sorted(calls) == ["block_weights", "embed", "run_block", "run_block", "run_block"]


def test_the_photograph_is_what_the_network_saw(photo):
    """Bit for bit the resized and cropped pixels, without those that no whole patch covers."""
    pre = random_model(0)
    found = look(pre, photo)
    assert np.array_equal(found.photo, photo)
    large = Image.fromarray(np.random.default_rng(1).integers(0, 256, (100, 171, 3), dtype=np.uint8))
    found = look(pre, large)
    assert found.photo.size == (112, 70)  # 119 wide after the resize: 8 patches of 14
    assert np.array_equal(found.photo, large.resize((119, 70), Image.Resampling.BICUBIC).crop((0, 0, 112, 70)))
    assert min(canvas(found).size) == 448


def test_views_change_size_and_crop():
    """A larger crop keeps its share of the picture; without a crop all of it is seen, in its own shape."""
    pre = pretrained(VisionTransformer(random_model(0).config))
    large = with_view(pre, (448, 448)).transform
    assert (large.resize, large.crop) == (ShortestEdge(512), (448, 448))
    whole = with_view(pre, (518, 518), crop=False).transform
    assert (whole.resize, whole.crop) == (ShortestEdge(518), None)
    assert with_view(pre, crop=False).transform.resize == ShortestEdge(224)
    assert with_view(pre) is pre
    squashed = pretrained(pre.model, ImageTransform.squash(518))
    assert with_view(squashed, (224, 224)).transform.resize == Exact(224, 224)
    assert with_view(squashed, crop=False) is squashed


@pytest.mark.parametrize("outliers", [(3, 9), (12,), ()])
def test_norms_show_exactly_the_planted_outliers(outliers):
    """Where they are, from which layer on, with which norm; the picture opens on that layer."""
    found = look(planted_model(), painted(outliers))
    seen = see_maps.norms(found)
    layers = seen.numbers["layers"]
    expected = [list(divmod(i, 4)) for i in outliers]
    assert [row["outliers"] for row in layers] == [[], [], [], expected, expected]
    assert seen.numbers["shown_after_block"] == (3 if outliers else 4)
    if outliers:
        assert layers[3]["max"] == pytest.approx(OUTLIER_NORM, rel=1e-6)
        assert layers[3]["median"] == pytest.approx(8, rel=1e-6)


def test_outliers_are_outlined_in_the_pictures_of_the_planted_model():
    """Cyan lines where outliers are, and none in the picture of an image without."""
    cyan = (0, 229, 255)
    for draw in (see.attention, see_maps.norms):
        marked, clean = (np.asarray(draw(look(planted_model(), painted(which))).picture) for which in ((3, 9), ()))
        assert (marked == cyan).all(axis=-1).sum() > 100
        assert not (clean == cyan).all(axis=-1).any()


def test_the_budget_of_the_planted_model_has_its_closed_form():
    """In the last block each of two outliers gets 0.49037 of the class token's attention; with a register, that gets 0.957."""
    rows = see.budget(look(planted_model(), painted((3, 9))))
    assert rows["head 0"]["outlier patches"] == pytest.approx(2 * 0.49037, abs=2e-5)
    assert sum(rows["mean of heads"].values()) == pytest.approx(1)
    rows = see.budget(look(planted_model(1), painted(())))
    assert rows["head 1"]["registers"] == pytest.approx(0.95739, abs=2e-5)
    assert rows["head 1"]["outlier patches"] == 0


def test_what_a_repair_adds_is_in_the_budget():
    """Attention to the key that the attention bias adds is counted as such: shares still sum to 1."""
    from dinokit.repair.attention import AttentionBias

    base = planted_model()
    pair = torch.ones(2, 32), torch.zeros(2, 32)
    pre = pretrained(AttentionBias(base.model, [(2, 3)], [pair] * 4), base.transform)
    row = see.budget(look(pre, painted(())))["mean of heads"]
    assert row["added key"] > 0.01
    assert sum(row.values()) == pytest.approx(1)


def test_attention_numbers_and_heads(photo):
    """One head alone, negative from the end; peaks are where the maps are largest; an unknown head is refused."""
    found = look(random_model(4), photo)
    seen = see.attention(found, head=-1)
    assert list(seen.numbers["budget"]) == ["head 1"]
    top = seen.numbers["peaks"]["head 1"]
    values = found.attention_map()[1]
    assert values[top["row"], top["column"]].item() == pytest.approx(top["value"]) == values.max().item()
    assert see.attention(found).picture.height > seen.picture.height
    with pytest.raises(ValueError, match="heads go from 0 to 1"):
        see.attention(found, head=2)
    with pytest.raises(ValueError, match="known after 0 to 3 blocks"):
        see_maps.norms(found, 4)


def test_similarity_finds_the_patch_in_other_images(photo):
    """The query is 1 with itself; the same image shifted by two patches has it two columns on."""
    config = ViTConfig(embed_dim=32, depth=1, num_heads=2, ffn_dim=64, image_size=(70, 70))
    torch.manual_seed(0)
    model = VisionTransformer(config)
    torch.nn.init.zeros_(model.pos_embed)
    pre = pretrained(model, ImageTransform(resize=None, crop=None))
    shifted = Image.fromarray(np.roll(np.asarray(photo), 28, axis=1))
    seen = see.similarity([look(pre, photo, name="a"), look(pre, shifted, name="b")], (2, 3))
    own, other = seen.numbers["images"]
    assert {"row": 2, "column": 3} not in [{k: place[k] for k in ("row", "column")} for place in own["nearest"]]
    assert (other["nearest"][0]["row"], other["nearest"][0]["column"]) == (2, 5)
    assert other["nearest"][0]["cosine"] == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="rows go from 0 to 4"):
        see.similarity([look(pre, photo)], (5, 0))


def test_registers_have_a_picture_each(photo):
    """Class token and registers with norms and ranges; a network without registers is refused."""
    seen = see.registers(look(random_model(4), photo))
    assert list(seen.numbers["tokens"]) == ["class token", "register 1", "register 2", "register 3", "register 4"]
    for row in seen.numbers["tokens"].values():
        assert 0 < row["attention_to_patches"] < 1
        assert -1 <= row["cosine_min"] <= row["cosine_max"] <= 1
    with pytest.raises(ValueError, match="no registers"):
        see.registers(look(random_model(0), photo))


def test_outliers_take_no_part_in_the_basis_of_a_picture():
    """With planted outliers, the basis is that of the other patches."""
    found = look(planted_model(), painted((3, 9)))
    from dinokit.analysis.pca import PatchPCA

    keep = [torch.from_numpy(~found.outlier_map)]
    expected = PatchPCA.fit([found.features], keep=keep)
    assert torch.equal(see_maps.fit_basis([found]).components, expected.components)
    assert not torch.equal(PatchPCA.fit([found.features]).components, expected.components)


def test_segments_are_a_partition(photo):
    """As many as asked for; shares sum to 1; the first is the largest."""
    seen = see_maps.segments(look(random_model(1), photo), 3)
    assert seen.numbers["num"] == 3
    for shares in seen.numbers["shares"].values():
        assert sum(shares) == pytest.approx(1)
        assert shares == sorted(shares, reverse=True)
    assert np.array(seen.numbers["labels"]).shape == (5, 7)


def test_frames_share_one_basis(tmp_path, photo):
    """A still video has the same picture in every frame; unreadable frames are reported in their place."""
    pre = random_model(1)
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path in paths:
        photo.save(path)
    paths[2].write_bytes(b"no image")
    basis = fit_frames(pre, paths, sample=3)
    frames = list(colour_frames(pre, paths, basis))
    assert isinstance(frames[2].error, ImageError)
    assert frames[2].picture is None
    first = np.asarray(frames[0].picture)
    assert all(np.array_equal(frames[i].picture, first) for i in (1, 3))
    with pytest.raises(ValueError, match="could be read"):
        fit_frames(pre, [paths[2]])
    with pytest.raises(ValueError, match="at least one"):
        fit_frames(pre, paths, sample=0)


def test_rows_of_tiles_are_filled_evenly():
    """12 heads in two rows of 6, 16 in two of 8, 24 in three of 8; small numbers in a row of four."""
    assert [balanced(count) for count in (1, 2, 4, 6, 12, 16, 24, 9)] == [4, 4, 4, 6, 6, 8, 8, 5]

"""Made images: each can be made again alone; labels, masks and depth say what is there; classes are not in the colours."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinokit.images import decode
from dinokit.train.data import Augmentation, CropRule, Order, Plan, TensorBatches
from dinokit.train.data.mixture import ROUND, Mixture
from dinokit.train.data.mosaic import FAR, NEAR, Mosaic
from dinokit.train.data.procedural import LEAVES, Procedural, drawn, leaves_of, outlines
from dinokit.train.data.shapes import HELD_OUT_SHAPES, HELD_OUT_TEXTURES, OUTLINES, SHAPES, TEXTURE_NAMES, texture
from dinokit.train.data.shapetex import BAR, ShapeTex
from dinokit.train.data.strokes import Strokes, curve
from dinokit.train.data.textures import TEXTURES, Textures, _apart

ROUNDING = 1e-12
ROUNDING_32 = 1e-6
SETS = [
    Procedural(300, 40, 1),
    Textures(300, 28, 1),
    ShapeTex(300, 48, 1),
    Mosaic(300, 48, 1),
    Strokes(300, 48, 1),
    Mixture(300, 48, 1),
]


@pytest.mark.parametrize("images", SETS, ids=lambda x: type(x).__name__)
def test_an_image_is_the_same_made_alone_again_and_by_a_copy(images):
    """By index, whatever was made before; another seed gives another; workers may pickle the set."""
    first = images[123]
    again = pickle.loads(pickle.dumps(images))
    for i in (5, 299, 0):
        again[i]
    assert np.array_equal(again[123], first)
    assert first.shape == (images.size, images.size, 3)
    assert first.dtype == np.uint8
    assert not np.array_equal(type(images)(300, images.size, 2)[123], first)
    assert decode(first).width == images.size
    assert len(images) == 300
    with pytest.raises(IndexError, match="300"):
        images[300]
    with pytest.raises(ValueError, match="at least one"):
        type(images)(0)


@pytest.mark.parametrize("images", SETS[:2], ids=lambda x: type(x).__name__)
def test_many_at_once_are_what_each_is_alone(images):
    """Bit for bit, in any order."""
    wanted = [7, 201, 3, 3, 90, *range(30, 70)]
    together = images.batch(wanted)
    for i, image in zip(wanted, together, strict=True):
        assert np.array_equal(images[i], image)
    assert images.batch([]).shape == (0, images.size, images.size, 3)


def test_procedural_images_differ_and_use_the_range():
    """No two of 300 alike; light, dark, and colour occur; hardly any is flat."""
    images = SETS[0].batch(range(300)).astype(float)
    spread = images.std(axis=(1, 2)).mean(axis=1)
    assert np.mean(spread > 8) > 0.9
    assert images.mean(axis=(1, 2, 3)).std() > 20
    flat = images.reshape(300, -1)
    distance = ((flat[:, None, ::50] - flat[None, :, ::50]) ** 2).sum(axis=-1)
    assert (distance + 1e9 * np.eye(300)).min() > 0


def test_leaves_cover_each_other_in_order():
    """A pixel belongs to the last leaf whose outline holds it; counts go from none to all."""
    square = np.array([[2, 2], [12, 2], [12, 12], [2, 12]], np.float32)
    regions = drawn(np.stack([square, square + 5]), 2, 24)
    assert regions[4, 4] == 1
    assert regions[9, 9] == regions[15, 15] == 2
    assert regions[20, 2] == 0
    rng = np.random.default_rng(0)
    counts = [leaves_of(x) for x in rng.random((2000, 16), np.float32)]
    assert min(counts) == 0
    assert max(counts) == LEAVES
    corners = outlines(rng.random((50, LEAVES, 8), np.float32), 64)
    assert np.isfinite(corners).all()
    assert (np.ptp(corners, axis=2).max(axis=(1, 2)) < 2.9 * 0.45 * 64).all()


def test_texture_classes_are_balanced_and_in_no_colour():
    """Any ten in a row are the ten classes; the mean colour tells nothing about the class, the gratings' direction does."""
    images = Textures(2000, seed=3)
    labels = images.labels()
    assert sorted(labels[370:380].tolist()) == list(range(10))
    pixels = images.batch(range(2000)).astype(float) / 255
    colour = pixels.mean(axis=(1, 2))
    means = np.array([colour[labels == c].mean(axis=0) for c in range(10)])
    assert means.std(axis=0).max() < 3 * colour.std() / np.sqrt(200)
    grey = pixels.mean(axis=-1)
    along_x = np.abs(np.diff(grey, axis=2)).mean(axis=(1, 2))
    along_y = np.abs(np.diff(grey, axis=1)).mean(axis=(1, 2))
    upright, lying = (labels == TEXTURES.index(name) for name in ("grating_0", "grating_90"))
    assert (along_x > along_y)[upright].mean() > 0.85
    assert (along_x < along_y)[lying].mean() > 0.85


@settings(deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 1))
def test_colours_are_pulled_apart_along_their_line(seed, distance):
    """At least the distance asked for, within [0, 1]; those that have it already stay."""
    low, high = np.random.default_rng(seed).random((2, 20, 3))
    new_low, new_high = _apart(low, high, distance)
    before, after = (np.linalg.norm(b - a, axis=1) for a, b in ((low, high), (new_low, new_high)))
    assert after == pytest.approx(np.maximum(before, distance))
    assert min(new_low.min(), new_high.min()) >= -ROUNDING
    assert max(new_low.max(), new_high.max()) <= 1 + ROUNDING
    assert ((new_high - new_low) / after[:, None]) == pytest.approx((high - low) / before[:, None])
    enough = before > distance
    assert new_low[enough] == pytest.approx(low[enough])


def test_contrast_changes_pale_textures_only():
    """Those whose colours differ enough are the same images, byte for byte."""
    plain, pulled = (Textures(300, contrast=c).batch(range(300)) for c in (0.0, 0.3))
    same = (plain == pulled).all(axis=(1, 2, 3))
    assert 0.6 < same.mean() < 0.95
    spread = plain.reshape(300, -1, 3).std(axis=1).mean(axis=1)
    assert spread[~same].mean() < spread[same].mean()
    with pytest.raises(ValueError, match="contrast is 2"):
        Textures(1, contrast=2)


@pytest.mark.parametrize("name", [*TEXTURE_NAMES, *HELD_OUT_TEXTURES])
def test_textures_vary_between_none_and_all(name):
    """Within [0, 1], and not flat."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-3, 3, (2, 50, 50)).astype(np.float32)
    values = texture(name, x, y, rng.uniform(-1, 1, (50, 50)).astype(np.float32))
    assert values.min() >= 0
    assert values.max() <= 1
    assert values.std() > 0.1


def test_an_unknown_texture_is_refused():
    """With the names that there are."""
    with pytest.raises(ValueError, match="stripes"):
        texture("tartan", *np.zeros((3, 2, 2), np.float32))


def test_outlines_have_their_size():
    """Within about the unit circle, none of them small; seen and held out ones do not overlap."""
    for name, (outer, *holes) in OUTLINES.items():
        assert 0.7 < np.abs(outer).max() <= 1.3, name
        x, y = outer.T
        area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        assert 0.5 < area < 3.2, name
        assert all(np.abs(hole).max() < np.abs(outer).max() for hole in holes)
    assert not set(SHAPES) & set(HELD_OUT_SHAPES)
    assert not set(TEXTURE_NAMES) & set(HELD_OUT_TEXTURES)
    assert len(SHAPES) == len(TEXTURE_NAMES) == 12


def test_a_scenes_labels_masks_and_depth_agree():
    """Shapes are nearer than the ground, the larger of two in front; the mask has the class of the label."""
    images = ShapeTex(80, 64, 5)
    bars = pairs = 0
    for i in range(80):
        scene = images.scene(i)
        assert set(np.unique(scene.semantic)) <= {0, scene.shape + 1, BAR}
        assert ((scene.semantic == 0) == (scene.instances == 0)).all()
        inside = scene.instances % BAR > 0
        assert inside.mean() > 0.01
        assert scene.depth.min() > 0.1
        assert scene.depth.max() <= 2.0
        ground = np.where(scene.semantic == 0, scene.depth, 0).max(axis=1)
        assert (np.diff(ground[ground > 0]) < 0).all()
        assert scene.depth[inside].max() < scene.depth[scene.semantic == 0].min()
        if (scene.instances == 2).any() and (scene.instances == 1).any():
            pairs += 1
            assert scene.depth[scene.instances == 2].mean() < scene.depth[scene.instances == 1].mean()
        bars += (scene.semantic == BAR).any()
    assert 10 < bars < 40
    assert 15 < pairs < 65


def test_factors_are_drawn_independently():
    """Each shape and texture about as often, no pair of factors bound to each other."""
    images = ShapeTex(1200, 16, 2)
    found = np.array([(s.shape, s.texture, s.ground) for s in map(images.scene, range(1200))])
    for column in found.T:
        counts = np.bincount(column, minlength=12)
        assert ((counts - 100) ** 2 / 100).sum() < 31.3  # chi-square, 11 degrees of freedom, p = .001
    for a, b in ((0, 1), (0, 2), (1, 2)):
        table = np.bincount(found[:, a] * 12 + found[:, b], minlength=144)
        assert ((table - 1200 / 144) ** 2 / (1200 / 144)).sum() < 200.2  # 143 degrees of freedom, p = .001


def test_held_out_scenes_are_of_the_names_given():
    """Labels index those names."""
    images = ShapeTex(20, 32, 0, HELD_OUT_SHAPES, HELD_OUT_TEXTURES)
    labels = [images.scene(i) for i in range(20)]
    assert {s.shape for s in labels} <= set(range(4))
    assert max(s.ground for s in labels) > 3


def test_made_images_go_where_training_takes_them():
    """As a tensor, cropped where it lies."""
    images = Procedural(12, 32).tensor()
    assert torch.equal(images[3], torch.from_numpy(Procedural(12, 32)[3]).permute(2, 0, 1))
    rule = Augmentation(global_crops=CropRule(2, 16, (0.4, 1.0)), local_crops=CropRule(2, 8, (0.1, 0.4)))
    crops, local, _ = rule.finish(TensorBatches(images, rule, Plan(Order(12), 6))[0])
    assert crops.shape == (12, 3, 16, 16)
    assert local.shape == (12, 3, 8, 8)
    assert torch.isfinite(crops).all()


def test_a_mosaic_says_what_is_where():
    """As many textures as regions, none twice; depth within its bounds and smooth within a region; labels match the picture."""
    images = Mosaic(40, 64, 5, regions=(2, 4))
    scenes = [images.scene(i) for i in range(40)]
    counts = [len(np.unique(s.semantic)) for s in scenes]
    assert set(counts) <= {1, 2, 3, 4}  # a region may be hidden by others' borders
    assert np.mean(counts) > 2
    for scene in scenes:
        assert NEAR - ROUNDING_32 <= scene.depth.min() <= scene.depth.max() <= FAR + ROUNDING_32
        same = scene.semantic[:, 1:] == scene.semantic[:, :-1]
        assert np.abs(np.diff(scene.depth, axis=1))[same].max() < 0.1
    one = Mosaic(40, 64, 5, textures=("stripes", "dots"), regions=(2, 2))
    borders = np.concatenate(
        [np.abs(np.diff(one.scene(i).pixels.astype(int), axis=1)).max(-1).ravel() for i in range(40)]
    )
    across = np.concatenate([(np.diff(one.scene(i).semantic.astype(int), axis=1) != 0).ravel() for i in range(40)])
    assert borders[across].mean() > 1.5 * borders[~across].mean()


def test_far_planes_have_finer_texture():
    """Stripes change colour more often where depth is larger: the grain tells the depth."""
    images = Mosaic(60, 64, 5, textures=("stripes",), regions=(1, 1), turn=0.0)
    scenes = [images.scene(i) for i in range(60)]
    turns, depths = [], []
    for scene in scenes:
        contrast = np.abs(np.diff(scene.pixels.astype(float), axis=1)).max(-1)
        turns.append((contrast > 0.5 * contrast.max()).mean())
        depths.append(scene.depth.mean())
    assert np.corrcoef(turns, depths)[0, 1] > 0.8


def test_mosaics_that_can_not_be_are_refused():
    """More regions than textures, and periods that are none."""
    with pytest.raises(ValueError, match="regions are"):
        Mosaic(1, textures=("dots",), regions=(1, 2))
    with pytest.raises(ValueError, match="periods are"):
        Mosaic(1, periods=(0.0, 2.0))


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6), st.booleans())
def test_a_curve_goes_through_its_corners(seed, count, closed):
    """In order, without a jump; a closed one comes back to where it began."""
    corners = np.random.default_rng(seed).random((count, 2))
    line = curve(corners, closed=closed)
    places = [np.abs(line - corner).sum(axis=1).argmin() for corner in corners]
    assert places == sorted(places)
    assert line[places] == pytest.approx(corners)
    assert line[-1] == pytest.approx(corners[0] if closed else corners[-1])
    assert np.abs(np.diff(line, axis=0)).max() < 0.5


def test_strokes_are_lines_of_one_colour_on_another():
    """Most of a picture is ground, and some of it ink."""
    images = Strokes(60, 64, 3).batch(range(60)).astype(float)
    border = np.concatenate([images[:, 0], images[:, -1]], axis=1)
    ground = np.median(border, axis=1)[:, None, None]
    ink = np.abs(images - ground).max(axis=-1) > 50
    share = ink.mean(axis=(1, 2))
    assert 0.05 < share.mean() < 0.5
    assert (share > 0.005).mean() > 0.9


def test_any_eight_of_a_mixture_hold_all_its_kinds():
    """Each image is the one that its own set has at that index."""
    images = Mixture(80, 48, 2)
    batch = images.batch(range(40, 48))
    assert np.array_equal(batch[ROUND.index("strokes")], Strokes(80, 48, 2)[40 + ROUND.index("strokes")])
    assert np.array_equal(batch[ROUND.index("shapes")], ShapeTex(80, 48, 2)[40 + ROUND.index("shapes")])
    assert np.array_equal(batch[ROUND.index("leaves")], Procedural(80, 48, 2)[40 + ROUND.index("leaves")])
    small = Textures(80, 24, 2)[(40 + ROUND.index("textures")) // len(ROUND)]
    assert np.array_equal(batch[ROUND.index("textures"), ::2, ::2], small)
    assert images.batch([]).shape == (0, 48, 48, 3)
    with pytest.raises(ValueError, match="even"):
        Mixture(8, 33)

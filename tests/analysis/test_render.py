"""Colours, scales, and maps on photographs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dinokit.analysis import render
from dinokit.analysis.colour import Scale, categorical, diverging, number, sequential, srgb_to_oklab


def test_the_sequential_map_rises_evenly_in_lightness():
    """From nearly black to nearly white: steps of OKLab lightness are equal but for the rounding to 8 bits."""
    lightness = srgb_to_oklab(sequential())[:, 0]
    assert lightness[0] < 0.2
    assert lightness[-1] > 0.93
    even = np.linspace(lightness[0], lightness[-1], len(lightness))
    assert np.abs(lightness - even).max() < 0.006


def test_the_diverging_map_is_symmetric_in_lightness_and_neutral_in_the_middle():
    """Both ends equally dark, the middle the lightest and without colour."""
    lab = srgb_to_oklab(diverging())
    assert np.abs(lab[:, 0] - lab[::-1, 0]).max() < 0.006
    assert lab[:, 0].argmax() in (127, 128)
    assert np.hypot(lab[127, 1], lab[127, 2]) < 0.02
    assert lab[0, 2] < -0.1 < 0.05 < lab[-1, 1]  # blue, red


def test_categories_are_apart():
    """Any two of the first twelve differ by more than just noticeable."""
    lab = srgb_to_oklab(categorical(12))
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + np.eye(12)
    assert distance.min() > 0.05


def test_a_scale_gives_its_ends_the_first_and_the_last_colour():
    """Exactly; values outside have the ends' colours; the middle of a symmetric scale is 0."""
    scale = Scale(2.0, 6.0)
    assert np.array_equal(scale.colours(np.array([2.0, 6.0, -9.0, 99.0])), sequential()[[0, 255, 0, 255]])
    around = Scale.symmetric(np.array([-1.0, 4.0]))
    assert (around.low, around.high) == (-4, 4)
    assert np.array_equal(around.colours(np.array([-4.0, 4.0])), diverging()[[0, 255]])
    log = Scale.logarithmic(np.array([1.0, 100.0]))
    assert log.place(np.array([1, 10, 100, 0.0])) == pytest.approx([0, 0.5, 1, 0])
    cut = Scale.of(np.arange(101.0), percentile=99, zero=True)
    assert (cut.low, cut.high, cut.cut) == (0, 99, True)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.booleans())
def test_ticks_are_few_in_order_and_within_the_scale(low, width, log):
    """One to ten, for any range."""
    low = abs(low) + 1e-3 if log else low
    scale = Scale(low, low + width, log=log)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 10
    assert ticks == sorted(ticks)
    slack = 1e-6 * (abs(low) + width)
    assert all(scale.low - slack <= tick <= scale.high + slack for tick in ticks)


def test_numbers_are_short():
    """Three digits, no needless zeros."""
    assert [number(v) for v in (0, 1, 0.25, 302.7606, 12345.6, 0.00001, -0.5)] == [
        "0", "1", "0.25", "303", "12,346", "1.0e-05", "-0.5",
    ]  # fmt: skip


def test_a_constant_map_has_one_colour():
    """The middle of the scale, and no division by zero."""
    heat = np.asarray(render.heat_map(np.full((3, 4), 7.0), Scale.of(np.full((3, 4), 7.0)), (30, 40)))
    assert (heat == sequential()[128]).all()


def test_each_patch_is_a_rectangle_of_its_colour():
    """Sizes are (height, width), and edges are sharp."""
    values = np.arange(6.0).reshape(2, 3)
    scale = Scale.of(values)
    heat = np.asarray(render.heat_map(values, scale, (28, 42)))
    assert heat.shape == (28, 42, 3)
    assert np.array_equal(heat, scale.colours(values).repeat(14, 0).repeat(14, 1))


def test_values_that_are_not_finite_have_no_colour():
    """An error that says how many, instead of a black patch that looks like a result."""
    values = np.ones((2, 2))
    values[0, 1] = np.nan
    with pytest.raises(ValueError, match="1 values of 4 that are not finite"):
        render.heat_map(values, Scale(0, 1), (28, 28))
    with pytest.raises(ValueError, match="not finite"):
        Scale.of(values)
    with pytest.raises(ValueError, match="empty"):
        render.heat_map(np.zeros((0, 3)), Scale(0, 1), (28, 28))
    with pytest.raises(ValueError, match="rows and columns"):
        render.heat_map(np.zeros(3), Scale(0, 1), (28, 28))
    for low, high, log in ((1, 0, False), (0, math.inf, False), (0, 1, True)):
        with pytest.raises(ValueError, match="scale"):
            Scale(low, high, log=log)


def test_an_overlay_keeps_the_size_and_greys_the_photograph():
    """Strength 0 is the grey photograph, 1 the heat map; in between their mixture."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 42, 3), dtype=np.uint8))
    values, scale = np.arange(6.0).reshape(2, 3), Scale(0, 5)
    assert np.array_equal(render.overlay(photo, values, scale, strength=0), photo.convert("L").convert("RGB"))
    assert np.array_equal(render.overlay(photo, values, scale, strength=1), render.heat_map(values, scale, (28, 42)))
    assert render.overlay(photo, values, scale, smooth=True).size == photo.size
    with pytest.raises(ValueError, match="strength"):
        render.overlay(photo, values, scale, strength=2)


def test_outlines_mark_the_chosen_patches_and_nothing_far_from_them():
    """A line along the edges of the chosen patch; its middle and all other patches keep their pixels."""
    image = Image.new("RGB", (280, 280), (120, 120, 120))
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True
    drawn = np.asarray(render.outline_patches(image, mask))
    changed = (drawn != 120).any(axis=-1)
    assert (drawn[70, 150] == render.OUTLIER).all()
    assert (drawn[105, 209] == render.OUTLIER).all()
    assert not changed[80:130, 150:200].any()
    assert not changed[:60].any()
    assert np.array_equal(render.outline_patches(image, np.zeros((4, 4), bool)), image)
    corner = np.asarray(render.outline_patches(image, np.eye(4, dtype=bool)))
    assert (corner[1, 30] == render.OUTLIER).all()  # visible at the edge of the picture too


def test_marks_boxes_grids_and_labels_are_drawn_where_they_belong():
    """On copies; boxes are (left, top, right, bottom)."""
    image = Image.new("RGB", (280, 140), (50, 50, 50))
    before = np.asarray(image).copy()
    ys, xs = np.nonzero((np.asarray(render.mark_patch(image, (1, 4), (5, 10))) != 50).any(axis=-1))
    assert (ys.min() + ys.max()) / 2 == pytest.approx(42, abs=1.5)
    assert (xs.min() + xs.max()) / 2 == pytest.approx(126, abs=1.5)
    ys, xs = np.nonzero((np.asarray(render.draw_boxes(image, [(28, 14, 70, 98)])) != 50).any(axis=-1))
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (28, 14, 69, 97)
    grid = np.asarray(render.patch_grid(image, (5, 10)))
    assert sorted(set(np.nonzero((grid[3] != 50).any(axis=-1))[0])) == list(range(28, 280, 28))
    colours = render.label_map(np.array([[0, 0], [1, -1]]))
    assert (colours[0, 0] == colours[0, 1]).all()
    assert (colours[0, 0] != colours[1, 0]).any()
    assert (colours[1, 1] == 24).all()
    assert np.array_equal(image, before)

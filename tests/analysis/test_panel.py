"""Panels and charts: sizes, text that fits, numbers that are right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dinokit.analysis import charts
from dinokit.analysis.colour import Scale
from dinokit.analysis.panel import (
    MARGIN,
    Key,
    Section,
    Tile,
    colour_bar,
    fitted,
    font,
    panel,
    panel_width,
    printable,
    wrapped,
)

PHOTO = Image.new("RGB", (300, 200), (10, 120, 30))


def ink(image: Image.Image) -> np.ndarray:
    return (np.asarray(image) != 255).any(axis=-1)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 5), st.integers(0, 9), st.text(max_size=200), st.text(max_size=60))
def test_a_panel_is_as_wide_as_its_columns_and_keeps_its_margins(columns, count, title, caption):
    """Whatever the texts are: nothing is drawn into the margins."""
    tiles = [Tile(PHOTO, caption, "note")] * count
    sections = [Section(caption, tiles, Scale(0, 1, "share"), [Key((255, 0, 0), "outlier")])]
    sheet = panel(sections, title=title, subtitle=caption, columns=columns, tile=300)
    assert sheet.width == panel_width(columns, 300)
    drawn = ink(sheet)
    assert not drawn[:, : MARGIN - 3].any()
    assert not drawn[:, -MARGIN + 3 :].any()
    assert not drawn[-10:].any()


def test_every_tile_is_shown_in_its_own_shape():
    """Seven tiles of 3:2 in rows of four: as many pixels as they have."""
    tiles = [Tile(PHOTO)] * 7
    sheet = np.asarray(panel([Section(tiles=tiles)], title="", columns=4, tile=150))
    assert (sheet == (10, 120, 30)).all(axis=-1).sum() == 7 * 150 * 100


@given(st.text(max_size=300), st.integers(20, 400))
def test_text_is_cut_to_its_room(text, width):
    """Ellipsis in the middle; letters the font lacks are replaced; surrogates of odd file names do no harm."""
    face = font(15)
    assert face.getlength(fitted(text, width, face)) <= width or fitted(text, width, face) == "\N{HORIZONTAL ELLIPSIS}"
    for line in wrapped(text, width, face):
        assert face.getlength(line) <= max(width, face.getlength("\N{HORIZONTAL ELLIPSIS}"))


def test_letters_that_the_font_lacks_are_spelled_or_marked():
    """Accents are dropped, other alphabets become question marks; no empty boxes."""
    assert printable("Zürich é\n.jpg") == "Zurich e?.jpg"
    assert printable("\udcff.jpg \N{CYRILLIC CAPITAL LETTER ZHE}") == "?.jpg ?"


def test_a_colour_bar_runs_from_the_first_colour_to_the_last():
    """Linear, logarithmic, diverging; a point at the end where values were cut."""
    for scale in (Scale(0, 1, "share"), Scale(1, 100, log=True), Scale(-1, 1, map="diverging")):
        bar = np.asarray(colour_bar(scale))
        row = bar[25]
        ends = scale.colours(np.array([scale.low, scale.high]))
        columns = np.flatnonzero((row != 255).any(axis=-1))
        assert np.array_equal(row[columns[0]], ends[0])
        assert np.array_equal(row[columns[-1]], ends[1])
    plain, cut = ink(colour_bar(Scale(0, 1))), ink(colour_bar(Scale(0, 1, cut=True)))
    assert cut[25].sum() > plain[25].sum()


def test_a_panel_needs_something_to_show():
    """No sections, no columns."""
    with pytest.raises(ValueError, match="0 sections"):
        panel([], title="x")
    with pytest.raises(ValueError, match="0 columns"):
        panel([Section("x")], title="x", columns=0)


def red(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image).astype(int)
    return (np.abs(pixels - charts.OUTLIER) < 30).all(axis=-1)


def test_outliers_stand_out_in_the_charts_of_layers():
    """Red dots in the layers that have outliers, above all blue ones, and nowhere else."""
    norms, outliers = np.full((4, 50), 8.0), np.zeros((4, 50), bool)
    norms[2:, [3, 9]], outliers[2:, [3, 9]] = 302.76, True
    chart = charts.layer_chart(norms, outliers, {"class token": (charts.CLS, np.full(4, 9.0))}, width=900)
    assert chart.size == (900, 300)
    ys, xs = np.nonzero(red(chart))
    assert xs.min() > 450
    blue = (np.abs(np.asarray(chart).astype(int) - charts.PATCH) < 8).all(axis=-1)
    assert ys.max() < np.nonzero(blue)[0].min()
    assert not red(charts.layer_chart(norms, np.zeros_like(outliers), {}, width=900)).any()


def test_histograms_show_few_beside_many():
    """Two outliers of 16 patches are visible and red; a constant is one bar and no error."""
    values = np.array([8.0] * 14 + [302.76] * 2)
    chart = charts.histogram(values, values > 150, width=600)
    assert chart.size == (600, 240)
    assert red(chart).sum() > 100
    assert not red(charts.histogram(np.ones(5), np.zeros(5, bool), width=600)).any()
    with pytest.raises(ValueError, match="not finite"):
        charts.histogram(np.array([1.0, np.nan]), np.zeros(2, bool), width=600)


def test_bars_are_as_long_as_their_shares():
    """To the pixel; a row with the wrong number of shares is refused."""
    colours = [(200, 0, 0), (0, 0, 200)]
    chart = np.asarray(charts.stacked_bars([("mean", (0.25, 0.75))], colours, width=400))
    middle = chart[6]
    first, second = (middle == colours[0]).all(axis=-1).sum(), (middle == colours[1]).all(axis=-1).sum()
    assert first / (first + second) == pytest.approx(0.25, abs=0.01)
    with pytest.raises(ValueError, match="one each"):
        charts.stacked_bars([("mean", (1.0,))], colours, width=400)


def test_bands_lie_between_their_values():
    """The area's upper edge rises where the values do; lines are drawn over it."""
    low, high = np.full(3, 1.0), np.array([10.0, 10.0, 100.0])
    band, line = (206, 214, 230), charts.OUTLIER
    chart = np.asarray(charts.band_chart([(band, low, high)], [(line, high)], width=600))
    filled = (np.abs(chart.astype(int) - band) < 3).all(axis=-1)
    left, right = filled[:, 160].nonzero()[0], filled[:, 485].nonzero()[0]
    assert right.min() < left.min() - 50
    assert abs(int(right.max()) - int(left.max())) <= 1
    assert red(Image.fromarray(chart)).any()
    with pytest.raises(ValueError, match="not finite"):
        charts.band_chart([(band, low, high * np.nan)], [], width=600)


def test_the_distribution_of_layers_is_white_where_no_patch_is():
    """Each layer's shares sum to 100 %; the scale covers those that occur."""
    counts = np.array([[90.0, 10.0, 0.0], [50.0, 0.0, 50.0]])
    chart, scale = charts.layer_histogram(counts, np.array([1.0, 10.0, 100.0, 1000.0]), width=600)
    assert (scale.low, scale.high) == (10, 90)
    pixels = np.asarray(chart)
    assert (pixels[40, 160] == 255).all()  # no patch of the first layer in the highest bin
    assert np.array_equal(pixels[40, 480], scale.colours(np.array([50.0]))[0])
    with pytest.raises(ValueError, match="3 bins have 4 edges"):
        charts.layer_histogram(counts, np.ones(3), width=600)

"""Damaged JPEG files: the fast way's verdict is the exact way's, file by file."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinokit.errors import ImageError
from dinokit.images import ExactPreparation, FastTransform, ImageTransform, ShortestEdge
from dinokit.images.fast import GRADES, Preparation
from dinokit.images.fast_jpeg import frame_of, read_plain
from tests.images.corpus import exif, photo, saved
from tests.images.test_fuzz import mutated

MUTANTS = 2000
LIMIT = 4_000_000
TRANSFORM = ImageTransform(resize=ShortestEdge(20), crop=(16, 16))
EXACT, CLOSE, LOOSE = ExactPreparation(TRANSFORM), FastTransform(TRANSFORM), FastTransform(TRANSFORM, "loose")
ALWAYS = 2  # grey levels that two roundings can differ by


def outcome(way: Preparation, file: bytes) -> tuple[str, np.ndarray | None, tuple[object, ...]]:
    """The error code, or the pixels and facts."""
    try:
        made = way.prepare(file, max_pixels=LIMIT)
    except ImageError as error:
        return error.code, None, ()
    return "ok", made.pixels.numpy().astype(int), (made.width, made.height, made.mode, made.frames, made.notes)


@pytest.fixture(autouse=True)
def _no_image_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that grade "close" does not leave these files to the exact way from the start."""
    monkeypatch.setattr("dinokit.images.fast.PILLOW_PIXELS", 0)


def files() -> list[bytes]:
    """Baseline, progressive, grey, coarse and fine colours, turned, with restart markers, CMYK, RGB."""
    image = photo(90, 72)
    return [
        saved(image, "JPEG", exif=exif(6)),
        saved(image, "JPEG", progressive=True),
        saved(image.convert("L"), "JPEG"),
        saved(image, "JPEG", subsampling=0, quality=95, exif=exif(3)),
        saved(image, "JPEG", restart_marker_blocks=3),
        saved(image, "JPEG", optimize=True, subsampling=1),
        saved(image.convert("CMYK"), "JPEG"),
        saved(image, "JPEG", keep_rgb=True),
    ]


def test_two_thousand_mutants_have_the_exact_verdict() -> None:
    """Status, error code and facts are equal for every mutant; where both give pixels, they are within the bound."""
    chance, seeds = random.Random(20261121), files()
    codes: dict[str, int] = {}
    taken = 0
    for index in range(MUTANTS):
        mutant = mutated(seeds[index % len(seeds)], chance)
        taken += read_plain(mutant) is not None
        code, pixels, facts = outcome(EXACT, mutant)
        codes[code] = codes.get(code, 0) + 1
        for way in (CLOSE, LOOSE):
            got_code, got, got_facts = outcome(way, mutant)
            assert (got_code, got_facts) == (code, facts), (index, way.grade)
            if pixels is not None:
                assert got is not None
                assert np.abs(got - pixels).max() <= ALWAYS, (index, way.grade)
    assert codes["ok"] > 200
    assert codes["truncated"] > 200
    assert taken > 400  # mutants whose header is plain, so that the other decoder had its chance


@pytest.mark.parametrize("large", [False, True])
def test_no_half_grey_pictures(large: bool) -> None:
    """Cut anywhere, with or without an end marker put back, or with rubbish behind: the exact way's outcome."""
    image = Image.effect_mandelbrot((900, 700), (-2, -1.5, 1, 1.5), 90).convert("RGB") if large else photo(90, 72)
    file = saved(image, "JPEG")
    for part in (0.05, 0.3, 0.6, 0.9, 0.99, 1.0):
        cut = file[: int(len(file) * part)]
        for tail in (b"", b"\xff\xd9", b"rubbish", b"\xff\xd9rubbish", file):
            code, pixels, facts = outcome(EXACT, cut + tail)
            for way in (CLOSE, LOOSE):
                got_code, got, got_facts = outcome(way, cut + tail)
                assert (got_code, got_facts) == (code, facts), (part, tail[:9])
                assert pixels is None or np.abs(got - pixels).max() <= ALWAYS
    assert outcome(CLOSE, file[:-2])[0] == outcome(EXACT, file[:-2])[0]


# The crop leaves a fifth of the rows of a square picture undecoded.
MIDDLE = ImageTransform(resize=ShortestEdge(64), crop=(32, 32))


def square(**options: Any) -> bytes:
    """A picture with something everywhere, 512 pixels square."""
    return saved(Image.effect_mandelbrot((512, 512), (-2, -1.5, 1, 1.5), 90).convert("RGB"), "JPEG", **options)


def assert_as_exact(file: bytes, why: object) -> None:
    """Of both grades: verdict, facts, and pixels within the bound."""
    code, pixels, facts = outcome(ExactPreparation(MIDDLE), file)
    for grade in GRADES:
        got_code, got, got_facts = outcome(FastTransform(MIDDLE, grade), file)
        assert (got_code, got_facts) == (code, facts), why
        assert pixels is None or np.abs(got - pixels).max() <= ALWAYS, why


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"restart_marker_blocks": 5}, {"progressive": True}])
def test_damage_below_the_crop_has_the_exact_verdict(options: dict[str, Any]) -> None:
    """Bytes changed, lost, doubled and markers of every kind in rows that are not decoded."""
    chance, file = random.Random(7), square(**options)
    for index in range(120):
        place = len(file) - chance.randrange(2, len(file) // 12)
        put = chance.choice(
            [bytes([chance.randrange(256)]), b"", b"\xff", b"\xff\xd9", b"\xff\x00", bytes([0xFF, 0xC0 + index % 64])]
        )
        until = chance.choice([place, place + 1, place + 40, len(file) - 2, len(file)])
        assert_as_exact(file[:place] + put + file[until:], (options, place, put, until))


@pytest.mark.parametrize("rows", range(352, 512, 16))
def test_a_file_of_fewer_rows_than_it_says_has_the_exact_verdict(rows: int) -> None:
    """The end comes before, where and after the decoder is told to stop."""
    image = Image.effect_mandelbrot((512, 512), (-2, -1.5, 1, 1.5), 90).convert("RGB").crop((0, 0, 512, rows))
    file = bytearray(saved(image, "JPEG"))
    frame = frame_of(bytes(file))
    assert frame is not None
    assert frame.height == rows
    file[frame.place : frame.place + 2] = (512).to_bytes(2, "big")
    assert_as_exact(bytes(file), rows)


def test_rows_are_left_out_only_where_nothing_but_rows_can_follow() -> None:
    """Sequential files of one scan without restart markers."""
    for options, expected in (
        ({}, True), ({"optimize": True}, True), ({"progressive": True}, False), ({"restart_marker_blocks": 3}, False),
    ):  # fmt: skip
        frame = frame_of(square(**options))
        assert frame is not None
        assert frame.one_scan is expected
    plain = square()
    colours = plain.index(b"\xff\xda") + 4
    several = frame_of(plain[:colours] + b"\x01" + plain[colours + 1 :])
    assert several is not None
    assert not several.one_scan

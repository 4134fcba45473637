"""`FastTransform`: the pixels of the exact way, or a grey level beside them; the same facts and refusals, sooner."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from dinokit.errors import ImageError
from dinokit.images import Cover, ExactPreparation, FastTransform, ImageTransform, ShortestEdge, decode
from dinokit.images import fast_jpeg as jpeg_module
from dinokit.images.fast import GRADES, PILLOW_PIXELS, Preparation
from dinokit.images.fast_plan import Plan, plan_of
from tests.images.corpus import exif, noise, photo, saved, seeds

ALWAYS = 2  # grey levels: what two roundings can differ by
SELDOM = 2e-5  # share of values that are off by more than one
LOOSE_MAX, LOOSE_MEAN = 3, 0.2  # photographs of over ten source pixels an output pixel, in grey levels
SMALL = ImageTransform(resize=ShortestEdge(32), crop=(28, 28))


def difference(fast: FastTransform, image: Any) -> np.ndarray:
    """Grey levels between the fast way and the exact one."""
    exact = ExactPreparation(fast.transform).prepare(image)
    got = fast.prepare(image)
    assert got.pixels.dtype == torch.uint8
    assert (got.width, got.height, got.mode, got.frames, got.notes) == (
        exact.width,
        exact.height,
        exact.mode,
        exact.frames,
        exact.notes,
    )
    return np.abs(got.pixels.numpy().astype(int) - exact.pixels.numpy().astype(int))


def pictures(height: int, width: int) -> dict[str, Image.Image]:
    """Photographs, text, noise of several kinds, edges, waves up to the finest."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width]
    page = np.tile(data.page()[..., None], (-(-height // 191), -(-width // 384), 3))[:height, :width]
    zone = 127.5 + 127.5 * np.cos((rows**2 + columns**2) * np.pi / (2 * max(height, width)))
    made = {
        "uniform": rng.integers(0, 256, (height, width, 3)),
        "black and white": rng.integers(0, 2, (height, width, 3)) * 255,
        "dark": rng.normal(10, 30, (height, width, 3)).clip(0, 255),
        "page": page,
        "checks": np.repeat(((rows + columns) % 2 * 255)[..., None], 3, 2),
        "stripes": np.repeat((columns % 5 < 2)[..., None] * 255, 3, 2),
        "colours": np.stack([(columns // 40 + rows // 40) % 2, columns // 97 % 2, rows // 61 % 2], -1) * 255,
        "zone": np.repeat(zone[..., None], 3, 2),
    }
    images = {name: Image.fromarray(values.astype(np.uint8)) for name, values in made.items()}
    for name in ("astronaut", "coffee", "chelsea", "retina"):
        images[name] = Image.fromarray(getattr(data, name)()).resize((width, height), Image.Resampling.LANCZOS)
    return images


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (256, 256), (150, 200), (640, 300), (30, 40), (57, 16)])
def test_photographs_of_the_web_are_equal_to_the_bit(size: tuple[int, int]) -> None:
    """Where the crop sees few source pixels, grade "close" is the exact way."""
    fast = FastTransform(ImageTransform())
    for name, image in pictures(*size).items():
        for options in ({"quality": 90}, {"quality": 15, "subsampling": 0}, {"quality": 75, "progressive": True}):
            assert difference(fast, saved(image, "JPEG", **options)).max() == 0, (name, options)
        assert difference(fast, saved(image.convert("L"), "JPEG")).max() == 0, name


@pytest.mark.parametrize("size", [(600, 800), (1201, 905), (1500, 500), (1400, 300), (700, 2001)])
def test_large_pictures_are_off_by_a_level_on_few_pixels(size: tuple[int, int]) -> None:
    """Photographs, noise, edges, at any quality: two levels at most, and more than one hardly ever."""
    fast, far, values, off = FastTransform(ImageTransform()), 0, 0, 0
    for image in pictures(*size).values():
        for options in ({"quality": 90}, {"quality": 20, "subsampling": 0}):
            found = difference(fast, saved(image, "JPEG", **options))
            assert found.max() <= ALWAYS
            far, values, off = far + int((found > 1).sum()), values + found.size, off + int((found > 0).sum())
    assert far <= SELDOM * values
    assert off <= 0.01 * values


@pytest.mark.parametrize("quality", [20, 60, 90, 100])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_colours_at_their_limits_are_within_one_level(quality: int, subsampling: int) -> None:
    """Noise and stripes in the colour channels, fine red and blue checks: where decoders that save on colours are off by ten."""
    height, width = 751, 1003
    rows, columns = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(0)

    def coloured(*channels: Any) -> Image.Image:
        bands = [Image.fromarray(np.broadcast_to(one, (height, width)).astype(np.uint8)) for one in channels]
        return Image.merge("YCbCr", bands).convert("RGB")

    checks = [((columns // size + rows // size) % 2)[..., None] for size in (2, 8)]
    for image in (
        coloured(128, rng.integers(0, 2, (height, width)) * 255, rng.integers(0, 2, (height, width)) * 255),
        coloured(200, (columns // 2 % 2) * 255, (rows // 2 % 2) * 255),
        coloured(235, (columns // 16 % 2) * 255, 128),
        *(Image.fromarray(np.where(one, [255, 0, 0], [0, 0, 255]).astype(np.uint8)) for one in checks),
    ):
        file = saved(image, "JPEG", quality=quality, subsampling=subsampling)
        assert difference(FastTransform(ImageTransform(resize=ShortestEdge(64), crop=(56, 56))), file).max() <= 1


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "retina"])
def test_a_camera_photograph_is_within_one_level(name: str) -> None:
    """Two to three megapixels, quality 90: never more than one grey level."""
    image = pictures(1400, 1900)[name]
    found = difference(FastTransform(ImageTransform()), saved(image, "JPEG", quality=90))
    assert found.max() <= 1
    assert found.mean() < 0.01


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_both_decoders_give_the_same_pixels_at_full_size(subsampling: int, progressive: bool) -> None:
    """Whichever the sampling of colours: libjpeg-turbo by either interface."""
    for name, image in pictures(301, 455).items():
        if progressive and name in ("uniform", "black and white", "checks"):
            continue  # larger than the room that Pillow gives its progressive encoder
        file = saved(image, "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
        jpeg = jpeg_module.read_plain(file)
        assert jpeg is not None, name
        np.testing.assert_array_equal(jpeg.pixels(), np.asarray(decode(file).image))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(620, 801), (300, 200)])
def test_only_the_small_result_is_turned(orientation: int, size: tuple[int, int]) -> None:
    """Every EXIF orientation, with odd sizes and both roundings of crops, lands on the exact way's pixels."""
    file = saved(pictures(*size)["coffee"], "JPEG", quality=90, exif=exif(orientation))
    for transform in (
        ImageTransform(),
        ImageTransform(crop=(201, 187), crop_rounding="half_even"),
        ImageTransform(crop=(300, 231)),
        ImageTransform.squash((190, 251)),
        ImageTransform(resize=Cover(150, 211), crop=(150, 211)),
        ImageTransform(resample="bilinear"),
    ):
        assert difference(FastTransform(transform), file).max() <= 1
        assert difference(FastTransform(transform, "loose"), file).max() <= ALWAYS


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
@pytest.mark.parametrize("divisor", [1, 2, 4, 8])
def test_rows_that_are_not_asked_for_change_nothing_above_them(subsampling: str, divisor: int) -> None:
    """Whatever the sampling of colours and the scale, the first rows alone are the first rows of the whole."""
    import simplejpeg

    image = np.asarray(pictures(407, 301)["colours"])
    grey = subsampling == "Gray"
    file = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image[..., :1] if grey else image),
        colorspace="GRAY" if grey else "RGB",
        colorsubsampling=subsampling,
        quality=80,
    )
    jpeg = jpeg_module.read_plain(file)
    assert jpeg is not None
    whole = jpeg.pixels(divisor)
    assert whole is not None
    whole, most = whole.copy(), len(whole) - jpeg_module.LEAST_CUT // divisor - 1
    for rows in {1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 100, most - 1, most} & set(range(1, most + 1)):
        first = jpeg.pixels(divisor, rows)
        assert first is not None
        assert len(first) == rows
        np.testing.assert_array_equal(first, whole[:rows])
    last = jpeg.pixels(divisor, most + 1)
    assert last is not None
    assert len(last) == len(whole)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(1402, 1003), (1003, 1402)])
def test_pixels_below_the_crop_are_not_decoded(
    orientation: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upright and turned, at full and at half size: fewer rows are decoded, and the result is that of all rows."""
    ways = [FastTransform(ImageTransform(resize=ShortestEdge(80), crop=(56, 56)), grade) for grade in GRADES]
    file = saved(pictures(*size)["coffee"], "JPEG", exif=exif(orientation))
    seen: list[int] = []

    def spy(self: Plan, stored: np.ndarray, divisor: int = 1, orientation: int = 1) -> torch.Tensor:
        seen.append(len(stored) * divisor)
        return run(self, stored, divisor, orientation)

    run = Plan.run
    monkeypatch.setattr(Plan, "run", spy)
    got = [way.prepare(file).pixels for way in ways]
    assert max(seen) < size[0] - jpeg_module.LEAST_CUT
    monkeypatch.setattr(jpeg_module, "cuts_known", lambda: False)
    assert all(torch.equal(way.prepare(file).pixels, pixels) for way, pixels in zip(ways, got, strict=True))
    assert min(seen[2:]) >= size[0]


def test_a_decoder_that_complains_in_other_words_decodes_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its words for what it left unread are known is asked once, and then never paid for."""
    file = saved(pictures(1200, 900)["retina"], "JPEG")
    fast = FastTransform(ImageTransform())
    expected = fast.prepare(file).pixels
    assert jpeg_module.cuts_known()
    jpeg_module.cuts_known.cache_clear()
    try:
        monkeypatch.setattr(jpeg_module, "REST_UNREAD", re.compile("another decoder's words"))
        assert not jpeg_module.cuts_known()
        monkeypatch.setattr(jpeg_module, "_cut", lambda *_: pytest.fail("rows were left out"))
        assert torch.equal(fast.prepare(file).pixels, expected)
    finally:
        jpeg_module.cuts_known.cache_clear()


def test_a_plain_jpeg_never_meets_pillow_s_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the tests above test what they should."""
    file = saved(photo(700, 900), "JPEG", exif=exif(6))
    monkeypatch.setattr("dinokit.images.fast.decode", lambda *_, **__: pytest.fail("Pillow was asked"))
    for grade in GRADES:
        assert FastTransform(ImageTransform(), grade).prepare(file).height == 900


def test_without_simplejpeg_pixels_and_fingerprint_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow decodes in its place; only "loose" can't do without."""
    fast = FastTransform(ImageTransform())
    file = saved(pictures(700, 900)["astronaut"], "JPEG", exif=exif(3))
    expected, fingerprint = fast.prepare(file), fast.fingerprint
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert fast.fingerprint == fingerprint
    got = fast.prepare(file)
    assert torch.equal(got.pixels, expected.pixels)
    assert (got.width, got.height, got.mode) == (expected.width, expected.height, expected.mode)
    with pytest.raises(ImportError, match=r'pip install "dinokit\[fast\]"'):
        FastTransform(ImageTransform(), "loose")


def test_loose_is_for_photographs_that_shrink_much() -> None:
    """Half-size decoding starts at ten source pixels an output pixel and stays within three levels on photographs."""
    loose = FastTransform(ImageTransform(resize=ShortestEdge(96), crop=(84, 84)), "loose")
    for name, image in pictures(963, 1285).items():
        found = difference(loose, saved(image, "JPEG", quality=90))
        if name in ("astronaut", "coffee", "chelsea", "retina"):
            assert found.max() <= LOOSE_MAX, name
            assert found.mean() <= LOOSE_MEAN, name
    for height, divisor in ((959, 1), (960, 2), (1919, 2), (1920, 4), (3840, 8), (99999, 8)):
        plan = plan_of(loose.transform, height, height)
        assert plan is not None
        assert plan.divisor() == divisor


@pytest.mark.parametrize("size", [(1001, 1403), (1002, 1400), (2003, 2005)])
def test_a_picture_decoded_at_half_its_size_does_not_move(size: tuple[int, int]) -> None:
    """Odd sides end in half a pixel: a slow wave comes out where it was, up to the last column."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    wave = 127 + 100 * np.sin(columns / 60) * np.cos(rows / 70)
    file = saved(Image.fromarray(np.repeat(wave[..., None], 3, 2).astype(np.uint8)), "JPEG", quality=98)
    loose = FastTransform(ImageTransform(resize=ShortestEdge(80), crop=None), "loose")
    assert difference(loose, file).max() <= 1


def test_batches_and_single_images_are_the_reference_s_numbers() -> None:
    """Normalising a whole batch of 8-bit pixels gives the floats of `ImageTransform`, bit for bit."""
    for transform in (SMALL, ImageTransform(resize=ShortestEdge(32), crop=(28, 28), rescale=1 / 127.5, mean=(1, 1, 1))):
        exact, images = ExactPreparation(transform), [photo(40 + i, 50) for i in range(5)]
        pixels = torch.stack([exact.prepare(image).pixels for image in images])
        assert pixels.shape == (5, 3, 28, 28)
        assert torch.equal(exact.normalise(pixels), transform.batch(images))
        assert torch.equal(exact.normalise(pixels)[2], exact.normalise(pixels[2]))
        assert torch.equal(exact(images[1]), transform(images[1]))
        assert torch.equal(FastTransform(transform).batch(images), transform.batch(images))


def test_batches_need_images_of_one_size() -> None:
    """As with `ImageTransform`."""
    fast = FastTransform(ImageTransform(resize=ShortestEdge(32), crop=None))
    with pytest.raises(ValueError, match="no image"):
        fast.batch([])
    with pytest.raises(ValueError, match="different sizes"):
        fast.batch([photo(40, 50), photo(50, 50)])


@pytest.mark.parametrize("grade", GRADES)
def test_every_other_source_is_the_exact_decoder_s(grade: Any) -> None:
    """All formats, CMYK, arrays, Pillow images and decoded ones: the same facts, the same pixels up to the resize."""
    fast = FastTransform(SMALL, grade)
    sources: list[Any] = [file for _, file in seeds()]
    sources += [photo(), noise(40, 50), torch.zeros(3, 20, 30), photo().convert("P"), decode(photo(300, 211))]
    for source in sources:
        exact = source if not isinstance(source, bytes) else decode(source, window=(0.0, 1.0))
        assert difference(fast, exact).max() <= (0 if grade == "close" else ALWAYS)
    cmyk = saved(Image.fromarray(noise(60, 70, 4), "CMYK"), "JPEG")
    assert jpeg_module.read_plain(cmyk) is None
    assert fast.prepare(cmyk).mode == "CMYK"


def test_colours_that_an_adobe_marker_names_are_heeded() -> None:
    """A JPEG that stores RGB itself goes to the exact decoder and keeps its colours."""
    import simplejpeg

    file = saved(photo(64, 80), "JPEG", keep_rgb=True)
    assert simplejpeg.decode_jpeg_header(file)[2] == "RGB"
    assert jpeg_module.read_plain(file) is None
    assert difference(FastTransform(SMALL), file).max() == 0


def test_files_paths_and_pipes(tmp_path: Any) -> None:
    """Each kind of source reaches the same pixels; what can be read only once is read once."""
    fast, file = FastTransform(SMALL), saved(photo(50, 60), "JPEG")
    broken = file[: len(file) // 2]
    path = tmp_path / "one.png"
    path.write_bytes(file)
    expected = fast.prepare(file).pixels
    handle = io.BytesIO(file)
    handle.seek(7)
    for source in (path, str(path), bytearray(file), memoryview(file), handle):
        assert torch.equal(fast.prepare(source).pixels, expected)
    for content in (file, broken, saved(photo(50, 60), "PNG")):
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            if content is broken:
                with pytest.raises(ImageError, match="cut short"):
                    fast(pipe)
            else:
                assert fast(pipe).shape == (3, 28, 28)


@pytest.mark.parametrize("grade", GRADES)
def test_refusals_are_the_exact_decoder_s(grade: Any, tmp_path: Any) -> None:
    """Code and message: limits, missing and empty files, formats not asked for, options out of range."""
    fast, file = FastTransform(SMALL, grade), saved(photo(50, 60), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(file[:-30])
    cases: list[tuple[Any, dict[str, Any]]] = [
        (file, {"max_pixels": 2999}),
        (file, {"formats": ("PNG",)}),
        (b"", {}),
        (str(tmp_path / "none.jpg"), {}),
        (tmp_path, {}),
        (tmp_path / "cut.jpg", {}),
        (b"hello", {}),
        (file, {"window": (3, 3)}),
        (file, {"max_pixels": 0}),
    ]
    for source, options in cases:
        with pytest.raises(ValueError) as exact:
            decode(source, **options)
        with pytest.raises(ValueError) as got:
            fast.prepare(source, **options)
        assert str(got.value) == str(exact.value)
        assert getattr(got.value, "code", None) == getattr(exact.value, "code", None)
    with pytest.raises(ImageError) as refused:
        FastTransform(ImageTransform(crop=None), grade).prepare(saved(photo(2, 300), "JPEG"))
    assert refused.value.code == "aspect_ratio"
    with pytest.raises((ValueError, TypeError)):
        FastTransform(SMALL, "closest")  # type: ignore[arg-type]


def test_other_filters_and_no_resize_are_the_exact_way() -> None:
    """What is not vectorised is Pillow's."""
    file = saved(pictures(600, 800)["chelsea"], "JPEG")
    for transform in (
        ImageTransform(resample="lanczos"),
        ImageTransform(resample="nearest"),
        ImageTransform(resize=None, crop=(500, 700)),
        ImageTransform(resize=None, crop=None),
        ImageTransform(resize=ShortestEdge(600), crop=(600, 600)),
    ):
        for grade in GRADES:
            assert difference(FastTransform(transform, grade), file).max() == 0


def test_fingerprints_tell_the_ways_apart() -> None:
    """Exact, close and loose, of two transforms: six fingerprints; the exact one is the transform's own."""
    made: list[Preparation] = [
        kind
        for transform in (ImageTransform(), SMALL)
        for kind in (ExactPreparation(transform), *(FastTransform(transform, grade) for grade in GRADES))
    ]
    assert len({one.fingerprint for one in made}) == 6
    assert made[0].fingerprint == ImageTransform().fingerprint
    assert made[1].fingerprint == FastTransform(ImageTransform()).fingerprint


def test_threads_may_share_one() -> None:
    """The space that a thread decodes into is its own."""
    fast = FastTransform(ImageTransform())
    files = [saved(pictures(600, 700 + 40 * i)["coffee"], "JPEG") for i in range(3)]
    expected = [fast(file) for file in files]
    gate = threading.Barrier(4)

    def work(index: int) -> bool:
        if index < 4:
            gate.wait()
        return torch.equal(fast(files[index % 3]), expected[index % 3])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(40)))


def test_results_do_not_share_memory_with_the_next_image() -> None:
    """A prepared image keeps its pixels when others follow."""
    fast = FastTransform(ImageTransform.squash(700), "loose")
    first = fast.prepare(saved(pictures(700, 700)["coffee"], "JPEG")).pixels
    kept = first.clone()
    fast.prepare(saved(pictures(700, 700)["retina"], "JPEG"))
    assert torch.equal(first, kept)


def test_the_threshold_is_where_the_pages_say() -> None:
    """A 500 pixel photograph is small, one of 800 is not."""
    small, large = plan_of(ImageTransform(), 375, 500), plan_of(ImageTransform(), 600, 800)
    assert small is not None
    assert large is not None
    assert small.sees() <= PILLOW_PIXELS < large.sees()


SCRIPT = """
import resource, time
from PIL import Image
from dinokit.images import FastTransform, ImageTransform
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
import io
ways = [FastTransform(ImageTransform()), FastTransform(ImageTransform(), "loose")]
def strip(size):
    file = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(file, "JPEG")
    return file.getvalue()
files = [strip(size) for size in [(20000, 1), (1, 60000), (2000, 1), (1, 1), (2000, 3), (60000, 13), (6007, 5)]]
before, start = peak(), time.perf_counter()
for file in files:
    for way in ways:
        assert way(file).shape == (3, 224, 224)
print(peak() - before, time.perf_counter() - start)
"""


def test_strips_take_little_memory_and_time() -> None:
    """20000 x 1 and its like are done in a moment and in megabytes, as in the exact way."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    megabytes, seconds = map(float, done.stdout.split())
    assert megabytes < 150
    assert seconds < 5

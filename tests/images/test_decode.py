"""`decode`: every odd, damaged and hostile image has one outcome, the same from a path, bytes or an open file."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from dinokit.errors import ImageError
from dinokit.images import DEFAULT_FORMATS, DEFAULT_MAX_PIXELS, Decoded, decode
from tests.images.corpus import exif, noise, photo, png, png16, png_chunk, saved, with_tag

JPEG = saved(photo(64, 80), "JPEG", quality=95)
PNG = saved(photo(), "PNG")
FLOAT_TIFF = saved(Image.fromarray(np.array([[0.0, np.nan], [1.0, np.inf]], np.float32)), "TIFF")

BAD: dict[str, tuple[bytes, str]] = {
    "JPEG cut in half": (JPEG[: len(JPEG) // 2], "truncated"),
    "JPEG of 60 bytes": (JPEG[:60], "truncated"),
    "empty file": (b"", "zero_byte"),
    "text": (b"this is a note about a photograph\n" * 3, "not_image"),
    "text that begins like a bitmap": (b"BMW, Audi and others make cars\n" * 3, "not_image"),
    "HTML": (b"<!doctype html><html><body>404 not found</body></html>", "not_image"),
    "zeros": (bytes(4096), "not_image"),
    "PNG, header checksum wrong": (PNG[:29] + bytes([PNG[29] ^ 1]) + PNG[30:], "truncated"),
    "PNG, one bit of pixel data flipped": (PNG[:60] + bytes([PNG[60] ^ 8]) + PNG[61:], "truncated"),
    "PNG, checksum of pixel data wrong": (PNG[:-14] + bytes([PNG[-14] ^ 1]) + PNG[-13:], "truncated"),
    "PNG cut": (PNG[: len(PNG) // 2], "truncated"),
    "PNG header of 60000 x 60000": (png(60000, 60000, 8, 2, None), "too_many_pixels"),
    "PNG header of 12000 x 9000": (png(12000, 9000, 8, 2, None), "truncated"),
    "WebP header of 16383 x 16383": (
        b"RIFF\x64\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (16382).to_bytes(3, "little") * 2 + bytes(70),
        "too_many_pixels",
    ),
    "GIF screen of 65535 x 65535": (b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",", "truncated"),
    "GIF cut": (saved(photo(), "GIF")[:400], "truncated"),
    "WebP cut": (saved(photo(), "WEBP")[:100], "truncated"),
    "BMP cut": (saved(photo(), "BMP")[:200], "truncated"),
    "TIFF cut": (saved(photo(), "TIFF")[:100], "truncated"),
    "TIFF whose strips are not all there": (
        # 40 times as high as it was: the strips that would follow are not listed
        with_tag(saved(photo(), "TIFF", compression="tiff_lzw"), 257, 40 * photo().height),
        "truncated",
    ),
    "TIFF with a strip beyond its end": (
        with_tag(saved(photo(), "TIFF", compression="tiff_lzw"), 273, 1 << 24),
        "truncated",
    ),
    "TIFF of doubles": (
        saved(photo(), "TIFF").replace(b"\x02\x01\x03\0\x03\0\0\0", b"\x02\x01\x03\0\x01\0\0\0"),
        "unsupported_mode",
    ),
    "float TIFF with NaN": (FLOAT_TIFF, "nonfinite_pixels"),
    "Photoshop file": (b"8BPS\0\x01" + bytes(60), "not_image"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("how", ["bytes", "file", "path"])
def test_a_bad_image_has_its_listed_outcome(name: str, how: str, tmp_path: Path) -> None:
    """Each kind of damage has one code, however the image is given and whatever its name says."""
    data, code = BAD[name]
    source: object = data
    if how == "file":
        source = io.BytesIO(data)
    if how == "path":
        source = tmp_path / "photo.jpg"
        source.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        decode(source, window=(0, 1))
    assert caught.value.code == code
    assert how != "path" or "photo.jpg" in str(caught.value), "the message names the file"


def test_what_is_no_file_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders, dangling links, missing files, pipes and URLs are `not_a_file`; a closed door is `permission`."""
    folder, dangling, pipe, locked = (tmp_path / name for name in ("folder.jpg", "link.jpg", "pipe.jpg", "locked.jpg"))
    folder.mkdir()
    dangling.symlink_to(tmp_path / "gone.jpg")
    os.mkfifo(pipe)
    locked.write_bytes(JPEG)
    for source, word in [
        (folder, "folder"),
        (dangling, "link to nothing"),
        (tmp_path / "gone.jpg", "No such file"),
        (locked / "below.jpg", "Not a directory"),
        (pipe, "no regular file"),
        ("bad\0name.jpg", "null"),
        ("https://example.org/a.jpg", "not fetched"),
    ]:
        with pytest.raises(ImageError, match=word) as caught:
            decode(source)
        assert caught.value.code == "not_a_file"

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Not chmod: the tests may run as a user who may read everything.
    monkeypatch.setattr(sys.modules[Decoded.__module__], "open", refuse, raising=False)
    with pytest.raises(ImageError) as caught:
        decode(locked)
    assert caught.value.code == "permission"


GOOD: dict[str, tuple[bytes, Image.Image, str, int]] = {
    "JPEG": (JPEG, Image.open(io.BytesIO(JPEG)), "RGB", 1),
    "PNG": (PNG, photo(), "RGB", 1),
    "JPEG with garbage after its end": (JPEG + b"garbage" * 99, Image.open(io.BytesIO(JPEG)), "RGB", 1),
    "WebP": (saved(photo(), "WEBP", lossless=True), photo(), "RGB", 1),
    "TIFF": (saved(photo(), "TIFF", compression="tiff_lzw"), photo(), "RGB", 1),
    "BMP": (saved(photo(), "BMP"), photo(), "RGB", 1),
    "1 x 1": (saved(photo(1, 1), "PNG"), photo(1, 1), "RGB", 1),
    "2000 x 1": (saved(photo(1, 2000), "PNG"), photo(1, 2000), "RGB", 1),
    "RGBA": (saved(Image.fromarray(noise(9, 8, 4)), "PNG"), Image.fromarray(noise(9, 8, 4)[..., :3]), "RGBA", 1),
    "RGBA in TIFF": (
        saved(Image.fromarray(noise(9, 8, 4)), "TIFF"),
        Image.fromarray(noise(9, 8, 4)[..., :3]),
        "RGBA",
        1,
    ),
    "LA": (
        saved(Image.fromarray(noise(9, 8, 4)).convert("LA"), "PNG"),
        Image.fromarray(noise(9, 8, 4)[..., :3]).convert("L"),
        "LA",
        1,
    ),
    "L": (saved(Image.fromarray(noise(9, 8, 1)), "PNG"), Image.fromarray(noise(9, 8, 1)), "L", 1),
    "1 bit": (saved(photo().convert("1"), "PNG"), photo().convert("1"), "1", 1),
    "palette": (saved(photo().convert("P"), "PNG"), photo().convert("P"), "P", 1),
    "palette, a transparent colour": (saved(photo().convert("P"), "PNG", transparency=3), photo().convert("P"), "P", 1),
    "palette, an opacity for each colour": (
        saved(photo().convert("P"), "PNG", transparency=bytes(range(256))),
        photo().convert("P"),
        "P",
        1,
    ),
    "grey with a transparent level": (saved(photo().convert("L"), "PNG", transparency=9), photo().convert("L"), "L", 1),
    "GIF of 4 frames": (
        saved(
            photo().convert("P"),
            "GIF",
            save_all=True,
            append_images=[photo().rotate(a).convert("P") for a in (5, 10, 15)],
        ),
        photo().convert("P"),
        "P",
        4,
    ),
    "PNG of 3 frames": (
        saved(photo(), "PNG", save_all=True, append_images=[photo().rotate(90), photo().rotate(180)]),
        photo(),
        "RGB",
        3,
    ),
    "WebP of 2 frames": (
        saved(photo(), "WEBP", lossless=True, save_all=True, append_images=[photo().rotate(90)]),
        photo(),
        "RGBA",
        2,
    ),
    "TIFF of 3 pages": (saved(photo(), "TIFF", save_all=True, append_images=[photo(), photo()]), photo(), "RGB", 3),
    "BigTIFF": (saved(photo(), "TIFF", big_tiff=True), photo(), "RGB", 1),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_image_gives_its_pixels(name: str, tmp_path: Path) -> None:
    """Formats, modes and animations give the pixels that were saved: transparency dropped, first frame taken."""
    data, expected, mode, frames = GOOD[name]
    path = tmp_path / "Ünïcode näme.JPG"
    path.write_bytes(data)
    for source in (
        data,
        bytearray(data),
        memoryview(data),
        io.BytesIO(data),
        path,
        str(path),
        Image.open(io.BytesIO(data)),
    ):
        got = decode(source)
        assert got.image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(got.image), np.asarray(expected.convert("RGB")))
        assert (got.width, got.height, got.mode, got.frames) == (*expected.size, mode, frames)
    with path.open("rb") as file:
        assert decode(file).format == got.format


def test_a_cmyk_jpeg_is_converted_without_profiles() -> None:
    """CMYK becomes RGB by Pillow's plain formula."""
    data = saved(photo().convert("CMYK"), "JPEG", quality=95)
    got = decode(data)
    np.testing.assert_array_equal(np.asarray(got.image), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert got.mode == "CMYK"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_images_come_out_upright(kind: str, orientation: int) -> None:
    """Every EXIF orientation, in every format that carries one, and from open Pillow images too."""
    if kind not in DEFAULT_FORMATS:
        pytest.skip("this Pillow has no AVIF")
    turn: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a[::-1].swapaxes(0, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a[:, ::-1].swapaxes(0, 1),
    }
    image = photo(16, 24)
    plain = np.asarray(decode(saved(image, kind)).image)
    data = saved(image, kind, exif=exif(orientation))
    for got in (decode(data), decode(Image.open(io.BytesIO(data)))):
        np.testing.assert_array_equal(np.asarray(got.image), turn[orientation](plain))
        assert (got.width, got.height) == ((24, 16) if orientation < 5 else (16, 24))


@pytest.mark.parametrize(
    "damage",
    [
        b"Exif\0\0nonsense",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x09",
        exif(6)[:20],
        exif(0),
        exif(9),
    ],
)
def test_damaged_exif_is_ignored_with_a_note(damage: bytes) -> None:
    """A picture is not lost for its metadata."""
    for kind in ("JPEG", "PNG", "WEBP"):
        got = decode(saved(photo(), kind, exif=damage))
        assert (got.width, got.height) == photo().size
        assert any("EXIF" in note for note in got.notes), got.notes


def test_transparency_is_composited_only_if_asked() -> None:
    """`background` lies under what is transparent; without it the hidden colour is used."""
    pixels = np.array([[[200, 100, 50, 0], [200, 100, 50, 255], [200, 100, 50, 128]]], np.uint8)
    data = saved(Image.fromarray(pixels), "PNG")
    assert np.asarray(decode(data).image).tolist() == [[[200, 100, 50]] * 3]
    white = np.asarray(decode(data, background=(255, 255, 255)).image)
    assert white[0, :2].tolist() == [[255, 255, 255], [200, 100, 50]]
    assert white[0, 2].tolist() == [227, 177, 152]
    two = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    two.putpalette([10, 20, 30, 40, 50, 60])
    for transparency in (0, b"\x00\xff"):
        got = decode(saved(two, "PNG", transparency=transparency), background=(1, 2, 3))
        assert np.asarray(got.image).tolist() == [[[1, 2, 3], [40, 50, 60]]]
    assert np.asarray(decode(pixels.repeat(2, 0), background=(0, 0, 0)).image)[0, 0].tolist() == [0, 0, 0]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    """16-bit grey keeps its shades: 65535 becomes 255, and a window stretches what it spans."""
    values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], np.uint16)
    expected = [0, 0, 1, 1, 128, 254, 255, 255]
    for data in (png16(values), saved(Image.fromarray(values), "TIFF"), values):
        assert np.asarray(decode(data).image)[0, :, 0].tolist() == expected
    # 12-bit data in 16-bit files are dark by the depth of the file; the window says what is white.
    twelve = png16(np.array([[0, 2048, 4095, 5000]], np.uint16))
    assert np.asarray(decode(twelve).image)[0, :, 0].tolist() == [0, 8, 16, 19]
    assert np.asarray(decode(twelve, window=(0, 4095)).image)[0, :, 0].tolist() == [0, 128, 255, 255]
    colour = np.array([[[65535, 32768, 255]]], np.uint16)
    assert np.asarray(decode(png16(colour)).image).tolist() == [[[255, 128, 0]]], "colour files keep the high byte"
    assert np.asarray(decode(colour.repeat(2, 0)).image)[0, 0].tolist() == [255, 128, 1]


def test_twelve_bit_tiff_is_scaled_by_its_own_depth() -> None:
    """A file that says 12 bits has its white at 4095."""
    from tests.images.corpus import tiff12

    assert np.asarray(decode(tiff12()).image)[0, :, 0].tolist() == [0, 85, 170, 255]


def test_sixteen_bit_white_is_zero_is_inverted() -> None:
    """A TIFF whose zero is white does not come out as a negative."""
    data = saved(Image.fromarray(np.array([[0, 65535]], np.uint16)), "TIFF")
    entry = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
    assert entry in data
    got = decode(data.replace(entry, struct.pack("<HHIHH", 262, 3, 1, 0, 0)))
    assert np.asarray(got.image)[0, :, 0].tolist() == [255, 0]
    assert any("inverted" in note for note in got.notes)


def test_float_and_integer_images_need_a_window() -> None:
    """Pixels without a fixed white are refused until the caller says what white is."""
    floats = np.array([[-1.0, 0.0, 0.5, 1.0, 9.0]], np.float32)
    for data in (saved(Image.fromarray(floats), "TIFF"), Image.fromarray(floats), floats):
        with pytest.raises(ImageError, match="window") as caught:
            decode(data)
        assert caught.value.code == "unsupported_mode"
        assert np.asarray(decode(data, window=(0, 1)).image)[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    whole = Image.fromarray(np.array([[-5, 0, 100, 70000]], np.int32))
    for data in (saved(whole, "TIFF"), whole, np.asarray(whole)):
        with pytest.raises(ImageError, match="window"):
            decode(data)
        assert np.asarray(decode(data, window=(0, 200)).image)[0, :, 0].tolist() == [0, 0, 128, 255]


def test_arrays_and_tensors_are_read_by_stated_rules() -> None:
    """Layouts and types with one meaning are taken; the others are refused with the way out."""
    import torch

    rgb = noise(5, 7)
    for array in (
        rgb,
        rgb.transpose(2, 0, 1),
        torch.from_numpy(rgb),
        torch.from_numpy(rgb).permute(2, 0, 1),
        rgb[::-1][::-1],
    ):
        np.testing.assert_array_equal(np.asarray(decode(array).image), rgb)
    for floats in (rgb / 255, torch.from_numpy(rgb / 255).float(), (torch.from_numpy(rgb) / 255).requires_grad_()):
        np.testing.assert_array_equal(np.asarray(decode(floats).image), rgb)
    assert decode(torch.ones(3, 5, 7, dtype=torch.bfloat16)).image.getpixel((0, 0)) == (255, 255, 255)
    grey = noise(5, 7, 1)
    for array in (grey, grey[..., None], grey[None]):
        np.testing.assert_array_equal(np.asarray(decode(array).image)[..., 1], grey)
    assert np.asarray(decode(np.array([[True, False]])).image)[0, :, 0].tolist() == [255, 0]
    np.testing.assert_array_equal(np.asarray(decode(noise(5, 7, 4)).image), noise(5, 7, 4)[..., :3])
    for array, code in [
        (np.zeros((3, 8, 3), np.uint8), "unsupported_mode"),
        (np.zeros((8, 8, 2), np.uint8), "unsupported_mode"),
        (np.zeros((2, 3, 8, 8), np.uint8), "unsupported_mode"),
        (np.zeros(8, np.uint8), "unsupported_mode"),
        (np.zeros((0, 8, 3), np.uint8), "not_image"),
        (np.zeros((8, 8), np.int64), "unsupported_mode"),
        (np.zeros((8, 8), np.complex64), "unsupported_mode"),
        (np.full((8, 8), 1.5), "unsupported_mode"),
        (np.full((8, 8), np.nan), "nonfinite_pixels"),
    ]:
        with pytest.raises(ImageError) as caught:
            decode(array)
        assert caught.value.code == code, array.shape


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "RGBX", "YCbCr", "HSV", "LAB", "I;16B"])
def test_rare_pillow_modes_become_rgb(mode: str) -> None:
    """Modes that only programs make are not a reason to fail."""
    base = photo().convert("LA" if mode == "La" else "RGBA" if mode == "RGBa" else "RGB")
    image = Image.new(mode, (4, 3)) if mode in ("PA", "I;16B", "LAB") else base.convert(mode)
    assert decode(image).image.mode == "RGB"


def test_colours_that_cannot_be_converted_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library of colour profiles raises is an error of the image."""
    from PIL import ImageCms

    def broken(*_: object, **__: object) -> None:
        raise ImageCms.PyCMSError("no profile")

    monkeypatch.setattr(ImageCms, "buildTransform", broken)
    with pytest.raises(ImageError, match="LAB can't become RGB") as caught:
        decode(Image.new("LAB", (4, 3)))
    assert caught.value.code == "unsupported_mode"


def test_a_jpeg_loads_the_reader_of_jpegs_alone() -> None:
    """Whatever reads one photograph does not wait for the readers of other formats and the fast way; they come when asked for."""
    script = f"""
import sys
from dinokit.images import decode
def loaded(): return sorted(name for name in sys.modules if name.startswith("PIL.") and name.endswith("ImagePlugin")
                            or name in ("PIL.ImageCms", "dinokit.images.fast"))
decode({saved(photo(9, 8), "JPEG")!r}); print(loaded())
decode({saved(photo(9, 8), "PNG")!r}); print(loaded())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    jpeg, png_ = done.stdout.splitlines()
    assert jpeg == "['PIL.JpegImagePlugin']"
    assert png_ == "['PIL.JpegImagePlugin', 'PIL.PngImagePlugin']"


def test_limits_are_checked_before_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size in the header decides, whatever Pillow's own limits are; those are neither used nor changed."""
    one_bit = png(3000, 3000, 1, 0, (b"\0" + bytes(375)) * 3000)
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
        for source in (one_bit, Image.open(io.BytesIO(one_bit))):
            with pytest.raises(ImageError, match="9,000,000") as caught:
                decode(source, max_pixels=8_999_999)
            assert caught.value.code == "too_many_pixels"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert decode(one_bit, max_pixels=9_000_000).width == 3000
    assert Image.MAX_IMAGE_PIXELS == 1000
    with pytest.raises(ImageError) as caught:
        decode(noise(10, 10), max_pixels=99)
    assert caught.value.code == "too_many_pixels"


def test_pillow_keeps_its_settings() -> None:
    """Decoding good and bad files leaves Pillow's global state alone."""
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    decode(JPEG)
    with pytest.raises(ImageError):
        decode(JPEG[:300])
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    assert DEFAULT_MAX_PIXELS == 178_956_970


def warns() -> bytes:
    """A TIFF about which Pillow warns, its pixels being fine."""
    data = saved(photo(), "TIFF", exif=exif(1))
    entry = struct.pack("<HHI", 282, 5, 1)
    image = Image.open(io.BytesIO(saved(photo(), "TIFF", dpi=(72, 72))))
    data = saved(image, "TIFF", dpi=(72, 72))
    place = data.index(entry) + 8
    return data[:place] + struct.pack("<I", 0x7FFFFFFF) + data[place + 4 :]


def test_warnings_of_pillow_neither_leak_nor_decide() -> None:
    """Warnings become notes, also where warnings are errors and in many threads; other warnings stay what they are."""
    data = warns()
    with pytest.warns(UserWarning, match="(?i)tag|truncated|corrupt"):
        Image.open(io.BytesIO(data))
    assert any("metadata" in note for note in decode(data).notes)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                assert decode(data).width == 40
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with pytest.raises(UserWarning, match="mine"):
        warnings.warn("mine", stacklevel=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode(data)
    assert not caught


def test_filters_do_not_pile_up() -> None:
    """A long run leaves two filters behind, not two an image."""
    with warnings.catch_warnings():
        decode(JPEG)
        count = len(warnings.filters)
        for _ in range(5):
            warnings.simplefilter("error")
            decode(JPEG)
        assert len(warnings.filters) <= count + 1


def test_formats_outside_the_list_are_refused_and_can_be_allowed() -> None:
    """The allow-list is short by default; a format can be added or taken out by name."""
    ppm = b"P6 2 1 255\n" + bytes(range(6))
    with pytest.raises(ImageError) as caught:
        decode(ppm)
    assert caught.value.code == "not_image"
    assert np.asarray(decode(ppm, formats=(*DEFAULT_FORMATS, "PPM")).image).ravel().tolist() == list(range(6))
    with pytest.raises(ImageError, match="is JPEG; accepted formats are PNG"):
        decode(JPEG, formats=("PNG",))
    with pytest.raises(ValueError, match="NOPE"):
        decode(JPEG, formats=("NOPE",))


def test_sources_that_can_not_seek_are_read_whole() -> None:
    """A pipe or a response body is as good as a file; text is refused."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.left = io.BytesIO(JPEG)

        def read(self, size: int = -1) -> bytes:
            return self.left.read(size)

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation

    assert decode(Pipe()).width == 80
    for source in (io.StringIO("text"), 3, None, [1, 2]):
        with pytest.raises(TypeError):
            decode(source)


@pytest.mark.parametrize(
    "options", [{"max_pixels": 0}, {"window": (1, 1)}, {"window": (0, float("nan"))}, {"background": (0, 0, 256)}]
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    """A wrong option is the caller's error, not the image's."""
    with pytest.raises(ValueError) as caught:
        decode(JPEG, **options)
    assert not isinstance(caught.value, ImageError)


def test_results_and_errors_cross_process_boundaries() -> None:
    """Workers can hand back what they decoded, and what went wrong."""
    for kind in ("JPEG", "WEBP", "TIFF"):
        got = pickle.loads(pickle.dumps(decode(saved(photo(), kind))))
        assert isinstance(got, Decoded)
        assert got.image.size == photo().size
    with pytest.raises(ImageError) as caught:
        decode(b"")
    assert pickle.loads(pickle.dumps(caught.value)).code == "zero_byte"


def test_an_ultra_hdr_or_mpo_jpeg_is_one_photo() -> None:
    """Previews that cameras put behind a JPEG are not counted as frames."""
    data = saved(photo(), "MPO", save_all=True, append_images=[photo()])
    assert (decode(data).format, decode(data).frames) == ("JPEG", 1)


def test_an_extra_png_chunk_between_is_no_damage() -> None:
    """Only chunks that carry pixels are checked."""
    data = png(1, 1, 8, 0, b"\0\x7f", png_chunk(b"teSt", b"anything", crc=1))
    with pytest.raises(ImageError):
        decode(png(1, 1, 8, 0, b"\0\x7f", png_chunk(b"TEST", b"anything", crc=1)))
    assert decode(png(1, 1, 8, 0, b"\0\x7f", png_chunk(b"teSt", b"anything"))).image.getpixel((0, 0)) == (127, 127, 127)
    assert data

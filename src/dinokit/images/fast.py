"""`FastTransform`: from a file's bytes to the network's input several times faster, a grey level off on few pixels.

Same geometry, same refusals, same facts as `ImageTransform`, which stays the reference; another fingerprint, so that
vectors of the two are never taken for each other. What is off by how much, measured: docs/preprocessing.md.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor

from dinokit.errors import MissingExtraError
from dinokit.images.containers import HEAD_BYTES, BinaryFile, identify
from dinokit.images.decode import (
    DEFAULT_FORMATS,
    DEFAULT_MAX_PIXELS,
    Decoded,
    Source,
    check_options,
    decode,
    opened,
)
from dinokit.images.fast_jpeg import frame_of, read_plain, turbo
from dinokit.images.fast_plan import Plan, plan_of, upright_size
from dinokit.images.fast_space import kept
from dinokit.images.pixels import Colour, Window
from dinokit.images.transform import ImageTransform

# Raise when the same fields begin to give other pixels.
FAST_VERSION = 1
Grade = Literal["close", "loose"]
GRADES: tuple[Grade, ...] = get_args(Grade)
# Grade "close": crops that see fewer source pixels are left to the reference, 3 ms for a photograph of 500 pixels.
PILLOW_PIXELS = 1 << 18
LARGEST_FILE = 1 << 30  # bytes; larger ones are read piece by piece, as `decode` does


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One image ready for `normalise`: its 8-bit pixels, a quarter of the bytes of the input, and what its file said.

    The facts are those of `Decoded`: size in pixels after the orientation was applied, mode of the original, frames.
    """

    pixels: UInt8[Tensor, "3 h w"]
    width: int
    height: int
    mode: str
    frames: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preparation(ABC):
    """What a job asks of preprocessing, exact or fast: 8-bit pixels image by image, normalised a batch at a time."""

    transform: ImageTransform

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Differs when the numbers may."""

    def prepare(
        self,
        source: Source | Decoded,
        *,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        window: Window | None = None,
        background: Colour | None = None,
        formats: Sequence[str] = DEFAULT_FORMATS,
    ) -> Prepared:
        """Decoded, resized, cropped. Options are those of `decode`.

        Raises:
            ImageError: as `decode` and `ImageTransform`, in the same cases.
        """
        if isinstance(source, Decoded):
            return self._from_decoded(source)
        check_options(max_pixels, window, background)
        exactly = partial(decode, max_pixels=max_pixels, window=window, background=background, formats=formats)
        return self._from_source(source, exactly, max_pixels, formats)

    def normalise(self, pixels: UInt8[Tensor, "*b 3 h w"]) -> Float32[Tensor, "*b 3 h w"]:
        """Pixels of one image or of many as input, on their device; an image's numbers do not depend on its batch."""
        return normalise(self.transform, pixels)

    def __call__(self, image: Source | Decoded) -> Float32[Tensor, "3 h w"]:
        """One image as input, as `ImageTransform` takes it.

        Raises:
            ImageError: as `ImageTransform`.
        """
        return self.normalise(self.prepare(image).pixels)

    @abstractmethod
    def _from_source(
        self, source: Source, exactly: Callable[[Source], Decoded], max_pixels: int, formats: Sequence[str]
    ) -> Prepared:
        """`exactly` is `decode` with all options."""

    @abstractmethod
    def _from_decoded(self, decoded: Decoded) -> Prepared: ...


@dataclass(frozen=True)
class ExactPreparation(Preparation):
    """`ImageTransform` in two steps: its numbers to the bit, and its fingerprint."""

    @property
    def fingerprint(self) -> str:
        """That of the transform."""
        return self.transform.fingerprint

    def _from_source(
        self,
        source: Source,
        exactly: Callable[[Source], Decoded],
        max_pixels: int,  # noqa: ARG002 - `exactly` has it
        formats: Sequence[str],  # noqa: ARG002
    ) -> Prepared:
        return self._from_decoded(exactly(source))

    def _from_decoded(self, decoded: Decoded) -> Prepared:
        return _with_facts(_exact(self.transform, decoded), decoded)


@dataclass(frozen=True)
class FastTransform(Preparation):
    """`transform`, faster. Threads may share one.

    Plain JPEG files are decoded by simplejpeg (`pip install "dinokit[fast]"`; Pillow where it is missing), everything
    else by Pillow; both give the same pixels at full size. The resize is vectorised, for bicubic and bilinear.

    `grade` "close": all pixels are decoded, and small images (500 pixel photographs) are left to the exact way. "loose":
    small ones are resized by the vectorised way too, and JPEGs that shrink much are decoded at a half, quarter or eighth
    of their size, which loses detail finer than that before it is averaged; it needs simplejpeg.

    Raises:
        ValueError: no such grade.
        ImportError: "loose" without simplejpeg.
    """

    grade: Grade = "close"

    def __post_init__(self) -> None:
        if self.grade not in GRADES:
            raise ValueError(f"grade is {self.grade!r}; it must be one of {', '.join(GRADES)}.")
        if self.grade == "loose" and turbo() is None:
            raise MissingExtraError(
                'grade "loose" decodes by simplejpeg, which is missing: pip install "dinokit[fast]"'
            )

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits, never those of the exact transform.

        "loose" covers the decoder's version too, whose scaled decoding it rests on; at full size decoders agree.
        """
        decoder = turbo() if self.grade == "loose" else None
        version = f"simplejpeg {decoder.__version__}" if decoder else None
        made = {"fast": FAST_VERSION, "grade": self.grade, "decoder": version, "exact": self.transform.fingerprint}
        return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]

    def _from_source(
        self, source: Source, exactly: Callable[[Source], Decoded], max_pixels: int, formats: Sequence[str]
    ) -> Prepared:
        if isinstance(source, Image.Image | np.ndarray | Tensor):
            return self._from_decoded(exactly(source))
        with opened(source) as (file, _):
            prepared = self._from_jpeg(file, formats, max_pixels)
            if prepared is not None:
                return prepared
            # A pipe can't be read twice: `file` holds what came from it.
            by_name = isinstance(source, str | Path | bytes | bytearray | memoryview)
            return self._from_decoded(exactly(source if by_name else file))

    def batch(self, images: Iterable[Source | Decoded]) -> Float32[Tensor, "b 3 h w"]:
        """Several images as one input; without a crop they must come out equal in size.

        Raises:
            ValueError: no image, or results of different sizes.
            ImageError: as for one image.
        """
        ready = [self.prepare(image).pixels for image in images]
        if not ready:
            raise ValueError("there is no image in the batch.")
        if len({pixels.shape for pixels in ready}) > 1:
            raise ValueError(
                "images of one batch come out in different sizes; give the transform a crop or exact size."
            )
        return self.normalise(torch.stack(ready))

    def _planned(self, height: int, width: int) -> Plan | None:
        """How to resize an upright image faster than the reference does; None to have it done by the reference."""
        plan = plan_of(self.transform, height, width)
        few = plan is not None and self.grade == "close" and plan.sees() <= PILLOW_PIXELS
        return None if few else plan

    def _from_jpeg(self, file: BinaryFile, formats: Sequence[str], max_pixels: int) -> Prepared | None:
        """None for whatever is not a plain, whole JPEG large enough to gain."""
        data = _jpeg_bytes(file, formats)
        frame = frame_of(data)
        if frame is None or not 0 < frame.height * frame.width <= max_pixels:
            return None
        if self._planned(frame.height, frame.width) is None:
            return None
        jpeg = read_plain(data)
        if jpeg is None:
            return None
        height, width = upright_size(jpeg.frame.height, jpeg.frame.width, jpeg.orientation)
        plan = self._planned(height, width)
        if plan is None:
            return None
        divisor = plan.divisor() if self.grade == "loose" else 1
        stored = jpeg.pixels(divisor, plan.last_row(divisor, jpeg.orientation))
        if stored is None:
            return None
        pixels = plan.run(stored, divisor, jpeg.orientation)
        return Prepared(pixels=pixels, width=width, height=height, mode=jpeg.mode, frames=1)

    def _from_decoded(self, decoded: Decoded) -> Prepared:
        plan = self._planned(decoded.height, decoded.width)
        if plan is None:
            return _with_facts(_exact(self.transform, decoded), decoded)
        pixels = kept("pixels", decoded.height * decoded.width * 3).reshape(decoded.height, decoded.width, 3)
        np.copyto(pixels, np.asarray(decoded.image))
        return _with_facts(plan.run(pixels), decoded)


def normalise(transform: ImageTransform, pixels: UInt8[Tensor, "*b 3 h w"]) -> Float32[Tensor, "*b 3 h w"]:
    """What `transform` makes of these pixels, bit for bit, by looking up, which no device and no batch rounds otherwise."""
    levels = (np.arange(256) * np.float64(transform.rescale)).astype(np.float32)
    means, stds = (np.array(values, np.float32)[:, None] for values in (transform.mean, transform.std))
    table = torch.from_numpy((levels - means) / stds).flatten().to(pixels.device)
    rows = torch.arange(0, table.numel(), 256, dtype=torch.int32, device=pixels.device).view(-1, 1, 1)
    return table.index_select(0, (pixels + rows).flatten()).view(pixels.shape)


def _jpeg_bytes(file: BinaryFile, formats: Sequence[str]) -> bytes:
    """The whole file, or nothing if it is no JPEG or too large to be taken at once."""
    if turbo() is None:
        return b""
    try:
        if identify(file.read(HEAD_BYTES), formats) != "JPEG" or file.seek(0, 2) > LARGEST_FILE:
            return b""
        file.seek(0)
        return file.read()
    except OSError:  # of the disk; `decode` meets it too and has a name for it
        return b""


def _exact(transform: ImageTransform, decoded: Decoded) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(np.ascontiguousarray(transform.pixels(decoded).transpose(2, 0, 1)))


def _with_facts(pixels: UInt8[Tensor, "3 h w"], decoded: Decoded) -> Prepared:
    return Prepared(
        pixels=pixels,
        width=decoded.width,
        height=decoded.height,
        mode=decoded.mode,
        frames=decoded.frames,
        notes=decoded.notes,
    )

"""Every kind of pixel to 8-bit RGB: the colour rules of `decode`, in one place.

Eight-bit data keep their values. Anything wider goes through one formula, floor(255 (v - low) / (high - low) + 1/2),
with (0, largest value of the bit depth), (0, 1) or the caller's window as (low, high).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image
from torch import Tensor

from dinokit.errors import ImageError

Window = tuple[float | int, float | int]
Colour = tuple[int, int, int]

GREY16_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
WIDE_MODES = ("I", "F")
CHANNELS = (1, 3, 4)
BLOCK = 1 << 20  # values scaled at a time, so that float64 copies stay small
WHITE_IS_ZERO = 0
TAG_BITS, TAG_PHOTOMETRIC = 258, 262


def to_bytes(values: Shaped[np.ndarray, "..."], window: Window) -> UInt8[np.ndarray, "..."]:
    """`values` scaled such that `window` becomes 0 to 255; what lies outside is clipped to its ends."""
    low, high = window
    flat = values.reshape(-1)
    out = np.empty(flat.shape, np.uint8)
    for start in range(0, flat.size, BLOCK):
        block = np.clip(flat[start : start + BLOCK].astype(np.float64), low, high)
        out[start : start + BLOCK] = np.floor((block - low) * 255.0 / (high - low) + 0.5)
    return out.reshape(values.shape)


def _grey16_to_bytes(values: Shaped[np.ndarray, "..."], window: Window) -> UInt8[np.ndarray, "..."]:
    table = to_bytes(np.arange(65536), window)
    return np.take(table, values)


def pillow_to_rgb(
    image: Image.Image, name: str, window: Window | None, background: Colour | None
) -> tuple[Image.Image, list[str]]:
    """A loaded image as RGB, and notes on what was decided for it.

    Raises:
        ImageError: `unsupported_mode` or `nonfinite_pixels`.
    """
    notes: list[str] = []
    if image.mode in GREY16_MODES:
        tags = getattr(image, "tag_v2", {})
        bits = tags.get(TAG_BITS, 16)
        largest = 2 ** (bits[0] if isinstance(bits, tuple) else bits) - 1
        values = np.asarray(image)
        if tags.get(TAG_PHOTOMETRIC) == WHITE_IS_ZERO and window is None:
            notes.append("16-bit grey stored with white as zero; inverted")
            values = largest - values
        notes.append(f"16-bit grey scaled from {window or (0, largest)} to 0..255")
        return Image.fromarray(_grey16_to_bytes(values, window or (0, largest))).convert("RGB"), notes
    if image.mode in WIDE_MODES:
        if window is None:
            raise ImageError("unsupported_mode", _window_needed(name, f"mode {image.mode}, 32 bits a pixel"))
        values = np.asarray(image)
        _check_finite(values, name)
        notes.append(f"mode {image.mode} scaled from {window} to 0..255")
        return Image.fromarray(to_bytes(values, window)).convert("RGB"), notes
    return _eight_bit_to_rgb(image, name, background, notes), notes


def _eight_bit_to_rgb(image: Image.Image, name: str, background: Colour | None, notes: list[str]) -> Image.Image:
    transparent = image.has_transparency_data
    try:
        # Pillow knows no direct way from premultiplied grey, and warns about palettes with an opacity for each colour.
        if image.mode == "La":
            image = image.convert("LA")
        if transparent and image.mode == "P":
            image = image.convert("RGBA")
        if transparent and background is not None:
            notes.append(f"transparency composited over {background}")
            base = Image.new("RGBA", image.size, (*background, 255))
            return Image.alpha_composite(base, image.convert("RGBA")).convert("RGB")
        if transparent:
            notes.append("transparency dropped")
        return image if image.mode == "RGB" else image.convert("RGB")
    except (ValueError, KeyError, OSError, ImportError, _of_colour_profiles()) as error:
        raise ImageError(
            "unsupported_mode",
            f"{name}: mode {image.mode} can't become RGB ({error}). Save it as 8-bit RGB or grey.",
        ) from error


def _of_colour_profiles() -> type[Exception]:
    """What Pillow raises in LAB images; asked for when something was raised, so that its library is not loaded for every image."""
    from PIL import ImageCms

    error: type[Exception] = ImageCms.PyCMSError
    return error


def array_to_rgb(
    array: Shaped[np.ndarray, "..."] | Shaped[Tensor, "..."],
    name: str,
    window: Window | None,
    background: Colour | None,
) -> tuple[Image.Image, str, list[str]]:
    """An array of one image as RGB, the Pillow-like name of its mode, and notes.

    Shapes: h w; h w c; c h w, with c = 1, 3 or 4, where only one end of the shape can be the channels. Values: uint8 as
    they are; bool as 0 and 255; uint16 by bit depth; floats that lie in 0 to 1 times 255, rounded to nearest; any other
    numbers with a `window`.

    Raises:
        ImageError: `unsupported_mode` (shape or type with no one meaning), `nonfinite_pixels`, `not_image` (no pixels).
    """
    values = _numpy(array)
    values, layout = _channels_last(values, name)
    notes = [] if layout == "h w" else [f"array read as {layout}"]
    eight, depth = _values_to_bytes(values, name, window)
    channels = eight.shape[2] if eight.ndim == 3 else 1
    image = Image.fromarray(np.ascontiguousarray(eight[..., 0] if eight.ndim == 3 and channels == 1 else eight))
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels] + depth
    return _eight_bit_to_rgb(image, name, background, notes), mode, notes


def _numpy(array: Shaped[np.ndarray, "..."] | Shaped[Tensor, "..."]) -> Shaped[np.ndarray, "..."]:
    if not isinstance(array, Tensor):
        return array
    array = array.detach().cpu()
    # numpy has no bfloat16, and its float16 has too few bits for 0 to 255
    return (array.to(torch.float32) if array.dtype in (torch.bfloat16, torch.float16) else array).numpy()


def _channels_last(values: Shaped[np.ndarray, "..."], name: str) -> tuple[Shaped[np.ndarray, "..."], str]:
    shape = values.shape
    if values.ndim == 2 and values.size:
        return values, "h w"
    if values.ndim == 3 and values.size:
        first, last = shape[0] in CHANNELS, shape[2] in CHANNELS
        if last and not first:
            return values, "h w c"
        if first and not last:
            return values.transpose(1, 2, 0), "c h w"
        if first:
            raise ImageError(
                "unsupported_mode",
                f"{name}: shape {shape} may be rows, columns, channels or channels, rows, columns. "
                f"Say which by passing PIL.Image.fromarray(array) of an h w c array.",
            )
    if not values.size:
        raise ImageError(
            "not_image", f"{name}: shape {shape} holds no pixel. An image has at least one row and column."
        )
    raise ImageError(
        "unsupported_mode",
        f"{name}: shape {shape} is no image. Give h w, h w c or c h w with 1, 3 or 4 channels; one image at a time.",
    )


def _values_to_bytes(
    values: Shaped[np.ndarray, "..."], name: str, window: Window | None
) -> tuple[UInt8[np.ndarray, "..."], str]:
    kind = values.dtype
    if kind == np.uint8:
        return values, ""
    if kind == np.bool_:
        return values.astype(np.uint8) * np.uint8(255), ";1"
    if kind == np.uint16:
        return _grey16_to_bytes(values, window or (0, 65535)), ";16"
    if kind.kind == "f":
        _check_finite(values, name)
        if window is None and values.min() >= 0 and values.max() <= 1:
            window = (0.0, 1.0)
        if window is not None:
            return to_bytes(values, window), ";F"
        raise ImageError("unsupported_mode", _window_needed(name, f"{kind} from {values.min():g} to {values.max():g}"))
    if kind.kind in "iu":
        if window is not None:
            return to_bytes(values, window), ";I"
        raise ImageError("unsupported_mode", _window_needed(name, f"{kind}"))
    raise ImageError("unsupported_mode", f"{name}: values of type {kind} are no pixels. Give uint8, uint16 or floats.")


def _window_needed(name: str, what: str) -> str:
    return (
        f"{name}: {what}, has no fixed black and white. "
        f"Pass window=(low, high), the values that become 0 and 255, or convert to 8 bits first."
    )


def _check_finite(values: Shaped[np.ndarray, "..."], name: str) -> None:
    flat = values.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        if not np.isfinite(flat[start : start + BLOCK]).all():
            raise ImageError(
                "nonfinite_pixels", f"{name}: holds NaN or infinite pixels. Replace them before embedding."
            )

"""What both ways of `dinokit embed`, to a file and to a folder, make of their options."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dinokit.cli.common import read_list, say

if TYPE_CHECKING:
    from dinokit.extract import DecodeOptions
    from dinokit.weights.load import Pretrained


def listed(inputs: tuple[str, ...], files_from: Any, *, nul: bool) -> list[str]:
    """Paths of --files-from, and of stdin where a source is -."""
    found = read_list(files_from, nul=nul) if files_from else []
    return found + (read_list(sys.stdin.buffer, nul=nul) if "-" in inputs else [])


def prepared_for(pre: Pretrained, image_size: tuple[int, int] | None) -> Pretrained:
    """With the crop that was asked for."""
    return pre if image_size is None else replace(pre, transform=pre.transform.at_size(image_size))


def introduce(pre: Pretrained, model: str) -> None:
    """What was loaded, on stderr."""
    dtype = str(pre.dtype).removeprefix("torch.")
    say(f"{model}: {pre.provenance.layout} layout, {pre.device}, {dtype}, transform {pre.transform.fingerprint}")


def decode_options(
    max_pixels: int | None, window: tuple[float, float] | None, background: tuple[float, float, float] | None
) -> DecodeOptions:
    """How files are decoded."""
    from dinokit.extract import DecodeOptions
    from dinokit.images import DEFAULT_MAX_PIXELS

    return DecodeOptions(
        max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
        window=window,
        background=(int(background[0]), int(background[1]), int(background[2])) if background else None,
    )

"""Frames in, frames out: PCA colours of a video by one basis, so that a thing keeps its colour from frame to frame.

Frames are read one after the other, so a long video needs no more memory than a short one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dinokit.analysis.pca import PatchPCA
from dinokit.errors import ImageError
from dinokit.inspection.look import look
from dinokit.inspection.see_maps import fit_basis, pca_picture
from dinokit.weights.load import Pretrained

SAMPLE = 32  # frames that a basis is fitted on: 32 x 1369 patches of a 518 px image are 130 MB at ViT-B's width


class Frame(NamedTuple):
    """A frame's path and its colours, or why it has none."""

    path: str | Path
    picture: Image.Image | None
    error: ImageError | None


def fit_frames(
    pre: Pretrained, paths: Sequence[str | Path], *, layer: int = -1, sample: int = SAMPLE, foreground: bool = False
) -> PatchPCA:
    """A basis from at most `sample` frames, spread evenly from the first to the last; unreadable ones are passed over.

    Raises:
        ValueError: none of the frames could be read, or `sample` is below 1.
    """
    if sample < 1:
        raise ValueError(f"sample is {sample}; a basis takes at least one frame.")
    chosen = sorted({round(i) for i in np.linspace(0, len(paths) - 1, min(sample, len(paths)))}) if paths else []
    looks = []
    for index in chosen:
        try:
            looks.append(look(pre, str(paths[index]), layer=layer))
        except ImageError:
            continue
    if not looks:
        raise ValueError(f"none of the {len(chosen)} frames to fit the basis on could be read.")
    return fit_basis(looks, foreground=foreground)


def colour_frames(
    pre: Pretrained, paths: Sequence[str | Path], basis: PatchPCA, *, layer: int = -1, smooth: bool = True
) -> Iterator[Frame]:
    """Each frame in the colours of `basis`, in order. `smooth` lets the colours follow the edges of the frame.

    Raises:
        ValueError: a basis of another network.
    """
    for path in paths:
        try:
            found = look(pre, str(path), layer=layer)
        except ImageError as error:
            yield Frame(path, None, error)
            continue
        yield Frame(path, pca_picture(found, basis, smooth=smooth), None)

"""Masks and depth maps from their files: numbers as they are written, never resampled in between classes.

Promise: palettes are read as indices, 16-bit PNG as 16 bits; a file that is none of these is refused.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64
from PIL import Image
from torch import Tensor

from dinokit.evals.datasets import DatasetError
from dinokit.evals.metrics import IGNORED
from dinokit.images.decode import DEFAULT_MAX_PIXELS

INTEGER_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L", "I;16N")


def read_mask(path: str | Path, *, zero_is_other: bool = False) -> Int64[Tensor, "h w"]:
    """Class of each pixel. `zero_is_other`: 0 becomes ignored (255) and 1 becomes class 0, as ADE20K counts.

    Raises:
        DatasetError: unreadable, or colours instead of classes.
    """
    labels = torch.from_numpy(_numbers(path).astype(np.int64))
    if not zero_is_other:
        return labels
    return torch.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1)


def read_depth(path: str | Path, scale: float = 1000.0) -> Float32[Tensor, "h w"]:
    """Depth of each pixel: the file's number divided by `scale` (1000: millimetres to metres, as NYU's PNG); 0 is unknown.

    Raises:
        DatasetError: unreadable, or colours; HDF5 is not read.
    """
    if Path(path).suffix.lower() in (".h5", ".hdf5", ".mat"):
        raise DatasetError(f"{path} is HDF5, which is not read here; write depths as 16-bit PNG in millimetres.")
    return torch.from_numpy((_numbers(path).astype(np.float64) / scale).astype(np.float32))


def _numbers(path: str | Path) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit stands below
            picture = Image.open(path)
        with picture:
            if picture.width * picture.height > DEFAULT_MAX_PIXELS:
                raise DatasetError(
                    f"{path} has {picture.width} x {picture.height} pixels, more than {DEFAULT_MAX_PIXELS:,}."
                )
            if picture.mode not in INTEGER_MODES:
                raise DatasetError(
                    f"{path} has pixels of mode {picture.mode}; expected one whole number a pixel (grey or palette)."
                )
            return np.array(picture)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path} can't be read: {error}.") from error

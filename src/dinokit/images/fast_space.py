"""Space that a thread keeps between images: fresh memory costs as much in page faults as a tenth of the decoding.

Nothing that is handed out of the package lies in it. Pixels: 16 megapixels; the rest is what an image of that size may need.
"""

from __future__ import annotations

import threading
from typing import Literal

import numpy as np
from jaxtyping import UInt8

Use = Literal["pixels", "file", "half", "floats", "sums"]
KEPT_BYTES: dict[Use, int] = {
    "pixels": 48 << 20,
    "file": 16 << 20,
    "half": 8 << 20,
    "floats": 16 << 20,
    "sums": 4 << 20,
}


class _Space(threading.local):
    def __init__(self) -> None:
        self.of: dict[str, UInt8[np.ndarray, "n"]] = {}


_space = _Space()


def kept(use: Use, size: int) -> UInt8[np.ndarray, "n"]:
    """`size` bytes that this thread may use until it asks for the same `use` again; what they hold is left from before."""
    if size > KEPT_BYTES[use]:
        return np.empty(size, np.uint8)
    space = _space.of.get(use)
    if space is None or space.size < size:
        space = _space.of[use] = np.empty(size, np.uint8)
    return space[:size]

"""Process-wide settings of the C library's allocator; for programs, and for libraries only when their user asks."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 1 << 30


def keep_large_blocks() -> bool:
    """Tell glibc to keep large blocks of memory for the next use instead of giving them back to the system; whether it listened.

    Activations of a forward pass are then not mapped, zeroed and unmapped again and again. The process keeps the most it ever
    needed. Elsewhere than on Linux with glibc nothing is done.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))

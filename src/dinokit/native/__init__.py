"""Kernels in C for CPUs with AVX2: matrices in float32, 12 and 8 bits, attention, layer norm. There, or not; nothing needs them.

They are compiled when the package is built (hatch_build.py) and share PyTorch's threads. Every value is computed in one order that
depends on neither the batch nor the number of threads: equal images give equal bits.
"""

from dinokit.native.kernels import PANEL, attention, attention_int16, norm
from dinokit.native.library import BUILT, available, missing
from dinokit.native.matrices import After, FloatMatrix, Int8Matrix, Int16Matrix, Matrix, Pack

__all__ = [
    "BUILT",
    "PANEL",
    "After",
    "FloatMatrix",
    "Int8Matrix",
    "Int16Matrix",
    "Matrix",
    "Pack",
    "attention",
    "attention_int16",
    "available",
    "missing",
    "norm",
]

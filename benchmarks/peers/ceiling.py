"""How fast this machine multiplies matrices: the best of a network's own shapes and some large ones, in one dtype.

No forward pass can be faster than its matrix products, so this is the ceiling that engines are held against: the best of PyTorch's
products and of dinokit's own kernels. In int8 PyTorch's is the product alone, activations quantised beforehand.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from dinokit import native
from peers import networks
from peers.engines import Engine, Job, Loaded, Run, Skipped

LARGE = (2048, 2048, 2048)
PROBE = (64, 256, 256)
# Rows of a case's products beyond which nothing is gained by more.
MOST_ROWS = 8192
CANDIDATES_KEPT = 2
# A layout that is so many times slower on a small product is not tried on large ones: without instructions for a dtype PyTorch has
# paths that take minutes.
HOPELESS = 4.0
AS_STORED, TURNED, OWN_KERNEL = "as stored", "turned", "dinokit's kernel"
OWN = {"float32": native.FloatMatrix, "int16": native.Int16Matrix, "int8": native.Int8Matrix}

Product = Callable[[], Any]


def ceiling(job: Job, engine: Engine) -> Loaded:
    """A worker whose pass is a list of products; it answers GFLOP/s of the best instead of tokens.

    Raises:
        Skipped: this PyTorch has no such product.
    """
    if engine.dtype == "int8" and "x86" not in torch.backends.quantized.supported_engines:
        raise Skipped("PyTorch has no 8-bit product for this CPU")
    if engine.dtype == "int16" and not native.available():
        raise Skipped(native.missing())
    make: Callable[[int, int, int, str], Product]
    make = _int8 if engine.dtype == "int8" else _plain(getattr(torch, engine.dtype), job.device)
    ways = () if engine.dtype == "int16" else (AS_STORED,) if engine.dtype == "int8" else (AS_STORED, TURNED)
    if native.available() and job.device == "cpu" and engine.dtype in OWN:
        ways = (*ways, OWN_KERNEL)
    d, hidden = networks.CONFIGS[job.variant].embed_dim, networks.CONFIGS[job.variant].ffn_dim
    patches = (job.size // networks.CONFIGS[job.variant].patch_size) ** 2
    tokens = networks.CONFIGS[job.variant].num_prefix_tokens + patches

    def product_of(m: int, k: int, n: int, way: str) -> Product:
        return _own(m, k, n, engine.dtype) if way == OWN_KERNEL else make(m, k, n, way)

    def batch(count: int) -> Run:
        rows = min(count * tokens, MOST_ROWS)
        shapes = [(rows, d, 3 * d), (rows, d, hidden), (rows, hidden, d), LARGE]
        if job.variant == "tiny":
            shapes = shapes[:3]
        slowest = {way: _seconds(product_of(*PROBE, way), repeats=3) for way in ways}
        layouts = [way for way, seconds in slowest.items() if seconds <= HOPELESS * min(slowest.values())]
        tried = []
        for shape in shapes:
            for way in layouts:
                product = product_of(*shape, way)
                product()
                tried.append((_flops(shape) / _seconds(product, 1), shape, product))
        best = sorted(tried, key=lambda row: row[0], reverse=True)[:CANDIDATES_KEPT]
        return lambda: max(_flops(shape) / _seconds(product, repeats=2) for _, shape, product in best) / 1e9

    return Loaded(batch)


def _plain(dtype: torch.dtype, device: str) -> Callable[[int, int, int, bool], Product]:
    def make(m: int, k: int, n: int, way: str) -> Product:
        a = torch.randn(m, k, device=device).to(dtype)
        b = (
            torch.randn(n, k, device=device).to(dtype).t()
            if way == TURNED
            else torch.randn(k, n, device=device).to(dtype)
        )
        out = torch.empty(m, n, device=device, dtype=dtype)

        def product() -> None:
            torch.mm(a, b, out=out)
            if device != "cpu":
                torch.cuda.synchronize()

        return product

    return make


def _own(m: int, k: int, n: int, dtype: str) -> Product:
    matrix = OWN[dtype](torch.randn(n, k), None)
    x, out = torch.randn(m, k), torch.empty(m, n)
    return lambda: matrix(x, native.After.NOTHING, out)


def _int8(m: int, k: int, n: int, way: str) -> Product:  # noqa: ARG001 - weights are packed, so there is one layout
    weight = torch.quantize_per_tensor(torch.randn(n, k), 0.02, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(weight, None)
    x = torch.quantize_per_tensor(torch.randn(m, k), 0.05, 64, torch.quint8)
    return lambda: torch.ops.quantized.linear(x, packed, 0.1, 64)


def _seconds(product: Product, repeats: int) -> float:
    """The least of several, as a ceiling should be."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        product()
        times.append(time.perf_counter() - start)
    return min(times)


def _flops(shape: tuple[int, int, int]) -> float:
    return 2.0 * shape[0] * shape[1] * shape[2]

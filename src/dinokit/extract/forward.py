"""`Forward`: prepared images to vectors, in batches of a fixed shape with fixed places, so that no image can change another's bits.

Matrix kernels may round otherwise for another batch size. So a batch always has the same shape: the image with row i of its shard
stands in place i modulo the batch size, and zeros stand where an image is missing or bad. Whether a shard was interrupted, an image was
retried or its neighbours were bad then makes no difference.

On a CPU a batch is split among lanes: threads that each run their own part of it alone. Threads that share every product wait for each
other at its end, and longest where decoding takes one of the processors meanwhile (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor

from dinokit.extract.prepare import Facts, Ready
from dinokit.images import Preparation
from dinokit.store.identity import Feature
from dinokit.tokens import Tokens
from dinokit.weights.load import Pretrained

TINY = np.finfo(np.float32).tiny
# Lanes were measured on two processors; many of them would each read all weights from memory.
MOST_LANES = 4


@dataclass(frozen=True)
class Answer:
    """What became of one image: facts, vectors and their lengths by column, dense features by kind; no vectors on error."""

    facts: Facts
    vectors: dict[str, Float32[np.ndarray, " d"]] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    dense: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether it has vectors."""
        return bool(self.vectors)


@dataclass(frozen=True)
class Read:
    """What the network gave for a part of a batch: vectors as stored, their lengths, whether all numbers are finite, dense features."""

    vectors: dict[str, Float32[np.ndarray, "n d"]]
    norms: dict[str, Float32[np.ndarray, " n"]]
    finite: Bool[np.ndarray, " n"]
    dense: dict[str, np.ndarray]


def lanes_for(pre: Pretrained, threads: int, slots: int) -> int:
    """How many lanes a batch of `slots` images gets where `threads` threads are meant; 1: PyTorch spreads each product itself."""
    compiled = pre.plan is not None and pre.plan.compiled
    fits = 1 < threads <= MOST_LANES and slots % threads == 0
    return threads if pre.device.type == "cpu" and fits and not compiled else 1


class Forward:
    """A model with what is wanted of it. `slots` is the batch size, always filled up, and a multiple of `lanes`."""

    def __init__(
        self,
        pre: Pretrained,
        preparation: Preparation,
        features: Sequence[Feature],
        slots: int,
        dense: Sequence[str] = (),
        dense_dtype: str = "float16",
        lanes: int = 1,
    ) -> None:
        assert slots % lanes == 0
        self._lanes = ThreadPoolExecutor(lanes, "dinokit-lane", torch.set_num_threads, (1,)) if lanes > 1 else None
        self._part = slots // lanes
        self.pre, self.preparation, self.features, self.slots = pre, preparation, tuple(features), slots
        self.dense, self.dense_dtype = tuple(dense), dense_dtype

    def __call__(self, chunk: Sequence[Ready | None], names: Sequence[str]) -> list[Answer | None]:
        """Answers for the images of one batch, place by place; None for a place that is not asked for.

        Images of different sizes are run after each other, each at its own place.
        """
        assert len(chunk) <= self.slots
        answers: list[Answer | None] = [None if ready is None else Answer(ready.facts) for ready in chunk]
        sizes = {ready.pixels.shape for ready in chunk if ready is not None and ready.pixels is not None}
        for size in sorted(sizes):
            places = [
                place
                for place, ready in enumerate(chunk)
                if ready is not None and ready.pixels is not None and ready.pixels.shape == size
            ]
            pixels = np.zeros((self.slots, *size), np.uint8)
            for place in places:
                pixels[place] = chunk[place].pixels  # type: ignore[union-attr]
            self._answer(pixels, places, answers, names)
        return answers

    def _answer(
        self,
        pixels: UInt8[np.ndarray, "slots 3 h w"],
        places: list[int],
        answers: list[Answer | None],
        names: Sequence[str],
    ) -> None:
        parts = [pixels[start : start + self._part] for start in range(0, self.slots, self._part)]
        # a list: an error of any lane is raised here, after all have ended
        read = list(self._lanes.map(self._read, parts) if self._lanes else map(self._read, parts))
        vectors = {f.column: np.concatenate([part.vectors[f.column] for part in read]) for f in self.features}
        norms = {f.column: np.concatenate([part.norms[f.column] for part in read]) for f in self.features}
        good = np.concatenate([part.finite for part in read])
        dense = {kind: np.concatenate([part.dense[kind] for part in read]) for kind in self.dense}
        for place in places:
            before = answers[place]
            assert before is not None
            if not good[place]:
                answers[place] = Answer(_nonfinite(before.facts, names[place]))
                continue
            answers[place] = replace(
                before,
                vectors={column: values[place] for column, values in vectors.items()},
                norms={column: float(values[place]) for column, values in norms.items()},
                dense={kind: values[place] for kind, values in dense.items()},
            )

    @torch.no_grad()
    def _read(self, pixels: UInt8[np.ndarray, "n 3 h w"]) -> Read:
        images = self.preparation.normalise(torch.from_numpy(pixels).to(self.pre.device)).to(self.pre.dtype)
        tokens = self._tokens(images)
        vectors, norms = {}, {}
        finite = np.ones(len(pixels), bool)
        for feature in self.features:
            found = tokens[feature.block].pool(feature.pooling).float().cpu().numpy()
            vectors[feature.column], norms[feature.column] = finished(found, feature)
            finite &= np.isfinite(found).all(1) & np.isfinite(vectors[feature.column]).all(1)
        return Read(vectors, norms, finite, {kind: self._dense(tokens[None], kind) for kind in self.dense})

    def _tokens(self, images: Float32[Tensor, "n 3 h w"]) -> dict[int | None, Tokens]:
        """Tokens after the final norm, of the network's output (None) and of blocks; one pass that stops after the last of them."""
        model = self.pre.model
        blocks = {feature.block for feature in self.features if feature.block is not None}
        output = bool(self.dense) or any(feature.block is None for feature in self.features)
        if not blocks:
            return {None: model(images)}
        size = (images.shape[-2], images.shape[-1])
        last = model.config.depth - 1 if output else max(blocks)
        found: dict[int | None, Tokens] = {}
        for index, x in enumerate(model.stream(images), start=-1):
            if index in blocks:
                found[index] = model.tokens(model.norm(x), size)
            if index == last:
                if output:
                    found[None] = model.tokens(model.norm(x), size)
                break
        return found

    def _dense(self, tokens: Tokens, kind: str) -> np.ndarray:
        part = tokens.sequence if kind == "tokens" else tokens.pool(kind)  # type: ignore[arg-type]
        found: np.ndarray = part.float().cpu().numpy().astype(self.dense_dtype)
        return found


def finished(
    vectors: Float32[np.ndarray, "n d"], feature: Feature
) -> tuple[Float32[np.ndarray, "n d"], Float32[np.ndarray, " n"]]:
    """Vectors as they are stored (but float32 still), and their lengths before. Each row by itself."""
    norms = np.sqrt(np.square(vectors, dtype=np.float64).sum(1))
    out = vectors
    if feature.normalized:
        with np.errstate(invalid="ignore"):
            out = (vectors / np.maximum(norms, TINY)[:, None]).astype(np.float32)
    if feature.dtype == "float16":
        with np.errstate(over="ignore"):
            out = out.astype(np.float16).astype(np.float32)
    return out, norms.astype(np.float32)


def _nonfinite(facts: Facts, name: str) -> Facts:
    message = f"{name}: the model gave NaN or infinite values; use --dtype fp32, or look at the weights."
    return replace(facts, error_code="nonfinite_embedding", error=message)

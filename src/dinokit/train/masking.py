"""Which patches the student does not see: blocks, drawn for a whole batch at once, and their place in the batch.

Promise: a crop's mask depends on (seed, step, crop, its target count) only; the same masks from one process or several.
Source: Bao et al. 2022 (BEiT), algorithm 1; dinov2/data/masking.py and collate.py; exact counts and shifts: dinov3/data/collate.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from dinokit.train.counter import Samples, Stream, unit

# Rectangles of a mask that are looked at together, and tries whose numbers are drawn together. They change no mask; these
# are about the fastest.
AHEAD = 3
DRAWN = 24
WORD = 64


@dataclass(frozen=True)
class BlockRule:
    """How a mask is put together from rectangles.

    Until `target` patches are masked: an area from U(min_patches, m), m being what is missing, at most `max_patches`; an aspect
    ratio from exp U(log min_aspect, -log min_aspect); a place; taken if it masks 1 to m further patches and is smaller
    than the grid both ways. After `tries` refusals in a row the mask stays short of its target.
    """

    max_patches: int | float
    min_patches: int = 4
    min_aspect: float = 0.3
    tries: int = 10


def half_of(image_size: int, patch_size: int) -> BlockRule:
    """The official rule for square crops: half the grid, formed left to right and so smaller where patches do not divide pixels.

    98 for 224 pixels in patches of 16, 128 for 224 / 14, 666 and not 684 for 518 / 14.
    """
    return BlockRule(max_patches=0.5 * image_size // patch_size * image_size // patch_size)


def block_masks(
    stream: Stream,
    step: int,
    crops: Samples,
    targets: NDArray[np.int64],
    grid: tuple[int, int],
    rule: BlockRule,
    ahead: int = AHEAD,
) -> Bool[np.ndarray, "n gh gw"]:
    """One mask a crop, of at most its target count of patches.

    The numbers of try i of a crop are block i of its stream, whatever became of other tries. A row of a mask is held as bits.
    """
    height, width = grid
    prefix = _prefix_bits(width)  # bits of the columns left of each one
    bits = np.zeros((len(crops), height, prefix.shape[1]), np.uint64)
    missing = np.array(targets, np.int64)
    used, refused = np.zeros_like(missing), np.zeros_like(missing)
    rows = np.arange(height)
    alive = np.flatnonzero(missing > 0)
    drawn = unit(stream.words(step, crops, 0, DRAWN))  # n tries 4
    while len(alive):
        if used[alive].max() + ahead > drawn.shape[1]:
            drawn = np.concatenate([drawn, unit(stream.words(step, crops, drawn.shape[1], DRAWN))], axis=1)
        most = np.minimum(missing[alive], float(rule.max_patches))[:, None]
        numbers = drawn[alive[:, None], used[alive][:, None] + np.arange(ahead)]
        h, w, top, left = _rectangles(numbers, most, grid, rule)
        fits = (h < height) & (w < width)
        left, top = np.where(fits, left, 0), np.where(fits, top, 0)
        across = prefix[np.where(fits, left + w, 0)] ^ prefix[left]  # n tries words
        inside = (rows >= top[..., None]) & (rows < (top + h)[..., None])  # n tries gh
        blocks = np.where(inside[..., None], across[:, :, None], np.uint64(0))
        gains = np.bitwise_count(blocks & ~bits[alive][:, None]).sum(axis=(2, 3), dtype=np.int64)
        good = fits & (gains > 0) & (gains <= most) & (refused[alive][:, None] + np.arange(ahead) < rule.tries)
        first = good.argmax(axis=1)
        taken = good[np.arange(len(alive)), first]
        which, at = alive[taken], first[taken]
        bits[which] |= blocks[taken, at]
        missing[which] -= gains[taken, at]
        used[alive] += np.where(taken, first + 1, ahead)
        refused[alive] = np.where(taken, 0, refused[alive] + ahead)
        alive = alive[(missing[alive] > 0) & (refused[alive] < rule.tries)]
    return np.unpackbits(bits.view(np.uint8), axis=-1, bitorder="little")[..., :width].astype(bool)


def _prefix_bits(width: int) -> NDArray[np.uint64]:
    """Row c: the bits of columns 0 to c - 1, in words of 64."""
    words = -(-width // WORD)
    columns = np.arange(words * WORD) < np.arange(width + 1)[:, None]
    packed = np.packbits(columns, axis=-1, bitorder="little")
    return packed.view(np.uint64)


def _rectangles(
    numbers: NDArray[np.float64], most: NDArray[np.float64], grid: tuple[int, int], rule: BlockRule
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Height, width, top, left of a rectangle for each four numbers in (0, 1); top and left only mean something if it fits."""
    area = rule.min_patches + (most - rule.min_patches) * numbers[..., 0]
    log_aspect = math.log(rule.min_aspect) * (1 - 2 * numbers[..., 1])
    half = np.exp(0.5 * log_aspect)
    root = np.sqrt(area)
    h, w = np.rint(root * half).astype(np.int64), np.rint(root / half).astype(np.int64)
    top = (numbers[..., 2] * (grid[0] - h + 1)).astype(np.int64)
    left = (numbers[..., 3] * (grid[1] - w + 1)).astype(np.int64)
    return h, w, top, left


def completed(
    stream: Stream, step: int, crops: Samples, masks: Bool[np.ndarray, "n gh gw"], targets: NDArray[np.int64]
) -> Bool[np.ndarray, "n gh gw"]:
    """Masks with exactly their target count: single random patches are added where blocks fell short."""
    flat = masks.reshape(len(masks), masks.shape[1] * masks.shape[2]).copy()
    short = np.flatnonzero(flat.sum(axis=1) < targets)
    scores = stream.uniform(step, crops[short], flat.shape[1])
    scores[flat[short]] = -1.0
    ranks = scores.argsort(axis=1).argsort(axis=1)
    flat[short] = ranks < targets[short][:, None]
    return flat.reshape(masks.shape)


def shifted(
    stream: Stream, step: int, crops: Samples, masks: Bool[np.ndarray, "n gh gw"]
) -> Bool[np.ndarray, "n gh gw"]:
    """Each mask moved round the grid by a random number of rows and columns, so that borders are masked as often as the middle."""
    height, width = masks.shape[1:]
    numbers = stream.uniform(step, crops, 2)
    down, right = ((numbers * (height, width)).astype(np.int64)).T
    rows = (np.arange(height) - down[:, None]) % height
    columns = (np.arange(width) - right[:, None]) % width
    moved: NDArray[np.bool_] = masks[np.arange(len(masks))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved


@dataclass(frozen=True)
class MaskShare:
    """Which share of the crops is masked, and how much of them."""

    probability: float = 0.5
    ratio: tuple[float, float] = (0.1, 0.5)

    def edges(self, num_crops: int) -> Float[np.ndarray, " edges"]:
        """The masked crops' ratios lie between successive ones of these, one crop a gap."""
        return np.linspace(*self.ratio, int(num_crops * self.probability) + 1)

    def most(self, num_crops: int, num_patches: int) -> int:
        """Patches that a batch masks at most."""
        return int((num_patches * self.edges(num_crops)[1:]).astype(np.int64).sum())


Targets = Callable[[Stream, int, Samples, int, MaskShare], NDArray[np.int64]]


def random_targets(
    stream: Stream, step: int, crops: Samples, num_patches: int, share: MaskShare
) -> Int64[np.ndarray, " n"]:
    """Counts to mask: one crop draws its ratio from each gap between the edges; who gets which, or none, is drawn, too."""
    edges = share.edges(len(crops))
    order, ratio = _order_and_numbers(stream, step, crops)
    return _spread(order, num_patches * (edges[:-1] + np.diff(edges) * ratio[order[: len(edges) - 1]]))


def fixed_targets(
    stream: Stream, step: int, crops: Samples, num_patches: int, share: MaskShare
) -> Int64[np.ndarray, " n"]:
    """The same with the upper edge of each gap, as in DINOv3: as many patches in every batch, if masks are `completed`."""
    order, _ = _order_and_numbers(stream, step, crops)
    return _spread(order, num_patches * share.edges(len(crops))[1:])


def _order_and_numbers(stream: Stream, step: int, crops: Samples) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    numbers = stream.uniform(step, crops, 2)
    return numbers[:, 0].argsort(kind="stable"), numbers[:, 1]


def _spread(order: NDArray[np.int64], counts: NDArray[np.float64]) -> NDArray[np.int64]:
    targets = np.zeros(len(order), np.int64)
    targets[order[: len(counts)]] = counts.astype(np.int64)
    return targets


def crop_ids(samples: Samples, num_crops: int = 2) -> Samples:
    """An id for each global crop, crop by crop: all images' first crops, then all images' second ones."""
    return (np.asarray(samples, np.int64) * num_crops + np.arange(num_crops)[:, None]).ravel()


def draw_masks(
    seed: int,
    step: int,
    samples: Samples,
    grid: tuple[int, int],
    rule: BlockRule,
    share: MaskShare | None = None,
    own: slice = slice(None),
) -> Bool[np.ndarray, "crops n"]:
    """DINOv2's masks for two global crops an image, crop by crop.

    `samples` are the images of the whole batch, over all processes, for half of *its* crops are masked; `own` says which of
    them are this process's, for whom alone masks are made.
    """
    crops, targets = _own_targets(random_targets, seed, step, samples, grid, share, own)
    masks = block_masks(Stream(seed, "mask blocks"), step, crops, targets, grid, rule)
    return masks.reshape(len(masks), grid[0] * grid[1])


def draw_exact_masks(
    seed: int,
    step: int,
    samples: Samples,
    grid: tuple[int, int],
    rule: BlockRule,
    share: MaskShare | None = None,
    own: slice = slice(None),
    around: bool = False,
) -> Bool[np.ndarray, "crops n"]:
    """DINOv3's: the same number of masked patches in every batch, so that shapes stay; with `around`, masks are `shifted`."""
    crops, targets = _own_targets(fixed_targets, seed, step, samples, grid, share, own)
    masks = block_masks(Stream(seed, "mask blocks"), step, crops, targets, grid, rule)
    masks = completed(Stream(seed, "mask rest"), step, crops, masks, targets)
    if around:
        masks = shifted(Stream(seed, "mask shift"), step, crops, masks)
    return masks.reshape(len(masks), grid[0] * grid[1])


def _own_targets(
    draw: Targets, seed: int, step: int, samples: Samples, grid: tuple[int, int], share: MaskShare | None, own: slice
) -> tuple[Samples, NDArray[np.int64]]:
    crops = crop_ids(samples)
    targets = draw(Stream(seed, "mask targets"), step, crops, grid[0] * grid[1], share or MaskShare())
    return crops.reshape(2, -1)[:, own].ravel(), targets.reshape(2, -1)[:, own].ravel()


@dataclass(frozen=True)
class Masks:
    """Masks of a batch's global crops, crop by crop, with the flat indices and weights of masked patches in row order.

    The weight of a patch is 1 / (masked patches of its crop).
    """

    masks: Bool[Tensor, "crops n"]
    indices: Int64[Tensor, " masked"]
    weights: Float[Tensor, " masked"]

    @classmethod
    def of(cls, masks: Bool[np.ndarray, "crops n"], dtype: torch.dtype = torch.float32) -> Masks:
        """Indices and weights follow from the masks; worked out where masks are made, not on the accelerator."""
        counts = masks.sum(axis=1)
        weights = np.repeat(1.0 / np.maximum(counts, 1), counts)
        return cls(
            torch.from_numpy(masks), torch.from_numpy(np.flatnonzero(masks)), torch.from_numpy(weights).to(dtype)
        )

    def to(self, device: torch.device | str) -> Masks:
        """The same on another device."""
        return Masks(*(x.to(device, non_blocking=True) for x in (self.masks, self.indices, self.weights)))

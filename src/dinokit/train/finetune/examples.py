"""From an image and its label, mask or depth map to what a step learns from; and batches of that, ahead of time.

Promise: what is random about an example depends on (seed, visit) alone, so neither threads nor interruptions change a run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor

from dinokit.images import ImageTransform, ShortestEdge, decode, resize_crop
from dinokit.train.counter import Stream
from dinokit.train.data.crops import CropRule, boxes, crop_numbers
from dinokit.train.data.sampler import Order, Plan
from dinokit.train.finetune.recipe import FinetuneRecipe

Pair = tuple[Any, Any]
Example = tuple[Tensor, Tensor]
MakeExample = Callable[[Pair, int], Example]
STEPS_AHEAD = 2


def batches(
    pairs: Sequence[Pair], make: MakeExample, recipe: FinetuneRecipe, start: int = 0, workers: int = 2
) -> Iterator[Example]:
    """Batches of steps `start` to the last; images and targets stacked. Each epoch is a permutation of the pairs."""
    order = Order(len(pairs), recipe.seed)
    plan = Plan(order, recipe.batch_size)

    def one(visit: int) -> Example:
        return make(pairs[visit % len(pairs)], visit)

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        ahead: deque[list[Future[Example]]] = deque()
        for step in range(start, recipe.steps + STEPS_AHEAD):
            if step < recipe.steps:
                ahead.append([pool.submit(one, visit) for visit in plan.visits(step).tolist()])
            if step >= start + STEPS_AHEAD and ahead:
                images, targets = zip(*(future.result() for future in ahead.popleft()), strict=True)
                yield torch.stack(images), torch.stack(targets)


def for_classifier(transform: ImageTransform, recipe: FinetuneRecipe) -> MakeExample:
    """A random part of the image, resized to a square, perhaps mirrored; the target is a number."""
    rule = CropRule(1, recipe.size, recipe.scale)

    def make(pair: Pair, visit: int) -> Example:
        image = decode(pair[0]).image
        numbers = crop_numbers(recipe.seed, np.array([visit]), 0, 1)[0, 0]
        top, left, h, w = boxes(numbers, image.height, image.width, rule).tolist()
        part = image.resize((recipe.size, recipe.size), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
        pixels = np.asarray(part)
        flipped = pixels[:, ::-1] if _uniform(recipe, visit)[0] < recipe.flip else pixels
        return normalised(flipped, transform), torch.tensor(int(pair[1]))

    return make


def for_pixels(
    transform: ImageTransform, recipe: FinetuneRecipe, unknown: float, check: Callable[[Tensor], None]
) -> MakeExample:
    """The image resized so that its shortest edge is `size` times a random factor, and a random square of it, perhaps mirrored.

    Targets are taken from the nearest pixel; around images smaller than the square come zeros (the mean colour), in targets
    `unknown`. `check` sees each target as it was read.
    """

    def make(pair: Pair, visit: int) -> Example:
        image, target = decode(pair[0]).image, torch.as_tensor(pair[1])
        check(target)
        mirrored, where, down, right = _uniform(recipe, visit)
        low, high = recipe.scale
        edge = max(round(recipe.size * low * (high / low) ** where), 1)
        height, width = ShortestEdge(edge).target(image.height, image.width)
        h, w = min(height, recipe.size), min(width, recipe.size)
        top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
        pixels = normalised(resize_crop(image, (height, width), (top, left, h, w), transform.resample), transform)
        rows, columns = (
            _nearest(target.shape[0], height)[top : top + h],
            _nearest(target.shape[1], width)[left : left + w],
        )
        whole = torch.zeros(3, recipe.size, recipe.size)
        labels = torch.full((recipe.size, recipe.size), unknown, dtype=target.dtype)
        whole[:, :h, :w], labels[:h, :w] = pixels, target[rows[:, None], columns[None]]
        return (whole.flip(2), labels.flip(1)) if mirrored < recipe.flip else (whole, labels)

    return make


def normalised(pixels: UInt8[np.ndarray, "h w 3"], transform: ImageTransform) -> Float[Tensor, "3 h w"]:
    """As the transform does it."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (transform.mean, transform.std))
    found: Tensor = (torch.from_numpy(np.array(pixels)).permute(2, 0, 1) * transform.rescale - mean) / std
    return found


def _nearest(old: int, new: int) -> Shaped[Tensor, " n"]:
    return ((torch.arange(new) + 0.5) * old / new).long().clamp_max(old - 1)


def _uniform(recipe: FinetuneRecipe, visit: int) -> tuple[float, ...]:
    return tuple(Stream(recipe.seed, "finetune").uniform(0, np.array([visit]), 4)[0].tolist())

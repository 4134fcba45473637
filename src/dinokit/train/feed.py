"""`Feed`: from images and a recipe to the batches of this process, one a step.

Promise: the batch of a step is a function of (images, recipe, step); any run may begin at any step. It is made while the step before is
taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from dinokit.train.counter import Samples
from dinokit.train.data import Images, Order, Plan, TensorBatches, Unreadable, Views, load_batches
from dinokit.train.masking import Masks, MaskShare, draw_masks, half_of
from dinokit.train.network import Batch
from dinokit.train.parallel import World
from dinokit.train.recipe import TrainingRecipe

T = TypeVar("T")


class Feed(Protocol):
    """Where a run's batches come from."""

    num_images: int

    def __call__(self, recipe: TrainingRecipe, world: World, start: int) -> Iterator[Batch]:
        """Batches of this process from step `start` to the end of the recipe, on its device."""
        ...


class TensorFeed:
    """Images of one size in memory, as 8 bits (n, 3, h, w)."""

    def __init__(self, images: UInt8[Tensor, "n 3 h w"]) -> None:
        self.images = images
        self.num_images = len(images)

    def __call__(self, recipe: TrainingRecipe, world: World, start: int) -> Iterator[Batch]:
        """Crops are made where the images lie: on the process's device."""
        plan = _plan(self.num_images, recipe, world)
        batches = TensorBatches(self.images.to(world.device), recipe.augmentation, plan)
        views = (batches[step] for step in range(start, recipe.steps))
        return _batches(views, plan, recipe, world, start)


class ImageFeed:
    """Images by index, decoded and cropped by worker processes. `tell` hears of those that can't be read, whose place others take."""

    def __init__(self, images: Images, workers: int = 0, tell: Callable[[Unreadable], object] = lambda _: None) -> None:
        self.images, self.workers, self.tell = images, workers, tell
        self.num_images = len(images)

    def __call__(self, recipe: TrainingRecipe, world: World, start: int) -> Iterator[Batch]:
        """Workers are ended with the iterator."""
        plan = _plan(self.num_images, recipe, world)
        loader = load_batches(
            self.images, recipe.augmentation, plan, start, recipe.steps,
            workers=self.workers, pin_memory=world.device.type == "cuda",
        )  # fmt: skip
        return _batches(self._heard(loader), plan, recipe, world, start)

    def _heard(self, views: Iterable[Views]) -> Iterator[Views]:
        for each in views:
            for unreadable in each.unreadable:
                self.tell(unreadable)
            yield each


def _plan(num_images: int, recipe: TrainingRecipe, world: World) -> Plan:
    return Plan(Order(num_images, recipe.seed), recipe.batch_size, world.rank, world.size)


def _batches(views: Iterator[Views], plan: Plan, recipe: TrainingRecipe, world: World, start: int) -> Iterator[Batch]:
    """8-bit crops to what the network reads, with masks; on the device last, so that transfers overlap with the step before."""
    model = recipe.model
    size = recipe.augmentation.global_crops.size
    grid = (size // model.patch_size,) * 2
    rule = half_of(size, model.patch_size)
    share = MaskShare(recipe.losses.mask_probability, recipe.losses.mask_ratio)
    everybody = Plan(plan.order, plan.batch_size)
    part = plan.batch_size // plan.world
    own = slice(plan.rank * part, (plan.rank + 1) * part)

    def drawn() -> Iterator[tuple[Views, Masks]]:
        for step, each in enumerate(views, start):
            visits = everybody.visits(step)
            yield each, Masks.of(chosen(step, visits))

    def chosen(step: int, visits: Samples) -> NDArray[np.bool_]:
        """Which patches of this process's global crops iBOT compares."""
        if recipe.by_heads and recipe.losses.patches != "all":
            return draw_masks(recipe.seed, step, visits, grid, rule, share, own)
        return np.full((2 * part, grid[0] * grid[1]), recipe.by_heads)

    for each, masks in _ahead(drawn()):
        global_crops, local_crops, samples = recipe.augmentation.finish(each, world.device)
        yield Batch(global_crops, local_crops, masks.to(world.device), samples, recipe.hides)


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same, each begun when the one before is taken; in a thread."""
    with ThreadPoolExecutor(1, "feed") as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def parts_of(batch: Batch, count: int) -> list[Batch]:
    """A batch in `count` equal ones, crop by crop as it is, its images in order."""
    if count == 1:
        return [batch]
    b, masks = len(batch.samples), batch.masks.masks
    global_crops, local_crops, masked = (
        x.unflatten(0, (-1, b)) for x in (batch.global_crops, batch.local_crops, masks)
    )
    found = []
    for images in torch.arange(b).chunk(count):
        own = slice(int(images[0]), int(images[-1]) + 1)
        some = Masks.of(np.asarray(masked[:, own].flatten(0, 1).cpu()), batch.masks.weights.dtype)
        found.append(
            Batch(
                global_crops[:, own].flatten(0, 1), local_crops[:, own].flatten(0, 1), some.to(masks.device),
                batch.samples[own], batch.hide,
            )
        )  # fmt: skip
    return found

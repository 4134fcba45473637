"""Batches of crops: from images of any kind by worker processes, or from a tensor of small images where it lies.

Promise: the batch of a step is a function of (images, augmentation, plan, step), whatever the number of workers, and whatever was
loaded before. An image that can't be read is reported, and the next one that can takes its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dinokit.errors import ImageError
from dinokit.train.data.crops import boxes, crop_numbers, crop_pixels, crop_tensors
from dinokit.train.data.recipe import Augmentation
from dinokit.train.data.sampler import Plan
from dinokit.train.data.sources import Boxes, Images, pixels_and_boxes
from dinokit.train.data.views import Unreadable, Views

# So many unreadable images in a row are no accident: a disk went away, or these are no images.
MOST_UNREADABLE = 100


class Batches(Dataset[Views]):
    """`batches[step]` is this process's share of a step, as 8-bit crops."""

    def __init__(self, images: Images, augmentation: Augmentation, plan: Plan) -> None:
        _check_length(len(images), plan)
        self.images, self.augmentation, self.plan = images, augmentation, plan

    def __getitem__(self, step: int) -> Views:
        """The crops of a step.

        Raises:
            ImageError: too many images in a row can't be read.
        """
        visits = self.plan.visits(step)
        rules = self.augmentation.crop_rules()
        numbers = [crop_numbers(self.augmentation.seed, visits, first, rule.count) for rule, first in rules]
        # colours next to each other in memory, as they come from the resize
        out = [torch.empty((rule.count, len(visits), rule.size, rule.size, 3), dtype=torch.uint8) for rule, _ in rules]
        read, unreadable = np.empty_like(visits), list[Unreadable]()
        for i, index in enumerate(self.plan.order.images(visits).tolist()):
            pixels, found, read[i] = self._read(index, [x[i] for x in numbers], unreadable)
            for crops, (places, size) in zip(out, found, strict=True):
                for crop, part in enumerate(crop_pixels(pixels, places, size)):
                    crops[crop, i] = part.permute(1, 2, 0)
        global_crops, local_crops = (x.flatten(0, 1).permute(0, 3, 1, 2) for x in out)
        return Views(global_crops, local_crops, torch.from_numpy(visits), torch.from_numpy(read), tuple(unreadable))

    def _read(
        self, index: int, numbers: list[Float64[np.ndarray, "_ t 4"]], unreadable: list[Unreadable]
    ) -> tuple[UInt8[np.ndarray, "h w 3"], Boxes, int]:
        """Pixels, boxes and index of the image, or of the first readable one after it."""
        rules = self.augmentation.crop_rules()

        def choose(height: int, width: int) -> Boxes:
            return [(boxes(x, height, width, rule), rule.size) for x, (rule, _) in zip(numbers, rules, strict=True)]

        tried = index
        for _ in range(min(MOST_UNREADABLE, len(self.images))):
            try:
                return *pixels_and_boxes(self.images[tried], choose), tried
            except ImageError as error:
                unreadable.append(Unreadable(tried, error.code, str(error)))
            tried = (tried + 1) % len(self.images)
        last = unreadable[-1]
        raise ImageError(
            last.code,
            f"images {index} to {last.index} can't be read, one after the other; the last: {last.message} "
            f"Look whether the images are there.",
        )


@dataclass(frozen=True)
class Steps:
    """Steps `start` to `stop`, as a sampler."""

    start: int
    stop: int

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)


def load_batches(
    images: Images,
    augmentation: Augmentation,
    plan: Plan,
    start: int,
    stop: int,
    *,
    workers: int = 0,
    ahead: int = 2,
    pin_memory: bool = False,
    start_method: str = "spawn",
) -> DataLoader[Views]:
    """Steps `start` to `stop` in order, each made whole by one of `workers` processes, `ahead` of them each in advance.

    Continuing needs the number of the step, and nothing else. Processes are started anew ("spawn"), so that threads and an
    accelerator in this one do no harm; `images` is then pickled once for each.
    """
    return DataLoader(
        Batches(images, augmentation, plan),
        batch_size=None,
        sampler=Steps(start, stop),
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        multiprocessing_context=start_method if workers else None,
        generator=torch.Generator(),  # else the loader takes a number from the global one
    )


@dataclass(frozen=True)
class TensorBatches:
    """The same from a tensor of images of one size, cropped where they lie: no files, no workers, no copies to the device.

    For images of at most a few hundred pixels; see `crop_tensors`.
    """

    images: UInt8[Tensor, "n 3 h w"]
    augmentation: Augmentation
    plan: Plan

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise ValueError(
                f"images are {self.images.dtype} of shape {tuple(self.images.shape)}; they must be 8 bits, of shape (n, 3, h, w)."
            )
        _check_length(len(self.images), self.plan)

    def __getitem__(self, step: int) -> Views:
        """The crops of a step, on the device of the images."""
        visits = self.plan.visits(step)
        device = self.images.device
        indices = torch.from_numpy(self.plan.order.images(visits)).to(device)
        some = self.images[indices]
        made = []
        for rule, first in self.augmentation.crop_rules():
            numbers = crop_numbers(self.augmentation.seed, visits, first, rule.count)
            places: Int64[np.ndarray, "b c 4"] = boxes(numbers, some.shape[2], some.shape[3], rule)
            found = [crop_tensors(some, torch.from_numpy(x).to(device), rule.size) for x in places.swapaxes(0, 1)]
            made.append(torch.cat(found) if found else some.new_empty((0, 3, rule.size, rule.size)))
        return Views(made[0], made[1], torch.from_numpy(visits), indices)


def _check_length(num_images: int, plan: Plan) -> None:
    if num_images != plan.order.num_images:
        raise ValueError(
            f"there are {num_images} images, and the plan orders {plan.order.num_images}; make it with Order({num_images})."
        )

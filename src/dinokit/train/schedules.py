"""Rates as functions of the iteration, small enough to be put together; and the published recipes.

Promise: pure functions of the iteration, defined for every iteration (the last value holds on), float64.
Source: dinov2/utils/utils.py, dinov2/train/train.py and dinov2/configs (facebookresearch/dinov2); WSD: Hu et al. 2024 (MiniCPM).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """Always the same."""

    value: float

    def __call__(self, iteration: int) -> float:  # noqa: ARG002 - a `Schedule`
        """The value."""
        return self.value


@dataclass(frozen=True)
class Linear:
    """A straight line from `start` to `end`, which iteration `iterations - 1` reaches; `end` from there on."""

    start: float
    end: float
    iterations: int

    def __call__(self, iteration: int) -> float:
        """The value."""
        if iteration >= self.iterations - 1:
            return self.end
        return self.start + (self.end - self.start) * iteration / (self.iterations - 1)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `start` to `end`, which iteration `iterations` reaches; `end` from there on."""

    start: float
    end: float
    iterations: int

    def __call__(self, iteration: int) -> float:
        """The value."""
        if iteration >= self.iterations:
            return self.end
        return self.end + 0.5 * (self.start - self.end) * (1 + math.cos(math.pi * iteration / self.iterations))


@dataclass(frozen=True)
class InverseSquareRoot:
    """A fall `start` (1 - sqrt(t / iterations)), the cool-down that lost least in Hägele et al. 2024; 0 from there on."""

    start: float
    iterations: int

    def __call__(self, iteration: int) -> float:
        """The value."""
        return self.start * (1 - math.sqrt(min(iteration / self.iterations, 1.0)))


@dataclass(frozen=True)
class Then:
    """`first` for so many iterations, then `second`, which counts from 0 again."""

    first: Schedule
    iterations: int
    second: Schedule

    def __call__(self, iteration: int) -> float:
        """The value."""
        if iteration < self.iterations:
            return self.first(iteration)
        return self.second(iteration - self.iterations)


@dataclass(frozen=True)
class Frozen:
    """0 for so many iterations, then `schedule` where it is by then."""

    iterations: int
    schedule: Schedule

    def __call__(self, iteration: int) -> float:
        """The value."""
        return 0.0 if iteration < self.iterations else self.schedule(iteration)


def warm_up(peak: float, iterations: int, then: Schedule, start: float = 0.0) -> Schedule:
    """A straight line to `peak`, then `then`; as in the official code, two iterations in a row hold the peak."""
    return Then(Linear(start, peak, iterations), iterations, then)


def warm_up_cosine(peak: float, end: float, iterations: int, warm_up_iterations: int, start: float = 0.0) -> Schedule:
    """Warm-up and half a cosine to `end` within `iterations` in all."""
    return warm_up(peak, warm_up_iterations, Cosine(peak, end, iterations - warm_up_iterations), start)


def warm_up_stable_decay(peak: float, iterations: int, warm_up_iterations: int, decay_iterations: int) -> Schedule:
    """Warm-up, the peak, and a fall to 0 within the last iterations: a run can be prolonged from where the fall began."""
    stable = iterations - warm_up_iterations - decay_iterations
    return warm_up(peak, warm_up_iterations, Then(Constant(peak), stable, InverseSquareRoot(peak, decay_iterations)))


@dataclass(frozen=True)
class Rates:
    """What one step is taken with."""

    lr: float
    last_layer_lr: float
    weight_decay: float
    momentum: float
    teacher_temperature: float


@dataclass(frozen=True)
class Schedules:
    """One schedule a rate; called with an iteration, `Rates`."""

    lr: Schedule
    last_layer_lr: Schedule
    weight_decay: Schedule
    momentum: Schedule
    teacher_temperature: Schedule

    def __call__(self, iteration: int) -> Rates:
        """The rates of one iteration, counted from 0."""
        return Rates(
            self.lr(iteration),
            self.last_layer_lr(iteration),
            self.weight_decay(iteration),
            self.momentum(iteration),
            self.teacher_temperature(iteration),
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers behind `Schedules`; lengths in iterations, whatever the data.

    `base_lr` is for a global batch of 1024 images and grows with its square root.
    """

    iterations: int
    batch_size: int
    base_lr: float
    warm_up: int
    weight_decay_end: float
    momentum: float
    teacher_temperature_warm_up: int
    last_layer_freeze: int = 1250
    min_lr: float = 1e-6
    weight_decay: float = 0.04
    momentum_end: float = 1.0
    teacher_temperature: float = 0.04
    teacher_temperature_end: float = 0.07

    @property
    def lr(self) -> float:
        """The peak."""
        return self.base_lr * math.sqrt(self.batch_size / 1024)

    def schedules(self) -> Schedules:
        """One schedule a rate."""
        lr = warm_up_cosine(self.lr, self.min_lr, self.iterations, self.warm_up)
        return Schedules(
            lr,
            Frozen(self.last_layer_freeze, lr),
            Cosine(self.weight_decay, self.weight_decay_end, self.iterations),
            Cosine(self.momentum, self.momentum_end, self.iterations),
            Linear(self.teacher_temperature, self.teacher_temperature_end, self.teacher_temperature_warm_up),
        )


RECIPES: dict[str, Recipe] = {
    # ViT-L/16 on ImageNet-1k
    "short": Recipe(
        iterations=125_000, batch_size=2048, base_lr=4e-3, warm_up=12_500, weight_decay_end=0.4, momentum=0.992,
        teacher_temperature_warm_up=37_500,
    ),
    # ViT-L/14 and ViT-g/14 on ImageNet-22k
    "long": Recipe(
        iterations=625_000, batch_size=3072, base_lr=2e-4, warm_up=100_000, weight_decay_end=0.2, momentum=0.994,
        teacher_temperature_warm_up=37_500,
    ),
}  # fmt: skip

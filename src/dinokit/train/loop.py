"""The loop: one step after the other, looking, logging and saving as the recipe says.

Promise: interrupted equals uninterrupted, bit for bit on a CPU. A step whose numbers are not finite changes nothing and is kept for a
look; three of them in a row end the run. Order of a step: docs/training.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from dinokit.train.feed import Feed, parts_of
from dinokit.train.guides import NOBODY, Guides
from dinokit.train.network import Batch, Network, TeacherOutputs, crop_subsets
from dinokit.train.optim import clip_gradients
from dinokit.train.parallel import Placed, World, reshard, whole
from dinokit.train.recipe import TrainingRecipe
from dinokit.train.schedules import Rates
from dinokit.train.step import Taught, advance, aim, learn

BAD_IN_A_ROW = 3


@dataclass(frozen=True)
class Outcome:
    """What a step gave: numbers by name, the same in all processes, and whether it counted."""

    values: dict[str, float]
    finite: bool


@dataclass
class Clock:
    """Where the time goes; of this process."""

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    images: int = 0

    def lap(self) -> dict[str, float]:
        """Images a second and the share of time spent waiting for images, since the last time."""
        now = time.perf_counter()
        seconds = max(now - self.started, 1e-9)
        found = {"images_per_second": self.images / seconds, "data_wait": self.waited / seconds}
        self.started, self.waited, self.images = now, 0.0, 0
        return found


@dataclass(frozen=True)
class Hooks:
    """What the loop calls, with the number of steps taken."""

    log: Callable[[int, Mapping[str, float], Clock], None]
    watch: Callable[[int], None]
    save: Callable[[int], None]
    bad: Callable[[int, Batch, Mapping[str, float], int], None]
    stopping: Callable[[], bool]


def loop(
    placed: Placed, recipe: TrainingRecipe, feed: Feed, world: World, hooks: Hooks, guides: Guides = NOBODY
) -> None:
    """From where the state is to the end of the recipe, or until somebody stops it."""
    state, schedules, bad, clock = placed.state, recipe.rates(), 0, Clock()
    if state.step == 0 and recipe.watch.every:
        hooks.watch(0)
    for batch in _timed(feed(recipe, world, state.step), clock):
        rates = schedules(state.step)
        outcome = step(placed, batch, recipe, rates, world, hooks.stopping(), guides)
        clock.images += len(batch.samples) * world.size
        bad = 0 if outcome.finite else bad + 1
        done, stop = state.step, outcome.values.pop("stop") > 0
        last = stop or done == recipe.steps
        if not outcome.finite:
            hooks.bad(done, batch, outcome.values, bad)
        elif last or _due(done, recipe.watch.log_every):
            hooks.log(done, outcome.values | asdict(rates), clock)
        if _due(done, recipe.watch.every) or (done == recipe.steps and recipe.watch.every):
            hooks.watch(done)
        if last or _due(done, recipe.save.every):
            hooks.save(done)
        if stop:
            return


def step(
    placed: Placed,
    batch: Batch,
    recipe: TrainingRecipe,
    rates: Rates,
    world: World,
    stop: bool = False,
    guides: Guides = NOBODY,
) -> Outcome:
    """Targets of the whole batch, losses and gradients part by part, clipping, and, if all is finite, the update.

    Targets of all parts are formed together, so that Sinkhorn-Knopp and centres see the batch however it is accumulated; KoLeo sees
    a part (of all processes).
    """
    state, n = placed.state, recipe.accumulate
    objective, parts = recipe.objective(state.step), parts_of(batch, n)
    taught: Taught | None = None
    if recipe.by_heads:
        with _precision(recipe, world):
            logits = _teach(guides.heads or state.teacher, parts)
            taught = aim(logits, state.centers, rates.teacher_temperature, objective, world.group)
    terms: list[dict[str, Tensor]] = []
    for i, (part, own) in enumerate(zip(parts, _targets_of(taught, parts), strict=True)):
        subsets = crop_subsets(recipe.seed, state.step, part, _drop_path(recipe), recipe.drop_path_group)
        with _synced(placed, last=i == n - 1):
            with _precision(recipe, world):
                shown = guides.show(part, recipe, objective, state.step)
                found = learn(placed, part, own, objective, subsets, world.group, shown)
            (found.total / n).backward()
        terms.append({"loss": found.total.detach(), **found.terms})
    norms = {f"norm_{name}": whole(norm) for name, norm in clip_gradients(state.student, recipe.optimizer.clip).items()}
    values = {name: torch.stack([each[name] for each in terms]).mean() for name in terms[0]}
    values |= norms if taught is None else taught.watch | norms
    numbers = _everywhere(values | {"stop": torch.tensor(float(stop))}, world)
    if taught is not None:
        numbers["dino"] = numbers["dino_local"] + numbers["dino_global"]
    finite = all(math.isfinite(numbers[name]) for name in ("loss", *norms))
    if finite:
        if state.step < recipe.schedule.backbone_freeze:
            for parameter in state.student.backbone.parameters():
                parameter.grad = None
        advance(state, {} if taught is None else taught.centers, rates)
    else:
        state.student.zero_grad(set_to_none=True)
        state.step += 1
    return Outcome(numbers, finite)


def _teach(teacher: Network, parts: list[Batch]) -> TeacherOutputs:
    """A teacher's logits of all parts, one part after the other."""
    found = [teacher.teach(part) for part in parts]
    reshard(teacher)
    return TeacherOutputs(*(torch.cat(logits) if len(logits) > 1 else logits[0] for logits in zip(*found, strict=True)))


def _targets_of(taught: Taught | None, parts: list[Batch]) -> Iterator[Taught | None]:
    """Each part's rows of the targets."""
    if taught is None:
        yield from [None] * len(parts)
        return
    rows = taught.targets.split([len(part.global_crops) for part in parts])
    patches = taught.patch_targets.split([len(part.masks.indices) for part in parts])
    for own, own_patches in zip(rows, patches, strict=True):
        yield Taught(own, own_patches, taught.watch, taught.centers)


def _everywhere(values: Mapping[str, Tensor], world: World) -> dict[str, float]:
    """Means over the processes as plain numbers, with one exchange and one wait for the device."""
    stacked = torch.stack([value.detach().to(world.device, torch.float64) for value in values.values()])
    return dict(zip(values, world.mean(stacked).tolist(), strict=True))


def _synced(placed: Placed, *, last: bool) -> Any:
    from contextlib import nullcontext

    return nullcontext() if last else placed.without_sync()


def _precision(recipe: TrainingRecipe, world: World) -> torch.autocast:
    return torch.autocast(world.device.type, torch.bfloat16, enabled=recipe.precision == "bf16")


def _drop_path(recipe: TrainingRecipe) -> tuple[float, ...]:
    return (recipe.drop_path,) * recipe.model.depth


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _timed(batches: Iterator[Batch], clock: Clock) -> Iterator[Batch]:
    """The same, with the time spent waiting for each."""
    while True:
        begun = time.perf_counter()
        batch = next(batches, None)
        clock.waited += time.perf_counter() - begun
        if batch is None:
            return
        yield batch

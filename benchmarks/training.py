"""Where a training step's time goes, and how many images a second it takes: `python benchmarks/training.py [recipe] [key=value ...]`.

Images are random and in memory, so that this measures the trainer and not a disk. Times of parts are of one step after the other,
with the device waited for after each part.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dinokit.model.cost import flops
from dinokit.train import loop
from dinokit.train.feed import TensorFeed
from dinokit.train.optim import GroupRule, adamw, parameter_groups
from dinokit.train.parallel import World, place
from dinokit.train.recipes import resolve
from dinokit.train.run import _prepare, build_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="two_minutes")
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    warm = 5
    recipe = resolve(options.recipe, [*options.settings, f"steps={options.steps + warm}"])
    world = World(0, 1, torch.device(options.device))
    rule = GroupRule(recipe.optimizer.layerwise_decay, recipe.optimizer.patch_embed)
    placed = place(build_network(recipe), lambda n: [adamw(parameter_groups(n, rule))], world)
    _prepare(placed.state, recipe)
    size = recipe.augmentation.global_crops.size
    images = torch.randint(0, 256, (options.images, 3, size * 5 // 4, size * 5 // 4), dtype=torch.uint8)
    spent: dict[str, float] = defaultdict(float)

    def wait() -> float:
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        begun = wait()
        yield
        spent[name] += wait() - begun

    def wrap(name: str, function):
        def called(*arguments, **keywords):
            with timed(name):
                return function(*arguments, **keywords)

        return called

    for name in ("_teach", "aim", "learn", "clip_gradients", "advance"):
        setattr(loop, name, wrap(name.strip("_"), getattr(loop, name)))
    schedules, batches = recipe.rates(), TensorFeed(images)(recipe, world, 0)
    begun = 0.0
    for i in range(options.steps + warm):
        if i == warm:
            spent.clear()
            begun = wait()
        with timed("batch"):
            batch = next(batches)
        with timed("step"):
            loop.step(placed, batch, recipe, schedules(i), world)
    seconds = (wait() - begun) / options.steps
    spent["backward"] = spent["step"] - sum(spent[n] for n in ("teach", "aim", "learn", "clip_gradients", "advance"))
    forward = flops(recipe.model, (size, size))
    found = {
        "recipe": recipe.name,
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "images_per_second": recipe.batch_size / seconds,
        "milliseconds_a_step": 1000 * seconds,
        "parts_in_milliseconds": {name: round(1000 * t / options.steps, 2) for name, t in spent.items()},
        "gflop_forward_of_a_global_crop": forward / 1e9,
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

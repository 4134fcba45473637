"""What `dinokit train` reads: a folder, or images that are calculated; and what it looks at meanwhile.

Promise: the images that are looked at, and in which order, depend on the source alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from torch import Tensor

    from dinokit.model import VisionTransformer
    from dinokit.train.data import Unreadable
    from dinokit.train.feed import Feed
    from dinokit.train.network import Batch
    from dinokit.train.parallel import World
    from dinokit.train.recipe import TrainingRecipe
    from dinokit.train.run import Watched

PREFIX = "procedural:"
GENERATORS = ("textures", "leaves", "shapetex", "mixture")
TEXTURES, MIXED, TESTS = 8000, 24_000, 1000
MADE = 100_000
# Presets that were made for calculated images
CALCULATED = {f"{PREFIX}textures": "two_minutes", f"{PREFIX}mixture": "tiny_procedural"}
NEIGHBOURS = 20
MOST_LABELLED = 2000
SMALL, BASE = 10_000, 300_000  # images from which the next larger recipe is meant


@dataclass(frozen=True)
class Source:
    """Images to train on; `watch` gives what to look at, once the recipe says how large it is to be."""

    feed: Feed
    watch: Callable[[TrainingRecipe], Watched]
    about: dict[str, Any]

    @property
    def recipe(self) -> str:
        """The preset for so many images."""
        if self.about["images"] in CALCULATED:
            return CALCULATED[self.about["images"]]
        n = self.feed.num_images
        return "tiny" if n < SMALL else "small" if n < BASE else "base"


def open_source(name: str, labels: Path | None, workers: int, tell: Callable[[Unreadable], object]) -> Source:
    """A folder, or `procedural:NAME`.

    Raises:
        click.BadParameter: neither.
    """
    if name.startswith(PREFIX):
        return _procedural(name.removeprefix(PREFIX), workers, labels)
    from dinokit.train.data import image_files
    from dinokit.train.feed import ImageFeed

    if not Path(name).is_dir():
        raise click.BadParameter(
            f"{name!r} is no folder; give one, or {PREFIX}NAME with one of {', '.join(GENERATORS)}.",
            param_hint="SOURCE",
        )
    try:
        paths = image_files(name)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="SOURCE") from error
    about = {"images": name, "number of images": len(paths)}
    return Source(ImageFeed(paths, workers, tell), lambda recipe: _watched(recipe, paths, labels), about)


def _procedural(name: str, workers: int, labels: Path | None) -> Source:
    from dinokit.train.feed import ImageFeed

    about = {"images": PREFIX + name}
    if name in ("textures", "mixture"):

        def watch(recipe: TrainingRecipe) -> Watched:
            from dinokit.train.data.textures import Textures

            test = Textures(TESTS, seed=1)
            return _labelled(recipe, list(test.batch(range(TESTS))), test.labels().tolist())

        feed = _Made(name, TEXTURES if name == "textures" else MIXED)
        return Source(feed, watch, about | {"number of images": feed.num_images})
    if name not in GENERATORS:
        raise click.BadParameter(f"{name!r} is none of {', '.join(GENERATORS)}.", param_hint="SOURCE")
    images: Any
    if name == "leaves":
        from dinokit.train.data.procedural import Procedural

        images = Procedural(MADE, size=256)
    else:
        from dinokit.train.data.shapetex import ShapeTex

        images = ShapeTex(MADE)
    return Source(
        ImageFeed(images, workers), lambda recipe: _watched(recipe, images, labels), about | {"number of images": MADE}
    )


class _Made:
    """Made when they are needed, which takes seconds for textures and half a minute for the mixture."""

    def __init__(self, name: str, num_images: int) -> None:
        self.name, self.num_images = name, num_images

    def __call__(self, recipe: TrainingRecipe, world: World, start: int) -> Iterator[Batch]:
        from dinokit.train.data.mixture import Mixture
        from dinokit.train.data.textures import Textures
        from dinokit.train.feed import TensorFeed

        made = Textures(self.num_images) if self.name == "textures" else Mixture(self.num_images)
        return TensorFeed(made.tensor())(recipe, world, start)


def _watched(recipe: TrainingRecipe, images: Any, labels: Path | None) -> Watched:
    """The first images, or as many labelled ones as there are in folders by class."""
    if labels is not None:
        from dinokit.train.data import image_files

        paths = image_files(labels)
        classes = sorted({Path(path).parent for path in paths})
        if len(classes) < 2:
            raise click.BadParameter(f"{labels}: labels are folders, one a class, at least two.", param_hint="--labels")
        step = -(-len(paths) // MOST_LABELLED)  # every so many, so that all classes are among them
        chosen = paths[::step]
        return _labelled(recipe, chosen, [classes.index(Path(path).parent) for path in chosen])
    from dinokit.train.run import Watched

    step = max(1, len(images) // recipe.watch.images)
    return Watched(_pixels(recipe, [images[i] for i in range(0, len(images), step)][: recipe.watch.images]))


def _labelled(recipe: TrainingRecipe, images: Sequence[Any], labels: Sequence[int]) -> Watched:
    from dinokit.train.run import Watched

    pixels = _pixels(recipe, images)
    step = max(1, len(pixels) // recipe.watch.images)
    return Watched(pixels[::step][: recipe.watch.images], (KnnWatcher(pixels, labels),))


def _pixels(recipe: TrainingRecipe, images: Sequence[Any]) -> Tensor:
    from dinokit.errors import ImageError
    from dinokit.train.export import transform_of

    transform, found = transform_of(recipe), []
    for image in images:
        try:
            found.append(transform(image))
        except ImageError as error:
            raise click.UsageError(f"an image to look at can't be read: {error}") from error
    import torch

    return torch.stack(found)


class KnnWatcher:
    """Accuracy of the 20 nearest neighbours by class token, each image judged by all others."""

    def __init__(self, pixels: Tensor, labels: Sequence[int]) -> None:
        import torch

        self.pixels, self.labels = pixels, torch.tensor(labels)

    def __call__(self, backbone: VisionTransformer) -> dict[str, float]:
        """`knn`."""
        import torch

        from dinokit.evals.knn import knn_leave_one_out

        with torch.no_grad():
            parts = [backbone(x.to(backbone.cls_token)).cls.float().cpu() for x in self.pixels.split(64)]
        features = torch.cat(parts)
        if not torch.isfinite(features).all():
            return {"knn": 0.0}
        score = knn_leave_one_out(features, self.labels, ks=(NEIGHBOURS,), centred=True)
        return {"knn": score.top1[NEIGHBOURS]}

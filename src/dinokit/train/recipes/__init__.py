"""The presets: functions that return a `TrainingRecipe`, each with its command, cost and result; and changes to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from dinokit.config import VARIANTS
from dinokit.train.recipe import TrainingRecipe
from dinokit.train.recipes.pretraining import base, paper_long, paper_short, published_shape, small, tiny
from dinokit.train.recipes.procedural import tiny_procedural, two_minutes
from dinokit.train.recipes.stages import continued, distill, distill_features, gram, high_res, post_hoc_registers
from dinokit.train.settings import with_settings

RECIPES: dict[str, Callable[[], TrainingRecipe]] = {
    f.__name__: f
    for f in (
        tiny,
        small,
        base,
        paper_short,
        paper_long,
        continued,
        high_res,
        gram,
        distill,
        distill_features,
        post_hoc_registers,
        two_minutes,
        tiny_procedural,
    )
}

# A function can't be called by a keyword's name.
ALIASES = {"continue": "continued"}


def resolve(name: str, assignments: Iterable[str] = ()) -> TrainingRecipe:
    """The preset `name` with `key=value` texts applied; `model=vitb14_reg` gives a published shape.

    Raises:
        ValueError: no such preset or setting, or a value that does not fit.
    """
    known = ALIASES.get(name, name.replace("-", "_"))
    if known not in RECIPES:
        raise ValueError(f"no recipe {name!r}; use one of {', '.join(RECIPES)}.")
    return changed(RECIPES[known](), assignments)


def changed(recipe: TrainingRecipe, assignments: Iterable[str]) -> TrainingRecipe:
    """A recipe with `key=value` texts applied."""
    settings = list(assignments)
    for shape in [text.removeprefix("model=").strip() for text in settings if text.startswith("model=")]:
        if shape not in VARIANTS:
            raise ValueError(
                f"model is {shape!r}; it must be one of {', '.join(VARIANTS)}, or set model.embed_dim and so on."
            )
        model = published_shape(shape, recipe.model.patch_size).replace(
            image_size=recipe.model.image_size, layer_scale_init=recipe.model.layer_scale_init
        )
        recipe = replace(recipe, model=model)
    return with_settings(recipe, [text for text in settings if not text.startswith("model=")])

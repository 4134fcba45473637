"""From a trained teacher to files: weights in any layout, the whole with its heads, and a card that says what they are.

Promise: what is written opens with `dinokit.load` and gives the teacher's tokens; the card states the weights' sha256, the recipe and
the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinokit._version import __version__
from dinokit.atomic import file_sha256, write_atomically
from dinokit.images import ImageTransform
from dinokit.model import VisionTransformer
from dinokit.train.log import ALARM, SKIPPED, TRAIN, WATCH, Record
from dinokit.train.network import Network
from dinokit.train.recipe import TrainingRecipe
from dinokit.train.settings import to_json
from dinokit.weights import files
from dinokit.weights.load import Pretrained, Provenance
from dinokit.weights.save import FOLDER_LAYOUTS, save

WEIGHTS, HEADS, CARD = "model", "teacher_with_heads.pth", "README.md"


def pretrained(backbone: VisionTransformer, recipe: TrainingRecipe, name: str = "") -> Pretrained:
    """A trained backbone with the transform that suits how it was trained: its global crops' size and normalisation."""
    path = Path(name or recipe.name)
    found = Provenance(name=name or recipe.name, path=path, files=(path,), layout="official")
    return Pretrained(model=backbone.eval(), transform=transform_of(recipe), provenance=found)


def transform_of(recipe: TrainingRecipe) -> ImageTransform:
    """How images are prepared for what a recipe trains: cropped to the size of its global crops, in the published proportion."""
    aug = recipe.augmentation
    return ImageTransform(mean=aug.mean, std=aug.std).at_size((aug.global_crops.size,) * 2)


def export(
    teacher: Network,
    recipe: TrainingRecipe,
    records: Sequence[Record],
    folder: Path,
    about: Mapping[str, Any] | None = None,
    layouts: Sequence[str] = ("hf",),
) -> Path:
    """Write `folder`: the backbone in each of `layouts`, the teacher with its heads, if any, under Meta's names, and a model card.

    Raises:
        WeightsError: a layout can't hold this network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pre = pretrained(teacher.backbone, recipe)
    written = [save_backbone(pre, folder, layout) for layout in layouts]
    if teacher.dino_head is not None:
        state = {name: tensor.detach().cpu().clone() for name, tensor in teacher.state_dict().items()}
        state = {name: tensor for name, tensor in state.items() if not name.startswith("adapter.")}
        written.append(files.write_pickle(folder / HEADS, {"teacher": state}))
    text = card(recipe, records, about or {}, written, folder)
    write_atomically(folder / CARD, lambda file: file.write(text.encode()))
    return folder


def save_backbone(pre: Pretrained, folder: Path, layout: str) -> Path:
    """A folder `model` (transformers' layout), `model_timm`, or a file `model_LAYOUT.safetensors` for those that are one file."""
    name = WEIGHTS if layout == "hf" else f"{WEIGHTS}_{layout}"
    target = folder / (name if layout in FOLDER_LAYOUTS else f"{name}.safetensors")
    return save(pre, target, layout, overwrite=True, keep_position_rule=layout == "hf")


def card(
    recipe: TrainingRecipe, records: Sequence[Record], about: Mapping[str, Any], written: Sequence[Path], folder: Path
) -> str:
    """The model card, in Markdown with the hub's header."""
    m, licence = recipe.model, str(about.get("license", "other"))
    step = records[-1]["step"] if records else recipe.steps
    registers = f"{m.num_register_tokens} registers" if m.num_register_tokens else "no registers"
    crops = recipe.augmentation
    lines = [
        "---",
        "library_name: dinokit",
        f"license: {licence}",
        "tags: [dinov2, self-supervised, image-feature-extraction]",
        "---",
        f"# {about.get('name', recipe.name)}",
        "",
        f"A vision transformer trained without labels {_how(recipe)}: {m.depth} blocks of width {m.embed_dim}, patches of "
        f"{m.patch_size} pixels, {registers}. These are the averaged weights after {step:,} steps of {recipe.batch_size} images.",
        "",
        "```python",
        "import dinokit",
        "",
        'pre = dinokit.load("model")',
        'tokens = pre("photo.jpg")  # .cls, .registers, .patch_map',
        "```",
        "",
        "## Data",
        "",
        *([f"- {key}: {value}" for key, value in about.items() if key not in ("license", "name")] or ["- not stated"]),
        f"- crops: 2 of {crops.global_crops.size} pixels, {crops.local_crops.count} of {crops.local_crops.size}",
        f"- normalised by mean {crops.mean}, standard deviation {crops.std}",
        "",
        "## Measured",
        "",
        *_measured(records),
        "",
        "## Files",
        "",
        "| file | sha256 |",
        "|---|---|",
        *(f"| {path.relative_to(folder)} | `{file_sha256(path)}` |" for path in _files(written)),
        "",
        *(
            [
                f"`{HEADS}` holds the projection heads, too: with them training can go on, or a smaller network be taught.",
                "",
            ]
            if folder / HEADS in written
            else []
        ),
        "## Licence",
        "",
        f"{licence}. " + " ".join(f"It {how} {name}, whose licence holds as well." for how, name in _others(recipe)),
        "",
        "## Recipe",
        "",
        "```json",
        json.dumps(to_json(recipe), indent=2),
        "```",
        "",
        f"Written by dinokit {__version__}.",
        "",
    ]
    return "\n".join(lines)


def _how(recipe: TrainingRecipe) -> str:
    """By what it was trained, in words."""
    found = ["by the DINOv2 objective"] if recipe.by_heads and recipe.distill.mode == "off" else []
    if recipe.distill.mode != "off":
        what = "features" if recipe.distill.mode == "features" else "projection heads"
        found.append(f"by the {what} of a frozen teacher ({recipe.distill.teacher})")
    if recipe.gram.weight:
        found.append(f"with the similarities between patches held to those of {recipe.gram.anchor} (Gram anchoring)")
    return ", ".join(found)


def _others(recipe: TrainingRecipe) -> list[tuple[str, str]]:
    """(What it has from it, name) of the networks that a recipe names, each once."""
    named = {recipe.gram.anchor: "is held to", recipe.distill.teacher: "was taught by", recipe.init: "starts from"}
    return [(how, name) for name, how in reversed(named.items()) if name]


def _measured(records: Sequence[Record]) -> list[str]:
    last: dict[str, Any] = {}
    for record in records:
        if record["kind"] in (TRAIN, WATCH):
            last |= record
    shown = (
        "knn",
        "rankme",
        "loss",
        "dino",
        "ibot",
        "class_features",
        "patch_features",
        "gram",
        "target_entropy",
        "outlier_share",
        "attention_registers",
    )
    rows = [f"| {name} | {last[name]:.4g} |" for name in shown if name in last]
    said = sorted({record["name"] for record in records if record["kind"] == ALARM})
    skipped = sum(record["kind"] == SKIPPED for record in records)
    words = [f"Alarms in this run: {', '.join(said) or 'none'}. Steps skipped: {skipped}."]
    return ["| number, last | value |", "|---|---|", *rows, "", *words] if rows else words


def _files(written: Sequence[Path]) -> list[Path]:
    return [file for path in written for file in (sorted(path.iterdir()) if path.is_dir() else [path])]

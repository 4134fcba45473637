"""From a loaded backbone and labelled images to a fine-tuned model and its files.

Promise: what comes back is what the files give when they are loaded; the backbone that was given stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dinokit.atomic import write_json
from dinokit.model import LinearHead, VisionTransformer
from dinokit.model.dense import DenseModel, DenseSpec, build_head
from dinokit.model.heads import HeadInput
from dinokit.train.counter import Stream
from dinokit.train.finetune.examples import Pair
from dinokit.train.finetune.loop import Chosen, finetune
from dinokit.train.finetune.recipe import CLASSIFY, DEPTH, SEGMENTATION, FinetuneRecipe
from dinokit.train.finetune.tasks import Classification, Classifier, Ranging, Segmenting, TaskOf
from dinokit.train.settings import to_json
from dinokit.weights.heads import DensePretrained, save_dense_head, uncropped
from dinokit.weights.load import Pretrained
from dinokit.weights.save import save, save_head

MODEL, CLASSIFIER_HEAD, DENSE_HEAD, ABOUT = "model", "head.pth", "head.safetensors", "run.json"


def finetune_classifier(
    pre: Pretrained,
    train: Sequence[Pair],
    val: Sequence[Pair],
    folder: str | Path,
    recipe: FinetuneRecipe = CLASSIFY,
    *,
    classes: Sequence[str],
    inputs: HeadInput = "cls+mean",
    **options: Any,
) -> tuple[Pretrained, Chosen]:
    """A linear classifier on `pre`, and the backbone with it as the recipe's mode says; pairs are (image, number of the class).

    `folder`/model opens with `dinokit.load`, the classifier with it; one that reads four blocks has no place in that layout, and lies
    beside as head.pth (`load(folder/model, head=folder/head.pth)`). `options` are those of `finetune`.

    Raises:
        ValueError: fewer than two classes, or a form of a network that does not learn; besides as `finetune`.
    """
    if len(classes) < 2:
        raise ValueError(f"{len(classes)} classes; a classifier needs two.")
    head = _drawn(lambda: LinearHead(pre.config.embed_dim, len(classes), inputs), recipe)
    torch.nn.init.normal_(head.linear.weight, std=0.01, generator=torch.Generator().manual_seed(recipe.seed))
    torch.nn.init.zeros_(head.linear.bias)
    network = Classifier(_learner(pre, recipe), head.to(pre.device))
    chosen = finetune(network, Classification(pre.transform), train, val, folder, recipe, **options)
    found = replace(
        pre,
        model=network.backbone,
        head=head,
        labels=dict(enumerate(classes)),
        transform=pre.transform.at_size((recipe.size, recipe.size)),
    )
    folder = Path(folder)
    whole = inputs == "cls+mean"
    save(found if whole else replace(found, head=None), folder / MODEL, "hf", overwrite=True, keep_position_rule=True)
    if not whole:
        save_head(head, folder / CLASSIFIER_HEAD, overwrite=True)
    _about(folder, "classification", recipe, chosen, {"classes": list(classes), "inputs": inputs})
    return found, chosen


def finetune_dense(
    pre: Pretrained,
    spec: DenseSpec,
    train: Sequence[Pair],
    val: Sequence[Pair],
    folder: str | Path,
    recipe: FinetuneRecipe | None = None,
    *,
    labels: Mapping[int, str] | None = None,
    **options: Any,
) -> tuple[DensePretrained, Chosen]:
    """A dense head on `pre`, and the backbone with it as the recipe's mode says.

    Pairs are (image, mask of classes with 255 for ignored) or (image, depth in metres with 0 for unknown). `folder`/head.safetensors
    holds the head, `folder`/model the backbone where it learned, too; `dinokit.weights.heads.load_dense` opens both.

    Raises:
        ValueError: a form of a network that does not learn; besides as `finetune`.
    """
    recipe = recipe or (SEGMENTATION if spec.task == "segmentation" else DEPTH)
    head = _drawn(lambda: build_head(spec), recipe).to(pre.device)
    network = DenseModel(_learner(pre, recipe), head)
    task: TaskOf = (
        Segmenting(pre.transform, spec.num_outputs)
        if spec.task == "segmentation"
        else Ranging(pre.transform, spec.rule)
    )
    chosen = finetune(network, task, train, val, folder, recipe, **options)
    folder = Path(folder)
    save_dense_head(head, folder / DENSE_HEAD, labels=labels, size=recipe.size, overwrite=True)
    if recipe.mode != "linear":
        tuned = replace(pre, model=network.backbone, head=None, labels=None)
        save(tuned, folder / MODEL, "hf", overwrite=True, keep_position_rule=True)
    _about(folder, spec.task, recipe, chosen, {"head": spec.to_dict(), "backbone": pre.provenance.name})
    return DensePretrained(model=network, transform=uncropped(pre.transform, recipe.size), labels=labels), chosen


def _learner(pre: Pretrained, recipe: FinetuneRecipe) -> VisionTransformer:
    """The backbone, or a copy of it if it will change."""
    if type(pre.model) is not VisionTransformer:
        raise ValueError(
            f"{pre.provenance.name} is a fast or repaired form of a network, which does not learn; give the network it came from."
        )
    return pre.model if recipe.mode == "linear" else copy.deepcopy(pre.model)


def _drawn(make: Callable[[], Any], recipe: FinetuneRecipe) -> Any:
    """A head whose parameters depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Stream(recipe.seed, "head").key[0])
        return make()


def _about(folder: Path, task: str, recipe: FinetuneRecipe, chosen: Chosen, extra: Mapping[str, Any]) -> None:
    write_json(
        folder / ABOUT,
        {"task": task, "recipe": to_json(recipe), "step": chosen.step, "metrics": chosen.metrics, **extra},
    )

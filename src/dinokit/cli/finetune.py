"""`dinokit finetune`: a classifier, a segmentation head or a depth head on any backbone, with labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dinokit.cli.common import choose_device, loading_options, say

if TYPE_CHECKING:
    from dinokit.evals.datasets import Labelled, Paired
    from dinokit.train.finetune import Chosen, FinetuneRecipe
    from dinokit.weights.load import Pretrained

INPUTS = ("cls", "cls+mean", "4cls+mean")
OPENING = ("revision", "cache_dir", "offline", "positions", "num_heads", "trained_size", "allow_missing")


@click.group(name="finetune")
def command() -> None:
    """Train with labels: a classifier, segmentation or depth, on any backbone with registers or without.

    \b
    dinokit finetune classify flowers/ --out run -m facebook/dinov2-with-registers-small
    dinokit finetune segment VOCdevkit/VOC2012 --layout voc --head ms --out run
    dinokit finetune depth nyu/ --head dpt --mode lora --out run --resume
    """


def run_options(function: Any) -> Any:
    """What all three have in common."""
    from dinokit.weights.zoo import DEFAULT_MODEL

    for option in reversed(
        [
            click.argument("data", type=click.Path(path_type=Path)),
            click.option("--out", "-o", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the run."),
            click.option("--model", "-m", envvar="DINOKIT_MODEL", default=DEFAULT_MODEL, show_default=True, help="The backbone."),
            click.option("--mode", type=click.Choice(["linear", "full", "lora"]), default="linear", show_default=True,
                         help="What learns: the head; all; the head and low-rank additions to the backbone."),
            click.option("--steps", type=click.IntRange(1), help="As --set steps=N."),
            click.option("--batch-size", type=click.IntRange(1), help="As --set batch_size=N."),
            click.option("--lr", type=click.FloatRange(0, min_open=True), help="As --set lr=X: the head's learning rate."),
            click.option("--size", type=click.IntRange(1), help="As --set size=N: pixels of crops."),
            click.option("--seed", type=int, help="As --set seed=N."),
            click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting (docs/finetuning.md); repeat it."),
            click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out, if there is one."),
            click.option("--limit", type=click.IntRange(1), help="So many images of each set only."),
            click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Threads that read images."),
            click.option("--device", envvar="DINOKIT_DEVICE", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."),
            click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout at the end."),
            *loading_options(),
        ]
    ):  # fmt: skip
        function = option(function)
    return function


@command.command(no_args_is_help=True)
@click.option("--inputs", type=click.Choice(INPUTS), default="cls+mean", show_default=True,
              help="What the classifier reads: class token, mean patch, class tokens of four blocks.")  # fmt: skip
@click.option("--devkit", type=click.Path(path_type=Path), help="ImageNet's, where val/ has no folders by class.")
@run_options
def classify(data: Path, inputs: Any, devkit: Path | None, **options: Any) -> int:
    """A classifier. DATA has train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg (nothing to judge by then).

    RUN/model opens with dinokit.load and dinokit embed, the classifier with it.
    """
    from dinokit.evals.datasets import read_image_folder
    from dinokit.train.finetune import CLASSIFY, finetune_classifier

    train, val = read_image_folder(data, devkit)
    if val is None:
        say(f"{data} has no val folder; the last network is kept, unjudged.")

    def run(pre: Pretrained, recipe: FinetuneRecipe, **rest: Any) -> Chosen:
        limit = options["limit"]
        pairs, judged = _labelled(train, limit), _labelled(val, limit) if val else []
        return finetune_classifier(
            pre, pairs, judged, options["out"], recipe, classes=train.classes, inputs=inputs, **rest
        )[1]

    return _finish(run, CLASSIFY, options)


@command.command(no_args_is_help=True)
@click.option("--layout", type=click.Choice(["ade20k", "voc", "folders"]), default="folders", show_default=True,
              help="folders: train/images, train/masks, val/images, val/masks.")  # fmt: skip
@click.option("--head", type=click.Choice(["linear", "ms", "dpt"]), default="linear", show_default=True)
@click.option("--classes", type=click.IntRange(2), help="By default counted in the train masks; ADE20K 150, VOC 21.")
@run_options
def segment(data: Path, layout: str, head: Any, classes: int | None, **options: Any) -> int:
    """Segmentation: a class for every pixel. Masks hold the classes' numbers, 255 is ignored.

    RUN/head.safetensors opens with dinokit.weights.heads.load_dense.
    """
    from dinokit.evals.annotations import read_mask
    from dinokit.evals.datasets import read_ade20k, read_pairs, read_voc_segmentation
    from dinokit.model.dense import dense_spec
    from dinokit.train.finetune import SEGMENTATION, finetune_dense

    if layout == "folders":
        parts = [read_pairs(data, name) for name in ("train", "val")]
    elif layout == "ade20k":
        parts = [read_ade20k(data, name) for name in ("training", "validation")]
    else:
        parts = [read_voc_segmentation(data, name) for name in ("train", "val")]
    train, val = (
        _Pairs(part, lambda path: read_mask(path, zero_is_other=layout == "ade20k"), options["limit"]) for part in parts
    )
    count = classes or {"ade20k": 150, "voc": 21}.get(layout) or _count(train)

    def run(pre: Pretrained, recipe: FinetuneRecipe, **rest: Any) -> Chosen:
        spec = dense_spec("segmentation", head, pre.config.embed_dim, pre.config.depth, count)
        return finetune_dense(pre, spec, train, val, options["out"], recipe, **rest)[1]

    return _finish(run, SEGMENTATION, options)


@command.command(no_args_is_help=True)
@click.option("--head", type=click.Choice(["linear", "ms", "dpt"]), default="linear", show_default=True,
              help="ms reads four blocks (Meta's linear4).")  # fmt: skip
@click.option("--train-list", type=click.Path(path_type=Path), help="Text file: image, depth on each line, below DATA.")
@click.option("--val-list", type=click.Path(path_type=Path), help="The same to judge by.")
@click.option(
    "--unit", type=click.FloatRange(0, min_open=True), default=1000.0, show_default=True, help="A metre in the files."
)
@click.option("--nearest", type=float, default=0.001, show_default=True, help="Metres.")
@click.option("--farthest", type=float, default=10.0, show_default=True, help="Metres.")
@click.option("--bins", type=click.IntRange(1), help="1: regression. By default 256, for dpt 1.")
@click.option(
    "--spacing", type=click.Choice(["uniform", "log"]), default="uniform", show_default=True, help="Of the bins."
)
@click.option(
    "--weighting", type=click.Choice(["linear", "softmax"]), default="linear", show_default=True, help="Of the bins."
)
@run_options
def depth(
    data: Path, head: Any, train_list: Path | None, val_list: Path | None, unit: float, bins: int | None, **options: Any
) -> int:
    """Depth in metres. DATA has train/images, train/depth, val/images, val/depth (16-bit PNG), or is what the lists' paths start from.

    RUN/head.safetensors opens with dinokit.weights.heads.load_dense.
    """  # fmt: skip
    from dinokit.evals.annotations import read_depth
    from dinokit.evals.datasets import read_listing, read_pairs
    from dinokit.model.dense import DepthRule, dense_spec
    from dinokit.train.finetune import DEPTH, finetune_dense

    if (train_list is None) != (val_list is None):
        raise click.UsageError("--train-list and --val-list come together.")
    if train_list is not None and val_list is not None:
        parts = [read_listing(listing, data) for listing in (train_list, val_list)]
    else:
        parts = [read_pairs(data, name, ("images", "depth")) for name in ("train", "val")]
    train, val = (_Pairs(part, lambda path: read_depth(path, unit), options["limit"]) for part in parts)

    def run(pre: Pretrained, recipe: FinetuneRecipe, **rest: Any) -> Chosen:
        rule = DepthRule(**{name: options[name] for name in ("nearest", "farthest", "spacing", "weighting")})
        spec = dense_spec("depth", head, pre.config.embed_dim, pre.config.depth, bins, rule)
        return finetune_dense(pre, spec, train, val, options["out"], recipe, **rest)[1]

    return _finish(run, DEPTH, options)


class _Pairs(Sequence[tuple[str, Any]]):
    """Images and their targets, which are read when they are asked for."""

    def __init__(self, data: Paired, read: Callable[[str], Any], limit: int | None) -> None:
        self.images, self.targets, self.read = data.images[:limit], data.targets[:limit], read

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        return self.images[index], self.read(self.targets[index])

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return (self[index] for index in range(len(self)))


def _labelled(data: Labelled, limit: int | None) -> list[tuple[str, int]]:
    """All, or `limit` of them spread evenly, as the paths are sorted by class."""
    found = list(zip(data.paths, data.labels.tolist(), strict=True))
    return found if limit is None or limit >= len(found) else [found[i * len(found) // limit] for i in range(limit)]


def _count(pairs: _Pairs) -> int:
    """Classes in the masks.

    Raises:
        click.UsageError: fewer than two.
    """
    most = -1
    for _, mask in pairs:
        known = mask[mask != 255]
        most = max(most, int(known.max()) if known.numel() else -1)
    if most < 1:
        raise click.UsageError("the train masks hold fewer than two classes; say how many there are with --classes.")
    return most + 1


def _finish(run: Callable[..., Chosen], start: FinetuneRecipe, options: dict[str, Any]) -> int:
    """Open the model, train, and say what came out; settings that don't fit are misuse, not a bug."""
    from dinokit.cli.common import open_model
    from dinokit.errors import DinokitError
    from dinokit.train.settings import with_settings

    extra = {name: options[name] for name in ("mode", "steps", "batch_size", "lr", "size", "seed")}
    given = [f"{name}={value}" for name, value in extra.items() if value is not None]
    try:
        recipe = with_settings(start, [*given, *options["settings"]])
        recipe = recipe if recipe.judge_every <= recipe.steps else replace(recipe, judge_every=recipe.steps)
        pre = open_model(
            options["model"], device=str(choose_device(options["device"])), **{name: options[name] for name in OPENING}
        )
        say(
            f"{recipe.mode} on {pre.provenance.name}: {recipe.steps} steps of {recipe.batch_size}, {recipe.size} pixels"
        )
        chosen = run(pre, recipe, resume=options["resume"], workers=options["workers"], progress=True)
    except ValueError as error:
        if isinstance(error, DinokitError):
            raise
        raise click.UsageError(str(error)) from error
    out: Path = options["out"]
    found = {
        "run": str(out),
        "files": sorted(path.name for path in out.iterdir()),
        "step": chosen.step,
        "metrics": chosen.metrics,
    }
    if options["as_json"]:
        click.echo(json.dumps(found, indent=2))
    else:
        for name, value in chosen.metrics.items():
            click.echo(f"{name}  {value:.4f}")
        say(f"step {chosen.step} was the best; it lies in {out}." if chosen.step else f"the last step lies in {out}.")
    return 0

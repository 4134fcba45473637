"""`dinokit train`: the self-supervised objective on any images, from one process or from torchrun."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dinokit.cli.common import choose_device, say

if TYPE_CHECKING:
    from dinokit.cli.train_sources import Source
    from dinokit.train.data import Unreadable
    from dinokit.train.log import Record
    from dinokit.train.recipe import TrainingRecipe

SHOWN_UNREADABLE = 10
NUMBERS = ("loss", "dino", "ibot", "rankme", "knn")


@click.command(no_args_is_help=True)
@click.argument("source")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the run.")
@click.option("--recipe", "name", help="A preset (docs/training.md); by default by the number of images.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting of the recipe; repeat it."
)
@click.option(
    "--resume",
    type=click.Choice(["auto", "never"]),
    default="never",
    show_default=True,
    help="auto: go on from the last checkpoint in --out, if there is one.",
)
@click.option("--steps", type=click.IntRange(1), help="As --set steps=N.")
@click.option(
    "--accumulate", type=click.IntRange(1), help="As --set accumulate=N: a batch in N parts, for less memory."
)
@click.option("--dtype", type=click.Choice(["bf16", "fp32"]), help="As --set precision=...")
@click.option("--compile", "compiled", is_flag=True, help="As --set compile=true: blocks through torch.compile.")
@click.option("--device", envvar="DINOKIT_DEVICE", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1.")
@click.option(
    "--workers", type=click.IntRange(0), default=None, help="Processes that read images; by default by cores."
)
@click.option("--spread", type=click.Choice(["ddp", "fsdp"]), default="ddp", show_default=True, help="With torchrun.")
@click.option(
    "--labels",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Images in folders by class, to look at k-NN accuracy meanwhile.",
)
@click.option("--tensorboard", is_flag=True, help="Write curves for TensorBoard, too, to OUT/tensorboard.")
@click.option("--license", "licence", default="other", show_default=True, help="For the model card.")
@click.option("--dry-run", is_flag=True, help="Print the resolved recipe as JSON, and stop.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout at the end.")
def command(
    source: str,
    out: Path,
    name: str | None,
    settings: tuple[str, ...],
    resume: str,
    steps: int | None,
    accumulate: int | None,
    dtype: str | None,
    compiled: bool,
    device: str,
    workers: int | None,
    spread: str,
    labels: Path | None,
    tensorboard: bool,
    licence: str,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Train a DINOv2 network without labels on the images below the folder SOURCE.

    SOURCE may be procedural:textures, leaves, shapetex or mixture: images that are calculated. RUN/page.html shows how it
    goes; the trained network comes to RUN/export.

    \b
    dinokit train photos/ --out run
    dinokit train photos/ --out run --resume auto
    dinokit train procedural:textures --out run --steps 500
    torchrun --nproc-per-node 8 -m dinokit.cli.main train photos/ --out run --recipe base
    """  # fmt: skip
    from dinokit.cli.train_sources import open_source
    from dinokit.train import checkpoint, parallel, run
    from dinokit.train.log import TensorBoard
    from dinokit.train.settings import to_json

    first = os.environ.get("RANK", "0") == "0"
    images = open_source(source, labels, _workers(workers), _Unreadable(quiet=not first))
    extra = {"steps": steps, "accumulate": accumulate, "precision": dtype, "compile": compiled or None}
    wanted = [*settings, *(f"{key}={value}" for key, value in extra.items() if value is not None)]
    recipe = _recipe(out, name, wanted, resume == "auto", images)
    if dry_run:
        click.echo(json.dumps(to_json(recipe), indent=2))
        return 0
    if first:
        _show(recipe, images)
    try:
        loggers = [TensorBoard(out / "tensorboard")] if tensorboard and first else []
    except ModuleNotFoundError as error:
        raise click.UsageError(str(error)) from error
    try:
        with parallel.join(choose_device(device)) as world:
            state = run.train(
                recipe, images.feed, out, world=world, spread="fsdp" if spread == "fsdp" else "ddp",
                resume=resume == "auto", watched=images.watch(recipe) if world.first else None, loggers=loggers,
                about=images.about | {"license": licence}, progress=True, say=say,
            )  # fmt: skip
    except ValueError as error:
        raise _as_usage(error) from error
    if not first:
        return 0
    target = out / run.EXPORT / "model"
    if state.step < recipe.steps and run.ended_by_itself(out, state.step):
        target = out / run.BEST / "model"
    elif state.step < recipe.steps:
        say(f"stopped after step {state.step}; go on with --resume auto.")
        return 128 + signal.SIGTERM
    if as_json:
        records = run.read_log(out)
        click.echo(json.dumps({"run": str(out), "steps": state.step, "model": str(target), **_last(records)}, indent=2))
    else:
        click.echo(str(target))
    page = out / run.PAGE
    shown = f"{page} shows the run" if page.is_file() else "no page, since watch.every is 0"
    say(f"{shown}; checkpoints: {len(checkpoint.complete(out / run.CHECKPOINTS))}.")
    return 0


def _recipe(out: Path, name: str | None, settings: list[str], resume: bool, images: Source) -> TrainingRecipe:
    """A preset with settings, or that of the run to go on with, with settings.

    Raises:
        click.UsageError: an unknown preset or setting, or another preset than the run's.
    """
    from dinokit.train import run
    from dinokit.train.recipes import changed, resolve

    try:
        if not (resume and (out / run.RECIPE).is_file()):
            return resolve(name or images.recipe, settings)
        stored = run.read_recipe(out)
        if name not in (None, stored.name):
            raise ValueError(
                f"{out} holds a run of recipe {stored.name!r}, not {name!r}; leave --recipe out, or take another folder."
            )
        found = changed(stored, settings)
    except ValueError as error:
        raise _as_usage(error) from error
    if found != stored:
        say("warning: settings differ from those that the run began with; it goes on with the new ones.")
    return found


def _as_usage(error: ValueError) -> Exception:
    from dinokit.errors import DinokitError

    return error if isinstance(error, DinokitError) else click.UsageError(str(error))


def _workers(count: int | None) -> int:
    if count is not None:
        return count
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, here // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)


def _show(recipe: TrainingRecipe, images: Source) -> None:
    """The resolved recipe, a line a section."""
    from dinokit.train.settings import flatten

    sections: dict[str, list[str]] = {}
    for key, value in flatten(recipe).items():
        section, _, short = key.rpartition(".")
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        sections.setdefault(section or "run", []).append(f"{short}={text}")
    for section, parts in sections.items():
        say(f"{section}: {' '.join(parts)}")
    say(
        f"{images.feed.num_images} images; each is seen about {recipe.steps * recipe.batch_size / images.feed.num_images:.1f} times"
    )


def _last(records: list[Record]) -> dict[str, Any]:
    """The last of each number."""
    return {key: value for record in records for key, value in record.items() if key in NUMBERS}


class _Unreadable:
    """Says the first unreadable images, then that there are more."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet, self.seen = quiet, set[int]()

    def __call__(self, found: Unreadable) -> None:
        """One that was met; the same one again is not news."""
        if self.quiet or found.index in self.seen:
            return
        self.seen.add(found.index)
        if len(self.seen) <= SHOWN_UNREADABLE:
            say(f"{found.code}: {found.message}")
        elif len(self.seen) == SHOWN_UNREADABLE + 1:
            say("more images can't be read; they are passed over without a word from here on.")

"""`dinokit compare`: registers on and off, or a repair on and off, on the same images."""

from __future__ import annotations

import json
from typing import Any

import click

from dinokit.cli.common import model_options, open_model, say


@click.command(no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True)
@click.option("--against", help="The second model; by default the first without its --repair.")
@click.option("--against-repair", metavar="FILE|METHOD", help="A repair of the second model, as --repair.")
@click.option(
    "--factor",
    type=click.FloatRange(1, min_open=True),
    default=4.0,
    show_default=True,
    help="An outlier has more than this times its image's median norm.",
)
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Use at most so many images.")
@click.option("--probes", is_flag=True, help="Fit linear probes for place and pixels too; takes a while.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@model_options
def command(
    inputs: tuple[str, ...],
    against: str | None,
    against_repair: str | None,
    factor: float,
    limit: int,
    probes: bool,
    as_json: bool,
    model: str,
    repair: str | None,
    **loading: Any,
) -> None:
    """Compare two models on the images of INPUTS: norms, outliers, attention, smoothness, objects, probes, 1-NN accuracy, cost.

    Images in folders by class give the accuracy, from the folders' names.

    \b
    dinokit compare photos/ -m facebook/dinov2-large --against facebook/dinov2-with-registers-large
    dinokit compare photos/ -m facebook/dinov2-large --repair repair.safetensors
    """  # fmt: skip
    from dinokit.errors import DinokitError, ImageError
    from dinokit.extract import list_images
    from dinokit.images import decode
    from dinokit.inspection.compare import folder_labels, inspect_model, table

    if against is None and repair is None and against_repair is None:
        raise click.UsageError("nothing to compare with: give --against MODEL, or --repair for the same model.")
    paths = []
    for path in list_images(inputs)[:limit]:
        try:
            decode(path)
        except ImageError as error:
            say(f"{error.code}: {error}")
        else:
            paths.append(path)
    if not paths:
        raise click.UsageError("none of the images could be read.")
    models = [
        open_model(against or model, repair=against_repair, **loading),
        open_model(model, repair=repair, **loading),
    ]
    try:
        sides = [inspect_model(pre, paths, labels=folder_labels(paths), factor=factor, probes=probes) for pre in models]
    except ValueError as error:
        if isinstance(error, DinokitError):
            raise
        raise click.UsageError(str(error)) from error
    if as_json:
        click.echo(
            json.dumps({"images": len(paths), "factor": factor, "sides": [side.to_dict() for side in sides]}, indent=2)
        )
        return
    say(f"{len(paths)} images; an outlier has more than {factor:g} times its image's median norm")
    for line in table(sides):
        click.echo(line)

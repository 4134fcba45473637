"""`dinokit artefacts`: which patches of a network stand out over many images, since which block, and what they cost attention."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dinokit.cli.common import model_options, open_model, say, size_callback
from dinokit.errors import EXIT_OK, EXIT_SOME_INPUTS_FAILED, ImageError, OutputError

if TYPE_CHECKING:
    from dinokit.inspection.artefacts import ArtefactReport
    from dinokit.inspection.look import Look
    from dinokit.weights.load import Pretrained

REPORT = Path("artefacts.html")


@click.command(no_args_is_help=True)
@click.argument("inputs", nargs=-1)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    help="[default: artefacts.html]",
)
@click.option("--overwrite", is_flag=True, help="Replace FILE.html if it is there.")
@click.option("--json", "as_json", is_flag=True, help="All numbers as JSON on stdout; HTML only with --out.")
@click.option(
    "--examples", type=click.IntRange(0, 48), default=6, show_default=True, help="Images to show in the report."
)
@click.option("--batch-size", type=click.IntRange(1, 4096), default=8, show_default=True)
@click.option("--image-size", callback=size_callback, metavar="H[xW]", help="Pixels of the crop; norms depend on it.")
@click.option("--no-crop", is_flag=True, help="Whole photographs instead of their middle.")
@model_options
def command(
    inputs: tuple[str, ...],
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    examples: int,
    batch_size: int,
    image_size: tuple[int, int] | None,
    no_crop: bool,
    model: str,
    **loading: Any,
) -> int:
    """Measure high-norm tokens over INPUTS: image files, and folders with all images below them.

    Norms of all layers, first layer with artefacts, where in the picture they are, what attention they take. Writes an HTML file
    that stands alone, and says the verdict. Exit code 3 says that some images could not be read.

    \b
    dinokit artefacts photos/ --model facebook/dinov2-large
    dinokit artefacts photos/ --image-size 518 --out report.html
    dinokit artefacts photos/ --json | jq .first_outlier_block
    """  # fmt: skip
    from dinokit.extract import list_images
    from dinokit.inspection.look import with_view

    paths = list_images(inputs)
    if not paths:
        raise click.UsageError("no images there; name files, or folders with .jpg, .png, ... below them.")
    target = None if as_json and out is None else _target(out or REPORT, overwrite)
    pre = with_view(open_model(model, **loading), image_size, crop=not no_crop)
    report = _measure(pre, paths, batch_size)
    if report is None:
        return EXIT_SOME_INPUTS_FAILED
    if target is not None:
        _write(target, report, _examples(pre, paths, examples))
    if as_json:
        text = json.dumps(report.to_dict(), ensure_ascii=False) + "\n"
        click.echo(text.encode("utf-8", "surrogateescape"), nl=False)
    else:
        click.echo(_summary(report))
        click.echo(str(target))
    return EXIT_SOME_INPUTS_FAILED if report.failed else EXIT_OK


def _target(out: Path, overwrite: bool) -> Path:
    """Refuses before anything is computed.

    Raises:
        OutputError: the file is there, or its folder is not.
    """
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists already; choose another name or use --overwrite.")
    if not out.absolute().parent.is_dir():
        raise OutputError(f"{out} can't be written: the folder {out.parent} does not exist.")
    return out


def _measure(pre: Pretrained, paths: Sequence[str], batch_size: int) -> ArtefactReport | None:
    """The report; None if not one image could be read."""
    from dinokit.inspection.artefacts import artefact_report

    try:
        report = artefact_report(pre, paths, batch_size=batch_size)
    except ValueError as error:
        if "no image" not in str(error):
            raise
        say(f"error: {error}")
        return None
    for name, code in report.failed:
        say(f"{code}: {name}")
    return report


def _examples(pre: Pretrained, paths: Sequence[str], count: int) -> list[Look]:
    """Images spread evenly over the list; those that can't be read are passed over."""
    from dinokit.inspection.look import look

    step = max(1, len(paths) // max(count, 1))
    looks: list[Look] = []
    for path in paths[::step]:
        if len(looks) >= count:
            break
        try:
            looks.append(look(pre, path, name=Path(path).name))
        except ImageError:
            continue
    return looks


def _write(target: Path, report: ArtefactReport, looks: list[Look]) -> None:
    from dinokit.atomic import write_atomically
    from dinokit.inspection.html import report_html

    text = report_html(report, looks).encode()
    write_atomically(target, lambda file: file.write(text))


def _summary(report: ArtefactReport) -> str:
    """The verdict, and a line a layer."""
    from dinokit.analysis.colour import number
    from dinokit.inspection.artefacts import MAIN_RULE

    first = report.first_outlier_layer
    lines = [
        "no artefacts: in no layer do patch norms fall into ordinary ones and a population far above them"
        if first is None
        else f"artefacts after block {first} and later, first layer {first} of {len(report.layers) - 1}"
    ]
    lines.append(f"{'after block':>11} {'median':>9} {'largest':>9} {'outliers':>9}")
    for found in report.layers:
        share = found.rules[MAIN_RULE].num_outliers / max(found.patches.total, 1)
        median, largest = number(found.patches.quantile(0.5)), number(found.patches.maximum)
        lines.append(f"{found.layer:>11} {median:>9} {largest:>9} {100 * share:>7.2f} %")
    return "\n".join(lines)

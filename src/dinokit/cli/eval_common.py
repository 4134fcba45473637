"""What the commands of `dinokit eval` share: options, the model, how results are shown."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dinokit.cli.common import engine_option, model_options, open_model, say
from dinokit.errors import EXIT_OK, EXIT_SOME_INPUTS_FAILED, DinokitError, OutputError

if TYPE_CHECKING:
    from dinokit.evals.results import Result
    from dinokit.weights.load import Pretrained

Command = TypeVar("Command", bound=Callable[..., Any])
SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
MODEL_OPTIONS = (
    "model", "revision", "cache_dir", "offline", "positions", "num_heads", "trained_size", "allow_missing", "device", "dtype",
    "repair", "engine",
)  # fmt: skip


def output_options(command: Command) -> Command:
    """Where results go."""
    for option in (
        click.option(
            "--json", "as_json", is_flag=True, help="One JSON object on stdout, with all settings and details."
        ),
        click.option(
            "--out", "-o", type=click.Path(path_type=Path, dir_okay=False), help="The JSON object as a file too."
        ),
        click.option("--overwrite", is_flag=True, help="Replace the file of --out if it is there."),
    ):
        command = option(command)
    return command


def reading_options(command: Command) -> Command:
    """How images are read."""
    for option in (
        click.option("--batch-images", type=click.IntRange(1), default=32, show_default=True, help="Images at a time."),
        click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Threads that decode."),
    ):
        command = option(command)
    return command


def labelled_options(command: Command) -> Command:
    """DATA of tasks on vectors with labels: one folder of images, or one or two collections."""
    for option in reversed(
        [
            click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path)),
            click.option("--labels", type=click.Path(path_type=Path), metavar="CSV", help="Of collections: columns id, label (split)."),
            click.option("--column", help="Which vectors of a collection; the first without it."),
            click.option("--devkit", type=click.Path(path_type=Path), help="ImageNet's, where val/ has no folders by class."),
            click.option("--size", type=click.IntRange(1), help="Crop in pixels; by default the model's own."),
            click.option("--test-share", type=SHARE, default=0.2, show_default=True, help="To judge on, where DATA has no test set."),
            click.option("--seed", type=int, default=0, show_default=True),
            click.option("--storage", type=click.Path(path_type=Path, file_okay=False), help="A folder for vectors beyond memory."),
            reading_options,
            output_options,
            engine_option,
            model_options,
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def numbers(kind: type, low: float) -> Callable[[click.Context, click.Parameter, str], tuple[Any, ...]]:
    """For an option of numbers above `low` with commas between them."""

    def parse(_: click.Context, parameter: click.Parameter, value: str) -> tuple[Any, ...]:
        try:
            found = tuple(kind(part) for part in value.split(","))
        except ValueError:
            found = ()
        if not found or min(found) <= low:
            raise click.BadParameter(
                f"{value!r}: write numbers above {low:g} with commas between them.", param=parameter
            )
        return found

    return parse


def opened(options: dict[str, Any], *, view: bool = True) -> Pretrained:
    """The model; with `view`, --size is its crop in pixels."""
    pre = open_model(**{name: options[name] for name in MODEL_OPTIONS if name in options})
    size = options.get("size") if view else None
    return pre if size is None else replace(pre, transform=pre.transform.at_size((size, size)))


def said(run: Callable[[], Result]) -> Result:
    """Settings that do not fit the data are misuse, not a bug."""
    try:
        return run()
    except ValueError as error:
        if isinstance(error, DinokitError):
            raise
        raise click.UsageError(str(error)) from error


def refuse_existing(out: Path | None, overwrite: bool) -> None:
    """Before anything is computed.

    Raises:
        OutputError: the file is there.
    """
    if out is not None and out.exists() and not overwrite:
        raise OutputError(f"{out} exists already; choose another name or use --overwrite.")


def report(result: Result, as_json: bool, out: Path | None) -> int:
    """Show a result, and end with 3 where inputs failed."""
    for name, error in result.failed:
        say(f"{error.partition(':')[0]}: {name}: {error.partition(': ')[2]}")
    if out is not None:
        from dinokit.atomic import write_json

        write_json(out, result.to_dict())
        say(f"wrote {out}")
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else result.table())
    if not as_json:
        took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items())
        say(f"{result.task} on {result.data.get('source', '')}: {took}")
    return EXIT_SOME_INPUTS_FAILED if result.failed else EXIT_OK


def watched_by(what: str, unit: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """A progress bar on stderr."""
    from tqdm import tqdm

    return functools.partial(tqdm, unit=unit, disable=None, desc=what)

"""`dinokit discover`: boxes around objects, found without labels; CorLoc on VOC and COCO beside two trivial baselines."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dinokit.cli.common import model_options, open_model, say
from dinokit.errors import EXIT_OK, EXIT_SOME_INPUTS_FAILED, ImageError, OutputError

if TYPE_CHECKING:
    from dinokit.inspection.datasets import Annotated
    from dinokit.inspection.discover import Discovered, Evaluation, Finder
    from dinokit.weights.load import Pretrained

METHODS = ("lost", "tokencut", "maskcut", "spectral")
# Which settings a method has; any other method refuses them, so that nothing is ignored in silence.
SETTINGS = {"bias": ("lost",), "normalize": ("lost",), "k": ("lost",), "tau": ("tokencut", "maskcut")}


@click.command(no_args_is_help=True)
@click.argument("inputs", nargs=-1)
@click.option("--method", type=click.Choice(METHODS), default="lost", show_default=True)
@click.option(
    "--features", type=click.Choice(["k", "q", "v"]), default="k", show_default=True, help="Keys, queries, values."
)
@click.option(
    "--layer", type=int, multiple=True, help="Block, 0 the first, -1 the last; may be given again.  [default: -1]"
)
@click.option("--bias", type=float, help="lost: added to the Gram matrix; -1 to 0 with --normalize.  [default: 0]")
@click.option("--normalize", is_flag=True, help="lost: cosines instead of dot products.")
@click.option("--k", type=click.IntRange(1), help="lost: tokens of low degree that may help the seed.  [default: 100]")
@click.option("--tau", type=float, help="tokencut, maskcut: cosine above which patches are linked.  [default: 0.2]")
@click.option("--mask-artefacts", is_flag=True, help="Leave out patches of extreme norm.")
@click.option("--artefact-factor", type=click.FloatRange(1, min_open=True), help="Times the median norm.  [default: 4]")
@click.option(
    "--longest-side",
    type=click.IntRange(1),
    default=700,
    show_default=True,
    help="Larger photographs are made smaller.",
)
@click.option(
    "--out", "-o", type=click.Path(path_type=Path, file_okay=False), help="Folder for a PNG of each photograph."
)
@click.option("--overwrite", is_flag=True, help="Replace pictures that are there.")
@click.option("--voc", type=click.Path(path_type=Path), metavar="DIR", help="CorLoc on VOC, such as VOCdevkit/VOC2012.")
@click.option("--split", default="trainval", show_default=True, help="Of VOC.")
@click.option("--no-hard", is_flag=True, help="VOC: leave out difficult and truncated objects.")
@click.option("--coco", metavar="DIR,ANN", help="CorLoc on COCO: folder of images, instances_*.json.")
@click.option("--ids", type=click.Path(path_type=Path), help="COCO: a list of images, such as the 20,000 of COCO20k.")
@click.option("--limit", type=click.IntRange(1), help="Of a data set: the first images only.")
@click.option("--json", "as_json", is_flag=True, help="CorLoc as JSON. (Boxes are JSON lines always.)")
@model_options
def command(
    inputs: tuple[str, ...],
    features: Any,
    layer: tuple[int, ...],
    longest_side: int,
    out: Path | None,
    overwrite: bool,
    voc: Path | None,
    split: str,
    no_hard: bool,
    coco: str | None,
    ids: Path | None,
    limit: int | None,
    as_json: bool,
    model: str,
    **options: Any,
) -> int:
    """Find the objects in INPUTS (image files, and folders with images below them): one JSON line a photograph and layer.

    With --voc or --coco instead of INPUTS: how often the best box is right (CorLoc), beside the whole image and a box in its middle.

    \b
    dinokit discover cat.jpg --out found/
    dinokit discover photos/ --method tokencut --features k | jq .boxes
    dinokit discover --voc VOCdevkit/VOC2007 --normalize --bias -0.2 --layer -1 --layer -2
    """  # fmt: skip
    if sum(map(bool, (inputs, voc, coco))) != 1:
        raise click.UsageError("name images or folders, or one of --voc and --coco.")
    if (voc or coco) and out is not None:
        raise click.UsageError("--out draws the images that are named; a data set prints its CorLoc.")
    if (no_hard and not voc) or (ids and not coco):
        raise click.UsageError("--no-hard belongs to --voc, --ids to --coco.")
    settings = {name: options.pop(name) for name in ("method", "bias", "normalize", "k", "tau")}
    find = _finder(settings)
    factor = _artefact_factor(options.pop("mask_artefacts"), options.pop("artefact_factor"))
    reading = {"features": features, "artefact_factor": factor, "longest_side": longest_side}
    if not inputs:
        data = _data(voc, split, no_hard, coco, ids)[:limit]
        pre = _opened(model, longest_side, options)
        return _evaluate(pre, data, find, _layers(layer, pre), reading, as_json)
    from dinokit.extract import list_images

    paths = list_images(inputs)
    if not paths:
        raise click.UsageError("no images there; name files, or folders with .jpg, .png, ... below them.")
    pictures = _pictures(out, paths, overwrite)
    pre = _opened(model, longest_side, options)
    return _boxes(pre, paths, find, _layers(layer, pre), reading, settings["method"], pictures)


def _finder(settings: dict[str, Any]) -> Finder:
    """The method with its settings; those of another method are refused."""
    from dinokit.analysis.discovery import lost
    from dinokit.analysis.maskcut import maskcut, tokencut
    from dinokit.analysis.spectral import deep_spectral

    method = settings["method"]
    given = {name: settings[name] for name in SETTINGS if settings[name] is not None and settings[name] is not False}
    for name in given:
        if method not in SETTINGS[name]:
            raise click.UsageError(f"--{name} belongs to --method {' or '.join(SETTINGS[name])}, not to {method}.")
    methods: dict[str, Any] = {"lost": lost, "tokencut": tokencut, "maskcut": maskcut, "spectral": deep_spectral}
    return functools.partial(methods[method], **given)


def _artefact_factor(mask: bool, factor: float | None) -> float | None:
    from dinokit.inspection.discover import ARTEFACT_FACTOR

    if factor is not None and not mask:
        raise click.UsageError("--artefact-factor belongs to --mask-artefacts.")
    return (factor or ARTEFACT_FACTOR) if mask else None


def _opened(model: str, longest_side: int, options: dict[str, Any]) -> Pretrained:
    pre = open_model(model, **options)
    if longest_side < pre.config.patch_size:
        raise click.BadParameter(
            f"{longest_side} pixels do not hold one patch of {pre.config.patch_size}.", param_hint="--longest-side"
        )
    return pre


def _layers(layer: tuple[int, ...], pre: Pretrained) -> tuple[int, ...]:
    from dinokit.model.capture import block_indices

    try:
        return block_indices(layer or (-1,), pre.config.depth)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--layer") from error


def _data(voc: Path | None, split: str, no_hard: bool, coco: str | None, ids: Path | None) -> list[Annotated]:
    from dinokit.inspection.datasets import read_coco, read_ids, read_voc

    if voc is not None:
        return read_voc(voc, split, no_hard=no_hard)
    folder, comma, annotations = (coco or "").rpartition(",")
    if not comma:
        raise click.BadParameter(f"{coco!r}: write the folder of images, a comma, the JSON file.", param_hint="--coco")
    return read_coco(folder, annotations, read_ids(ids) if ids else None)


def _pictures(out: Path | None, paths: list[str], overwrite: bool) -> list[Path] | None:
    """Where the picture of each photograph goes; refuses before anything is computed."""
    if out is None:
        return None
    names: set[str] = set()
    pictures = []
    for path in paths:
        stem = Path(path).stem
        name, number = stem, 1
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names.add(name)
        pictures.append(out / f"{name}.png")
    if not overwrite:
        for picture in pictures:
            if picture.exists():
                raise OutputError(f"{picture} exists already; choose another folder or use --overwrite.")
    out.mkdir(parents=True, exist_ok=True)
    return pictures


def _boxes(
    pre: Pretrained,
    paths: list[str],
    find: Finder,
    layers: tuple[int, ...],
    reading: dict[str, Any],
    method: str,
    pictures: list[Path] | None,
) -> int:
    from dinokit.inspection.discover import discover, load_photo

    bad = 0
    longest_side = reading["longest_side"]
    for i, path in enumerate(_watched(paths, "discover")):
        try:
            photo = load_photo(pre, path, longest_side)
            results = discover(pre, photo, find, layers=layers, **reading)
        except ImageError as error:
            bad += 1
            _print({"path": path, "status": "error", "error_code": error.code, "error": str(error)})
            continue
        for result in results:
            _print(_record(path, result, method, reading["features"]))
        if pictures is not None:
            from dinokit.atomic import write_atomically
            from dinokit.inspection.discover_panel import discover_panel

            title = f"{method}, {_WORDS[reading['features']]}: {Path(path).name}"
            sheet = discover_panel(photo, results, patch_size=pre.config.patch_size, title=title)
            write_atomically(pictures[i], functools.partial(sheet.save, format="PNG"))
    if pictures is not None and len(paths) > bad:
        count = len(paths) - bad
        say(f"wrote {count:,} {'picture' if count == 1 else 'pictures'} into {pictures[0].parent}")
    return EXIT_SOME_INPUTS_FAILED if bad else EXIT_OK


_WORDS = {"k": "keys", "q": "queries", "v": "values"}


def _record(path: str, result: Discovered, method: str, features: str) -> dict[str, Any]:
    """A photograph at a layer as JSON; boxes are left, top, right, bottom in pixels, right and bottom not included."""
    record: dict[str, Any] = {
        "path": path,
        "status": "ok",
        "width": result.size[1],
        "height": result.size[0],
        "method": method,
        "features": features,
        "layer": result.layer,
        "grid": list(result.grid),
        "boxes": [list(box) for box in result.boxes],
        "seeds": [list(divmod(seed, result.grid[1])) for seed in result.found.seeds],
    }
    if result.found.eigenvalues:
        record["eigenvalues"] = list(result.found.eigenvalues)
    if result.artefacts is not None:
        record["artefacts"] = int(result.artefacts.sum())
    return record


def _print(record: dict[str, Any]) -> None:
    click.echo((json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape"), nl=False)


def _evaluate(
    pre: Pretrained,
    data: list[Annotated],
    find: Finder,
    layers: tuple[int, ...],
    reading: dict[str, Any],
    as_json: bool,
) -> int:
    from dinokit.inspection.discover import evaluate

    found = evaluate(pre, _watched(data, "CorLoc"), find, layers=layers, **reading)
    for path, error in found.failed:
        say(f"{error.code}: {path}: {error}")
    if as_json:
        scores = [{"layer": layer, **score.to_dict()} for layer, score in found.scores.items()]
        click.echo(json.dumps({"scores": scores, "failed": len(found.failed)}))
    else:
        click.echo(_table(found))
    return EXIT_SOME_INPUTS_FAILED if found.failed else EXIT_OK


def _table(found: Evaluation) -> str:
    lines = [f"{'layer':>5}  {'CorLoc':>7}  {'whole image':>11}  {'centre box':>10}  images"]
    for layer, score in found.scores.items():
        lines.append(
            f"{layer:>5}  {score.method.percent:>7.1f}  {score.whole_image.percent:>11.1f}  {score.centre_box.percent:>10.1f}  "
            f"{score.method.images:,} ({score.skipped:,} without objects, {len(found.failed):,} unreadable)"
        )
    return "\n".join(lines)


def _watched(items: Iterable[Any], what: str) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(items, unit="img", disable=None, desc=what)  # type: ignore[no-any-return]

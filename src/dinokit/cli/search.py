"""`dinokit search`: what in a collection is nearest to an image, a region of one, an id, or every vector of another collection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dinokit.cli.common import engine_option, loading_options, numbers_callback, open_model, say

if TYPE_CHECKING:
    from dinokit.search import Hit, Index

SCHEMA = 1


def query_model_options(command: Any) -> Any:
    """The collection names its model; these say where it is, if somewhere else, and where it runs."""
    for option in reversed(
        [
            click.option("--model", "-m", help="Where the collection's model is, if not where it was."),
            *loading_options(),
            click.option("--device", envvar="DINOKIT_DEVICE", default="auto", show_default=True),
            click.option("--repair", metavar="FILE|METHOD", help="The repair that the collection was made with."),
            engine_option,
        ]
    ):
        command = option(command)
    return command


@click.command(no_args_is_help=True)
@click.argument("collection", type=click.Path(path_type=Path))
@click.option("--image", "images", multiple=True, help="An image as query; may be given several times.")
@click.option("--id", "ids", multiple=True, help="An image of the collection as query.")
@click.option("--against", type=click.Path(path_type=Path), help="Another collection: the nearest of all its vectors.")
@click.option(
    "--region",
    callback=numbers_callback(4),
    metavar="X0,Y0,X1,Y1",
    help="A part of --image in pixels; for columns of means.",
)
@click.option("--top", "-k", type=click.IntRange(1), default=10, show_default=True, help="So many of each.")
@click.option("--column", help="Which vectors of the collection; the first without it.")
@click.option("--metric", type=click.Choice(["cosine", "dot", "l2"]), default="cosine", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option(
    "--sheet", type=click.Path(path_type=Path), help="A contact sheet: FILE.png, or FILE.html that stands alone."
)
@click.option("--root", type=click.Path(path_type=Path), help="The folder that was embedded, if it lies elsewhere now.")
@click.option("--overwrite", is_flag=True, help="Replace the sheet if it is there.")
@click.option("--force", is_flag=True, help="Compare with --against although another model or preprocessing made it.")
@query_model_options
def command(
    collection: Path,
    images: tuple[str, ...],
    ids: tuple[str, ...],
    against: Path | None,
    region: tuple[float, float, float, float] | None,
    top: int,
    column: str | None,
    metric: Any,
    as_json: bool,
    sheet: Path | None,
    root: Path | None,
    overwrite: bool,
    force: bool,
    **loading: Any,
) -> None:
    """Find what is nearest in COLLECTION (a folder or a Parquet file of embeddings). Exact; nothing is loaded but blocks.

    Without --json: a line a hit, tabs between query, rank, score and path.

    \b
    dinokit search photos.emb --image cat.jpg --sheet hits.png
    dinokit search photos.emb --id holiday/12.jpg --top 20 --json
    dinokit search photos.emb --image cat.jpg --region 40,60,200,220 --column mean
    dinokit search photos.emb --against other.emb -k 1
    """  # fmt: skip
    from dinokit.search import Index

    if sum(map(bool, (images, ids, against))) != 1:
        raise click.UsageError("give queries: --image, --id, or --against another collection.")
    if region and len(images) != 1:
        raise click.UsageError("--region belongs to one --image.")
    if sheet:
        checked_sheet(sheet, overwrite)
    features = open_collection(collection, column)
    index = Index(features, metric=metric)
    if against is not None:
        found = _against(index, against, column, top, force)
    elif ids:
        try:
            found = list(zip(ids, index.by_ids(ids, top), strict=True))
        except KeyError as error:
            raise click.BadParameter(str(error.args[0]), param_hint="--id") from error
    else:
        found = _images(index, images, region, top, loading)
    show(index, found, as_json=as_json)
    if sheet:
        _sheet(index, found, sheet, collection, images, root, overwrite)


def open_collection(collection: Path, column: str | None = None) -> Any:
    """The collection's vectors; an unknown column is a usage error."""
    from dinokit.store import FeatureSet

    try:
        return FeatureSet(collection, column)
    except KeyError as error:
        raise click.BadParameter(str(error.args[0]), param_hint="--column") from error


def json_bytes(answer: dict[str, Any]) -> bytes:
    """One document for stdout; names that are no text come out as they were."""
    return json.dumps(answer, indent=2, ensure_ascii=False).encode("utf-8", "surrogateescape")


def counted(number: int, noun: str) -> str:
    """As "1 image", "2 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def checked_sheet(sheet: Path, overwrite: bool) -> None:
    """Refuse what can't be written before anything is computed."""
    from dinokit.search.sheets import check_sheet

    try:
        check_sheet(sheet, overwrite=overwrite)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--sheet") from error


def _against(index: Index, against: Path, column: str | None, top: int, force: bool) -> list[tuple[str, list[Hit]]]:
    other = open_collection(against, column)
    names = other.ids()
    found: list[tuple[str, list[Hit]]] = []
    for start, part in index.by_collection(other, top, force=force):
        found += zip(names[start:], index.hits(part), strict=False)
    return found


def _images(
    index: Index, images: tuple[str, ...], region: tuple[float, ...] | None, top: int, loading: dict[str, Any]
) -> list[tuple[str, list[Hit]]]:
    from dinokit.errors import DinokitError
    from dinokit.search.query import Region

    use_model(index, **loading)
    try:
        if region:
            return [(images[0], index.by_region(images[0], Region(*region), top))]
        return list(zip(images, index.by_images(images, top), strict=True))
    except ValueError as error:
        if isinstance(error, DinokitError):
            raise
        raise click.BadParameter(str(error), param_hint="--region" if region else "--image") from error


def use_model(index: Index, *, model: str | None, **loading: Any) -> None:
    """Load what the collection names, or `model`; only the very model that made the collection is taken."""
    recorded = index.features.identity.model
    name = model or recorded.get("name")
    if not name:
        raise click.UsageError("the collection does not name its model; give --model.")
    if model is None and loading.get("revision") is None and "@" not in name:
        loading["revision"] = recorded.get("revision")
    say(f"queries are embedded by {name}")
    index.use(open_model(name, **loading))


def show(index: Index, found: list[tuple[str, list[Hit]]], *, as_json: bool) -> None:
    """Hits on stdout."""
    if as_json:
        answer = {
            "schema": SCHEMA,
            "metric": index.metric,
            "compat_id": index.features.compat_id,
            "vectors": len(index),
            "queries": [{"query": query, "hits": [hit.to_dict() for hit in hits]} for query, hits in found],
        }
        click.echo(json_bytes(answer))
        return
    for query, hits in found:
        for hit in hits:
            click.echo(f"{query}\t{hit.rank}\t{hit.score:.4f}\t{hit.path}")


def _sheet(
    index: Index,
    found: list[tuple[str, list[Hit]]],
    sheet: Path,
    collection: Path,
    images: tuple[str, ...],
    root: Path | None,
    overwrite: bool,
) -> None:
    from dinokit.search.sheets import Group, Shown, write_sheet

    word = {"cosine": "cosine", "dot": "product", "l2": "distance"}[index.metric]
    groups = []
    for query, hits in found[:100]:
        shown = [Shown(index.image_of(hit, root), Path(hit.id).name, f"{word} {hit.score:.3f}") for hit in hits]
        first = [Shown(Path(query), Path(query).name, "query")] if images else []
        groups.append(Group(query, first + shown))
    if len(found) > 100:
        say(f"the sheet shows the first 100 of {len(found)} queries")
    subtitle = f"{counted(len(index), 'image')}, vectors {index.features.feature.name}, {word}"
    write_sheet(sheet, groups, title=f"Nearest in {collection.name}", subtitle=subtitle, overwrite=overwrite)
    say(f"wrote {sheet}")

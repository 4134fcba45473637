"""`dinokit outliers`: images that are far from all others, to look at first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dinokit.cli.common import say
from dinokit.cli.dedup import checked_outputs
from dinokit.cli.search import json_bytes, open_collection

SCHEMA = 1


@click.command(no_args_is_help=True)
@click.argument("collection", type=click.Path(path_type=Path))
@click.option(
    "--neighbours", "-k", type=click.IntRange(1), default=10, show_default=True, help="Mean over so many nearest."
)
@click.option("--top", type=click.IntRange(1), default=50, show_default=True, help="List so many; --out holds all.")
@click.option("--metric", type=click.Choice(["cosine", "l2"]), default="cosine", show_default=True)
@click.option("--column", help="Which vectors of the collection; the first without it.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Scores of all: FILE.parquet, .csv or .jsonl."
)
@click.option("--sheet", type=click.Path(path_type=Path), help="A contact sheet of the list: FILE.png or FILE.html.")
@click.option("--root", type=click.Path(path_type=Path), help="The folder that was embedded, if it lies elsewhere now.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that are there.")
def command(
    collection: Path,
    neighbours: int,
    top: int,
    metric: Any,
    column: str | None,
    out: Path | None,
    sheet: Path | None,
    root: Path | None,
    as_json: bool,
    overwrite: bool,
) -> None:
    """List the images of COLLECTION whose nearest neighbours are farthest away: the mean distance to the k nearest others.

    Without --json a line an image: rank, score, cosine with (or distance to) the nearest, path.

    \b
    dinokit outliers photos.emb --top 30 --sheet odd.html
    """  # fmt: skip
    from dinokit.search.facts import find_image, read_facts
    from dinokit.search.outliers import COLUMNS, outliers
    from dinokit.search.sheets import Group, Shown, write_sheet
    from dinokit.search.tables import origin, write_rows

    checked_outputs(out, sheet, overwrite)
    features = open_collection(collection, column)
    try:
        found = outliers(features, neighbours, metric=metric)
    except ValueError as error:
        raise click.UsageError(f"{collection}: {error}") from error
    facts = read_facts(features, ("id", "path"))
    rows: list[dict[str, Any]] = [
        {
            "rank": rank,
            "id": facts["id"][number],
            "path": facts["path"][number],
            "score": float(found.scores[number]),
            "nearest": facts["id"][found.nearest[number]],
            "similarity": float(found.similarity[number]),
            "number": number,
        }
        for rank, number in enumerate(found.top(len(features) if out else top).tolist(), start=1)
    ]
    if out is not None:
        write_rows(out, rows, COLUMNS, origin(features, k=neighbours, metric=metric), overwrite=overwrite)
        say(f"wrote {out}")
    listed = rows[:top]
    if as_json:
        answer = {"schema": SCHEMA, "images": len(features), "k": neighbours, "metric": metric, "outliers": listed}
        click.echo(json_bytes(answer))
    else:
        for row in listed:
            click.echo(f"{row['rank']}\t{row['score']:.4f}\t{row['similarity']:.4f}\t{row['path']}")
    if sheet is not None:
        shown = [
            Shown(find_image(row, root), Path(row["id"]).name, f"{row['rank']}: {row['score']:.3f}") for row in listed
        ]
        subtitle = f"Mean distance to the {neighbours} nearest of {len(features):,} images ({metric}), farthest first"
        write_sheet(
            sheet, [Group("", shown)], title=f"Outliers in {collection.name}", subtitle=subtitle, overwrite=overwrite
        )
        say(f"wrote {sheet}")

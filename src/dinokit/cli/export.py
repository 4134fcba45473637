"""`dinokit export`: a collection in the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dinokit.cli.common import say
from dinokit.cli.search import json_bytes, open_collection

FORMATS = ("csv", "npy", "parquet", "fiftyone", "lance", "embedding-atlas")


@click.command(no_args_is_help=True)
@click.argument("collection", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(FORMATS), required=True, help="Which format.")
@click.option("--out", "-o", type=click.Path(path_type=Path), required=True, help="The file (a folder for lance).")
@click.option("--column", help="Which vectors of the collection; the first without it.")
@click.option("--root", type=click.Path(path_type=Path), help="The folder that was embedded, if it lies elsewhere now.")
@click.option("--json", "as_json", is_flag=True, help="What was written, as one JSON object on stdout.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it is there.")
def command(
    collection: Path, to: Any, out: Path, column: str | None, root: Path | None, as_json: bool, overwrite: bool
) -> None:
    """Write COLLECTION for another tool: images that have a vector, in order.

    csv: facts and a column a number. npy: the array, with ids and identity beside it. parquet: one file, again a collection.
    fiftyone: JSON of samples with absolute paths. embedding-atlas: Parquet with a 2-D projection (x, y). lance: a data set.

    \b
    dinokit export photos.emb --to npy -o photos.npy
    dinokit export photos.emb --to embedding-atlas -o atlas.parquet
    """  # fmt: skip
    from dinokit.search.export import export

    features = open_collection(collection, column)
    written = export(features, out, to, root=root, overwrite=overwrite)
    if as_json:
        files = [str(path) for path in written]
        click.echo(
            json_bytes({"schema": 1, "format": to, "vectors": len(features), "dim": features.dim, "files": files})
        )
    say(f"wrote {', '.join(map(str, written))}: {len(features):,} vectors of {features.dim}")

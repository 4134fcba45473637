"""`dinokit cluster`: groups of images that belong together, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dinokit.cli.common import say
from dinokit.cli.dedup import checked_outputs
from dinokit.cli.search import counted, json_bytes, open_collection
from dinokit.errors import DinokitError

if TYPE_CHECKING:
    from dinokit.search.kmeans import KMeans
    from dinokit.store import FeatureSet

SCHEMA = 1
MAX_CLUSTERS = 100


@click.command(no_args_is_help=True)
@click.argument("collection", type=click.Path(path_type=Path))
@click.option("--clusters", "-k", type=click.IntRange(1), help="How many, for k-means.  [default: sqrt(images / 2)]")
@click.option("--method", type=click.Choice(["kmeans", "hdbscan"]), default="kmeans", show_default=True)
@click.option("--min-size", type=click.IntRange(2), default=5, show_default=True, help="Smallest cluster of hdbscan.")
@click.option("--metric", type=click.Choice(["cosine", "l2"]), default="cosine", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="k-means keeps the best of so many.")
@click.option("--max-iter", type=click.IntRange(1), default=50, show_default=True)
@click.option("--column", help="Which vectors of the collection; the first without it.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path, dir_okay=False),
    help="Cluster of each image: FILE.parquet, .csv or .jsonl; centres beside it in NAME.centroids.parquet.",
)  # fmt: skip
@click.option(
    "--sheet", type=click.Path(path_type=Path), help="Representative images of each cluster: FILE.png or FILE.html."
)
@click.option("--examples", type=click.IntRange(1), default=7, show_default=True, help="So many of each on the sheet.")
@click.option("--root", type=click.Path(path_type=Path), help="The folder that was embedded, if it lies elsewhere now.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that are there.")
def command(
    collection: Path,
    clusters: int | None,
    method: str,
    min_size: int,
    metric: Any,
    seed: int,
    runs: int,
    max_iter: int,
    column: str | None,
    out: Path | None,
    sheet: Path | None,
    examples: int,
    root: Path | None,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Cluster the images of COLLECTION. Without --json a line a cluster: number, size, mean distance to the centre, its medoid.

    \b
    dinokit cluster photos.emb -k 50 -o clusters.parquet --sheet clusters.html
    dinokit cluster photos.emb --method hdbscan --min-size 10 --json
    """  # fmt: skip
    import numpy as np

    from dinokit.search.clusters import hdbscan, members, write_clusters
    from dinokit.search.facts import NAMES
    from dinokit.search.kmeans import kmeans

    checked_outputs(out, sheet, overwrite)
    features = open_collection(collection, column)
    k = clusters or max(round((len(features) / 2) ** 0.5), 1)
    try:
        if method == "hdbscan":
            if clusters:
                raise click.UsageError("hdbscan finds the number of clusters; give --min-size instead of --clusters.")
            found = hdbscan(features, min_size, metric=metric)
        else:
            found = kmeans(features, k, metric=metric, seed=seed, n_init=runs, max_iter=max_iter)
    except ValueError as error:
        if isinstance(error, DinokitError):
            raise
        raise click.UsageError(f"{collection}: {error}") from error
    medoids = [int(numbers[0]) if len(numbers) else -1 for numbers in members(found, 1)]
    known = [number for number in medoids if number >= 0]
    names = dict(zip(known, features.rows(known, NAMES), strict=True))
    sizes = np.bincount(found.labels[found.labels >= 0], minlength=len(medoids))
    rows = []
    for cluster, medoid in enumerate(medoids):
        inside = found.distances[found.labels == cluster]
        rows.append({
            "cluster": cluster, "size": int(sizes[cluster]), "mean_distance": float(inside.mean()) if len(inside) else None,
            "medoid": names[medoid]["id"] if medoid >= 0 else None, "path": names[medoid]["path"] if medoid >= 0 else None,
        })  # fmt: skip
    settings = {"method": method, "metric": metric, "seed": seed, "clusters": len(medoids)}
    if out is not None:
        written = write_clusters(out, features, found, overwrite=overwrite, **settings)
        say(f"wrote {written[0]} and {written[1].name}")
    noise = int((found.labels < 0).sum())
    if as_json:
        answer = {
            "schema": SCHEMA,
            "images": len(features),
            **settings,
            "noise": noise,
            "inertia": found.inertia,
            "sizes": rows,
        }
        click.echo(json_bytes(answer))
    else:
        for row in rows:
            away = "" if row["mean_distance"] is None else f"{row['mean_distance']:.4f}"
            click.echo(f"{row['cluster']}\t{row['size']}\t{away}\t{row['path'] or ''}")
    outside = f", {noise:,} in none" if method == "hdbscan" else ""
    say(f"{counted(len(features), 'image')} in {counted(len(rows), 'cluster')}{outside}")
    if sheet is not None:
        _sheet(features, found, sheet, collection, examples, root, overwrite)


def _sheet(
    features: FeatureSet,
    found: KMeans,
    sheet: Path,
    collection: Path,
    examples: int,
    root: Path | None,
    overwrite: bool,
) -> None:
    from dinokit.search.clusters import members
    from dinokit.search.facts import NAMES, find_image
    from dinokit.search.sheets import Group, Shown, write_sheet

    everyone = members(found, len(features))
    order = sorted(range(len(everyone)), key=lambda cluster: (-len(everyone[cluster]), cluster))
    groups = []
    for cluster in order[:MAX_CLUSTERS]:
        numbers = everyone[cluster][:examples].tolist()
        shown = [
            Shown(find_image(row, root), Path(row["id"]).name, f"distance {found.distances[number]:.3f}")
            for number, row in zip(numbers, features.rows(numbers, NAMES), strict=True)
        ]
        groups.append(Group(f"cluster {cluster}: {counted(len(everyone[cluster]), 'image')}", shown))
    if len(order) > MAX_CLUSTERS:
        say(f"the sheet shows the {MAX_CLUSTERS} largest of {len(order):,} clusters")
    subtitle = f"{counted(len(features), 'image')}, {counted(len(everyone), 'cluster')}, largest first; the nearest to each centre"
    write_sheet(sheet, groups, title=f"Clusters of {collection.name}", subtitle=subtitle, overwrite=overwrite)
    say(f"wrote {sheet}")

"""`dinokit curate`: which images of a pool to train on, and why; a plan, nothing is moved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dinokit.cli.common import say
from dinokit.cli.dedup import checked_outputs
from dinokit.cli.search import json_bytes, open_collection

if TYPE_CHECKING:
    from dinokit.search.curate import Choice
    from dinokit.store import FeatureSet

SCHEMA = 1
MAX_SHOWN = 140
# which method an option belongs to; given for another one, it is refused
BELONGS = {
    "dedup": ("against", "threshold", "relative_threshold"),
    "retrieve": ("queries", "by", "nearest", "clusters", "per_cluster", "more_than", "cap"),
    "balanced": ("clusters", "target", "resampling", "leaf"),
}
BY = {"sample": ("nearest",), "cluster": ("clusters", "per_cluster", "more_than")}


def _numbers(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    parts = value.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(f"{value!r}: write whole numbers with commas between them.", param=parameter)
    return tuple(map(int, parts))


@click.command(no_args_is_help=True)
@click.argument("pool", type=click.Path(path_type=Path))
@click.option("--method", type=click.Choice(["dedup", "retrieve", "balanced"]), required=True)
@click.option(
    "--against", multiple=True, type=click.Path(path_type=Path), help="dedup: drop what an evaluation set has too."
)
@click.option(
    "--threshold", type=click.FloatRange(0, 1, min_open=True), help="dedup: cosine of duplicates.  [default: 0.98]"
)
@click.option(
    "--relative-threshold",
    type=click.FloatRange(0, 1, min_open=True),
    help="dedup: the same for --against.  [default: --threshold]",
)
@click.option("--queries", type=click.Path(path_type=Path), help="retrieve: a collection of what should be found.")
@click.option(
    "--by", type=click.Choice(["sample", "cluster"]), help="retrieve: nearest of each, or clusters.  [default: sample]"
)
@click.option(
    "--nearest", "-k", type=click.IntRange(1), help="retrieve by sample: so many for each query.  [default: 4]"
)
@click.option(
    "--clusters", callback=_numbers, metavar="N[,N...]", help="retrieve by cluster: how many; balanced: of each level."
)
@click.option(
    "--per-cluster", type=click.IntRange(1), help="retrieve by cluster: at most so many of each.  [default: 10000]"
)
@click.option(
    "--more-than", type=click.IntRange(0), help="retrieve by cluster: queries that a cluster must exceed.  [default: 3]"
)
@click.option("--cap", type=click.IntRange(0), help="retrieve: at most so many together.")
@click.option("--target", type=click.IntRange(0), help="balanced: so many images.")
@click.option("--resampling", type=click.IntRange(0), help="balanced: resampling steps of each level.  [default: 10]")
@click.option(
    "--leaf", type=click.Choice(["random", "closest"]), help="balanced: how to choose in a cluster.  [default: random]"
)
@click.option("--only", type=click.Path(path_type=Path, exists=True), help="Choose among what an earlier plan kept.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--max-iter", type=click.IntRange(1), default=50, show_default=True, help="Of k-means.")
@click.option("--column", help="Which vectors of the collections; the first without it.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path, dir_okay=False), help="The plan: FILE.parquet, .csv or .jsonl."
)
@click.option("--sheet", type=click.Path(path_type=Path), help="Some of the chosen: FILE.png or FILE.html.")
@click.option("--root", type=click.Path(path_type=Path), help="The folder that was embedded, if it lies elsewhere now.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that are there.")
def command(
    pool: Path,
    method: str,
    only: Path | None,
    column: str | None,
    out: Path | None,
    sheet: Path | None,
    root: Path | None,
    as_json: bool,
    overwrite: bool,
    **options: Any,
) -> None:
    """Choose images of POOL: one of each group of duplicates, what is like the queries, or as many of each kind.

    The plan lists the chosen images and why. Steps follow each other with --only.

    \b
    dinokit curate pool.emb --method dedup --threshold 0.95 --against test.emb -o 1.parquet
    dinokit curate pool.emb --method retrieve --queries good.emb -k 8 --only 1.parquet -o 2.parquet
    dinokit curate pool.emb --method balanced --clusters 1000,50 --target 20000 --only 1.parquet -o 3.parquet
    """  # fmt: skip
    from dinokit.errors import DinokitError
    from dinokit.search.curate import COLUMNS
    from dinokit.search.tables import origin, write_rows

    _refuse_strangers(options, BELONGS, method, "--method")
    if method == "retrieve":
        _refuse_strangers(options, BY, options["by"] or "sample", "--by")
    checked_outputs(out, sheet, overwrite)
    features = open_collection(pool, column)
    among = None if only is None else _kept(only, features)
    methods: dict[str, Callable[..., Choice]] = {"dedup": _dedup, "retrieve": _retrieve, "balanced": _balanced}
    try:
        found = methods[method](features, column, among, options)
    except ValueError as error:
        if isinstance(error, DinokitError):
            raise
        raise click.UsageError(str(error)) from error
    told = {
        name: list(map(str, value)) if name == "against" else value
        for name, value in options.items()
        if value not in (None, ())
    }
    settings = {
        "method": method,
        **{name: str(value) if isinstance(value, Path) else value for name, value in told.items()},
    }
    if out is not None:
        write_rows(
            out,
            found.rows,
            COLUMNS,
            origin(features, only=str(only) if only else None, **settings),
            overwrite=overwrite,
        )
        say(f"wrote {out}; nothing else was touched")
    if as_json:
        click.echo(
            json_bytes({"schema": SCHEMA, **settings, "counts": found.counts} | ({} if out else {"rows": found.rows}))
        )
    elif out is None:
        for row in found.rows:
            click.echo(f"{row['path']}\t{row['reason']}")
    say(", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in found.counts.items()))
    if sheet is not None:
        _sheet(found, sheet, pool, method, root, overwrite)


def _refuse_strangers(options: dict[str, Any], table: dict[str, tuple[str, ...]], chosen: str, flag: str) -> None:
    """Options that another choice reads, not this one."""
    for name in sorted({name for names in table.values() for name in names} - set(table[chosen])):
        if options[name] not in (None, ()):
            owners = " or ".join(owner for owner, names in table.items() if name in names)
            raise click.UsageError(f"--{name.replace('_', '-')} belongs to {flag} {owners}, not to {chosen}.")


def _kept(plan: Path, features: FeatureSet) -> Any:
    """Numbers of what an earlier plan of the same vectors kept."""
    import numpy as np

    from dinokit.errors import IdentityError
    from dinokit.search.facts import numbers_of
    from dinokit.search.tables import read_origin, read_rows

    known = read_origin(plan).get("compat_id")
    if known != features.compat_id:
        raise IdentityError(f"{plan} was made for vectors of compat_id {known}, the pool has {features.compat_id}.")
    try:
        rows = read_rows(plan)
        if rows and "action" in rows[0]:  # a plan of `dinokit dedup` lists what is in groups only
            dropped = {row["id"] for row in rows if row["action"] == "drop"}
            return np.array([number for number, name in enumerate(features.ids()) if name not in dropped], np.int64)
        return np.array(numbers_of(features, [row["id"] for row in rows]), np.int64)
    except KeyError as error:
        raise click.BadParameter(str(error.args[0]), param_hint="--only") from error


def _dedup(features: FeatureSet, column: str | None, among: Any, options: dict[str, Any]) -> Choice:
    from dinokit.search.curate import without_duplicates
    from dinokit.search.dedup import THRESHOLD

    return without_duplicates(
        features,
        [open_collection(path, column) for path in options["against"]],
        threshold=options["threshold"] or THRESHOLD,
        relative_threshold=options["relative_threshold"],
        among=among,
    )


def _retrieve(features: FeatureSet, column: str | None, among: Any, options: dict[str, Any]) -> Choice:
    from dinokit.search.curate import retrieve_clusters, retrieve_nearest

    if options["queries"] is None:
        raise click.UsageError("--method retrieve needs --queries.")
    queries = open_collection(options["queries"], column)
    if options["by"] != "cluster":
        return retrieve_nearest(features, queries, options["nearest"] or 4, cap=options["cap"], among=among)
    if len(options["clusters"] or ()) != 1:
        raise click.UsageError("--by cluster needs --clusters with one number.")
    return retrieve_clusters(
        features,
        queries,
        options["clusters"][0],
        per_cluster=options["per_cluster"] or 10_000,
        more_than=3 if options["more_than"] is None else options["more_than"],
        cap=options["cap"],
        seed=options["seed"],
        max_iter=options["max_iter"],
        among=among,
    )


def _balanced(features: FeatureSet, column: str | None, among: Any, options: dict[str, Any]) -> Choice:  # noqa: ARG001
    from dinokit.search.curate import balanced

    if options["target"] is None or not options["clusters"]:
        raise click.UsageError("--method balanced needs --target and --clusters.")
    return balanced(
        features,
        options["target"],
        options["clusters"],
        resampling_steps=10 if options["resampling"] is None else options["resampling"],
        leaf=options["leaf"] or "random",
        seed=options["seed"],
        max_iter=options["max_iter"],
        among=among,
    )


def _sheet(found: Choice, sheet: Path, pool: Path, method: str, root: Path | None, overwrite: bool) -> None:
    from dinokit.search.facts import find_image
    from dinokit.search.sheets import Group, Shown, write_sheet

    step = max(len(found.rows) / MAX_SHOWN, 1)
    rows = [found.rows[int(i * step)] for i in range(min(MAX_SHOWN, len(found.rows)))]
    by: dict[str, list[Shown]] = {}
    for row in rows:
        heading = row["query"] or (f"cluster {row['cluster']}" if row["cluster"] is not None else row["reason"])
        by.setdefault(heading, []).append(Shown(find_image(row, root), Path(row["id"]).name, row["reason"]))
    groups = [Group(heading, shown) for heading, shown in sorted(by.items())]
    subtitle = f"{method}: {len(found.rows):,} chosen of {found.counts['pool']:,}, {len(rows)} shown"
    write_sheet(sheet, groups, title=f"Chosen of {pool.name}", subtitle=subtitle, overwrite=overwrite)
    say(f"wrote {sheet}")

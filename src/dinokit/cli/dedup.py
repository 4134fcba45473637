"""`dinokit dedup`: duplicates in a collection, or what two collections share, as a plan; no image is ever deleted."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dinokit.cli.common import say
from dinokit.cli.search import checked_sheet, counted, json_bytes, open_collection

if TYPE_CHECKING:
    from dinokit.search.dedup import Plan
    from dinokit.search.estimate import Estimate
    from dinokit.search.sheets import Group
    from dinokit.store import FeatureSet

SCHEMA = 1
MAX_GROUPS = 60
MAX_MEMBERS = 14


@click.command(no_args_is_help=True)
@click.argument("collection", type=click.Path(path_type=Path))
@click.argument("reference", required=False, type=click.Path(path_type=Path))
@click.option(
    "--threshold", "-t", type=click.FloatRange(0, 1, min_open=True), default=0.98, show_default=True,
    help="Cosine from which on two images are the same.",
)  # fmt: skip
@click.option("--exact", is_flag=True, help="Only equal files (sha256) and equal vectors.")
@click.option(
    "--keep", type=click.Choice(["largest", "first"]), default="largest", show_default=True,
    help="Which one of a group stays: most pixels, then smallest id; or the first.",
)  # fmt: skip
@click.option(
    "--estimate",
    "estimating",
    is_flag=True,
    help="Help with the threshold: groups at 0.90 to 0.99, nearest neighbours.",
)
@click.option(
    "--out", "-o", type=click.Path(path_type=Path, dir_okay=False), help="The plan: FILE.parquet, .csv or .jsonl."
)
@click.option(
    "--sheet",
    type=click.Path(path_type=Path),
    help="Look at groups, or with --estimate at pairs: FILE.png or FILE.html.",
)
@click.option("--column", help="Which vectors of the collection; the first without it.")
@click.option("--root", type=click.Path(path_type=Path), help="The folder that was embedded, if it lies elsewhere now.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that are there.")
@click.option("--force", is_flag=True, help="Compare with REFERENCE although another model or preprocessing made it.")
def command(
    collection: Path,
    reference: Path | None,
    threshold: float,
    exact: bool,
    keep: Any,
    estimating: bool,
    out: Path | None,
    sheet: Path | None,
    column: str | None,
    root: Path | None,
    as_json: bool,
    overwrite: bool,
    force: bool,
) -> None:
    """Find duplicates in COLLECTION, or images of COLLECTION that REFERENCE has too (leakage into a test set).

    The result is a plan: which images hang together, which one to keep, why. Without --out its rows are lines on stdout: group,
    keep or drop, cosine with the kept one, reason, path.

    \b
    dinokit dedup photos.emb --estimate --sheet pairs.html
    dinokit dedup photos.emb -t 0.96 -o plan.parquet --sheet groups.html
    dinokit dedup train.emb test.emb -o leaked.csv
    """  # fmt: skip
    from dinokit.search.dedup import COLUMNS, dedup, leakage
    from dinokit.search.tables import origin, write_rows

    if estimating and (reference or out or exact):
        raise click.UsageError("--estimate looks at one collection and makes no plan: no REFERENCE, --out or --exact.")
    checked_outputs(out, sheet, overwrite)
    features = open_collection(collection, column)
    if estimating:
        return _estimate(features, collection, sheet, root, as_json, overwrite)
    level = None if exact else threshold
    if reference is None:
        plan = dedup(features, level, keep=keep, watch=_watched)
        other = None
    else:
        other = open_collection(reference, column)
        plan = leakage(features, other, level, force=force)
    counts = plan.summary()
    if out is not None:
        about = origin(features, threshold=level, keep=keep, reference=str(reference) if reference else None)
        write_rows(out, plan.rows, COLUMNS, about, overwrite=overwrite)
        say(f"wrote {out}; nothing else was touched")
    if sheet is not None:
        _plan_sheet(plan, sheet, collection, root, other, overwrite)
    if as_json:
        click.echo(json_bytes({"schema": SCHEMA, **counts} | ({} if out else {"rows": plan.rows})))
    elif out is None:
        for row in plan.rows:
            cosine = "" if row["similarity"] is None else f"{row['similarity']:.4f}"
            click.echo(f"{row['group']}\t{row['action']}\t{cosine}\t{row['reason']}\t{row['path']}")
    say(
        f"{counted(counts['images'], 'image')}: {counted(counts['groups'], 'group')}, keep {counts['keep']:,}, drop {counts['drop']:,}"
    )
    return None


def _watched(steps: Sequence[int]) -> Iterable[int]:
    """All pairs take their time; the first steps are the longest."""
    from tqdm import tqdm

    bar: Iterable[int] = tqdm(steps, desc="pairs", unit="step", disable=None)
    return bar


def checked_outputs(out: Path | None, sheet: Path | None, overwrite: bool) -> None:
    """Refuse what can't be written before anything is computed."""
    from dinokit.search.tables import check_table

    if out is not None:
        try:
            check_table(out, overwrite=overwrite)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--out") from error
    if sheet is not None:
        checked_sheet(sheet, overwrite)


def _estimate(
    features: FeatureSet, collection: Path, sheet: Path | None, root: Path | None, as_json: bool, overwrite: bool
) -> None:
    from dinokit.search.estimate import BINS, estimate

    found = estimate(features, watch=_watched)
    histogram = found.histogram()
    if as_json:
        click.echo(
            json_bytes({"schema": SCHEMA, "images": len(features), "thresholds": found.groups, "nearest": histogram})
        )
    else:
        click.echo("threshold   groups   images     drop")
        for row in found.groups:
            click.echo(f"{row['threshold']:9.2f} {row['groups']:8,} {row['images']:8,} {row['drop']:8,}")
        click.echo("\ncosine with the nearest other image")
        most = max((row["count"] for row in histogram), default=0)
        first = next((i for i, row in enumerate(histogram) if row["count"]), 0)
        for row in histogram[first:]:
            bar = "#" * round(40 * row["count"] / max(most, 1))
            click.echo(f"{row['from']:6.3f} to {row['to']:5.3f} {row['count']:8,} {bar}")
    if sheet is not None:
        from dinokit.search.sheets import write_sheet

        groups = _pair_groups(features, found, BINS, root)
        write_sheet(
            sheet, groups, title=f"Pairs of {collection.name}", overwrite=overwrite,
            subtitle="Each image with its nearest other one, by their cosine: where do pairs stop being the same?",
        )  # fmt: skip
        say(f"wrote {sheet}")


def _pair_groups(features: FeatureSet, found: Estimate, bins: Sequence[float], root: Path | None) -> list[Group]:
    from dinokit.search.facts import NAMES, find_image
    from dinokit.search.sheets import Group, Shown

    groups = []
    for low, high in reversed(list(itertools.pairwise(bins))):
        pairs = found.examples(low, high if high < 1 else 2)
        numbers = [number for i, j, _ in pairs for number in (i, j)]
        cosines = [f"cosine {cosine:.4f}" for *_, cosine in pairs for _ in range(2)]
        shown = [
            Shown(find_image(row, root), Path(row["id"]).name, cosine)
            for row, cosine in zip(features.rows(numbers, NAMES), cosines, strict=True)
        ]
        if shown:
            groups.append(Group(f"{low:g} to {high:g}", shown, columns=6))
    return groups


def _plan_sheet(
    plan: Plan, sheet: Path, collection: Path, root: Path | None, reference: FeatureSet | None, overwrite: bool
) -> None:
    from dinokit.search.facts import NAMES, find_image, numbers_of
    from dinokit.search.sheets import Group, Shown, write_sheet

    members: dict[int, list[dict[str, Any]]] = {}
    for row in plan.rows:
        members.setdefault(row["group"], []).append(row)
    largest = sorted(members.items(), key=lambda item: (-len(item[1]), item[0]))[:MAX_GROUPS]
    groups = []
    for group, rows in largest:
        shown = [
            Shown(
                find_image(row, root), Path(row["id"]).name,
                row["action"] if row["similarity"] is None else f"{row['action']}, {row['reason']}, {row['similarity']:.4f}",
            )
            for row in rows[:MAX_MEMBERS]
        ]  # fmt: skip
        if reference is not None:
            theirs = reference.rows(numbers_of(reference, [rows[0]["kept"]]), NAMES)[0]
            shown.append(Shown(Path(theirs["path"]), Path(theirs["id"]).name, "in the reference"))
        more = f", {len(rows) - MAX_MEMBERS} not shown" if len(rows) > MAX_MEMBERS else ""
        groups.append(Group(f"group {group}: {len(rows)} images{more}" if reference is None else rows[0]["id"], shown))
    if len(members) > MAX_GROUPS:
        say(f"the sheet shows the {MAX_GROUPS} largest of {len(members):,} groups")
    counts = plan.summary()
    subtitle = f"{counted(counts['images'], 'image')}, {counted(counts['groups'], 'group')}, {counts['drop']:,} to drop"
    write_sheet(sheet, groups, title=f"Duplicates in {collection.name}", subtitle=subtitle, overwrite=overwrite)
    say(f"wrote {sheet}")

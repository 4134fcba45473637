"""The output folder: making a plan there or finding the one that is, what is done, what is left over from a crash."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dinokit.atomic import write_json
from dinokit.errors import OutputError, StorageError
from dinokit.extract.inputs import Change, Inputs, compare, restamped
from dinokit.extract.plan import RUN, SUCCESS, Extent, Plan, Shard, Status
from dinokit.extract.shard import read_footer, read_rows
from dinokit.store.schema import need_pyarrow

OURS = re.compile(r"_run\.json|_SUCCESS|_inputs-\d+\.arrow|_(plan\.)?lock.*|\..*\.tmp")
SHARD_FILE = re.compile(r"\.?(part|patches|registers|tokens)-(\d{8})")


def prepare_folder(folder: Path) -> None:
    """Make it, or see that it is a job's.

    Raises:
        OutputError: it holds something else.
        StorageError: it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise StorageError(f"{folder} can't be made: {error.strerror or error}.") from error
    foreign = [name for name in names if not OURS.fullmatch(name)]
    if foreign and RUN not in names:
        raise OutputError(
            f"{folder} holds other things ({', '.join(sorted(foreign)[:3])}) and no {RUN}. Choose a new folder for the embeddings."
        )


def remove_leftovers(folder: Path, mine: Iterable[int] | None) -> int:
    """Temporary files of runs that were killed; of the shards `mine`, or all (None). How many there were."""
    wanted = None if mine is None else set(mine)
    removed = 0
    for path in folder.glob(".*.tmp"):
        found = SHARD_FILE.match(path.name)
        if wanted is None or (found and int(found[2]) in wanted):
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def survey(plan: Plan, shards: Iterable[Shard]) -> dict[int, dict[str, Any]]:
    """Footers of the shards that are there, by number."""
    there = {path.name for path in plan.folder.glob("part-*.parquet")}
    found = {}
    for shard in shards:
        footer = read_footer(plan, shard) if shard.name in there else None
        if footer is not None:
            found[shard.index] = footer
    return found


def status_of(plan: Plan, footers: dict[int, dict[str, Any]]) -> Status:
    """How far the plan is, by its footers."""
    failed: Counter[str] = Counter()
    for footer in footers.values():
        failed.update(footer["failed"])
    done = sum(footer["rows"] for footer in footers.values())
    return Status(plan.num_rows, plan.num_shards, done, len(footers), failed)


def first_plan(wanted: Plan, inputs: Inputs) -> Plan:
    """Fix the plan: the list first, then the file that says it counts."""
    plan = wanted.extended(inputs)
    plan.save()
    return plan


def follow_plan(found: Plan, wanted: Plan, now: Inputs, *, retry: bool) -> tuple[Plan, int]:
    """The plan that is there, with inputs that were added since as a further extent, and how many those are.

    Raises:
        OutputError: other settings, or inputs that were removed or modified; says which.
    """
    found.require_same(wanted)
    planned = _all_inputs(found)
    change = compare(planned, now)
    _check(found, planned, change, now, retry=retry)
    if len(change.added):
        (found.folder / SUCCESS).unlink(missing_ok=True)
        found = found.extended(change.added)
        found.save()
    return found, len(change.added)


def finish(plan: Plan) -> bool:
    """Write `_SUCCESS` if every shard is there, whoever made it; whether it is."""
    footers = survey(plan, plan.shards())
    status = status_of(plan, footers)
    if status.complete:
        content = {
            "rows": status.rows,
            "ok": status.rows - status.failed.total(),
            "failed": dict(sorted(status.failed.items())),
            "plan_sha256": plan.sha256,
        }
        write_json(plan.folder / SUCCESS, content)
    return status.complete


def _all_inputs(plan: Plan) -> Inputs:
    pa = need_pyarrow()
    tables = [plan.inputs(extent).table.replace_schema_metadata(None) for extent in plan.extents]
    return Inputs(pa.concat_tables(tables))


def _check(plan: Plan, planned: Inputs, change: Change, now: Inputs, *, retry: bool) -> None:
    if change.removed:
        raise OutputError(
            f"{_count(change.removed)} of {plan.folder}'s plan are not among the sources any more: {_named(planned, change.removed)}. "
            f"Give the same sources again (more may be added), or go on with the plan as it is: --no-check-inputs."
        )
    harmful, harmless = _sorted_out(plan, change.modified, retry=retry)
    if harmful:
        hint = " --retry-failed takes those that had failed." if not retry else ""
        raise OutputError(
            f"{_count(harmful)} changed since they were embedded: {_named(planned, harmful)}.{hint} Embed into another folder, or keep "
            f"the old vectors: --no-check-inputs."
        )
    if harmless:
        _restamp(plan, now, harmless)


def _sorted_out(plan: Plan, modified: list[int], *, retry: bool) -> tuple[list[int], list[int]]:
    """Changed inputs whose vectors are there, and those that have none yet (or are about to be retried)."""
    harmful: list[int] = []
    harmless: list[int] = []
    rows: dict[int, Any] = {}
    for number in modified:
        shard, place = _place(plan, number)
        if shard.index not in rows:
            there = read_footer(plan, shard) is not None
            rows[shard.index] = read_rows(plan, shard).ok if there else None
        ok = rows[shard.index]
        (harmless if ok is None or (retry and not ok[place]) else harmful).append(number)
    return harmful, harmless


def _place(plan: Plan, number: int) -> tuple[Shard, int]:
    """The shard that input `number` of all belongs to, and its row there."""
    extent, number = _extent(plan, number)
    index, place = divmod(number, plan.settings.shard_size)
    return plan.shard(extent.first_shard + index), place


def _extent(plan: Plan, number: int) -> tuple[Extent, int]:
    for extent in plan.extents:
        if number < extent.rows:
            return extent, number
        number -= extent.rows
    raise IndexError(number)


def _restamp(plan: Plan, now: Inputs, numbers: list[int]) -> None:
    by_file: dict[str, list[int]] = {}
    for number in numbers:
        extent, row = _extent(plan, number)
        by_file.setdefault(extent.file, []).append(row)
    for extent in plan.extents:
        if extent.file in by_file:
            fresh = restamped(plan.inputs(extent), now, by_file[extent.file])
            fresh.save(plan.folder / extent.file)
            plan._inputs[extent.file] = Inputs.load(plan.folder / extent.file)


def _count(numbers: list[int]) -> str:
    return f"{len(numbers):,} input{'s' if len(numbers) > 1 else ''}"


def _named(inputs: Inputs, numbers: list[int]) -> str:
    names = [inputs.table.column("id")[number].as_py() for number in numbers[:5]]
    return ", ".join(names) + (", ..." if len(numbers) > 5 else "")


def same_kind(plan: Plan, made_with: dict[str, Any]) -> tuple[Plan, list[str]]:
    """The plan with what vectors are made with now, and what differs from then, in words."""
    before = dict(plan.identity.made_with)
    differs = [
        f"{name} {before.get(name)} -> {value}"
        for name, value in sorted(made_with.items())
        if before.get(name) != value
    ]
    return replace(plan, identity=replace(plan.identity, made_with=made_with)), differs

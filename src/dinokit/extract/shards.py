"""One shard from prepared images to its table: the step that can run anywhere, in this process or in somebody else's.

`embed_shard(plan, index, ...)` gives the table, `dinokit.extract.shard.commit(plan, table)` puts it in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinokit.extract.dense import DenseShard, tokens_of
from dinokit.extract.dense_zarr import DenseZarr
from dinokit.extract.forward import Answer, Forward
from dinokit.extract.plan import Plan, Shard
from dinokit.extract.prepare import Facts, How, Ready
from dinokit.extract.shard import Rows, commit, read_footer, read_rows, to_table
from dinokit.extract.threads import Threads
from dinokit.extract.where import Where

Watch = Callable[[int, list[Facts]], None]
Reserve = Callable[[int], None]


@dataclass(frozen=True)
class Work:
    """What has to be done of a shard: all rows, or those that failed before."""

    shard: Shard
    retry: bool = False


@dataclass(frozen=True)
class Made:
    """A finished shard that is not in place yet. `rows` were embedded for it."""

    plan: Plan
    table: Any
    rows: int
    dense: DenseShard | DenseZarr | None
    replaces: tuple[Path, ...] = ()

    def commit(self) -> None:
        """Arrays first, then the table that names them, then away with arrays that it does not name any more.

        Raises:
            StorageError: the disk refuses.
        """
        try:
            if self.dense is not None:
                self.dense.commit()
            commit(self.plan, self.table)
        finally:
            self.abort()  # nothing to do after success
        for path in self.replaces:
            path.unlink(missing_ok=True)

    def abort(self) -> None:
        """Leave nothing of it."""
        if self.dense is not None:
            self.dense.abort()


def places(plan: Plan, works: Iterator[Work]) -> Iterator[Where]:
    """Where the bytes of all images to be done are, in the order in which `make` takes them."""
    for work in works:
        inputs = plan.inputs(work.shard.extent)
        wanted = _wanted(plan, work)
        for row, asked in zip(plan.rows(work.shard), wanted, strict=True):
            if asked:
                yield inputs.where(row)


def make(
    plan: Plan,
    work: Work,
    forward: Forward,
    ready: Iterator[Ready],
    watch: Watch | None = None,
    reserve: Reserve | None = None,
) -> Made:
    """A shard's table and arrays; takes as many of `ready` as the shard has rows to be done.

    `reserve` is called with a number of rows before, `watch` after they are embedded.

    Raises:
        StorageError: dense features can't be written.
    """
    shard, slots = work.shard, plan.settings.batch_size
    inputs, wanted = plan.rows(shard), _wanted(plan, work)
    rows = read_rows(plan, shard) if work.retry else Rows.of(plan.identity, len(shard))
    dense, old, replaces = _dense(plan, work, forward)
    number = 0  # of the row among those of `old`
    try:
        for start in range(0, len(shard), slots):
            stop = min(start + slots, len(shard))
            chunk = [next(ready) if wanted[row] else None for row in range(start, stop)]
            names = [row.shown for row in inputs[start:stop]]
            if reserve is not None:
                reserve(sum(wanted[start:stop]))
            answers = forward(chunk, names) if any(chunk) else [None] * len(chunk)
            for row, answer in enumerate(answers, start):
                kept = answer is None and bool(rows.ok[row])
                _place(rows, row, answer)
                if dense is not None and rows.ok[row]:
                    _add(dense, row, answer, old, number)
                number += kept
            if watch is not None:
                done = [answer for answer in answers if answer is not None]
                watch(len(done), [answer.facts for answer in done if answer.facts.error_code])
        table = to_table(plan, shard, inputs, rows, dense.names if dense is not None else None)
    except BaseException:
        if dense is not None:
            dense.abort()
        raise
    return Made(plan, table, sum(wanted), dense, replaces)


def embed_shard(plan: Plan, index: int, forward: Forward, how: How) -> Any:
    """The table of one shard, prepared by two threads of this process; for engines that bring their own processes."""
    work = Work(plan.shard(index))
    with (
        Threads(how) as threads,
        closing(threads.map(places(plan, iter([work])), 4 * plan.settings.batch_size)) as ready,
    ):
        return make(plan, work, forward, ready).table


def _wanted(plan: Plan, work: Work) -> list[bool]:
    if not work.retry:
        return [True] * len(work.shard)
    return [bool(not ok) for ok in read_rows(plan, work.shard).ok]


def _add(
    dense: DenseShard | DenseZarr, row: int, answer: Answer | None, old: Mapping[str, np.ndarray], number: int
) -> None:
    """What an image has now, or the `number`th array of before; in a Zarr store that is in its place already."""
    if answer is not None:
        dense.add(row, answer.dense)
    elif old:
        dense.add(row, {kind: array[number] for kind, array in old.items()})


def _place(rows: Rows, row: int, answer: Answer | None) -> None:
    if answer is None:
        return
    rows.facts[row], rows.ok[row] = answer.facts, answer.ok
    for column, vector in answer.vectors.items():
        rows.vectors[column][row] = vector
        rows.norms[column][row] = answer.norms[column]


def _dense(
    plan: Plan, work: Work, forward: Forward
) -> tuple[DenseShard | DenseZarr | None, dict[str, np.ndarray], tuple[Path, ...]]:
    """The arrays to be written, those of before where some rows are kept, and their files."""
    if not plan.settings.dense:
        return None, {}, ()
    width = forward.pre.config.embed_dim
    shapes = {kind: (tokens_of(forward.pre, kind), width) for kind in plan.settings.dense}
    if plan.settings.dense_format == "zarr":
        return DenseZarr(plan, work.shard, plan.settings.dense), {}, ()
    if not work.retry:
        return DenseShard(plan, work.shard, shapes), {}, ()
    footer = read_footer(plan, work.shard) or {}
    files = {kind: plan.folder / name for kind, name in footer.get("dense", {}).items()}
    attempt = 1 + max((int(path.stem.split("-")[2]) for path in files.values() if path.stem.count("-") == 2), default=0)
    old = {kind: np.load(path, mmap_mode="r") for kind, path in files.items()}
    return DenseShard(plan, work.shard, shapes, attempt), old, tuple(files.values())

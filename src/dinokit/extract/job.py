"""`ExtractJob`: a collection of images to a folder of features, again and again until all of it is there.

Promise: one row for each input whatever happens; shards appear whole or not at all; the same command goes on where it was cut off,
and the bytes are those of a run that was not. The walk: lock -> list inputs -> make or follow the plan -> survey what is done ->
decode in processes, run the model here, write beside it -> `_SUCCESS`.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dinokit.errors import OutputError
from dinokit.extract import dense as dense_features
from dinokit.extract import dense_zarr
from dinokit.extract.committer import Committer
from dinokit.extract.folder import (
    finish,
    first_plan,
    follow_plan,
    prepare_folder,
    remove_leftovers,
    same_kind,
    status_of,
    survey,
)
from dinokit.extract.forward import Forward, lanes_for
from dinokit.extract.inputs import list_inputs
from dinokit.extract.interrupts import Interrupts
from dinokit.extract.lock import FolderLock, plan_lock
from dinokit.extract.options import (
    FailureLimitError,
    JobOptions,
    Quiet,
    Reporter,
    default_workers,
    settings_for,
)
from dinokit.extract.plan import Plan, Status
from dinokit.extract.prepare import Facts, How, Ready
from dinokit.extract.shards import Work, make, places
from dinokit.extract.sources import Source, open_sources
from dinokit.extract.threads import Threads
from dinokit.extract.where import Where
from dinokit.extract.workers import Reason, Workers
from dinokit.images import FastTransform, Preparation
from dinokit.store.identity import Feature, identify
from dinokit.store.schema import need_pyarrow
from dinokit.weights.load import Pretrained

AHEAD_BATCHES = 4


@dataclass(frozen=True)
class Summary:
    """What a run did. `status` is of the whole folder; `failed` counts this run's failures by code."""

    status: Status
    rows: int
    failed: Counter[str]
    seconds: float
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": 1,
            **self.status.to_dict(),
            "this_run": {
                "rows": self.rows,
                "failed": dict(sorted(self.failed.items())),
                "seconds": round(self.seconds, 3),
                "interrupted": self.interrupted,
            },
        }


@dataclass
class ExtractJob:
    """Features of `source` into the folder `out`.

    `source` is a place or several (see `open_sources`), or sources of your own. `features` are the columns; by default
    the class token, normalised. `preparation` is `FastTransform` unless another is given.
    """

    pre: Pretrained
    source: str | Path | Sequence[str | Path | Source]
    out: str | Path
    features: Sequence[Feature] = ()
    options: JobOptions = field(default_factory=JobOptions)
    preparation: Preparation | None = None
    reporter: Reporter = field(default_factory=Quiet)

    def __post_init__(self) -> None:
        need_pyarrow()
        self.out = Path(self.out)
        self.features = tuple(self.features) or (Feature(dim=self.pre.config.embed_dim),)
        for feature in self.features:
            check_feature(self.pre, feature)
        self.how = How(
            preparation=self.preparation or FastTransform(self.pre.transform),
            options=self.options.decode,
            hash=self.options.hash,
        )

    def plan(self) -> Plan:
        """Make the plan, or follow the one that is there; nothing is embedded.

        Raises:
            OutputError: the folder is in use, holds something else, or was begun with other settings or inputs.
            StorageError: the disk refuses.
        """
        prepare_folder(Path(self.out))
        with FolderLock(Path(self.out), self.options.rank, self.options.world_size):
            return self._plan()

    def status(self) -> Status:
        """How far the folder is, as its files say.

        Raises:
            OutputError: there is no plan yet.
        """
        plan = Plan.load(Path(self.out))
        if plan is None:
            raise OutputError(f"{self.out} has no plan yet; run the job.")
        return status_of(plan, survey(plan, plan.shards()))

    def run(self) -> Summary:
        """Do all that is left to do, of this rank.

        Ctrl-C once ends after the present shard, with `interrupted` in the summary; twice at once.

        Raises:
            OutputError: as `plan`.
            StorageError: the disk is full or fails. Run again to go on.
            FailureLimitError: more inputs failed than `max_errors` or `fail_fast` allow.
        """
        prepare_folder(Path(self.out))
        with FolderLock(Path(self.out), self.options.rank, self.options.world_size), self._decoders() as decoders:
            plan = self._plan()
            return _Run(self, plan, decoders).go()

    def _plan(self) -> Plan:
        folder, options = Path(self.out), self.options
        with plan_lock(folder):
            if options.world_size == 1:
                remove_leftovers(folder, None)
            found = Plan.load(folder)
            sources = self._sources() if found is None or options.check_inputs else []
            wanted = self._wanted(found, len(sources))
            if found is not None and not options.check_inputs:
                found.require_same(wanted)
                plan = found
            else:
                inputs, doubled = list_inputs(sources, prefixed=wanted.settings.id_prefix)
                if doubled:
                    self.reporter.say(f"{doubled:,} ids came up more than once; the later ones end in #2, #3, ...")
                if found is None:
                    if not len(inputs):
                        raise OutputError("there are no images in the sources; nothing was written.")
                    self._require_room(len(inputs))
                    plan = first_plan(wanted, inputs)
                else:
                    plan, added = follow_plan(found, wanted, inputs, retry=options.retry_failed)
                    if added:
                        new, their = ("input is", "its") if added == 1 else ("inputs are", "their")
                        self.reporter.say(f"{added:,} {new} new, in shards of {their} own.")
            plan, differs = same_kind(plan, dict(wanted.identity.made_with))
            if plan.settings.dense and plan.settings.dense_format == "zarr":
                kinds = plan.settings.dense
                shapes = {kind: (dense_features.tokens_of(self.pre, kind), self.pre.config.embed_dim) for kind in kinds}
                dense_zarr.prepare(plan, shapes)
        if differs:
            self.reporter.say(
                f"note: begun under other conditions ({'; '.join(differs)}); last bits of vectors may differ."
            )
        if options.world_size > 1:
            remove_leftovers(folder, (shard.index for shard in plan.shards(options.rank, options.world_size)))
        return plan

    def _sources(self) -> list[Source]:
        given = [self.source] if isinstance(self.source, str | Path) else list(self.source)
        found: list[Source] = []
        for place in given:
            found.extend(
                open_sources([str(place)], columns=self.options.columns) if isinstance(place, str | Path) else [place]
            )
        if self.options.files:
            found.extend(open_sources([], files=self.options.files, columns=self.options.columns))
        return found

    def _wanted(self, found: Plan | None, sources: int) -> Plan:
        settings = settings_for(self.pre, self.options, sources=sources, plan=found)
        made_with = {"device": self.pre.device.type, "engine": settings.engine, "threads": settings.threads}
        identity = identify(
            self.pre,
            self.features,
            decode=self.how.decode_settings(),
            fingerprint=self.how.preparation.fingerprint,
            made_with=made_with,
        )
        return Plan(folder=Path(self.out), identity=identity, settings=settings, extents=())

    def _require_room(self, rows: int) -> None:
        if self.options.dense:
            wanted = dense_features.forecast(self.pre, self.options.dense, self.options.dense_dtype, rows)
            self.reporter.say(f"dense features ({', '.join(self.options.dense)}) will take {wanted / 1e9:,.2f} GB.")
            dense_features.require_room(Path(self.out), wanted)

    @contextmanager
    def _decoders(self) -> Iterator[Workers[Where, Ready] | Threads[Where, Ready]]:
        """Started before the plan is made, so that their imports cost no time."""
        count = self.options.workers if self.options.workers is not None else default_workers(self.pre.device.type)
        if not count or os.name != "posix":
            with Threads[Where, Ready](self.how) as threads:
                yield threads
            return
        timeout = self.options.decode_timeout

        def failed(where: Where, reason: Reason) -> Ready:
            return Ready(Facts(error_code=reason, error=f"{where.name}: {_reason(reason, timeout)}"))

        with Workers[Where, Ready](self.how, count, timeout=timeout, failed=failed) as workers:
            yield workers


class _Run:
    """One run over a plan that is fixed."""

    def __init__(self, job: ExtractJob, plan: Plan, decoders: Workers[Where, Ready] | Threads[Where, Ready]) -> None:
        self.job, self.plan, self.decoders = job, plan, decoders
        self.options, self.reporter = job.options, job.reporter
        self.forward = Forward(
            job.pre,
            job.how.preparation,
            plan.identity.features,
            plan.settings.batch_size,
            plan.settings.dense,
            plan.settings.dense_dtype,
            lanes_for(job.pre, plan.settings.threads, plan.settings.batch_size),
        )
        self.rows = 0
        self.failed: Counter[str] = Counter()

    def go(self) -> Summary:
        started = time.perf_counter()
        plan, options = self.plan, self.options
        mine = list(plan.shards(options.rank, options.world_size))
        footers = survey(plan, mine)
        status = status_of(plan, footers)
        works = self._works(footers)
        self.before = status.failed.total() if not options.retry_failed else 0
        rows = sum(
            sum(footers[work.shard.index]["failed"].values()) if work.retry else len(work.shard) for work in works
        )
        self.reporter.begin(plan, status, rows)
        try:
            with pinned_threads(plan.settings.threads, self.job.pre), Interrupts(self._told) as interrupts:
                self._embed(works, interrupts)
            if not interrupts.asked or self.rows == rows:
                with plan_lock(plan.folder):
                    finish(plan)
        finally:
            self.reporter.end()
        status = status_of(plan, survey(plan, plan.shards()))
        return Summary(status, self.rows, self.failed, time.perf_counter() - started, interrupts.asked)

    def _works(self, footers: dict[int, dict[str, Any]]) -> list[Work]:
        works = []
        for shard in self.plan.shards(self.options.rank, self.options.world_size):
            footer = footers.get(shard.index)
            if footer is None:
                works.append(Work(shard))
            elif self.options.retry_failed and footer["failed"]:
                works.append(Work(shard, retry=True))
        return works

    def _embed(self, works: Iterable[Work], interrupts: Interrupts) -> None:
        works = list(works)
        ahead = max(AHEAD_BATCHES * self.plan.settings.batch_size, 4 * (self.options.workers or 2))
        decoded = self.decoders.map(places(self.plan, iter(works)), ahead)
        with closing(decoded) as ready, Committer(self.plan.settings.shard_size) as committer:
            for work in works:
                made = make(self.plan, work, self.forward, ready, self._watch, committer.reserve)
                committer.put(made)
                if interrupts.asked:
                    break

    def _watch(self, rows: int, failures: list[Facts]) -> None:
        self.rows += rows
        self.failed.update(facts.error_code for facts in failures if facts.error_code)
        self.reporter.progress(rows, failures)
        if failures and self.options.fail_fast:
            raise FailureLimitError(f"stopped at the first bad image (--fail-fast): {failures[0].error}")
        allowed, found = self.options.errors_allowed(self.plan.num_rows), self.before + self.failed.total()
        if allowed is not None and found > allowed:
            raise FailureLimitError(
                f"{found:,} inputs failed, more than --max-errors {self.options.max_errors} allows; the last: {failures[-1].error} "
                f"Finished shards stay; raise the limit to go on."
            )

    def _told(self) -> None:
        self.reporter.say("finishing the shard at hand; Ctrl-C again stops now. The same command goes on later.")


def check_feature(pre: Pretrained, feature: Feature) -> None:
    """Whether the model has it.

    Raises:
        ValueError: no such block, a pooling that gives no one vector, or another width.
    """
    if feature.pooling not in ("cls", "mean", "cls+mean"):
        raise ValueError(f"{feature.column}: pooling {feature.pooling!r} gives no one vector; such are dense features.")
    if feature.block is not None and not 0 <= feature.block < pre.config.depth:
        raise ValueError(f"{feature.column}: block {feature.block}; this network has 0 to {pre.config.depth - 1}.")
    dim = pre.config.embed_dim * (2 if feature.pooling == "cls+mean" else 1)
    if feature.dim != dim:
        raise ValueError(f"{feature.column}: {feature.dim} numbers; this network gives {dim}.")


def features_of(
    pre: Pretrained,
    poolings: Sequence[str] = ("cls",),
    blocks: Sequence[int | None] = (None,),
    **more: Any,
) -> tuple[Feature, ...]:
    """One column for each pooling of each block (None: the output; negative ones from the end).

    The first is called `embedding`, others `embedding_mean`, `embedding_cls_block8`.

    Raises:
        ValueError: as `check_feature`.
    """
    depth = pre.config.depth
    found: list[Feature] = []
    for block in blocks:
        place = None if block is None or block in (-1, depth - 1) else block + depth if block < 0 else block
        for pooling in poolings:
            label = pooling.replace("+", "_") + ("" if place is None else f"_block{place}")
            dim = pre.config.embed_dim * (2 if pooling == "cls+mean" else 1)
            column = f"embedding_{label}" if found else "embedding"
            feature = Feature(column=column, pooling=pooling, block=place, dim=dim, **more)  # type: ignore[arg-type]
            check_feature(pre, feature)
            if not any(replace(other, column="") == replace(feature, column="") for other in found):
                found.append(feature)
    return tuple(found)


@contextmanager
def pinned_threads(count: int, pre: Pretrained) -> Iterator[None]:
    """As many threads of the CPU as the plan says, since another number may round otherwise.

    Afterwards as before, in any case: lanes set the number of their own threads, which counts for the process in part.
    """
    before = torch.get_num_threads()
    if pre.device.type == "cpu" and before != count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _reason(reason: Reason, timeout: float) -> str:
    if reason == "decode_timeout":
        return f"took longer than {timeout:g} s to read and decode. Raise --decode-timeout, or look at the file and its disk."
    return "the process that decoded it died, twice. Too large for the memory, or the file breaks a decoder."

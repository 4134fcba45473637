"""`ExtractJob`: a collection of images to a folder of features, again and again until all of it is there.

Promise: one row for each input whatever happens; shards appear whole or not at all; the same command goes on where it was cut off,
and the bytes are those of a run that was not. The walk: lock -> list inputs -> make or follow the plan -> survey what is done ->
decode in processes, run the model here, write beside it -> `_SUCCESS`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dinokit.errors import OutputError
from dinokit.extract import dense as dense_features
from dinokit.extract import dense_zarr
from dinokit.extract.folder import (
    first_plan,
    follow_plan,
    prepare_folder,
    remove_leftovers,
    same_kind,
    status_of,
    survey,
)
from dinokit.extract.inputs import list_inputs
from dinokit.extract.lock import FolderLock, plan_lock
from dinokit.extract.options import (
    JobOptions,
    Quiet,
    Reporter,
    default_workers,
    settings_for,
)
from dinokit.extract.plan import Plan, Status
from dinokit.extract.prepare import Facts, How, Ready
from dinokit.extract.run import Decoders, Run, Summary
from dinokit.extract.sources import Source, open_sources
from dinokit.extract.threads import Threads
from dinokit.extract.where import Where
from dinokit.extract.workers import Reason, Workers
from dinokit.images import FastTransform, Preparation
from dinokit.store.identity import Feature, identify
from dinokit.store.schema import need_pyarrow
from dinokit.weights.load import Pretrained


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
            return self.plan_in_lock()

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
        with FolderLock(Path(self.out), self.options.rank, self.options.world_size), self.decoders() as decoders:
            plan = self.plan_in_lock()
            return Run(self.pre, self.how, plan, decoders, self.options, self.reporter).go()

    def plan_in_lock(self) -> Plan:
        """As `plan`, for those who hold the folder's lock."""
        folder, options = Path(self.out), self.options
        with plan_lock(folder):
            if options.world_size == 1:
                remove_leftovers(folder, None)
            found = Plan.load(folder)
            sources = self._sources() if found is None or options.check_inputs else []
            wanted = self.wanted_plan(found, len(sources))
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

    def wanted_plan(self, found: Plan | None, sources: int) -> Plan:
        """The plan of this job without its inputs; what is not set is as in the one that was `found`."""
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
    def decoders(self) -> Iterator[Decoders]:
        """What prepares images. Started before the plan is made, so that their imports cost no time."""
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


def _reason(reason: Reason, timeout: float) -> str:
    if reason == "decode_timeout":
        return f"took longer than {timeout:g} s to read and decode. Raise --decode-timeout, or look at the file and its disk."
    return "the process that decoded it died, twice. Too large for the memory, or the file breaks a decoder."

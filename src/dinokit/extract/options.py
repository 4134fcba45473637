"""What can be set about a job, and what stands where nothing was set."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal, Protocol

from dinokit.errors import EXIT_SOME_INPUTS_FAILED, DinokitError
from dinokit.extract.plan import Plan, Settings, Status
from dinokit.extract.prepare import Facts
from dinokit.extract.rows import DecodeOptions
from dinokit.extract.sources.places import Columns
from dinokit.images import Exact
from dinokit.weights.load import Pretrained

SHARD_SIZE = 1024
BATCH_SIZES = {"cpu": 8, "cuda": 64}


class FailureLimitError(DinokitError):
    """More inputs failed than were allowed."""

    exit_code = EXIT_SOME_INPUTS_FAILED


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How a job is run.

    What is None is taken from the plan if the job was begun before, else chosen: `shard_size` 1024; `batch_size` 8, on a GPU 64, and 1
    where images differ in size; `workers` from the number of cores (0: two threads in this process); `id_prefix` whether there are
    several sources. `max_errors` is a number of inputs or, as a string, a share like "1%". `files` are further paths.
    """

    shard_size: int | None = None
    batch_size: int | None = None
    workers: int | None = None
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    decode_timeout: float = 30.0
    hash: bool = True
    absolute: bool = False
    id_prefix: bool | None = None
    dense: tuple[str, ...] = ()
    dense_dtype: str = "float16"
    dense_format: Literal["npy", "zarr"] = "npy"
    retry_failed: bool = False
    check_inputs: bool = True
    max_errors: int | str | None = None
    fail_fast: bool = False
    rank: int = 0
    world_size: int = 1
    columns: Columns = field(default_factory=Columns)
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("shard_size", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} of {self.world_size}: ranks are 0 to {self.world_size - 1}.")
        if self.decode_timeout <= 0:
            raise ValueError(f"decode_timeout is {self.decode_timeout}; it must be more than 0 seconds.")
        self.errors_allowed(1)

    def errors_allowed(self, rows: int) -> int | None:
        """How many of so many inputs may fail; None for any number.

        Raises:
            ValueError: neither a number nor a share.
        """
        if self.max_errors is None:
            return None
        text = str(self.max_errors)
        try:
            allowed = float(text.removesuffix("%"))
        except ValueError:
            allowed = -1.0
        if allowed < 0:
            raise ValueError(f"max_errors is {text!r}; write a number of inputs, or a share like 1%.")
        return int(allowed * rows / 100) if text.endswith("%") else int(allowed)


def settings_for(pre: Pretrained, options: JobOptions, *, sources: int, plan: Plan | None) -> Settings:
    """What is asked for, completed by the plan that is there, or by choice."""
    import torch

    before = plan.settings if plan is not None else None
    fixed = pre.transform.crop is not None or isinstance(pre.transform.resize, Exact)
    chosen = BATCH_SIZES.get(pre.device.type, 8) if fixed else 1
    return Settings(
        shard_size=options.shard_size or (before.shard_size if before else SHARD_SIZE),
        batch_size=options.batch_size or (before.batch_size if before else chosen),
        hash=options.hash,
        absolute=options.absolute,
        id_prefix=options.id_prefix if options.id_prefix is not None else before.id_prefix if before else sources > 1,
        engine=str(pre.plan) if pre.plan is not None else "eager",
        threads=before.threads if before else torch.get_num_threads(),
        dense=options.dense,
        dense_dtype=options.dense_dtype,
        dense_format=options.dense_format,
    )


def default_workers(device: str) -> int:
    """Decoder processes: all cores where a GPU computes, else half of them, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores if device != "cpu" else cores // 2))


class Reporter(Protocol):
    """Who is told how a job goes. Called from the thread that runs it."""

    def begin(self, plan: Plan, status: Status, rows: int) -> None:
        """`rows` are about to be done; `status` is of before."""
        ...

    def progress(self, rows: int, failures: list[Facts]) -> None:
        """So many more are done, among them these failures."""
        ...

    def say(self, text: str) -> None:
        """Something a person should know."""
        ...

    def end(self) -> None:
        """No more will come."""
        ...


class Quiet:
    """Tells nobody."""

    def begin(self, plan: Plan, status: Status, rows: int) -> None:
        """Nothing."""

    def progress(self, rows: int, failures: list[Facts]) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""

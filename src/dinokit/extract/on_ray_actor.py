"""`Embedder`: what an actor of `run_on_ray` does: hold a network and decoders, make the shards it is told as the job itself does."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from dinokit.errors import OutputError
from dinokit.extract.folder import same_kind
from dinokit.extract.interrupts import Interrupts
from dinokit.extract.job import ExtractJob
from dinokit.extract.options import JobOptions, Quiet
from dinokit.extract.plan import Plan
from dinokit.extract.prepare import Facts
from dinokit.extract.run import Run
from dinokit.extract.shards import Work


class Heard(Quiet):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.rows = 0
        self.failures: list[Facts] = []

    def progress(self, rows: int, failures: list[Facts]) -> None:
        """Counted."""
        self.rows += rows
        self.failures += failures

    def say(self, text: str) -> None:
        """Kept."""
        self.said.append(text)


class Embedder:
    """Made at once; `open` does what takes time and may fail."""

    def __init__(self, make_job: Callable[[], ExtractJob], folder: Path, working: str, cpus: int) -> None:
        self.make_job, self.folder, self.working, self.cpus = make_job, folder, working, cpus
        self.until_the_end = ExitStack()

    def open(self, *, make: bool) -> tuple[JobOptions, list[str]]:
        """Load the network; make the plan or go on with it (`make`), or see that the one that is there is this job's.

        The options of the job, and what there is to say.

        Raises:
            OutputError: as `ExtractJob.plan`; there is no plan; or this machine's network has another form than the plan's.
        """
        if not Path(self.working).is_dir():
            raise OutputError(
                f"a machine of the cluster has no {self.working}. Run from a folder that all machines share."
            )
        os.chdir(self.working)  # relative paths mean the same everywhere
        job, heard = self.make_job(), Heard()
        if Path(job.out).absolute() != self.folder or job.options.world_size > 1:
            raise ValueError(
                f"make_job gave a job for {job.out}, of {job.options.world_size}; wanted is all of {self.folder}."
            )
        options = job.options
        if options.workers is None:
            on_cpu = job.pre.device.type == "cpu"
            job.options = replace(options, workers=max(1, self.cpus // 2 if on_cpu else self.cpus))
        job.reporter = heard
        plan = job.plan_in_lock() if make else self._followed(job)
        job.options = replace(job.options, max_errors=None, fail_fast=False)  # the driver counts
        decoders = self.until_the_end.enter_context(job.decoders())
        self.run = Run(job.pre, job.how, plan, decoders, job.options, heard)
        return options, heard.said

    def _followed(self, job: ExtractJob) -> Plan:
        plan = Plan.load(self.folder)
        if plan is None:
            raise OutputError(
                f"a machine of the cluster does not see the plan in {self.folder}. Choose a folder that all share."
            )
        wanted = job.wanted_plan(plan, 1)
        plan.require_same(wanted)
        return same_kind(plan, dict(wanted.identity.made_with))[0]

    def embed(self, works: Sequence[Work]) -> tuple[int, list[Facts]]:
        """Make these shards and put them in place; how many rows were done, and which of them failed."""
        run, heard = self.run, Heard()
        run.reporter = heard
        run.embed(works, Interrupts(lambda: None))
        return heard.rows, heard.failures

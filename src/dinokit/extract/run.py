"""`Run`: one walk over a plan: decode in processes, run the network here, write beside it.

Promise: shards are put in place one after another, and a kill costs no more rows than one of them has. A job is one run, and so is each
actor of a cluster.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from dinokit.extract.committer import Committer
from dinokit.extract.folder import finish, status_of, survey
from dinokit.extract.forward import Forward, lanes_for
from dinokit.extract.interrupts import Interrupts
from dinokit.extract.lock import plan_lock
from dinokit.extract.options import FailureLimitError, JobOptions, Reporter
from dinokit.extract.plan import Plan, Shard, Status
from dinokit.extract.prepare import Facts, How, Ready
from dinokit.extract.shards import Work, make, places
from dinokit.extract.threads import Threads
from dinokit.extract.where import Where
from dinokit.extract.workers import Workers
from dinokit.weights.load import Pretrained

AHEAD_BATCHES = 4
Decoders = Workers[Where, Ready] | Threads[Where, Ready]


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


class Run:
    """One run over a plan that is fixed. `before` is how many inputs had failed by then, for the limit of failures."""

    def __init__(
        self, pre: Pretrained, how: How, plan: Plan, decoders: Decoders, options: JobOptions, reporter: Reporter
    ) -> None:
        self.plan, self.decoders, self.options, self.reporter = plan, decoders, options, reporter
        self.forward = Forward(
            pre,
            how.preparation,
            plan.identity.features,
            plan.settings.batch_size,
            plan.settings.dense,
            plan.settings.dense_dtype,
            lanes_for(pre, plan.settings.threads, plan.settings.batch_size),
        )
        self.rows = self.before = 0
        self.failed: Counter[str] = Counter()

    def go(self) -> Summary:
        """All of this rank that is left to do; its summary.

        Raises as `ExtractJob.run`.
        """
        started = time.perf_counter()
        plan, options = self.plan, self.options
        mine = list(plan.shards(options.rank, options.world_size))
        footers = survey(plan, mine)
        status = status_of(plan, footers)
        works = left_to_do(mine, footers, retry=options.retry_failed)
        self.before = status.failed.total() if not options.retry_failed else 0
        rows = rows_of(works, footers)
        self.reporter.begin(plan, status, rows)
        try:
            with Interrupts(self._told) as interrupts:
                self.embed(works, interrupts)
            if not interrupts.asked or self.rows == rows:
                with plan_lock(plan.folder):
                    finish(plan)
        finally:
            self.reporter.end()
        status = status_of(plan, survey(plan, plan.shards()))
        return Summary(status, self.rows, self.failed, time.perf_counter() - started, interrupts.asked)

    def embed(self, works: Iterable[Work], interrupts: Interrupts) -> None:
        """Make these shards and put them in place; after an interrupt only the one at hand.

        Never are more rows given to the network and not in place than a shard has.
        """
        works, settings = list(works), self.plan.settings
        ahead = max(AHEAD_BATCHES * settings.batch_size, 4 * (self.options.workers or 2))
        decoded = self.decoders.map(places(self.plan, iter(works)), ahead)
        with (
            pinned_threads(settings.threads, self.forward.pre),
            closing(decoded) as ready,
            Committer(settings.shard_size) as committer,
        ):
            for work in works:
                committer.put(make(self.plan, work, self.forward, ready, self._watch, committer.reserve))
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


def left_to_do(shards: Iterable[Shard], footers: Mapping[int, Mapping[str, Any]], *, retry: bool) -> list[Work]:
    """Shards that are not there, and with `retry` the failed rows of those that are."""
    works = []
    for shard in shards:
        footer = footers.get(shard.index)
        if footer is None:
            works.append(Work(shard))
        elif retry and footer["failed"]:
            works.append(Work(shard, retry=True))
    return works


def rows_of(works: Iterable[Work], footers: Mapping[int, Mapping[str, Any]]) -> int:
    """How many rows these are."""
    return sum(sum(footers[work.shard.index]["failed"].values()) if work.retry else len(work.shard) for work in works)


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

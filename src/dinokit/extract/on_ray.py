"""`run_on_ray`: a job past one machine. Actors of a Ray cluster hold the network and take shards of one plan.

Promise: the bytes are those of the job on one machine; an actor that is killed costs the shards it had in hand, and others make those
anew. Only numbers of shards go through Ray: images are read where they are embedded, shards are put in place from there.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinokit.errors import MissingExtraError, OutputError, StorageError
from dinokit.extract.folder import finish, prepare_folder, remove_leftovers, status_of, survey
from dinokit.extract.interrupts import Interrupts
from dinokit.extract.job import ExtractJob
from dinokit.extract.lock import FolderLock, plan_lock
from dinokit.extract.on_ray_actor import Embedder
from dinokit.extract.options import FailureLimitError, JobOptions, Quiet, Reporter
from dinokit.extract.plan import Plan
from dinokit.extract.prepare import Facts
from dinokit.extract.run import Summary, left_to_do, rows_of
from dinokit.extract.shard import read_footer
from dinokit.extract.shards import Work

MakeJob = Callable[[], ExtractJob]
DEATHS = 3  # of actors, that a shard may cause
SHARDS_A_CALL = 16
CALLS_AN_ACTOR = 8  # at least so many, that all end at about the same time
CPUS_WITHOUT_GPU = 4


@dataclass(frozen=True, kw_only=True)
class Actors:
    """How many there are and what each takes. None: a GPU where there are any, the cores that go with it, as many as fit.

    Where there are no GPUs an actor takes four cores, or fewer where `count` would not fit.
    """

    count: int | None = None
    cpus: int | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("count", self.count, 1), ("cpus", self.cpus, 1), ("gpus", self.gpus, 0)):
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}.")

    def fitted(self, machines: Sequence[dict[str, float]]) -> tuple[int, int, float]:
        """Count, cores and GPUs, for the resources of the machines there are.

        Raises:
            ValueError: no machine has what one actor takes.
        """
        gpus = self.gpus if self.gpus is not None else float(any(m.get("GPU", 0) >= 1 for m in machines))
        able = [m for m in machines if m.get("GPU", 0) >= gpus and m.get("CPU", 0) >= 1]
        share = min((int(m["CPU"] * gpus / m["GPU"]) if gpus else int(m["CPU"]) for m in able), default=1)
        if self.count and not gpus and able:
            share //= -(-self.count // len(able))  # so many on a machine
        cpus = self.cpus or max(1, share if gpus else min(CPUS_WITHOUT_GPU, share))
        room = sum(min(int(m["CPU"] / cpus), int(m["GPU"] / gpus) if gpus else int(m["CPU"])) for m in able)
        if not room:
            raise ValueError(
                f"no machine of the cluster has {cpus} CPUs and {gpus:g} GPUs, which one actor takes. Ask for less, or add machines."
            )
        return self.count or room, cpus, gpus


def run_on_ray(
    make_job: MakeJob, out: str | Path, actors: Actors = Actors(), *, reporter: Reporter | None = None
) -> Summary:
    """Do all that is left to do of the job that `make_job` makes, into `out`; its summary, as `ExtractJob.run`.

    `make_job` is called in every actor, on its machine: what it loads and lists must be there under the same paths, and so must `out`.
    Ray is that of `ray.init` if it was called, else of RAY_ADDRESS, else one that is started on this machine.
    Ctrl-C once ends after the shards in hand.

    Raises:
        ImportError: Ray is not installed; says how.
        OutputError: as `ExtractJob.plan`, or the actors' `out` is another.
        StorageError: a disk refuses, or actors died too often. All other shards are there; run again to go on.
        FailureLimitError: more inputs failed than the job's options allow.
    """
    ray, folder = need_ray(), Path(out).absolute()
    prepare_folder(folder)
    with FolderLock(folder), _connected(ray):
        return _Driver(ray, make_job, folder, actors, reporter or Quiet()).go()


def need_ray() -> Any:
    """Ray.

    Raises:
        ImportError: it is not installed; says how.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError('jobs past one machine run on Ray; pip install "dinokit[ray]" brings it.') from error
    return ray


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or nightly builds of Ray report that they are used
    # no dashboard, which is a server; a Ray that runs already keeps the one it has
    ray.init(address=os.environ.get("RAY_ADDRESS"), include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


class Deal:
    """What is left to be done, in portions, and the shards that are given up."""

    def __init__(self, works: Sequence[Work], actors: int) -> None:
        size = max(1, min(SHARDS_A_CALL, len(works) // (CALLS_AN_ACTOR * actors)))
        self.left = deque(list(works[start : start + size]) for start in range(0, len(works), size))
        self.lost: list[int] = []
        self._deaths: Counter[int] = Counter()

    def died(self, works: Sequence[Work]) -> None:
        """An actor is gone, and these of its shards are not there; it was at the first. From now on they are dealt one by one."""
        again = list(works)
        if again:
            guilty = again[0].shard.index
            self._deaths[guilty] += 1
            if self._deaths[guilty] >= DEATHS:
                self.lost.append(guilty)
                del again[0]
        self.left.extendleft([work] for work in reversed(again))


# Ray's own queue of actors and not Ray Data: no rows move here, and Data repeats what kills its actor without end.
class _Driver:
    def __init__(self, ray: Any, make_job: MakeJob, folder: Path, actors: Actors, reporter: Reporter) -> None:
        self.ray, self.make_job, self.folder, self.reporter = ray, make_job, folder, reporter
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.count, self.cpus, self.gpus = actors.fitted(machines)
        self.actors: list[Any] = []  # all that are thought to live
        self.idle: list[Any] = []
        self.hands: dict[Any, tuple[Any, list[Work]]] = {}  # by the call that runs; no works: it only begins
        self.deaths = 0  # since something was finished
        self.rows = self.before = 0
        self.failed: Counter[str] = Counter()
        self.last: str | None = None  # failure, in words

    def go(self) -> Summary:
        started = time.perf_counter()
        try:
            options, said = self._first()
            for text in said:
                self.reporter.say(text)
            plan = Plan.load(self.folder)
            if plan is None:
                raise OutputError(
                    f"the actors' {self.folder} is not the one of this machine. Choose a folder that all machines share."
                )
            asked = self._embed(plan, options)
        finally:
            for actor in self.actors:
                self.ray.kill(actor)
            self.reporter.end()
        remove_leftovers(self.folder, None)
        if not asked:
            with plan_lock(self.folder):
                finish(plan)
        status = status_of(plan, survey(plan, plan.shards()))
        return Summary(status, self.rows, self.failed, time.perf_counter() - started, asked and not status.complete)

    def _first(self) -> tuple[JobOptions, list[str]]:
        """Have the plan made or followed by the first actor: only there is the network in the form that it is run in."""
        actor = self._enlist()
        while True:
            try:
                opened: tuple[JobOptions, list[str]] = self.ray.get(actor.open.remote(make=True))
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except self.ray.exceptions.RayError as error:
                self._bury(actor, error)
                actor = self._enlist()
                continue
            self.idle.append(actor)
            return opened

    def _enlist(self) -> Any:
        remote = self.ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0)(Embedder)
        actor = remote.remote(self.make_job, self.folder, os.getcwd(), self.cpus)
        self.actors.append(actor)
        return actor

    def _bury(self, actor: Any, error: BaseException) -> None:
        """Away with an actor.

        Raises:
            StorageError: nothing but deaths for too long.
        """
        self.actors.remove(actor)
        self.ray.kill(actor)  # Ray may only have lost sight of it
        self.deaths += 1
        if self.deaths > DEATHS * (self.count + 1):
            raise StorageError(
                f"{self.deaths} actors died in a row, the last so: {' '.join(str(error).split())[:500]} Look at memory and devices; "
                f"finished shards stay."
            ) from error

    def _embed(self, plan: Plan, options: JobOptions) -> bool:
        """Deal until all is done; whether it was interrupted."""
        footers = survey(plan, plan.shards())
        works = left_to_do(plan.shards(), footers, retry=options.retry_failed)
        status = status_of(plan, footers)
        self.before = status.failed.total() if not options.retry_failed else 0
        rows = rows_of(works, footers)
        self.reporter.begin(plan, status, rows)
        self.count = min(self.count, max(1, len(works)))
        if works:
            takes = f"{self.cpus} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")
            self.reporter.say(f"ray: {self.count} actors of {takes}; network: {plan.settings.engine}")
        deal = Deal(works, self.count)
        with Interrupts(self._told) as interrupts:
            while (deal.left and not interrupts.asked) or any(portion for _, portion in self.hands.values()):
                self._hand_out(deal, more=not interrupts.asked)
                done, _ = self.ray.wait(list(self.hands), num_returns=1, timeout=1.0)  # Ctrl-C is heard between
                for call in done:
                    self._take_in(call, plan, deal)
                self._check(plan, options)
        if deal.lost:
            raise StorageError(
                f"{DEATHS} actors died of each of the shards {', '.join(map(str, sorted(deal.lost)))}; all others are there. Out of "
                f"memory, or an image that breaks a decoder (have decoder processes: workers at least 1)? Run again to go on."
            )
        return interrupts.asked

    def _hand_out(self, deal: Deal, *, more: bool) -> None:
        # work goes only to actors that have begun: one that waits for a lost machine must not keep any
        while more and self.idle and deal.left:
            actor, works = self.idle.pop(), deal.left.popleft()
            self.hands[actor.embed.remote(works)] = (actor, works)
        while more and deal.left and len(self.actors) < self.count:
            actor = self._enlist()
            self.hands[actor.open.remote(make=False)] = (actor, [])

    def _take_in(self, call: Any, plan: Plan, deal: Deal) -> None:
        actor, works = self.hands.pop(call)
        try:
            answer = self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self.ray.exceptions.RayError as error:
            deal.died(self._not_there(plan, works))
            self.reporter.say("an actor died; another takes its shards.")
            self._bury(actor, error)
            return
        self.idle.append(actor)
        self.deaths = 0
        if works:
            self._count(*answer)

    def _not_there(self, plan: Plan, works: Sequence[Work]) -> list[Work]:
        left = []
        for work in works:
            footer = None if work.retry else read_footer(plan, work.shard)
            if footer is None:
                left.append(work)
            else:
                self._count(footer["rows"], [], footer["failed"])
        return left

    def _count(self, rows: int, failures: list[Facts], failed: dict[str, int] | None = None) -> None:
        self.rows += rows
        self.failed.update(failed or Counter(facts.error_code for facts in failures if facts.error_code))
        self.last = failures[-1].error if failures else self.last
        self.reporter.progress(rows, failures)

    def _check(self, plan: Plan, options: JobOptions) -> None:
        found = self.failed.total()
        if found and options.fail_fast:
            raise FailureLimitError(f"stopped after a bad image (--fail-fast): {self.last}")
        allowed = options.errors_allowed(plan.num_rows)
        if found and allowed is not None and self.before + found > allowed:
            raise FailureLimitError(
                f"{self.before + found:,} inputs failed, more than --max-errors {options.max_errors} allows; the last: {self.last} "
                f"Finished shards stay; raise the limit to go on."
            )

    def _told(self) -> None:
        self.reporter.say("finishing the shards in hand; Ctrl-C again stops now. The same command goes on later.")

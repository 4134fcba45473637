"""The job past one machine: the same bytes as on one, whatever happens to its actors."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dinokit.errors import OutputError
from dinokit.extract import ExtractJob
from dinokit.extract.folder import finish, prepare_folder
from dinokit.extract.on_ray import Actors, Deal, need_ray, run_on_ray
from dinokit.extract.on_ray_actor import Embedder
from dinokit.extract.options import FailureLimitError
from dinokit.extract.plan import Extent, Plan, Shard
from dinokit.extract.shards import Work
from tests.extract.conftest import content, job

ray_needed = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")
# Ray's, not ours: sockets and files that it leaves to the collector
RAYS_OWN = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
STARTS = 3
PATIENCE = 240  # seconds for an actor to begin, on a machine that has much else to do


def on_ray(test: Any) -> Any:
    for mark in (ray_needed, pytest.mark.slow, *RAYS_OWN):
        test = mark(test)
    return test


def started(ray: Any) -> bool:
    """Whether Ray runs. It gives its own processes 30 seconds, which can't be set, and which a busy machine may not have for them."""
    for _ in range(STARTS):
        try:
            ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
            return True
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
        gc.collect()  # what a start in vain leaves, while its warnings are not heard
    return False


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine with two cores, silent. Actors are no nicer than the tests, or a busy machine would starve them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray

            runs = started(ray)
        if not runs:
            pytest.skip(f"Ray did not start, {STARTS} times: the machine is too busy")
        yield
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.shutdown()
            gc.collect()  # what Ray leaves is collected here, where its warnings disturb no other test


def works(count: int) -> list[Work]:
    extent = Extent("_inputs-0000.arrow", 10 * count, "sum", 0)
    return [Work(Shard(i, extent, 10 * i, 10 * i + 10)) for i in range(count)]


def maker(model: Path, source: Path, out: Path, happens: Callable[[], None] | None = None, **options: Any) -> Any:
    """A function that makes the tests' usual job; `happens` is called before each batch, in the actor."""
    made = partial(job, **options)
    import dinokit

    def make_job() -> ExtractJob:
        pre = dinokit.load(model)
        if happens is not None:
            pre.model.register_forward_pre_hook(lambda *_: happens())
        return made(pre, source, out)

    if "ray" in sys.modules:  # the tests are no package that actors could import
        import ray.cloudpickle

        import tests.extract.conftest as shared

        ray.cloudpickle.register_pickle_by_value(shared)
    return make_job


@on_ray
def test_the_bytes_are_those_of_one_machine_though_an_actor_is_killed(cluster, pre, model_folder, photos, tmp_path):
    """Two actors wait for each other, one dies in the middle of a shard: another takes over, what was finished stays as it was."""
    pids, out, died = tmp_path / "pids", tmp_path / "there", tmp_path / "died"
    pids.mkdir()

    def happens() -> None:
        (pids / str(os.getpid())).touch()
        end = time.monotonic() + PATIENCE
        while len(list(pids.iterdir())) < 2:
            assert time.monotonic() < end, "the other actor never began"
            time.sleep(0.02)
        parts = list(out.glob("part-*"))
        if len(parts) >= 2:
            with suppress(FileExistsError), died.open("x") as file:
                json.dump({path.name: path.stat().st_mtime_ns for path in parts}, file)
                file.flush()
                os._exit(1)

    here = job(pre, photos, tmp_path / "here").run()
    there = run_on_ray(maker(model_folder, photos, out, happens), out, Actors(cpus=1))
    assert content(out) == content(tmp_path / "here")
    assert there.status == here.status
    assert (there.rows, there.failed) == (here.rows, here.failed)
    before = json.loads(died.read_text())
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before


@on_ray
def test_errors_of_actors_arrive_as_they_are(cluster, model_folder, photos, tmp_path):
    """A limit of failures holds, in the job's words; finished shards stay, and so nothing half-written does."""
    with pytest.raises(FailureLimitError, match="more than --max-errors 1 allows"):
        run_on_ray(
            maker(model_folder, photos, tmp_path / "out", max_errors=1), tmp_path / "out", Actors(count=1, cpus=1)
        )
    assert list((tmp_path / "out").glob("part-*"))
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_an_actor_does_its_portions_as_the_job_does(pre, model_folder, photos, tmp_path, monkeypatch):
    """Without Ray: portions in any order; rows and failures are those of the portion, the bytes those of the job."""
    job(pre, photos, tmp_path / "here").run()
    out = tmp_path / "out"
    prepare_folder(out)
    monkeypatch.chdir(tmp_path)
    actor = Embedder(maker(model_folder, photos, out), out, str(tmp_path), 1)
    actor.open(make=True)
    plan = Plan.load(out)
    with actor.until_the_end:
        done = [actor.embed([Work(plan.shard(index)) for index in portion]) for portion in ([3, 4], [1], [0, 2])]
    assert [rows for rows, _ in done] == [8, 5, 10]
    assert sum(len(failures) for _, failures in done) == 3
    assert finish(plan)
    assert content(out) == content(tmp_path / "here")


def test_an_actor_refuses_what_does_not_fit_the_plan(model_folder, photos, tmp_path):
    """Other settings, a folder that it does not see, a job for another folder: told before anything is embedded."""
    out = tmp_path / "out"
    prepare_folder(out)

    def embedder(folder: Path = out, working: str = str(tmp_path), **options: Any) -> Embedder:
        return Embedder(maker(model_folder, photos, out, **options), folder, working, 1)

    here = os.getcwd()
    try:
        with pytest.raises(OutputError, match="does not see the plan"):
            embedder().open(make=False)
        assert embedder().open(make=True)[0].shard_size == 5
        embedder().open(make=False)
        with pytest.raises(OutputError, match="shard_size: 5 there, 7 now"):
            embedder(shard_size=7).open(make=False)
        with pytest.raises(ValueError, match="make_job gave a job for"):
            embedder(folder=tmp_path).open(make=False)
        with pytest.raises(OutputError, match="a machine of the cluster has no"):
            embedder(working=str(tmp_path / "gone")).open(make=False)
    finally:
        os.chdir(here)


def test_every_shard_is_dealt_once_and_after_a_death_alone():
    """Whatever the number of actors; the shards of an actor that died come first, one by one."""
    for actors in (1, 3, 64):
        deal = Deal(works(1000), actors)
        assert [work.shard.index for portion in deal.left for work in portion] == list(range(1000))
        assert len(deal.left) >= min(1000, 8 * actors)
    portion = Deal(works(1000), 1).left.popleft()
    assert len(portion) == 16
    deal.died(portion[3:])
    assert [[work.shard.index for work in one] for one in list(deal.left)[:13]] == [[i] for i in range(3, 16)]


def test_a_shard_that_kills_three_actors_is_set_aside():
    """The others of the portion are not blamed."""
    deal = Deal(works(4), 1)
    deal.left.clear()
    deal.died(works(4)[1:])
    for _ in range(2):
        assert deal.lost == []
        deal.died(deal.left.popleft())
    assert deal.lost == [1]
    assert [work.shard.index for portion in deal.left for work in portion] == [2, 3]
    deal.died([])
    assert deal.lost == [1]


@pytest.mark.parametrize(
    ("machines", "asked", "expected"),
    [
        ([{"CPU": 2.0}], {}, (1, 2, 0)),
        ([{"CPU": 64.0}, {"CPU": 64.0}], {}, (32, 4, 0)),
        ([{"CPU": 64.0}, {"CPU": 64.0}], {"cpus": 1}, (128, 1, 0)),
        ([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0}], {}, (2, 8, 1)),
        ([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0}], {"gpus": 0.5, "cpus": 2}, (4, 2, 0.5)),
        ([{"CPU": 16.0, "GPU": 2.0}], {"gpus": 0}, (4, 4, 0)),
        ([{"CPU": 4.0}], {"count": 9}, (9, 1, 0)),
        ([{"CPU": 8.0}, {"CPU": 8.0}], {"count": 6}, (6, 2, 0)),
    ],
)
def test_actors_fit_the_machines(machines, asked, expected):
    """By default one a GPU with its share of the cores, or four cores; a count is taken as it is."""
    assert Actors(**asked).fitted(machines) == expected


def test_actors_that_fit_nowhere_are_refused():
    """Rather than waited for."""
    with pytest.raises(ValueError, match="no machine of the cluster has 8 CPUs and 0 GPUs"):
        Actors(cpus=8).fitted([{"CPU": 4.0}])
    with pytest.raises(ValueError, match="count is 0; it must be at least 1"):
        Actors(count=0)


def test_without_ray_the_way_out_is_named(monkeypatch):
    """The extra that brings it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"dinokit\[ray\]"):
        need_ray()

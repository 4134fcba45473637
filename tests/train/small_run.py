"""A run of seconds, for the tests of this folder; also what their second processes do."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from dinokit.train import checkpoint
from dinokit.train.data.textures import Textures
from dinokit.train.feed import TensorFeed
from dinokit.train.parallel import Spread, World, join
from dinokit.train.recipe import TrainingRecipe
from dinokit.train.recipes import resolve
from dinokit.train.run import Watched, train
from dinokit.train.state import TrainState

SETTINGS = (
    "steps=6", "batch_size=8", "drop_path=0.2", "drop_path_group=4", "log_every=1", "watch.every=3", "save.every=2", "save.keep=9",
    "model.depth=2", "model.embed_dim=16", "model.num_heads=2", "model.ffn_dim=32", "heads.prototypes=12",
    "heads.patch_prototypes=10", "heads.hidden_dim=16", "heads.bottleneck_dim=8", "heads.patch_bottleneck_dim=8",
    "schedule.warm_up=2", "schedule.lr=1e-4", "losses.koleo_end=0.1",
)  # fmt: skip


def small(*settings: str) -> TrainingRecipe:
    """Two blocks of width 16 on textures of 28 pixels."""
    return resolve("two_minutes", [*SETTINGS, *settings])


def feed(count: int = 30) -> TensorFeed:
    """Textures: crops of noise would be so alike that gradients are mostly rounding."""
    return TensorFeed(Textures(count).tensor())


def watched() -> Watched:
    """Eight images to look at."""
    return Watched(torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)))


def run(
    folder: Path, *settings: str, resume: bool = False, world: World | None = None, spread: Spread = "ddp"
) -> TrainState:
    """Train the small network into `folder`."""
    return train(
        small(*settings), feed(), folder, watched=watched(), resume=resume, world=world, spread=spread,
    )  # fmt: skip


def values(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, read by one process."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = FileSystemReader(folder / "checkpoints" / f"step-{step:09d}")
    saved = reader.read_metadata().state_dict_metadata
    found = {
        name: torch.empty(about.size, dtype=about.properties.dtype)
        for name, about in saved.items()
        if isinstance(about, TensorStorageMetadata)
    }
    with checkpoint._alone_or_not():
        checkpoint.state_dict_loader.load(found, storage_reader=reader, no_dist=True)
    return found


Job = tuple[str, Spread, bool, tuple[str, ...]]  # folder, spread, resume, settings


def two_processes(store: Path, jobs: list[Job]) -> None:
    """Both do these runs together."""
    assert [ended(pid) for pid in [forked(lambda r=rank: _one_of_two(r, store, jobs)) for rank in range(2)]] == [0, 0]


def _one_of_two(rank: int, store: Path, jobs: list[Job]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    with join("cpu") as world:
        for name, spread, resume, settings in jobs:
            run(Path(name), *settings, resume=resume, world=world, spread=spread)
    dist.destroy_process_group()


def forked(work: Callable[[], object]) -> int:
    """The id of a process that does `work`. Forked, for another interpreter would need seconds to import everything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on: other threads; they do nothing here
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)


def ended(pid: int) -> int:
    """How a process ended: its exit code, or the signal's number below 0."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed(folder: Path, count: int) -> int:
    """Continue a run in a process of its own, which dies at its `count`-th touch of a file in the folder (0: never)."""

    def work() -> None:
        if count:
            die_at(str(folder), count)
        run(folder, resume=True)

    return ended(forked(work))


def die_at(folder: str, count: int) -> None:
    """Kill this process when it opens, makes, renames or removes a file in `folder` for the `count`-th time."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "shutil.rmtree") and str(arguments[0]).startswith(
            folder
        ):
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)

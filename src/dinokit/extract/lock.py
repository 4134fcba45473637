"""Who may write into an output folder: one process, or one for each rank of a job that several share.

Promise: decided by the system's file locks, so that they go with their process however it ends.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from dinokit.errors import OutputError, StorageError

LOCK = "_lock"
PLAN_LOCK = "_plan.lock"
RANKS = (("RANK", "WORLD_SIZE"), ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"))
PATIENCE = 600.0  # seconds to wait while another rank makes the plan


class FolderLock:
    """Held from `with` to its end. Ranks share the folder's lock, and each has one of its own.

    Raises:
        OutputError: somebody else holds it; says who.
        StorageError: the folder can't be written to, or its file system has no locks.
    """

    def __init__(self, folder: Path, rank: int = 0, world_size: int = 1) -> None:
        self.folder, self.rank, self.world_size = folder, rank, world_size
        self._held: list[IO[str]] = []

    def __enter__(self) -> FolderLock:
        alone = self.world_size == 1
        try:
            self._take(self.folder / LOCK, shared=not alone)
            if not alone:
                for path in sorted(self.folder.glob("_lock.*-of-*")):
                    if not path.name.endswith(f"-of-{self.world_size:04d}"):
                        self._take(path, shared=False)  # ranks of another count still run if this is refused
                self._take(self.folder / f"_lock.{self.rank:04d}-of-{self.world_size:04d}", shared=False)
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _take(self, path: Path, *, shared: bool) -> None:
        import fcntl

        try:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - open as long as the lock is held
        except OSError as error:
            raise StorageError(f"{path} can't be written: {error.strerror or error}.") from error
        self._held.append(file)
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"{self.folder} is being written by {_holders(path)}. Wait for it, or use another folder."
            ) from error
        except OSError as error:
            raise StorageError(
                f"{path}: this file system has no locks ({error.strerror or error}). Write to another."
            ) from error
        if not shared:
            with suppress(OSError):  # only words for others; a full disk is met where it matters
                file.truncate(0)
                file.write(json.dumps(_me()))
                file.flush()

    def _release(self) -> None:
        while self._held:
            with suppress(OSError):
                self._held.pop().close()


@contextmanager
def plan_lock(folder: Path) -> Iterator[None]:
    """Held while the plan is read, made or extended; waits for its turn.

    Raises:
        StorageError: it can't be had within ten minutes.
    """
    import fcntl

    try:
        file = open(folder / PLAN_LOCK, "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise StorageError(f"{folder / PLAN_LOCK} can't be written: {error.strerror or error}.") from error
    with file:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise StorageError(f"{folder / PLAN_LOCK} is held by another process for too long.") from error
                time.sleep(0.05)
        yield


def _me() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv)[:200],
    }


def _holders(path: Path) -> str:
    """The process that holds a lock, in words; its file may be empty if ranks hold it together."""
    files = [path, *sorted(path.parent.glob("_lock.*-of-*"))]
    for file in files:
        with suppress(OSError, ValueError, KeyError):
            found = json.loads(file.read_text())
            if (
                found["host"] != socket.gethostname()
                or Path(f"/proc/{found['pid']}").exists()
                or not Path("/proc").exists()
            ):
                return f"process {found['pid']} on {found['host']} since {found['since']} ({found['command']})"
    return "another process"


def require_free(folder: Path, rank: int = 0, world_size: int = 1) -> None:
    """Refuse at once, before anything heavy is imported, a folder that somebody writes to.

    Raises:
        OutputError: says who.
    """
    if (folder / LOCK).exists():
        with FolderLock(folder, rank, world_size):
            pass


def rank_from_environment() -> tuple[int, int]:
    """(Rank, world size) as torchrun or a Slurm job array says; (0, 1) without either."""
    for rank, size in RANKS:
        if os.environ.get(rank, "").isdecimal() and os.environ.get(size, "").isdecimal():
            first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", "0")) if rank.startswith("SLURM") else 0
            return int(os.environ[rank]) - first, int(os.environ[size])
    return 0, 1

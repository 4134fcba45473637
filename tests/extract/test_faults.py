"""A disk that fails: at every write, sync and rename of a job in turn; afterwards the job is run again and ends with the same bytes."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from dinokit.errors import EXIT_IO, StorageError
from dinokit.weights.load import Pretrained
from tests.extract.conftest import content, fill, job

LEAST_OPERATIONS = 40  # of five shards; fewer would mean that faults are not where the job writes


class Faults:
    """Counts writes, fsyncs and renames; the `at`-th fails, with ENOSPC all that follow, too, as a disk stays full."""

    def __init__(self) -> None:
        self.count, self.at, self.code = 0, 0, errno.ENOSPC

    def arm(self, at: int, code: int) -> None:
        self.count, self.at, self.code = 0, at, code

    def step(self) -> None:
        self.count += 1
        if self.at and (self.count == self.at or (self.count > self.at and self.code == errno.ENOSPC)):
            raise OSError(self.code, os.strerror(self.code))

    def wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.step()
            return function(*arguments, **options)

        return call

    def opened(self, function: Callable[..., IO[bytes]]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            file = function(*arguments, **options)
            return Fallible(file, self) if "b" in str(arguments[1:]) else file

        return call


class Fallible:
    """A file whose writes are counted."""

    def __init__(self, file: IO[bytes], faults: Faults) -> None:
        self._file, self._faults = file, faults
        self.closed = False

    def write(self, data: Any) -> int:
        self._faults.step()
        return self._file.write(data)

    def close(self) -> None:
        self.closed = True
        self._file.close()

    def __enter__(self) -> Fallible:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    made = Faults()
    for name in ("fsync", "replace", "rename"):
        monkeypatch.setattr(os, name, made.wrapped(getattr(os, name)))
    monkeypatch.setattr(os, "fdopen", made.opened(os.fdopen))
    yield made
    made.at = 0


@pytest.mark.parametrize("dense", [(), pytest.param(("registers",), marks=pytest.mark.slow)], ids=["table", "dense"])
def test_a_disk_that_fails_anywhere_loses_nothing(
    pre: Pretrained, tmp_path: Path, faults: Faults, dense: tuple[str, ...]
) -> None:
    """ENOSPC and EIO at the n-th operation, for every n: an error with exit code 7, no torso, and a resume to the same bytes."""
    photos = fill(tmp_path / "photos", 10)
    options = {"shard_size": 2, "batch_size": 2, "dense": dense, "hash": False}
    job(pre, photos, tmp_path / "whole", **options).run()
    operations, expected = faults.count, content(tmp_path / "whole")
    assert operations >= LEAST_OPERATIONS
    for at in range(1, operations + 1):
        out = tmp_path / "out"
        faults.arm(at, (errno.ENOSPC, errno.EIO)[at % 2])
        with pytest.raises(StorageError) as caught:
            job(pre, photos, out, **options).run()
        assert caught.value.exit_code == EXIT_IO
        faults.arm(0, 0)
        assert not list(out.glob(".*.tmp")), at
        assert not (out / "_SUCCESS").exists() or at > operations - 2  # only its own sync may fail after it is there
        assert job(pre, photos, out, **options).run().status.complete
        assert content(out) == expected, at
        shutil.rmtree(out)


def test_a_retry_on_a_failing_disk_keeps_what_was_there(pre: Pretrained, tmp_path: Path, faults: Faults) -> None:
    """Rows of before stay until the new shard is whole."""
    photos = fill(tmp_path / "photos", 8)
    options = {"shard_size": 4, "batch_size": 2, "dense": ("registers",), "check_inputs": False}
    job(pre, photos, tmp_path / "whole", **options | {"check_inputs": True}).run()
    before = content(tmp_path / "whole")
    (photos / "more" / "0003.png").write_bytes((photos / "0001.png").read_bytes())
    at = 0
    while True:
        at += 1
        out = shutil.copytree(tmp_path / "whole", tmp_path / f"out{at}")
        faults.arm(at, errno.EIO)
        try:
            summary = job(pre, photos, out, retry_failed=True, **options).run()
        except StorageError:
            faults.arm(0, 0)
            after = content(out)
            assert {name for name in after if name.startswith("part")} == {n for n in before if n.startswith("part")}
            assert job(pre, photos, out, retry_failed=True, **options).run().status.failed.total() == 0
            continue
        assert summary.status.failed.total() == 0
        break
    assert at > 5


ZARR = {"shard_size": 4, "batch_size": 2, "dense": ("registers", "patches"), "dense_format": "zarr", "hash": False}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names of open files are asked of /proc")
def test_chunks_and_their_folders_are_synced_before_the_table_that_counts_on_them(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a table comes into place, every chunk of its rows and each folder down to it has been synced since it was last written."""
    photos, out = fill(tmp_path / "photos", 10), tmp_path / "out"
    fsync, replace = os.fsync, os.replace
    synced: dict[str, int] = {}
    checked: list[str] = []

    def watched_fsync(handle: int) -> None:
        fsync(handle)
        path = os.readlink(f"/proc/self/fd/{handle}")
        synced[path] = os.stat(path).st_mtime_ns if os.path.exists(path) else -1

    def watched_replace(source: Any, target: Any, **more: Any) -> None:
        name = Path(target).name
        if name.startswith("part-"):
            shard, store = int(name[5:13]), out / "dense.zarr"
            for kind in ZARR["dense"]:
                chunk = store / kind / "c" / str(shard)  # one of four rows
                files = [path for path in chunk.rglob("*") if path.is_file()]
                assert files
                for path in [*files, store / kind / "zarr.json", store / "zarr.json"]:
                    assert synced[str(path)] == path.stat().st_mtime_ns, path
                for path in [*(path for path in chunk.rglob("*") if path.is_dir()), chunk, chunk.parent]:
                    assert synced[str(path)] == path.stat().st_mtime_ns, path
                assert {str(store / kind), str(store), str(out)} <= synced.keys()
            checked.append(name)
        replace(source, target, **more)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    job(pre, photos, out, **ZARR).run()
    assert len(checked) == 3


def test_a_zarr_store_on_a_failing_disk_loses_nothing(pre: Pretrained, tmp_path: Path, faults: Faults) -> None:
    """EIO at every seventh write, sync or rename: an error with exit code 7, and a resume to the same tables and numbers."""
    import zarr

    photos = fill(tmp_path / "photos", 10)
    job(pre, photos, tmp_path / "whole", **ZARR).run()
    operations = faults.count

    def found(out: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
        tables = {path.name: path.read_bytes() for path in out.glob("part-*")}
        group = zarr.open_group(str(out / "dense.zarr"), mode="r")
        return tables, {kind: group[kind][:].tobytes() for kind in ZARR["dense"]}

    expected = found(tmp_path / "whole")
    assert operations >= LEAST_OPERATIONS
    for at in range(1, operations + 1, 7):
        out = tmp_path / f"out{at}"
        faults.arm(at, errno.EIO)
        with pytest.raises(StorageError) as caught:
            job(pre, photos, out, **ZARR).run()
        faults.arm(0, 0)
        assert caught.value.exit_code == EXIT_IO
        assert job(pre, photos, out, **ZARR).run().status.complete
        assert found(out) == expected, at

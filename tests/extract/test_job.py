"""The job as a whole: one row an input, resumed to the same bytes, changes explained, nothing mixed."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dinokit.errors import OutputError
from dinokit.extract import ExtractJob, FailureLimitError, Forward, JobOptions, commit, embed_shard, features_of
from dinokit.extract.lock import FolderLock
from dinokit.extract.plan import Plan
from dinokit.images import ExactPreparation
from dinokit.store import Feature, FeatureSet
from dinokit.weights.load import Pretrained
from tests.extract.conftest import an_image, content, fill, job
from tests.extract.stubs import Misbehaving


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_every_input_has_one_row_and_good_ones_their_own_vector(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    """In order, whatever became of it; vectors and sums are those of the file that the row names."""
    import hashlib

    out = tmp_path / "out"
    summary = job(pre, photos, out).run()
    rows = rows_of(out)
    assert [row["id"] for row in rows] == [
        path.relative_to(photos).as_posix() for path in map(Path, (r["path"] for r in rows))
    ]
    assert len({row["id"] for row in rows}) == len(rows) == 23
    exact = ExtractJob(pre, photos, tmp_path / "exact", (), JobOptions(workers=0), ExactPreparation(pre.transform))
    exact.run()
    for row, reference in zip(rows, rows_of(tmp_path / "exact"), strict=True):
        data = Path(row["path"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        if data == b"no image":
            assert (row["status"], row["error_code"], row["embedding"], row["norm"]) == (
                "error",
                "not_image",
                None,
                None,
            )
            assert row["path"] in row["error"]
        else:
            assert (row["status"], row["width"], row["height"], row["mode"], row["frames"]) == ("ok", 72, 60, "RGB", 1)
            vector = pre(data).cls[0].numpy()
            assert np.abs(np.array(reference["embedding"]) * reference["norm"] - vector).max() <= 1e-5
            assert np.dot(row["embedding"], reference["embedding"]) > 0.999
    assert summary.status.failed == {"not_image": 3}
    assert json.loads((out / "_SUCCESS").read_text()) == {
        "rows": 23, "ok": 20, "failed": {"not_image": 3}, "plan_sha256": Plan.load(out).sha256,
    }  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_a_job_that_was_cut_off_ends_with_the_same_bytes(
    pre: Pretrained, photos: Path, tmp_path: Path, workers: int
) -> None:
    """Any shard gone, damaged or never made is made again, the others are not touched."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    job(pre, photos, whole).run()
    job(pre, photos, out, workers=workers).run()
    assert content(out) == content(whole)
    (out / "part-00000001.parquet").unlink()
    (out / "part-00000002.parquet").write_bytes((out / "part-00000002.parquet").read_bytes()[:-7])
    (out / "_SUCCESS").unlink()
    (out / ".part-00000002.parquet.abc.tmp").write_text("torso")
    before = (out / "part-00000000.parquet").stat().st_mtime_ns
    assert job(pre, photos, out).run().rows == 10
    assert content(out) == content(whole)
    assert (out / "part-00000000.parquet").stat().st_mtime_ns == before
    assert job(pre, photos, out).run().rows == 0


def test_a_single_image_has_the_bits_it_has_among_others(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    """The same command over one image."""
    job(pre, photos, tmp_path / "all").run()
    for row in rows_of(tmp_path / "all")[::5]:
        alone = tmp_path / "one" / row["id"].replace("/", "-")
        job(pre, row["path"], alone).run()
        assert rows_of(alone)[0]["embedding"] == row["embedding"]


def test_added_inputs_follow_as_further_shards(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    """Also between the old ones by name; what was there is not touched."""
    out = tmp_path / "out"
    job(pre, photos, out).run()
    before = content(out)
    (photos / "0001b.png").write_bytes(an_image(100))
    (photos / "zz.png").write_bytes(an_image(101))
    summary = job(pre, photos, out).run()
    assert (summary.rows, summary.status.rows, summary.status.shards) == (2, 25, 6)
    after = content(out)
    assert all(after[name] == data for name, data in before.items() if name != "_SUCCESS")
    assert [row["id"] for row in rows_of(out)][-2:] == ["0001b.png", "zz.png"]
    assert len(FeatureSet(out)) == 22
    assert job(pre, photos, out).run().rows == 0


def test_removed_and_changed_inputs_are_explained(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    """Refused by name; `check_inputs=False` goes on with what was planned. What has no vector yet may change."""
    out = tmp_path / "out"
    job(pre, photos, out).run()
    changed = photos / "0002.png"
    changed.write_bytes(an_image(50, 70, 80))
    with pytest.raises(OutputError, match=r"1 input changed since they were embedded: 0002\.png"):
        job(pre, photos, out).run()
    assert job(pre, photos, out, check_inputs=False).run().rows == 0
    part = next(path for path in out.glob("part-*") if "0002.png" in pq.read_table(path).column("id").to_pylist())
    part.unlink()
    assert job(pre, photos, out).run().rows == 5
    changed.unlink()
    with pytest.raises(OutputError, match=r"1 input of .* not among the sources any more: 0002\.png"):
        job(pre, photos, out).run()


def test_other_settings_are_refused_with_a_diff(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    """Model, preparation, columns, sizes: each named with both values; nothing is written."""
    out = tmp_path / "out"
    job(pre, photos, out).run()
    before = content(out)
    other = replace(pre, transform=pre.transform.at_size((70, 70)))
    mean = features_of(pre, ["mean"])
    for attempt, message in [
        (job(other, photos, out), "preprocess.fingerprint"),
        (ExtractJob(pre, photos, out, mean, JobOptions(workers=0)), 'pooling: "cls" there, "mean" now'),
        (job(pre, photos, out, shard_size=6), "settings.shard_size: 5 there, 6 now"),
        (job(pre, photos, out, hash=False), "settings.hash: true there, false now"),
        (
            ExtractJob(pre, photos, out, (), JobOptions(workers=0), ExactPreparation(pre.transform)),
            "preprocess.fingerprint",
        ),
    ]:
        with pytest.raises(OutputError, match="begun with other settings") as caught:
            attempt.run()
        assert message in str(caught.value)
    assert content(out) == before


def test_sizes_that_are_not_given_are_the_plan_s(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    """So that the short command goes on with a job that was begun with a long one."""
    job(pre, photos, tmp_path / "out").run()
    assert job(pre, photos, tmp_path / "out", shard_size=None, batch_size=None).run().rows == 0


def test_a_folder_of_others_is_not_written_to(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    """Nor one whose shards belong to another plan."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match=r"holds other things \(thesis\.tex\)"):
        job(pre, photos, tmp_path / "mine").run()
    job(pre, photos, tmp_path / "a").run()
    job(pre, photos, tmp_path / "b", hash=False).run()
    shutil.copy(tmp_path / "a" / "part-00000001.parquet", tmp_path / "b")
    with pytest.raises(OutputError, match="was not made by the plan"):
        job(pre, photos, tmp_path / "b", hash=False).run()
    with pytest.raises(OutputError, match="no images"):
        job(pre, tmp_path / "mine", tmp_path / "c").run()


@pytest.mark.parametrize("dense", [(), ("patches", "registers")])
def test_failed_rows_can_be_retried(pre: Pretrained, photos: Path, tmp_path: Path, dense: tuple[str, ...]) -> None:
    """Files that were mended meanwhile get vectors, in place; the result is that of a run that had them from the beginning."""
    out = tmp_path / "out"
    job(pre, photos, out, dense=dense).run()
    for row in rows_of(out):
        if row["status"] == "error":
            Path(row["path"]).write_bytes(an_image(int(Path(row["path"]).stem)))
    summary = job(pre, photos, out, dense=dense, retry_failed=True).run()
    assert (summary.rows, dict(summary.status.failed)) == (3, {})
    job(pre, photos, tmp_path / "whole", dense=dense).run()
    assert [row | {"path": ""} for row in rows_of(out)] == [row | {"path": ""} for row in rows_of(tmp_path / "whole")]
    if not dense:
        assert content(out) == content(tmp_path / "whole")
    assert job(pre, photos, out, dense=dense, retry_failed=True).run().rows == 0


def test_dense_features_stand_beside_their_rows(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    """Row i of an array is the i-th good row of the table whose footer names it; after a retry too."""
    out = tmp_path / "out"

    def check() -> int:
        seen = 0
        for path in sorted(out.glob("part-*")):
            table = pq.read_table(path)
            footer = json.loads(table.schema.metadata[b"dinokit_shard"])
            arrays = {kind: np.load(out / name, mmap_mode="r") for kind, name in footer["dense"].items()}
            good = [row for row in table.to_pylist() if row["status"] == "ok"]
            assert {len(array) for array in arrays.values()} == {len(good)}
            for number, row in enumerate(good):
                tokens = pre(row["path"])
                for kind, array in arrays.items():
                    expected = tokens.sequence if kind == "tokens" else tokens.pool(kind)
                    assert np.abs(array[number] - expected[0].numpy()).max() < 0.1  # prepared the fast way
                seen += 1
        return seen

    run = {"dense": ("patches", "registers", "tokens"), "dense_dtype": "float32"}
    job(pre, photos, out, **run).run()
    assert check() == 20
    assert np.load(out / "patches-00000000.npy").shape[1:] == (16, 64)
    (photos / "0010.png").write_bytes(an_image(10))
    job(pre, photos, out, retry_failed=True, **run).run()
    assert check() == 21
    assert len(list(out.glob("patches-*.npy"))) == 5
    assert not list(out.glob(".*.tmp"))


def test_dense_features_that_would_fill_the_disk_are_refused(
    pre: Pretrained, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is computed; the forecast is said."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10_000))  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match=r"would take 0\.0 GB"):
        job(pre, photos, tmp_path / "out", dense=("patches",)).run()
    assert not list((tmp_path / "out").glob("part-*"))


def test_ranks_share_a_folder(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    """Each takes every third shard; whoever ends last says that all is there. The bytes are those of one process."""
    job(pre, photos, tmp_path / "whole").run()
    out = tmp_path / "out"
    for rank in (2, 0, 1):
        assert not (out / "_SUCCESS").exists()
        summary = job(pre, photos, out, rank=rank, world_size=3).run()
        assert summary.rows == {0: 10, 1: 8, 2: 5}[rank]
    assert content(out) == content(tmp_path / "whole")


def test_a_shard_can_be_made_elsewhere(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    """Plan, table and commit are steps of their own; engines that bring their own processes put them together."""
    job(pre, photos, tmp_path / "whole").run()
    made = job(pre, photos, tmp_path / "out")
    plan = made.plan()
    assert job(pre, photos, tmp_path / "out").status().shards_done == 0
    forward = Forward(pre, made.how.preparation, plan.identity.features, plan.settings.batch_size)
    for index in reversed(range(plan.num_shards)):
        commit(plan, embed_shard(plan, index, forward, made.how))
    assert job(pre, photos, tmp_path / "out").run().rows == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_decoders_that_hang_or_die_cost_one_row_each(pre: Pretrained, tmp_path: Path) -> None:
    """The job goes on, and the vectors of the others are the same bits."""
    photos = fill(tmp_path / "photos", 12, bad=lambda _: False)
    for name in ("0001.hang.png", "0004.crash.png", "0007.hang.png"):
        (photos / name).write_bytes(an_image(1))
    found = job(pre, photos, tmp_path / "out", workers=2, decode_timeout=1.0)
    found.how = Misbehaving(preparation=found.how.preparation)
    summary = found.run()
    assert summary.failed == {"decode_timeout": 2, "decoder_died": 1}
    rows = {row["id"]: row for row in rows_of(tmp_path / "out")}
    assert rows["0001.hang.png"]["error_code"] == "decode_timeout"
    assert "--decode-timeout" in rows["0001.hang.png"]["error"]
    job(pre, photos, tmp_path / "calm").run()
    for row in rows_of(tmp_path / "calm"):
        if rows[row["id"]]["status"] == "ok":
            assert rows[row["id"]]["embedding"] == row["embedding"]


def test_limits_of_failures_stop_the_job(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    """A number, a share, or the first; what was finished stays."""
    with pytest.raises(FailureLimitError, match="first bad image"):
        job(pre, photos, tmp_path / "a", fail_fast=True).run()
    with pytest.raises(FailureLimitError, match="more than --max-errors 1 allows"):
        job(pre, photos, tmp_path / "b", max_errors=1).run()
    with pytest.raises(FailureLimitError, match="5%"):
        job(pre, photos, tmp_path / "c", max_errors="5%").run()
    assert job(pre, photos, tmp_path / "c", max_errors="14%").run().status.complete
    with pytest.raises(ValueError, match="write a number"):
        JobOptions(max_errors="many")


def test_vectors_can_be_halved_or_kept_as_long_as_they_are(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    """float16 is the rounded float32; without normalising, the length is in the column all the same."""
    job(pre, photos, tmp_path / "a").run()
    half = Feature(dim=64, dtype="float16")
    raw = Feature(dim=64, normalized=False)
    for name, feature in (("half", half), ("raw", raw)):
        ExtractJob(pre, photos, tmp_path / name, [feature], JobOptions(workers=0, batch_size=4)).run()
    vectors = {name: FeatureSet(tmp_path / name).vectors() for name in ("a", "half", "raw")}
    assert np.array_equal(vectors["half"], vectors["a"].astype(np.float16).astype(np.float32))
    norms = np.array([row["norm"] for row in rows_of(tmp_path / "raw") if row["norm"] is not None])
    assert np.allclose(np.linalg.norm(vectors["raw"], axis=1), norms, rtol=1e-6)
    assert np.allclose(vectors["raw"] / norms[:, None], vectors["a"], atol=1e-6)


def test_the_thread_count_is_that_of_the_plan(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    """Pinned when the job is begun, so that a resume elsewhere rounds alike; the process gets its own back."""
    job(pre, photos, tmp_path / "out").run()
    (tmp_path / "out" / "part-00000002.parquet").unlink()
    torch.set_num_threads(2)
    try:
        job(pre, photos, tmp_path / "out").run()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert FeatureSet(tmp_path / "out").identity.made_with["threads"] == 1


def test_a_second_writer_is_refused_and_told_who_writes(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    """Whole folder against whole folder, against a rank, rank against the same rank; ranks beside each other may."""
    out = tmp_path / "out"
    out.mkdir()
    with FolderLock(out), pytest.raises(OutputError, match=f"being written by process {os.getpid()} on "):
        job(pre, photos, out).run()
    with FolderLock(out, 0, 2), FolderLock(out, 1, 2):
        for rank, size in ((0, 1), (0, 2), (1, 3)):
            with pytest.raises(OutputError, match="being written by"), FolderLock(out, rank, size):
                pass
    assert job(pre, photos, out).run().status.complete


def test_results_are_read_by_pandas_polars_and_duckdb(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    """A plain glob in each; the same vectors; similarity in SQL."""
    import duckdb
    import pandas as pd
    import polars as pl

    out = tmp_path / "out"
    job(pre, photos, out).run()
    expected = FeatureSet(out).vectors()
    frame = pd.concat([pd.read_parquet(path) for path in sorted(out.glob("*.parquet"))])
    assert np.array_equal(np.stack(frame[frame.status == "ok"].embedding.tolist()), expected)
    polar = pl.scan_parquet(out / "*.parquet").filter(pl.col("status") == "ok").collect()
    assert np.array_equal(polar["embedding"].to_numpy(), expected)
    query = f"""select a.id, b.id, array_cosine_similarity(a.embedding::float[64], b.embedding::float[64]) as s
                from '{out}/*.parquet' a, '{out}/*.parquet' b where a.id < b.id and a.status = 'ok' and b.status = 'ok'"""
    found = duckdb.sql(query).fetchall()
    assert len(found) == 190
    ids = FeatureSet(out).ids()
    for left, right, similarity in found[::20]:
        assert similarity == pytest.approx(expected[ids.index(left)] @ expected[ids.index(right)], abs=1e-5)


def test_dense_features_in_a_zarr_store(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    """Row shard * shard_size + i, zeros for failures; after an extension and a retry it holds what arrays of shards hold."""
    import zarr

    run = {"dense": ("patches",), "dense_dtype": "float32"}
    for name in ("npy", "zarr"):
        out = tmp_path / name
        if name == "zarr":
            (photos / "0010.png").write_bytes(b"no image")
            (photos / "zz.png").unlink()
        job(pre, photos, out, dense_format=name, **run).run()
        (photos / "zz.png").write_bytes(an_image(99))
        (photos / "0010.png").write_bytes(an_image(10))
        job(pre, photos, out, dense_format=name, retry_failed=True, **run).run()
    array = zarr.open_group(str(tmp_path / "zarr" / "dense.zarr"), mode="r")["patches"]
    assert array.shape == (30, 16, 64)
    for index, path in enumerate(sorted((tmp_path / "zarr").glob("part-*"))):
        footer = json.loads(pq.read_table(tmp_path / "npy" / path.name).schema.metadata[b"dinokit_shard"])
        expected = iter(np.load(tmp_path / "npy" / footer["dense"]["patches"]))
        for number, row in enumerate(pq.read_table(path).to_pylist()):
            found = np.asarray(array[index * 5 + number])
            assert np.array_equal(found, next(expected) if row["status"] == "ok" else np.zeros_like(found))


def test_a_damaged_table_costs_the_rows_that_can_t_be_read(pre: Pretrained, tmp_path: Path) -> None:
    """The others keep their vectors; a table that has gone altogether gives errors, not the end of the job."""
    import pyarrow as pa

    images = pa.array([an_image(seed) for seed in range(12)], pa.binary())
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": images}), path, row_group_size=4, compression="zstd", use_dictionary=False)
    job(pre, path, tmp_path / "whole").run()
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    place = column.data_page_offset + column.total_compressed_size // 2
    data[place : place + 40] = b"\xff" * 40
    path.write_bytes(data)
    summary = job(pre, path, tmp_path / "out").run()
    assert summary.failed == {"truncated": 4}
    whole, found = rows_of(tmp_path / "whole"), rows_of(tmp_path / "out")
    assert [row["status"] for row in found] == ["ok"] * 4 + ["error"] * 4 + ["ok"] * 4
    assert all(new["embedding"] == old["embedding"] for new, old in zip(found, whole, strict=True) if new["embedding"])
    planned = job(pre, path, tmp_path / "gone")
    planned.plan()
    path.unlink()
    assert job(pre, path, tmp_path / "gone", check_inputs=False).run().failed == {"truncated": 12}


def test_of_eight_writers_at_once_one_runs(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    """The others end with exit code 6; the result is whole."""
    import warnings

    out, reads = tmp_path / "out", []
    ready, go = os.pipe()
    for _ in range(8):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(go)
                os.read(ready, 1)  # returns for all at once when the parent closes its end
                job(pre, photos, out).run()
                code = 0
            except OutputError as error:
                code = error.exit_code
            finally:
                os._exit(code)
        reads.append(child)
    os.close(go)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in reads)
    os.close(ready)
    # whoever comes when the first has ended finds nothing to do
    assert set(codes) <= {0, 6}
    assert codes[0] == 0
    assert codes.count(6) >= 1
    job(pre, photos, tmp_path / "whole").run()
    assert content(out) == content(tmp_path / "whole")


def test_pipes_and_links_among_the_images_do_not_hold_the_job_up(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    """A named pipe would wait for its writer for ever; a link to nothing and a link in a circle are no files."""
    os.mkfifo(photos / "pipe.png")
    (photos / "dangling.png").symlink_to(photos / "gone.png")
    (photos / "circle.png").symlink_to(photos / "circle.png")
    (photos / "good.png").symlink_to(photos / "0001.png")
    (photos / "loop").symlink_to(photos, target_is_directory=True)
    summary = job(pre, photos, tmp_path / "out").run()
    rows = {row["id"]: row for row in rows_of(tmp_path / "out")}
    assert summary.failed == {"not_image": 3, "not_a_file": 3}
    assert rows["good.png"]["embedding"] == rows["0001.png"]["embedding"]

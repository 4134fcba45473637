"""`dinokit embed --out FOLDER` as a process: signals, locks, exit codes, what is said where."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dinokit.atomic import write_json
from dinokit.extract.lock import FolderLock
from dinokit.store import FeatureSet
from tests.extract.conftest import TINY_TRANSFORM, an_image, fill

QUICK = ("--workers", 0, "--shard-size", 4)


@pytest.fixture
def model(formats, tmp_path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(formats / "reg" / "hf", folder)
    write_json(folder / "preprocessor_config.json", TINY_TRANSFORM)
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    return fill(tmp_path / "photos", 10)


def run_process(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dinokit.cli.main", "embed", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def test_a_folder_is_written_and_gone_on_with(dinokit_cli, model, photos, tmp_path):
    """Exit code 3 with the failures counted; again: nothing to do; `--json` on stdout, words on stderr."""
    out = tmp_path / "photos.emb"
    done = dinokit_cli("embed", photos, "-m", model, "-o", out, "--json", *QUICK)
    assert done.code == 3, done.err
    found = json.loads(done.out)
    assert (found["rows"], found["rows_done"], found["failed"], found["complete"]) == (10, 10, {"not_image": 1}, True)
    assert "plan: 10 inputs in 3 shards of 4, batches of 8" in done.err
    assert "9 of 10 inputs have vectors; 1 failed (1 not_image): see status = 'error'" in done.err
    again = dinokit_cli("embed", photos, "-m", model, "-o", out, "--json", "--workers", 0)
    assert json.loads(again.out)["this_run"]["rows"] == 0
    assert "10 are done already" in again.err
    (photos / "more" / "0003.png").write_bytes(an_image(3))
    mended = dinokit_cli("embed", photos, "-m", model, "-o", out, "--retry-failed", "--workers", 0)
    assert (mended.code, mended.out) == (0, "")
    shown = dinokit_cli("embed", "--out", out, "--status")
    assert "10 of 10 inputs in 3 of 3 shards, complete." in shown.out
    assert json.loads(dinokit_cli("embed", "--out", out, "--status", "--json").out)["failed"] == {}


def test_options_decide_the_columns(dinokit_cli, model, photos, tmp_path):
    """Poolings, layers, 16 bits, no sums, absolute paths, exact preparation, dense features, in one run."""
    out = tmp_path / "o"
    done = dinokit_cli(
        "embed", photos, "-m", model, "-o", out, "-p", "cls", "-p", "mean", "--layer", 0, "--layer", -1, "--float16", "--no-hash",
        "--absolute", "--exact", "--engine", "eager", "--dense", "registers", *QUICK,
    )  # fmt: skip
    assert done.code == 3, done.err
    assert "dense features (registers) will take" in done.err
    table = pq.read_table(out / "part-00000000.parquet")
    assert table.schema.names[-8:] == [
        "embedding", "norm", "embedding_mean_block0", "embedding_mean_block0_norm", "embedding_cls", "embedding_cls_norm",
        "embedding_mean", "embedding_mean_norm",
    ]  # fmt: skip
    row = table.to_pylist()[0]
    assert row["sha256"] is None
    assert Path(row["path"]).is_absolute()
    identity = FeatureSet(out).identity
    assert (identity.features[0].block, identity.features[0].dtype) == (0, "float16")
    assert identity.made_with["engine"] == "eager"


def test_lists_from_stdin_and_manifests(dinokit_cli, model, photos, tmp_path, monkeypatch):
    """A source called - is a list of paths; a CSV has its own ids."""
    import io

    paths = [str(photos / "0001.png"), str(photos / "gone.png")]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(paths).encode())))
    assert dinokit_cli("embed", "-", "-m", model, "-o", tmp_path / "a", *QUICK).code == 3
    rows = pq.read_table(tmp_path / "a" / "part-00000000.parquet").to_pylist()
    assert [(row["path"], row["error_code"]) for row in rows] == [(paths[0], None), (paths[1], "not_a_file")]
    (tmp_path / "m.csv").write_text(f"key,file\nx,{paths[0]}\n")
    done = dinokit_cli("embed", tmp_path / "m.csv", "--id-column", "key", "-m", model, "-o", tmp_path / "b", *QUICK)
    assert done.code == 0, done.err
    assert FeatureSet(tmp_path / "b").ids() == ["x"]


def test_usage_is_checked_before_anything_is_loaded(dinokit_cli, photos, tmp_path):
    """Options that need a folder, bad limits, no sources, file names that are no folder."""
    assert "--shard-size needs --out FOLDER" in dinokit_cli("embed", photos, "--shard-size", 4).err
    assert dinokit_cli("embed", photos, "--shard-size", 4).code == 2
    assert "write a number" in dinokit_cli("embed", photos, "-o", tmp_path / "o", "--max-errors", "many").err
    assert dinokit_cli("embed", "-o", tmp_path / "o").code == 2
    assert "ranks are 0 to" in dinokit_cli("embed", photos, "-o", tmp_path / "o", "--rank", 2, "--world-size", 2).err
    assert "give a name like out.emb" in dinokit_cli("embed", photos, "-o", tmp_path / "out.csv").err
    assert "several --pool" in dinokit_cli("embed", photos, "-p", "cls", "-p", "mean").err
    assert dinokit_cli("embed", "-o", tmp_path / "none", "--status").code == 6


def test_registers_are_no_column(dinokit_cli, model, photos, tmp_path):
    """A pooling of many vectors is told to be dense."""
    done = dinokit_cli("embed", photos, "-m", model, "-o", tmp_path / "o", "-p", "registers")
    assert done.code == 2
    assert "--dense" in done.err


def test_ranks_come_from_the_environment(dinokit_cli, model, photos, tmp_path, monkeypatch):
    """torchrun's names, or those of a Slurm job array whose numbers begin at 1."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert dinokit_cli("embed", photos, "-m", model, "-o", tmp_path / "o", *QUICK).code in (0, 3)
    assert [path.name for path in (tmp_path / "o").glob("part-*")] == ["part-00000001.parquet"]
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    assert dinokit_cli("embed", photos, "-m", model, "-o", tmp_path / "o", *QUICK).code == 3
    assert (tmp_path / "o" / "_SUCCESS").exists()


def test_the_second_of_two_writers_is_refused_before_it_loads_anything(photos, tmp_path):
    """Exit code 6, without PyTorch, and with the word who writes."""
    out = tmp_path / "o"
    out.mkdir()
    script = (
        "import sys; from dinokit.cli.main import _run\n"
        f"code = _run(['embed', {str(photos)!r}, '-o', {str(out)!r}]); print(code, 'torch' in sys.modules)"
    )
    with FolderLock(out):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["6", "False"]
    assert "is being written by process" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "code"), [([signal.SIGINT], 130), ([signal.SIGINT, signal.SIGINT], 130), ([signal.SIGTERM], 143)]
)
def test_signals_end_the_job_cleanly(dinokit_cli, model, photos, tmp_path, signals, code):
    """Ctrl-C finishes the shard, twice stops now, SIGTERM stops now: the right code, no traceback, no torso, and it goes on."""
    names = tmp_path / "many.txt"
    names.write_text(f"{photos / '0001.png'}\n" * 4_000)
    out = tmp_path / "out"
    options = ("--files-from", names, "-m", model, "-o", out, "--shard-size", 40, "--batch-size", 2, "--workers", 1)
    process = run_process(*options, "--json")
    started = time.monotonic()
    while len(list(out.glob("part-*"))) < 2 and time.monotonic() - started < 60:
        time.sleep(0.05)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.02)
    printed, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert not list(out.glob(".*.tmp"))
    assert not (out / "_SUCCESS").exists()
    parts = sorted(out.glob("part-*"))
    assert 2 <= len(parts) < 100
    assert {pq.read_metadata(path).num_rows for path in parts} == {40}
    if signals == [signal.SIGINT]:
        assert json.loads(printed)["this_run"]["interrupted"]
        assert "finishing the shard at hand" in err
        assert "the same command goes on" in err
    status = json.loads(dinokit_cli("embed", "-o", out, "--status", "--json").out)
    assert status["shards_done"] == len(parts)


def test_progress_is_a_line_now_and_then_where_nobody_looks(dinokit_cli, model, photos, tmp_path, monkeypatch):
    """Counts, rate, time left, failures; no bar in a log file; many failures are counted, not listed."""
    from dinokit.cli import embed_job

    monkeypatch.setattr(embed_job, "SECONDS_BETWEEN_LINES", 0.0)
    for number in range(20):
        (photos / f"bad{number}.png").write_bytes(b"")
    done = dinokit_cli("embed", photos, "-m", model, "-o", tmp_path / "o", *QUICK)
    assert "of 30, " in done.err
    assert "images/s" in done.err
    assert " left" in done.err
    assert done.err.count("zero_byte:") <= embed_job.SHOWN_FAILURES
    assert "further failures are only counted" in done.err
    assert "\r" not in done.err


def test_a_full_disk_is_exit_code_7_and_the_job_goes_on(dinokit_cli, model, photos, tmp_path, monkeypatch):
    """One sentence, no traceback."""
    import errno
    import os

    real = os.fsync

    def full(handle: int) -> None:
        if len(list((tmp_path / "o").glob("part-*"))) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    done = dinokit_cli("embed", photos, "-m", model, "-o", tmp_path / "o", *QUICK)
    assert done.code == 7
    assert "No space left on device" in done.err
    monkeypatch.setattr(os, "fsync", real)
    assert dinokit_cli("embed", photos, "-m", model, "-o", tmp_path / "o", "--workers", 0).code == 3
    assert (tmp_path / "o" / "_SUCCESS").exists()


def test_one_is_told_as_one(dinokit_cli, model, tmp_path):
    """A plan of one image: "1 input in 1 shard"."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(an_image(1))
    done = dinokit_cli("embed", tmp_path / "photos", "-m", model, "-o", tmp_path / "out", *QUICK)
    assert done.code == 0, done.err
    assert "plan: 1 input in 1 shard of 4, batches of 8" in done.err
    assert "1 of 1 input has a vector." in done.err
    assert "1 of 1 input in 1 of 1 shard, complete." in dinokit_cli("embed", "--out", tmp_path / "out", "--status").out

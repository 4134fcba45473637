"""Checkpoints: killed anywhere, nothing is lost; continued, bit for bit as if nothing had been."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

from dinokit.errors import OutputError, StorageError, WeightsError
from dinokit.train import checkpoint
from dinokit.train.run import read_recipe
from tests.train.small_run import killed, run, small, values


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder)
    return folder


def assert_same_run(a: Path, b: Path, step: int = 6) -> None:
    first, second = values(a, step), values(b, step)
    assert first.keys() == second.keys()
    assert len(first) > 100
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert (a / "log.jsonl").read_text() == (b / "log.jsonl").read_text()
    one, two = ((f / "export/model/model.safetensors").read_bytes() for f in (a, b))
    assert one == two


# Touches of files at which the process dies: before the first checkpoint, while one is written, pruned, pointed to, exported.
TOUCHES = (5, 17, 22, 26)


@pytest.mark.parametrize("count", [19, 27])
def test_a_killed_run_continues_as_if_nothing_had_been(whole, tmp_path, count):
    """SIGKILL while files are written; weights, optimiser, teacher, centres, log and export are equal, bit for bit."""
    folder = tmp_path / "run"
    assert killed(folder, count) == -signal.SIGKILL
    run(folder, resume=True)
    assert_same_run(whole, folder)


def test_wherever_it_is_killed(whole, tmp_path):
    """One process after another dies a few touches later, until one arrives: what it leaves is what one alone leaves."""
    folder, deaths = tmp_path / "run", 0
    for count in TOUCHES:
        deaths += killed(folder, count) == -signal.SIGKILL
        found = checkpoint.latest(folder / "checkpoints")
        assert found is None or json.loads((found / "about.json").read_text())["step"] in (2, 4, 6)
    killed(folder, 0)
    assert deaths >= 3
    assert_same_run(whole, folder)


def test_continuing_in_this_process_equals_not_stopping(whole, tmp_path):
    """From a copy with only the first checkpoint; the log's later lines are cut and written again."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints/step-000000006")
    shutil.rmtree(folder / "checkpoints/step-000000004")
    (folder / "checkpoints/latest").unlink()  # the newest whole one is found without it
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "kind"')
    run(folder, resume=True)
    assert_same_run(whole, folder)


def test_a_run_that_died_before_its_export_gets_it(whole, tmp_path):
    """All steps taken, no export: going on writes it, and the page and log stay."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "export")
    run(folder, resume=True)
    assert_same_run(whole, folder)


def test_a_half_written_checkpoint_is_none(whole, tmp_path):
    """Without its last file a folder does not count; `latest` that points to nothing is passed over."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole / "checkpoints", folder)
    (folder / "step-000000006/about.json").unlink()
    assert checkpoint.latest(folder) == folder / "step-000000004"
    assert list(checkpoint.complete(folder)) == [2, 4]
    assert checkpoint.latest(tmp_path / "nothing") is None


def test_old_checkpoints_go_and_marked_ones_stay(tmp_path):
    """The last two, and one every four steps."""
    run(tmp_path / "run", "save.every=1", "save.keep=2", "save.keep_every=4", "watch.every=0")
    assert list(checkpoint.complete(tmp_path / "run/checkpoints")) == [4, 5, 6]
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir())[0] == "latest"


def test_a_run_is_not_overwritten(whole):
    """Another start in the same folder is refused, and says how to go on."""
    with pytest.raises(OutputError, match="--resume auto"):
        run(whole)


def test_a_checkpoint_of_another_network_is_refused(whole, tmp_path):
    """By the name of what is missing or has another shape; a damaged one, too."""
    for setting, message in (
        ("model.depth=3", "the checkpoint has no student.backbone.blocks.2"),
        ("heads.prototypes=13", r"\(12,"),
    ):
        folder = tmp_path / setting
        shutil.copytree(whole, folder)
        with pytest.raises(WeightsError, match=message):
            run(folder, setting, resume=True)
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder)
    (folder / "checkpoints/step-000000006/.metadata").write_bytes(b"")
    with pytest.raises(WeightsError, match="can't be read as a checkpoint"):
        run(folder, resume=True)


def test_a_full_disk_leaves_the_last_checkpoint(whole, tmp_path, monkeypatch):
    """What can't be written says so, and `latest` still points to a whole one."""
    folder = tmp_path / "run"
    run(folder, "steps=2")

    def full(*_, **__):
        raise checkpoint.CheckpointException("no space left on device", {})

    monkeypatch.setattr(checkpoint.state_dict_saver, "save", full)
    with pytest.raises(StorageError, match="can't be written"):
        run(folder, resume=True)
    assert checkpoint.latest(folder / "checkpoints").name == "step-000000002"


def test_the_folder_says_what_the_run_is(whole):
    """The recipe comes back equal; times of the machine are not in the log."""
    assert read_recipe(whole) == small()
    records = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if r["kind"] == "watch"] == [0, 3, 6]
    assert not any("images_per_second" in record for record in records)
    assert "images_per_second" in (whole / "timing.jsonl").read_text()

"""`dinokit finetune`: the three tasks on small folders, what they print, and how they end."""

from __future__ import annotations

import json
import shutil

import pytest

import dinokit
from dinokit.atomic import write_json
from dinokit.weights.heads import load_dense
from tests.evals.made import class_folders, depth_folders, mask_folders, plain


@pytest.fixture
def small(formats, tmp_path):
    """A tiny random network with registers, in the hub's layout."""
    folder = shutil.copytree(formats / "reg" / "hf", tmp_path / "small")
    write_json(
        folder / "preprocessor_config.json", {"size": {"shortest_edge": 80}, "crop_size": {"height": 70, "width": 70}}
    )
    return folder


@pytest.fixture
def ask(dinokit_cli, small):
    """A task with the tiny model at 28 pixels, a few steps; JSON comes back as a dictionary."""

    def run(task, data, out, *arguments):
        common = ("--out", out, "-m", small, "--size", 28, "--batch-size", 4, "--device", "cpu", "--json")
        done = dinokit_cli("finetune", task, data, *common, *arguments)
        return done, json.loads(done.out) if done.code == 0 else None

    return run


def test_classify_gives_a_model_that_opens(ask, tmp_path):
    """Classes by their folders' names; the run's files, step and accuracy as JSON."""
    data, out = class_folders(tmp_path / "photos"), tmp_path / "run"
    done, found = ask("classify", data, out, "--steps", 30, "--lr", "1e-2", "--set", "label_smoothing=0")
    assert done.code == 0, done.err
    assert found["metrics"]["accuracy"] == 1.0
    assert found["step"] == 30
    assert {"model", "log.jsonl", "checkpoint.pth", "run.json"} <= set(found["files"])
    pre = dinokit.load(out / "model")
    assert dict(pre.labels) == {0: "a", 1: "b", 2: "c"}
    assert pre.logits(str(data / "val" / "b" / "0.png")).argmax().item() == 1
    again, _ = ask("classify", data, out, "--steps", 30)
    assert again.code == 6
    assert "holds a run already" in again.err


def test_without_a_val_folder_it_says_so(ask, tmp_path):
    """And keeps the last network."""
    data = class_folders(tmp_path / "photos") / "train"
    done, found = ask("classify", data, tmp_path / "run", "--steps", 2, "--mode", "lora", "--limit", 6)
    assert done.code == 0, done.err
    assert "no val folder" in done.err
    assert found["step"] == 0


@pytest.mark.parametrize(("head", "mode"), [("linear", "linear"), ("ms", "full")])
def test_segment_gives_a_head_that_opens(ask, small, tmp_path, head, mode):
    """Classes are counted in the masks; the backbone is written where it learned."""
    data = mask_folders(tmp_path / "f", lambda code: code % 3, plain, num=(4, 2))
    done, found = ask("segment", data, tmp_path / "run", "--steps", 3, "--head", head, "--mode", mode)
    assert done.code == 0, done.err
    assert set(found["metrics"]) == {"mIoU", "pixel_accuracy"}
    assert ("model" in found["files"]) is (mode == "full")
    dense = load_dense(small if mode == "linear" else tmp_path / "run" / "model", tmp_path / "run" / "head.safetensors")
    assert (dense.spec.num_outputs, dense.spec.kind) == (3, head)


def test_depth_reads_millimetres_and_keeps_its_range(ask, small, tmp_path):
    """And goes on from its checkpoint: the same run in two parts gives the same file."""
    data, out = depth_folders(tmp_path / "d"), tmp_path / "run"
    arguments = ("--steps", 4, "--nearest", 0.5, "--farthest", 12, "--bins", 16, "--spacing", "log")
    done, found = ask("depth", data, out, *arguments)
    assert done.code == 0, done.err
    assert set(found["metrics"]) == {"rmse", "abs_rel", "delta1"}
    dense = load_dense(small, out / "head.safetensors")
    assert (dense.spec.rule.nearest, dense.spec.rule.farthest, dense.spec.rule.spacing) == (0.5, 12.0, "log")
    done, again = ask("depth", data, out, *arguments, "--resume")
    assert done.code == 0, done.err
    assert again["metrics"] == found["metrics"]


def test_misuse_ends_in_2_and_weights_in_4(ask, tmp_path):
    """An unknown setting with the nearest, a folder that is none, masks out of range, another recipe on resume."""
    data = mask_folders(tmp_path / "f", lambda code: code % 3, plain, num=(4, 2))
    done, _ = ask("segment", data, tmp_path / "a", "--set", "stepz=3")
    assert done.code == 2
    assert "steps" in done.err
    assert ask("classify", tmp_path / "nowhere", tmp_path / "b")[0].code == 2
    done, _ = ask("segment", data, tmp_path / "c", "--steps", 2, "--classes", 2)
    assert done.code == 2
    assert "2 count from 0" in done.err
    assert ask("segment", data, tmp_path / "d", "--steps", 2)[0].code == 0
    assert ask("segment", data, tmp_path / "d", "--steps", 3, "--resume")[0].code == 4


def test_an_unreadable_image_ends_in_3(ask, tmp_path):
    """It is named."""
    data = class_folders(tmp_path / "photos")
    (data / "train" / "a" / "0.png").write_bytes(b"broken")
    done, _ = ask("classify", data, tmp_path / "run", "--steps", 9)
    assert done.code == 3
    assert "0.png" in done.err

"""`dinokit eval`: every task on small made-up data sets, as a table and as JSON; what it refuses and how it ends."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from dinokit.atomic import write_json
from tests.evals.made import (
    COLOURS,
    class_folders,
    davis_folder,
    depth_folders,
    mask_folders,
    plain,
    planted_checkpoint,
    spair_folder,
    write_colour,
)
from tests.search.made import a_collection


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return planted_checkpoint(tmp_path_factory.mktemp("model") / "planted")


@pytest.fixture
def small(formats, tmp_path):
    """A tiny random network in the hub's layout, whose class tokens depend on the image."""
    folder = shutil.copytree(formats / "reg" / "hf", tmp_path / "small")
    write_json(
        folder / "preprocessor_config.json", {"size": {"shortest_edge": 80}, "crop_size": {"height": 70, "width": 70}}
    )
    return folder


@pytest.fixture
def photos(tmp_path):
    return class_folders(tmp_path / "photos")


@pytest.fixture
def ask(dinokit_cli, model):
    """A task with the planted model, or another, as it is; JSON comes back as a dictionary."""

    def run(*arguments, with_model=model):
        done = dinokit_cli("eval", *arguments, "-m", with_model, "--engine", "eager", "--json")
        return done, json.loads(done.out) if done.out else None

    return run


TASKS = [
    ("knn", ("--k", "1,5"), "top-1, k=1"),
    ("knn", ("--leave-one-out", "--centred", "--k", "3"), "top-1, k=3"),
    ("linear", ("--steps", 200, "--batch-size", 8, "--blocks", 2), "top-1, head chosen on test"),
    ("logreg", ("--max-iterations", 50, "--fp32"), "top-1"),
    ("fewshot", ("--shots", "1,2", "--episodes", 2), "2-shot, centroid"),
    ("retrieval", (), "precision at 1"),
]


@pytest.mark.parametrize(("task", "arguments", "metric"), TASKS)
def test_classes_that_tokens_hold_are_found(ask, small, photos, task, arguments, metric):
    """Accuracy 1, with the model's identity, the settings and how long it took."""
    done, found = ask(task, photos, *arguments, with_model=small)
    assert done.code == 0, done.err
    assert found["task"] == task
    assert found["metrics"][metric] == 1.0
    assert found["data"]["train"] == 18
    assert found["data"]["test"] == 9
    assert found["model"]["name"]
    assert len(found["model"]["compat_id"]) == 16
    assert set(found["seconds"]) == {"features", "evaluation"}
    assert found["settings"]


def test_linear_reports_all_52_heads(ask, photos, tmp_path):
    """13 rates, one block and four, with and without the mean; vectors may lie in a folder."""
    done, found = ask("linear", photos, "--steps", 20, "--batch-size", 8, "--storage", tmp_path / "big")
    assert done.code == 0, done.err
    assert len(found["details"]["heads"]) == 52
    assert (tmp_path / "big" / "train.npy").is_file()
    _, fewer = ask("linear", photos, "--steps", 20, "--blocks", 1, "--no-mean")
    assert len(fewer["details"]["heads"]) == 13


def test_without_a_test_set_one_is_divided_off_or_each_is_left_out(ask, photos):
    """And it says so."""
    done, found = ask("logreg", photos / "train", "--test-share", 0.5, "--max-iterations", 20)
    assert (found["data"]["train"], found["data"]["test"]) == (9, 9)
    assert "no test set" in done.err
    done, found = ask("knn", photos / "train", "--k", 2)
    assert found["settings"]["leave_one_out"] is True
    assert "judged by all the others" in done.err


def test_collections_are_judged_without_a_model(dinokit_cli, tmp_path):
    """Two of them, labels by folder; one with a table. No model is opened."""
    vectors = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    ids = [f"{'abc'[i // 4]}/{i}" for i in range(12)]
    a_collection(tmp_path / "train.emb", vectors, ids=ids)
    a_collection(tmp_path / "val.emb", vectors[::2], ids=ids[::2])
    done = dinokit_cli("eval", "knn", tmp_path / "train.emb", tmp_path / "val.emb", "-m", "nothing", "--json", "--k", 3)
    assert done.code == 0, done.err
    assert json.loads(done.out)["metrics"]["top-1, k=3"] == 1.0
    (tmp_path / "l.csv").write_text("id,label\n" + "".join(f"{name},{'xy'[name > 'b']}\n" for name in ids))
    done = dinokit_cli(
        "eval", "linear", tmp_path / "train.emb", "--labels", tmp_path / "l.csv", "--steps", 50, "--json"
    )
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["data"]["classes"] == 2
    assert len(found["details"]["heads"]) == 13


def test_a_broken_image_is_named_and_ends_in_3(ask, dinokit_cli, photos, small, tmp_path):
    """The others are judged; --out keeps the JSON and is not overwritten unasked."""
    (photos / "val" / "a" / "0.png").write_bytes(b"broken")
    done, found = ask("knn", photos, "--out", tmp_path / "r.json")
    assert done.code == 3
    assert "not_image" in done.err
    assert found["failed"][0]["input"].endswith("0.png")
    assert json.loads((tmp_path / "r.json").read_text()) == found
    assert ask("knn", photos, "--out", tmp_path / "r.json")[0].code == 6
    table = dinokit_cli("eval", "knn", photos, "-m", small, "--out", tmp_path / "r.json", "--overwrite", "--k", 1)
    assert table.code == 3
    assert table.out.startswith("top-1, k=1  1.0000")


def test_segmentation_and_in_context_read_every_layout(ask, tmp_path):
    """Folders, ADE20K and VOC; classes by the code of a patch."""
    mask_folders(tmp_path / "f", lambda code: code % 3, plain)
    common = ("--size", 16)
    done, found = ask("segmentation", tmp_path / "f", *common, "--steps", 120, "--batch-size", 4, "--label-size", 4)
    assert done.code == 0, done.err
    assert found["metrics"]["mIoU"] > 0.95
    assert found["settings"]["num_classes"] == 3
    ade = mask_folders(
        tmp_path / "ade", lambda code: code % 3, lambda s, n: (f"images/{s}/{n}", f"annotations/{s}/{n}"),
        splits=("training", "validation"),
    )  # fmt: skip
    done, found = ask("in-context", ade, "--layout", "ade20k", *common, "--k", 3)
    assert done.code == 0, done.err
    assert found["metrics"]["mIoU"] == 1.0
    assert found["settings"]["num_classes"] == 150
    voc = mask_folders(
        tmp_path / "voc", lambda code: code % 3, lambda _, n: (f"JPEGImages/{n}", f"SegmentationClass/{n}"),
        suffixes=(".jpg", ".png"), num=(3, 2),
    )  # fmt: skip
    for split, num in (("train", 3), ("val", 2)):
        (voc / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        (voc / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{split}{i}\n" for i in range(num)))
    done, found = ask("in-context", voc, "--layout", "voc", *common, "--limit", 1)
    assert done.code == 0, done.err
    assert (found["data"]["train"], found["data"]["test"], found["settings"]["num_classes"]) == (1, 1, 21)


def test_depth_reads_folders_or_lists(ask, tmp_path):
    """The same numbers both ways."""
    root = depth_folders(tmp_path)
    settings = ("--size", 16, "--steps", 40, "--batch-size", 8, "--rate", 0.02)
    done, found = ask("depth", root, *settings)
    assert done.code == 0, done.err
    lists = []
    for split, codes in (("train", range(8)), ("val", (1, 4, 6))):
        lists.append(tmp_path / f"{split}.txt")
        lists[-1].write_text("".join(f"/{split}/images/{c}.png /{split}/depth/{c}.png 518.8\n" for c in codes))
    done, listed = ask("depth", root, *settings, "--train-list", lists[0], "--test-list", lists[1])
    assert listed["metrics"] == found["metrics"]
    assert found["metrics"]["aligned_rmse"] < 1e-6 < found["metrics"]["rmse"]  # each map is a constant
    assert ask("depth", root, "--train-list", lists[0])[0].code == 2
    assert ask("depth", root, "--nearest", 0)[0].code == 2


def test_video_and_matching_follow_what_moves(ask, tmp_path):
    """The planted square, and points of a mirrored image."""
    done, found = ask("video", davis_folder(tmp_path / "davis"), "--short-side", 16)
    assert done.code == 0, done.err
    assert found["metrics"]["J&F"] > 0.8
    done, found = ask("matching", spair_folder(tmp_path / "spair"), "--size", 16, "--alpha", "0.05")
    assert done.code == 0, done.err
    assert found["metrics"]["PCK@0.05"] == 1.0


def test_landmarks_are_retrieved_by_lists(ask, small, tmp_path):
    """A query's box is cut out; easy and hard images are found before the rest."""
    for i, (name, colour) in enumerate((("q", 0), ("easy", 0), ("hard", 0), ("other", 1))):
        write_colour(tmp_path / "jpg" / f"{name}.jpg", COLOURS[colour], seed=i)
    truth = {
        "imlist": ["other", "easy", "hard"], "qimlist": ["q"],
        "gnd": [{"bbx": [5, 5, 75, 85], "easy": [1], "hard": [2], "junk": []}],
    }  # fmt: skip
    (tmp_path / "gnd.json").write_text(json.dumps(truth))
    done, found = ask("retrieval", tmp_path / "jpg", "--ground-truth", tmp_path / "gnd.json", with_model=small)
    assert done.code == 0, done.err
    assert found["metrics"]["mAP, medium"] == 1.0
    truth["gnd"][0]["bbx"] = [400, 400, 500, 500]
    (tmp_path / "gnd.json").write_text(json.dumps(truth))
    done, _ = ask("retrieval", tmp_path / "jpg", "--ground-truth", tmp_path / "gnd.json")
    assert done.code == 2
    assert "outside" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("knn", "nowhere"), "no folder"),
        (("knn", "nowhere", "--k", "0"), "numbers above 0"),
        (("knn", "nowhere", "elsewhere"), "not both collections"),
        (("knn", "nowhere", "--labels", "l.csv"), "belong to collections"),
        (("retrieval", "a", "b", "--ground-truth", "g"), "one folder"),
        (("segmentation", "nowhere"), "expected a folder with train/images"),
        (("video", "nowhere"), "lacks JPEGImages"),
        (("matching", "nowhere"), "SPair-71k"),
    ],
)
def test_what_can_not_be_done_is_said(ask, arguments, message):
    """With exit code 2, nothing on stdout."""
    done, found = ask(*arguments)
    assert done.code == 2
    assert found is None
    assert message in " ".join(done.err.split())


def test_settings_that_do_not_fit_the_data_are_usage_errors(ask, photos):
    """More shots than images, more blocks than the network has."""
    done, _ = ask("fewshot", photos, "--shots", 7)
    assert done.code == 2
    assert "smallest class has 6" in done.err
    assert ask("linear", photos, "--blocks", 9, "--steps", 1)[0].code == 2


def test_help_lists_the_tasks(dinokit_cli):
    """All ten."""
    text = dinokit_cli("eval", "--help").out
    for task in (
        "knn",
        "linear",
        "logreg",
        "fewshot",
        "retrieval",
        "segmentation",
        "in-context",
        "depth",
        "video",
        "matching",
    ):
        assert f"  {task} " in text
        assert dinokit_cli("eval", task, "--help").code == 0

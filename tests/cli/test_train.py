"""`dinokit train`: a folder to a network, again from where it stopped, and mistakes that are told."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

import dinokit

SMALL = (
    "--set", "model.embed_dim=16", "--set", "model.num_heads=2", "--set", "model.ffn_dim=32", "--set", "model.depth=2",
    "--set", "heads.hidden_dim=16", "--set", "batch_size=4", "--set", "log_every=1", "--set", "watch.images=6",
    "--set", "*.count=2", "--set", "augmentation.global_crops.size=64", "--set", "augmentation.local_crops.size=32",
    "--set", "model.image_size=64,64", "--workers", 0, "--device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of four images, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, colour in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
        (folder / name).mkdir()
        for i in range(4):
            pixels = (np.array(colour) + rng.integers(-40, 40, (72, 80, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def test_a_folder_becomes_a_network(dinokit_cli, photos, tmp_path):
    """With k-NN accuracy on the way; the path of the network is the answer, and it loads."""
    done = dinokit_cli("train", photos, "--out", tmp_path / "run", "--steps", 2, "--labels", photos, *SMALL)
    assert done.code == 0, done.err
    assert dinokit.load(done.out.strip()).config.embed_dim == 16
    assert "name=tiny" in done.err
    assert "8 images; each is seen about 1.0 times" in done.err
    records = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [r["knn"] for r in records if r["kind"] == "watch"]
    again = dinokit_cli("train", photos, "--out", tmp_path / "run", "--steps", 2, *SMALL)
    assert again.code == 6
    assert "--resume auto" in again.err


def test_it_goes_on_with_the_runs_own_recipe(dinokit_cli, photos, tmp_path):
    """Settings need not be repeated; changed ones are said; another preset is refused."""
    first = dinokit_cli("train", photos, "--out", tmp_path / "run", "--steps", 1, *SMALL)
    assert first.code == 0, first.err
    options = ("--out", tmp_path / "run", "--resume", "auto", "--workers", 0, "--device", "cpu")
    done = dinokit_cli("train", photos, *options, "--steps", 3, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["steps"] == 3
    assert "settings differ" in done.err
    assert "continuing from" in done.err
    assert json.loads((tmp_path / "run/recipe.json").read_text())["steps"] == 3
    refused = dinokit_cli("train", photos, *options, "--recipe", "base")
    assert refused.code == 2
    assert "holds a run of recipe 'tiny', not 'base'" in refused.err


def test_the_resolved_recipe_can_be_looked_at(dinokit_cli, tmp_path):
    """Nothing is trained or written."""
    done = dinokit_cli(
        "train", "procedural:textures", "--out", tmp_path / "run", "--dry-run", "--dtype", "bf16", "--compile", "--accumulate", 2
    )  # fmt: skip
    recipe = json.loads(done.out)
    assert (recipe["name"], recipe["precision"], recipe["compile"], recipe["accumulate"]) == (
        "two_minutes",
        "bf16",
        True,
        2,
    )
    assert not (tmp_path / "run").exists()


def test_calculated_images_train(dinokit_cli, tmp_path):
    """Leaves, which have no labels."""
    done = dinokit_cli(
        "train", "procedural:leaves", "--recipe", "tiny", "--out", tmp_path / "run", "--steps", 1, *SMALL
    )
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "is no folder"),
        (("procedural:cats",), "none of textures, leaves, shapetex"),
        (("procedural:textures", "--set", "lrr=1"), "Did you mean schedule.lr"),
        (("procedural:textures", "--recipe", "huge"), "no recipe 'huge'"),
        (("procedural:textures", "--accumulate", 3), "3 equal parts"),
        (("procedural:textures", "--tensorboard"), 'pip install "dinokit[tensorboard]"'),
    ],
)
def test_misuse_is_told(dinokit_cli, tmp_path, monkeypatch, arguments, message):
    """As usage errors, before anything is written."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    done = dinokit_cli("train", *arguments, "--out", tmp_path / "run")
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "run").exists()


def test_a_folder_without_classes_gives_no_accuracy(dinokit_cli, photos, tmp_path):
    """Labels are folders; one alone is none."""
    done = dinokit_cli("train", photos, "--out", tmp_path / "run", "--steps", 1, "--labels", photos / "red", *SMALL)
    assert done.code == 2
    assert "at least two" in done.err

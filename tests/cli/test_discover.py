"""`dinokit discover`: boxes as JSON lines, pictures, CorLoc; what it refuses and how it ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinokit.atomic import write_json


@pytest.fixture
def model(formats, tmp_path) -> Path:
    """A tiny checkpoint in the hub's layout."""
    folder = tmp_path / "model"
    shutil.copytree(formats / "reg" / "hf", folder)
    write_json(folder / "preprocessor_config.json", {"size": {"shortest_edge": 80}})
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two photographs, and among them a text."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (60, 90)), ("more/a.png", (71, 43))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "b.jpg").write_text("hello")
    return folder


@pytest.mark.parametrize("method", ["lost", "tokencut", "maskcut", "spectral"])
def test_discover_prints_one_line_a_photograph_and_ends_in_3_if_some_failed(dinokit_cli, model, photos, method):
    """In order, with boxes inside of the photograph."""
    done = dinokit_cli("discover", photos, "-m", model, "--method", method)
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 3
    assert [(Path(row["path"]).name, row["status"]) for row in rows] == [
        ("a.png", "ok"),
        ("b.jpg", "error"),
        ("a.png", "ok"),
    ]
    assert rows[1]["error_code"] == "not_image"
    for row in (rows[0], rows[2]):
        assert row["method"] == method
        assert row["features"] == "k"
        assert len(row["boxes"]) == len(row["seeds"]) >= 1
        for left, top, right, bottom in row["boxes"]:
            assert 0 <= left < right <= row["width"]
            assert 0 <= top < bottom <= row["height"]
    assert (rows[0]["width"], rows[0]["height"], rows[0]["grid"]) == (90, 60, [5, 7])


def test_discover_shows_every_layer_that_is_asked_for(dinokit_cli, model, photos):
    """Counted from 0 or from the end, ascending; settings reach the method."""
    done = dinokit_cli(
        "discover", photos / "a.png", "-m", model, "--layer", -1, "--layer", 0, "--features", "v", "--normalize", "--bias", -0.5,
        "--k", 5, "--mask-artefacts", "--artefact-factor", 1.2,
    )  # fmt: skip
    assert done.code == 0
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert len(rows) == 2
    assert rows[0]["layer"] == 0 < rows[1]["layer"]
    assert all(row["features"] == "v" and row["artefacts"] >= 0 for row in rows)


def test_discover_draws_a_picture_of_each_photograph(dinokit_cli, model, photos, tmp_path):
    """Same names get numbers; nothing is replaced unless asked for."""
    out = tmp_path / "found" / "here"
    done = dinokit_cli("discover", photos, "-m", model, "-o", out)
    assert done.code == 3
    assert sorted(path.name for path in out.iterdir()) == ["a-2.png", "a.png"]
    with Image.open(out / "a.png") as picture:
        assert picture.width > 600
    assert "wrote 2 pictures" in done.err
    again = dinokit_cli("discover", photos, "-m", model, "-o", out)
    assert again.code == 6
    assert again.out == ""
    assert dinokit_cli("discover", photos, "-m", model, "-o", out, "--overwrite").code == 3


@pytest.fixture
def voc(tmp_path, photos) -> Path:
    """Two images: one object fills its image, the other has no easy object."""
    root = tmp_path / "VOC2007"
    (root / "Annotations").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    for name, source, box, difficult in (
        ("000001", "a.png", (1, 1, 90, 60), 0),
        ("000002", "more/a.png", (1, 1, 43, 71), 1),
    ):
        shutil.copy(photos / source, root / "JPEGImages" / f"{name}.jpg")
        sides = "".join(f"<{side}>{n}</{side}>" for side, n in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><object><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object></annotation>"
        )
    return root


def test_corloc_stands_beside_the_two_baselines(dinokit_cli, model, voc):
    """As a table, and as JSON; --no-hard skips what has no easy object."""
    done = dinokit_cli("discover", "--voc", voc, "-m", model)
    assert done.code == 0
    head, row = done.out.splitlines()
    assert head.split("  ")[-1].strip() == "images"
    assert "whole image" in head
    assert "centre box" in head
    assert row.split()[2:4] == ["100.0", "0.0"]
    done = dinokit_cli("discover", "--voc", voc, "-m", model, "--no-hard", "--json", "--layer", 0, "--layer", 1)
    found = json.loads(done.out)
    assert [score["layer"] for score in found["scores"]] == [0, 1]
    assert found["scores"][0]["images"] == found["scores"][0]["skipped"] == 1
    assert found["scores"][0]["whole_image"] == 100.0
    assert (
        json.loads(dinokit_cli("discover", "--voc", voc, "-m", model, "--json", "--limit", 1).out)["scores"][0][
            "images"
        ]
        == 1
    )


def test_corloc_on_coco_chooses_images_by_a_list(dinokit_cli, model, photos, tmp_path):
    """An image that can't be read is reported, and the exit code says so."""
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.jpg"}],
        "annotations": [{"image_id": i, "bbox": [0, 0, 90, 60], "iscrowd": 0} for i in (1, 2)],
    }
    write_json(tmp_path / "instances.json", content)
    arguments = ("discover", "--coco", f"{photos},{tmp_path / 'instances.json'}", "-m", model, "--json")
    done = dinokit_cli(*arguments)
    assert done.code == 3
    assert json.loads(done.out)["failed"] == 1
    assert "not_image" in done.err
    (tmp_path / "ids.txt").write_text("1\n")
    assert dinokit_cli(*arguments, "--ids", tmp_path / "ids.txt").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Usage"),
        (("--method", "lost"), "name images or folders"),
        (("x.jpg", "--voc", "VOC"), "name images or folders"),
        (("--voc", "VOC", "--out", "o"), "--out draws"),
        (("x.jpg", "--no-hard"), "--no-hard belongs to --voc"),
        (("x.jpg", "--method", "tokencut", "--bias", "1"), "--bias belongs to --method lost"),
        (("x.jpg", "--tau", "0.1"), "--tau belongs to --method tokencut or maskcut"),
        (("x.jpg", "--method", "tokencut", "--bias", "0"), "--bias belongs to --method lost"),
        (("x.jpg", "--artefact-factor", "3"), "belongs to --mask-artefacts"),
        (("x.jpg", "--method", "best"), "'best' is not one of"),
        (("--coco", "images"), "a comma"),
        (("--voc", "nowhere"), "no folder Annotations"),
    ],
)
def test_discover_refuses_what_it_would_have_to_ignore(dinokit_cli, arguments, message):
    """Usage errors, before a model is loaded."""
    done = dinokit_cli("discover", *arguments)
    assert done.code == 2
    assert message in done.err + done.out


def test_a_layer_that_is_not_there_is_a_usage_error(dinokit_cli, model, photos):
    """With the layers that are."""
    done = dinokit_cli("discover", photos / "a.png", "-m", model, "--layer", 99)
    assert done.code == 2
    assert "indices lie in" in done.err


def test_a_longest_side_below_one_patch_is_a_usage_error(dinokit_cli, model, photos):
    """Known only once the model is."""
    done = dinokit_cli("discover", photos / "a.png", "-m", model, "--longest-side", 5)
    assert done.code == 2
    assert "one patch of 14" in done.err


def test_a_tau_of_zero_is_not_the_default(dinokit_cli, model, photos):
    """Zero is a number that was given."""
    rows = [
        json.loads(dinokit_cli("discover", photos / "a.png", "-m", model, "--method", "tokencut", *more).out)
        for more in ((), ("--tau", 0), ("--tau", 0.2))
    ]
    assert rows[0] == rows[2]
    assert rows[0]["eigenvalues"] != rows[1]["eigenvalues"]

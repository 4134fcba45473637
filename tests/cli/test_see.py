"""`dinokit see`: pictures, numbers, exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinokit.atomic import write_json
from dinokit.cli.see import KINDS

TINY_TRANSFORM = {"size": {"shortest_edge": 80}, "crop_size": {"height": 70, "width": 70}}


@pytest.fixture
def model(formats, tmp_path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(formats / "reg" / "hf", folder)
    write_json(folder / "preprocessor_config.json", TINY_TRANSFORM)
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_draws_a_picture_and_prints_numbers(dinokit_cli, model, photos, tmp_path, kind):
    """A PNG with a path on stdout; with --json a line of numbers that names the picture."""
    done = dinokit_cli("see", photos / "a.png", "-m", model, "-k", kind, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    target = tmp_path / "out" / f"a-{kind}.png"
    assert done.out == f"{target}\n"
    with Image.open(target) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 200
    done = dinokit_cli("see", photos / "a.png", "-m", model, "-k", kind, "-o", tmp_path / "x.png", "--json")
    assert json.loads(done.out)["picture"] == str(tmp_path / "x.png")
    assert dinokit_cli("see", photos / "a.png", "-m", model, "-k", kind, "--json").code == 0


def test_pictures_go_where_they_are_told_and_replace_nothing(dinokit_cli, model, photos, tmp_path, monkeypatch):
    """Into the working folder by default; 6 if one is there; --json alone writes nothing; two stems never collide."""
    monkeypatch.chdir(tmp_path)
    assert dinokit_cli("see", photos / "a.png", "-m", model).out == "a-attention.png\n"
    assert dinokit_cli("see", photos / "a.png", "-m", "no-such-model").code == 6
    assert dinokit_cli("see", photos / "a.png", "-m", model, "--overwrite").code == 0
    before = sorted(tmp_path.iterdir())
    assert dinokit_cli("see", photos / "a.png", "-m", model, "--json").code == 0
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "other").mkdir()
    shutil.copy(photos / "a.png", tmp_path / "other" / "a.png")
    done = dinokit_cli("see", photos / "a.png", tmp_path / "other" / "a.png", "-m", model, "-o", "two")
    assert done.out.split() == ["two/a-attention.png", "two/a-2-attention.png"]
    assert dinokit_cli("see", photos, "-m", model, "-o", "one.png").code == 2
    assert dinokit_cli("see", photos / "a.png", "-m", model, "-o", "no/one.png").code == 6
    assert dinokit_cli("see", photos / "a.png", "-m", model, "-o", photos / "a.png", "--overwrite").code == 6


def test_bad_images_end_in_3_and_good_ones_are_drawn(dinokit_cli, model, photos, tmp_path):
    """One by one, and together in a PCA."""
    (photos / "b.png").write_bytes(b"")
    done = dinokit_cli("see", photos, "-m", model, "-k", "norms", "-o", tmp_path / "out")
    assert done.code == 3
    assert "zero_byte" in done.err
    assert len(done.out.splitlines()) == 2
    done = dinokit_cli("see", photos, "-m", model, "-k", "pca", "--json")
    assert done.code == 3
    assert [row["image"] for row in json.loads(done.out)["images"]] == ["a.png", "c.png"]
    (photos / "a.png").write_bytes(b"")
    assert dinokit_cli("see", photos, "-m", model, "-k", "similarity", "--json").code == 3


def test_a_basis_is_written_once_and_then_used(dinokit_cli, model, photos, tmp_path):
    """The second run takes the colours of the first, for other images too; a file that is no basis ends in 4."""
    basis = tmp_path / "basis.npz"
    first = dinokit_cli("see", photos / "a.png", "-m", model, "-k", "pca", "--basis", basis, "--json")
    assert "wrote" in first.err
    stamp = basis.read_bytes()
    again = dinokit_cli("see", photos / "a.png", photos / "b.png", "-m", model, "-k", "pca", "--basis", basis, "--json")
    assert basis.read_bytes() == stamp
    assert json.loads(again.out)["shares_of_variance"] == json.loads(first.out)["shares_of_variance"]
    assert json.loads(again.out)["images"][0] == json.loads(first.out)["images"][0]
    basis.write_text("hello")
    assert dinokit_cli("see", photos / "a.png", "-m", model, "-k", "pca", "--basis", basis, "--json").code == 4


def test_frames_in_frames_out(dinokit_cli, model, photos, tmp_path):
    """A picture a frame under its own name, in order, all by one basis; a bad frame ends in 3."""
    done = dinokit_cli("see", photos, "-m", model, "-k", "pca", "--frames", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert done.out.split() == [str(tmp_path / "out" / name) for name in ("a.png", "b.png", "c.png")]
    (photos / "b.png").write_bytes(b"")
    done = dinokit_cli("see", photos, "-m", model, "-k", "pca", "--frames", "-o", tmp_path / "out", "--overwrite")
    assert done.code == 3
    assert dinokit_cli("see", photos, "-m", model, "-k", "pca", "--frames").code == 2
    assert dinokit_cli("see", photos, "-m", model, "-k", "pca", "--frames", "-o", photos, "--overwrite").code == 6


def test_misuse_ends_in_2_with_the_rule(dinokit_cli, model, formats, photos, tmp_path):
    """Options of other kinds, blocks, heads, patches and regions that are not there, no images, no registers."""
    a = photos / "a.png"
    for arguments, message in (
        ((a, "--query", "1,1"), "--query belongs to --kind similarity"),
        ((a, "--head", 1, "-k", "norms"), "--head belongs to --kind attention"),
        ((a, "--frames"), "--frames belongs to --kind pca"),
        ((a, "--layer", 9), "indices lie in -2 to 1"),
        ((a, "--head", 99), "heads go from 0"),
        ((a, "-k", "similarity", "--query", "9,0"), "rows go from 0 to 4"),
        ((a, "-k", "similarity", "--query", "9"), "ROW,COL"),
        ((a, "-k", "segments", "--num", 99), "num is 99"),
        ((a, "-k", "discover", "--no-crop"), "whole photograph"),
        ((tmp_path / "model",), "no images"),
        ((a, "-k", "noise"), "noise"),
    ):
        done = dinokit_cli("see", *arguments, "-m", model, "--json")
        assert done.code == 2, done.err
        assert message in done.err
    done = dinokit_cli("see", a, "-m", formats / "noreg" / "hf", "-k", "registers", "--json")
    assert (done.code, "no registers" in done.err) == (2, True)


def test_the_view_can_be_larger_or_whole(dinokit_cli, model, photos):
    """--image-size and --no-crop change the grid of patches; --layer opens another block."""

    def grid(*flags: object) -> list[int]:
        return json.loads(dinokit_cli("see", photos / "a.png", "-m", model, "--json", *flags).out)["grid"]

    assert grid() == [5, 5]
    assert grid("--image-size", "140x112") == [10, 8]
    assert grid("--no-crop") == [5, 6]
    layers = [
        json.loads(dinokit_cli("see", photos / "a.png", "-m", model, "--json", "-k", "norms", *flags).out)
        for flags in ((), ("--layer", 0))
    ]
    assert [found["shown_after_block"] for found in layers] == [2, 1]

"""`dinokit demo`: what it prints and writes, without a network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PICTURES = ("similarity.png", "patches.png", "attention.png")


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """Five images and one that is cut; the hub is switched off."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        small = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
        Image.fromarray(small).resize((90 + i, 60 + 10 * i)).save(folder / f"{i}.png")
    whole = (folder / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    return folder


def test_demo_runs_on_own_images_without_a_network(dinokit_cli, photos, tmp_path):
    """Embeddings and three pictures, by the network of the package, with the word of what it knows; bad images are passed over."""
    done = dinokit_cli("demo", "--images", photos, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "dinokit/tiny-procedural-reg4" in done.out
    assert "calculated images alone" in done.err
    assert "truncated" in done.err
    written = json.loads((tmp_path / "out" / "embeddings.json").read_text())
    assert len(written["paths"]) == len(written["embeddings"]) == 5
    for name in PICTURES:
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.size[0] > 400
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 8
    again = dinokit_cli("demo", "--images", photos, "--out", tmp_path / "out")
    assert again.out == done.out


def test_demo_takes_another_model(dinokit_cli, photos, tmp_path):
    """Without the word about the tiny one; the one without registers, here."""
    done = dinokit_cli("demo", "--images", photos, "--out", tmp_path / "out", "--model", "tiny-procedural")
    assert done.code == 0, done.err
    assert "TINY" not in done.err
    assert "0 registers" in done.out


@pytest.mark.slow
def test_demo_runs_on_the_bundled_photographs(dinokit_cli, tmp_path):
    """A dozen real photographs; the two halves of the stereo pair find each other."""
    pytest.importorskip("skimage")
    done = dinokit_cli("demo", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    nearest = {line.split()[0]: line.split()[1] for line in done.out.splitlines() if line.endswith(tuple("0123456789"))}
    assert nearest["motorcycle_left.png"] == "motorcycle_right.png"
    assert nearest["motorcycle_right.png"] == "motorcycle_left.png"

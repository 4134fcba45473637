"""`dinokit repair` and `--repair` on the planted model, written as a checkpoint and fed with pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dinokit
from dinokit.analysis.planted import REGISTER_NEURONS, planted, planted_image
from dinokit.weights.load import Provenance


@pytest.fixture
def model(tmp_path) -> Path:
    """The planted model as a folder of timm's layout, which states its heads; its pixels are colours in [0, 1]."""
    config, weights = planted()
    network = dinokit.VisionTransformer(config).eval()
    network.load_state_dict(weights)
    transform = replace(dinokit.ImageTransform.squash(16), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pre = dinokit.Pretrained(
        model=network, transform=transform, provenance=Provenance(name="planted", path=tmp_path, files=(), layout="hf")
    )
    return dinokit.save(pre, tmp_path / "model", "timm")


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, markers in (("a", (3, 9)), ("b", (0, 5, 14)), ("c", ())):
        pixels = (255 * planted_image(markers)[0].permute(1, 2, 0)).numpy().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "d.png").write_bytes(b"broken")
    return folder


def test_calibrating_finds_the_planted_neurons_and_embedding_uses_them(dinokit_cli, model, photos, tmp_path):
    """5 of 48 patches are outliers before, none after; the repaired vectors have an identity of their own."""
    out = tmp_path / "repair.safetensors"
    done = dinokit_cli("repair", photos, "-m", model, "--norm-block", -2, "--neurons", 5, "-o", out, "--bias", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [tuple(neuron) for neuron in found["neurons"]] == list(REGISTER_NEURONS)
    assert (found["top_block"], found["images"]) == (2, 3)
    assert found["outlier_share_before"] == pytest.approx(5 / 48)
    assert found["outlier_share_after"] == 0
    assert "not_image" in done.err
    rows = {}
    for how in (None, out, f"{out}:bias", "median", "mask_keys", "neighbours", "denoise"):
        flags = [] if how is None else ["--repair", how]
        embedded = dinokit_cli("embed", photos / "a.png", "-m", model, "-p", "patches", *flags)
        assert embedded.code == 0, embedded.err
        rows[str(how)] = json.loads(embedded.out)
    assert len({row["compat_id"] for row in rows.values()}) == len(rows)
    assert np.array(rows[str(out)]["embedding"]).shape == (16, 64)
    text = dinokit_cli("repair", photos, "-m", model, "--norm-block", -2, "-o", out, "--overwrite").out
    assert "outlier patches: 10.42% before, 0.00% with one test-time register" in text


def test_repair_says_what_it_can_t_do(dinokit_cli, model, photos, tmp_path, formats):
    """Clean images, an existing file, another ending, another model's calibration, a word that is no method."""
    out = tmp_path / "repair.safetensors"
    clean = dinokit_cli("repair", photos / "c.png", "-m", model, "-o", out)
    assert clean.code == 2
    assert "needs no repair" in clean.err
    assert dinokit_cli("repair", photos, "-m", model, "-o", tmp_path / "x.json").code == 2
    assert dinokit_cli("repair", photos, "-m", model, "--norm-block", -2, "-o", out).code == 0
    assert dinokit_cli("repair", photos, "-m", model, "--norm-block", -2, "-o", out).code == 6
    other = dinokit_cli("embed", photos / "a.png", "-m", formats / "reg" / "hf", "--repair", out)
    assert other.code == 4
    assert "Calibrate again" in other.err
    assert dinokit_cli("embed", photos / "a.png", "-m", model, "--repair", "magic").code == 2
    without_bias = dinokit_cli("embed", photos / "a.png", "-m", model, "--repair", f"{out}:bias")
    assert without_bias.code == 2
    assert "--bias" in without_bias.err


def test_a_repaired_network_in_memory_leaves_its_checkpoint_alone(model, photos):
    """The same bits before and after, in batches of any size."""
    pre = dinokit.load(model)
    images = [str(photos / f"{name}.png") for name in "abc"]
    before = pre(images).sequence
    from dinokit.repair import TestTimeRegisters

    TestTimeRegisters(pre.model, REGISTER_NEURONS)(pre.pixels(images))
    assert torch.equal(before, pre(images).sequence)

"""`dinokit artefacts`: a report over a folder."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from tests.cli.test_see import model, photos  # noqa: F401 - fixtures


def test_artefacts_writes_a_report_that_stands_alone(dinokit_cli, model, photos, tmp_path):  # noqa: F811
    """HTML with examples; the verdict and a line a layer on stdout; nothing is replaced unasked."""
    out = tmp_path / "report.html"
    done = dinokit_cli("artefacts", photos, "-m", model, "-o", out)
    assert done.code == 0, done.err
    assert done.out.startswith("no artefacts")
    assert done.out.splitlines()[-1] == str(out)
    text = out.read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert "a.png" in text
    assert dinokit_cli("artefacts", photos, "-m", "no-such-model", "-o", out).code == 6
    assert dinokit_cli("artefacts", photos, "-m", model, "-o", tmp_path / "no" / "r.html").code == 6
    assert dinokit_cli("artefacts", photos, "-m", model, "-o", out, "--overwrite", "--examples", 0).code == 0
    assert "a.png" not in out.read_text()


def test_artefacts_prints_all_numbers_as_json(dinokit_cli, model, photos, tmp_path, monkeypatch):  # noqa: F811
    """One object on stdout, nothing written; bad images are in it and end in 3, none readable too."""
    monkeypatch.chdir(tmp_path)
    (photos / "b.png").write_bytes(b"")
    done = dinokit_cli("artefacts", photos, "-m", model, "--json", "--image-size", "140", "--batch-size", 1)
    assert done.code == 3
    numbers = json.loads(done.out)
    assert (numbers["num_images"], numbers["first_outlier_layer"]) == (2, None)
    assert numbers["failed"] == [{"image": str(photos / "b.png"), "error_code": "zero_byte"}]
    assert numbers["grids"] == [{"grid": [10, 10], "num_images": 2}]
    assert not (tmp_path / "artefacts.html").exists()
    for name in ("a.png", "c.png"):
        (photos / name).write_bytes(b"")
    done = dinokit_cli("artefacts", photos, "-m", model, "--json")
    assert (done.code, done.out) == (3, "")


def test_artefacts_takes_photographs_of_all_shapes(dinokit_cli, model, photos):  # noqa: F811
    """Without a crop, grids differ and are counted apart."""
    Image.fromarray(np.zeros((90, 200, 3), np.uint8)).save(photos / "d.png")
    done = dinokit_cli("artefacts", photos, "-m", model, "--json", "--no-crop")
    assert done.code == 0, done.err
    assert [entry["num_images"] for entry in json.loads(done.out)["grids"]] == [3, 1]
    assert dinokit_cli("artefacts", photos / "nothing", "-m", model, "--json").code == 3
    assert dinokit_cli("artefacts", "-m", model, "--json").code == 2

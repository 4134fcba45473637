"""`dinokit compare` on the planted model: the artefacts, where attention goes, and what the repair costs."""

from __future__ import annotations

import json

import pytest

from tests.cli.test_repair import model, photos  # noqa: F401 - fixtures


def test_a_repair_is_compared_with_the_model_without_it(dinokit_cli, model, photos, tmp_path):  # noqa: F811
    """Outliers 5 of 48 patches before and none after; the budget sums to 1; the added token is counted."""
    out = tmp_path / "repair.safetensors"
    assert dinokit_cli("repair", photos, "-m", model, "--norm-block", -2, "-o", out, "--bias").code == 0
    done = dinokit_cli("compare", photos, "-m", model, "--repair", out, "--json")
    assert done.code == 0, done.err
    assert "not_image" in done.err
    found = json.loads(done.out)
    before, after = found["sides"]
    assert found["images"] == 3
    assert before["outlier_share"][3] == pytest.approx(5 / 48)
    assert before["worst_layer"] >= 3
    assert max(after["outlier_share"]) == 0
    assert (before["num_registers"], after["num_registers"]) == (0, 1)
    for side in (before, after):
        assert sum(side["budget"].values()) == pytest.approx(1, abs=1e-5)
    assert before["budget"]["outlier patches"] > 0.5
    assert after["budget"]["registers"] > 0.6
    assert before["knn_accuracy"] is None
    assert 0 < before["object_share"] <= 1
    assert before["probes"] is None
    biased = json.loads(dinokit_cli("compare", photos, "-m", model, "--repair", f"{out}:bias", "--json").out)
    assert biased["sides"][1]["budget"]["no token"] > 0.6


def test_the_table_names_both_sides(dinokit_cli, model, photos):  # noqa: F811
    """For reading; accuracy where folders name classes."""
    (photos / "red").mkdir()
    (photos / "a.png").rename(photos / "red" / "a.png")
    done = dinokit_cli("compare", photos, "-m", model, "--repair", "median")
    assert done.code == 0, done.err
    assert "model + median" in done.out
    assert "1-NN accuracy" in done.out
    assert dinokit_cli("compare", photos, "-m", model, "--against", model).code == 0


def test_probes_tell_what_single_tokens_hold(dinokit_cli, model, photos):  # noqa: F811
    """Patches of the planted picture carry their place, so a linear probe reads it from all but the markers."""
    done = dinokit_cli("compare", photos, "-m", model, "--repair", "median", "--probes", "--json")
    assert done.code == 0, done.err
    probes = json.loads(done.out)["sides"][0]["probes"]
    assert probes["position_top1"] > 0.5
    assert probes["pixel_rmse"] >= 0
    alone = dinokit_cli("compare", photos / "a.png", "-m", model, "--repair", "median", "--probes")
    assert alone.code == 2
    assert "two images or more" in alone.err


def test_there_must_be_something_to_compare(dinokit_cli, model, photos):  # noqa: F811
    """One model alone, or no readable image."""
    assert dinokit_cli("compare", photos, "-m", model).code == 2
    assert dinokit_cli("compare", photos / "d.png", "-m", model, "--repair", "median").code == 2

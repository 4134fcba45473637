"""The artefact report: what it says of the planted model is the closed form; it streams, and it tells what it could not read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dinokit.analysis.planted import planted_image
from dinokit.images import ImageTransform
from dinokit.inspection.artefacts import artefact_report
from dinokit.inspection.direction import predicted_direction
from dinokit.model import VisionTransformer, hidden_states
from dinokit.weights.load import Pretrained, Provenance
from tests.analysis.test_planted import planted_model
from tests.model.test_vit import make
from tests.tolerances import SAME_MATH

AS_IT_IS = ImageTransform(resize=None, crop=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def loaded(model: VisionTransformer, transform: ImageTransform = AS_IT_IS) -> Pretrained:
    return Pretrained(
        model=model,
        transform=transform,
        provenance=Provenance(name="planted", path=Path("planted"), files=(), layout="official"),
    )


def photo(outliers, grid=(4, 4)) -> np.ndarray:
    """The planted input as an 8-bit picture."""
    return (planted_image(outliers, grid)[0].permute(1, 2, 0) * 255).byte().numpy()


@pytest.fixture(scope="module")
def report():
    """Ten images, patch 3 an artefact in all, patch 9 in five."""
    return artefact_report(loaded(planted_model()), [photo({3, 9} if i % 2 else {3}) for i in range(10)], batch_size=4)


def test_the_report_finds_the_planted_artefacts_from_layer_3_on(report):
    """15 of 160 patches, written by block 2; nothing in the layers before, though a fixed share is always marked."""
    assert report.first_outlier_layer == 3
    assert [found.has_artefacts for found in report.layers] == [False, False, False, True, True]
    for layer in (3, 4):
        for name in ("robust", "absolute_150", "median_mad", "gap", "3x_median"):
            count = report.layers[layer].rules[name]
            assert (count.num_outliers, count.num_images) == (15, 10), name
    assert report.layers[3].patches.maximum == pytest.approx(302.7606, abs=1e-3)
    assert report.layers[3].patches.quantile(0.5) == pytest.approx(8.0, rel=0.006)
    assert "median" in report.rules["robust"]


def test_the_position_map_of_the_report_is_the_planted_one(report):
    """1.0 at patch 3, 0.5 at patch 9, 0 elsewhere."""
    frequency = report.position_frequency(3).flatten()
    assert frequency.tolist() == [1.0 if i == 3 else 0.5 if i == 9 else 0.0 for i in range(16)]
    assert report.position_frequency(0).sum() == 0
    with pytest.raises(KeyError):
        report.position_frequency(3, grid=(2, 2))


def test_the_budget_of_the_report_is_the_closed_form(report):
    """Means of 0.98074 to two outliers and of 0.95979 to one; raw and among patches."""
    one, two = 381.95 / (381.95 + 16), 2 * 381.95 / (2 * 381.95 + 15)
    assert report.budget["outliers"] == pytest.approx((one + two) / 2, abs=1e-5)
    assert sum(report.budget.values()) == pytest.approx(1, abs=SAME_MATH)
    assert report.budget_of_patches["outliers"] + report.budget_of_patches["normal"] == pytest.approx(1, abs=1e-5)


def test_the_report_is_plain_json(report):
    """No NaN, every layer, every rule, counts that add up."""
    text = json.dumps(report.to_dict(), allow_nan=False)
    values = json.loads(text)
    assert values["first_outlier_block"] == 2
    assert values["num_images"] == 10
    assert len(values["layers"]) == 5
    layer = values["layers"][3]
    assert layer["outliers"]["robust"]["share"] == 15 / 160
    assert layer["outliers"]["robust"]["share_of_images"] == 1.0
    assert 8 < layer["outliers"]["robust"]["median_threshold"] < 302
    assert values["layers"][0]["outliers"]["robust"]["median_threshold"] is None
    assert sum(layer["norms"]["patches"]["histogram"]["counts"]) == layer["norms"]["patches"]["count"] == 160
    assert layer["position_frequency"][0]["frequency"][0][3] == 1.0


def test_batches_change_nothing():
    """The same report, to the last digit that means something, for any batch size."""
    images = [photo({i, 11}) for i in range(7)]
    pre = loaded(planted_model(1))
    reports = [artefact_report(pre, images, batch_size=size).to_dict() for size in (1, 3, 16)]
    for other in reports[1:]:
        budgets = [each.pop("attention_budget") for each in (dict(reports[0]), dict(other))]
        assert budgets[0] == pytest.approx(budgets[1], abs=SAME_MATH)
        for a, b in zip(reports[0]["layers"], other["layers"], strict=True):
            assert a["position_frequency"] == b["position_frequency"]
            for name, counts in a["outliers"].items():
                assert counts["num_outliers"] == b["outliers"][name]["num_outliers"]


@pytest.mark.parametrize("registers", [0, 1, 4, 8])
def test_registers_have_their_own_distributions(registers):
    """An outlying register is reported as a register and takes the budget; patches stay clean."""
    report = artefact_report(loaded(planted_model(registers)), [photo(())] * 3)
    high = [each.maximum > 300 for each in report.layers[3].registers]
    assert high == [index == 0 for index in range(registers)]
    assert report.first_outlier_layer is None
    assert report.layers[3].rules["robust"].num_outliers == 0
    if registers:
        assert report.budget["register_1"] > 0.9
    assert report.to_dict()["num_registers"] == registers


def test_grids_of_several_sizes_have_a_map_each():
    """Square and not; in the report each with its number of images."""
    report = artefact_report(loaded(planted_model()), [photo({1}), photo({1}, (2, 7)), photo({0}, (2, 7))])
    assert report.grids == {(4, 4): 1, (2, 7): 2}
    assert report.position_frequency(3).shape == (2, 7)
    assert report.position_frequency(3, (2, 7)).flatten()[:2].tolist() == [0.5, 0.5]
    assert report.position_frequency(3, (4, 4)).sum() == 1


def test_images_that_can_not_be_read_are_named_and_do_not_stop_the_report(tmp_path):
    """With the reason; if none is left, that is an error."""
    (tmp_path / "empty.png").write_bytes(b"")
    report = artefact_report(loaded(planted_model()), [str(tmp_path / "empty.png"), photo({2}), tmp_path / "no.png"])
    assert report.num_images == 1
    assert [code for _, code in report.failed] == ["zero_byte", "not_a_file"]
    assert report.to_dict()["failed"][0]["image"].endswith("empty.png")
    with pytest.raises(ValueError, match="zero_byte"):
        artefact_report(loaded(planted_model()), [str(tmp_path / "empty.png")])
    with pytest.raises(ValueError, match="no image to report on"):
        artefact_report(loaded(planted_model()), [])
    with pytest.raises(ValueError, match="'robust' must be among them"):
        artefact_report(loaded(planted_model()), [photo(())], detectors={})


def test_images_are_read_as_they_are_needed(monkeypatch, capsys):
    """Never more than a batch and one are waiting, and nothing is printed where there is no terminal."""
    pulled, most = 0, 0
    model = planted_model()
    seen = 0
    inner = model.stream

    def stream(pixels, *rest):
        nonlocal seen
        seen += len(pixels)
        return inner(pixels, *rest)

    monkeypatch.setattr(model, "stream", stream)

    def images():
        nonlocal pulled, most
        for i in range(50):
            pulled += 1
            most = max(most, pulled - seen)
            yield photo({i % 16})

    assert artefact_report(loaded(model), images(), batch_size=4).num_images == 50
    assert most <= 4 + 1
    assert capsys.readouterr() == ("", "")


def test_a_clean_network_is_reported_as_clean_and_left_as_it_was(tiny):
    """No first outlier layer, though percentiles mark 2 % of it; the model gives the same bits afterwards."""
    model = make(tiny)
    images = torch.randn(1, 3, 70, 70)
    before = model(images).sequence
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (80, 80, 3), dtype=np.uint8) for _ in range(16)]
    report = artefact_report(loaded(model, ImageTransform.squash(70)), pictures)
    assert report.first_outlier_layer is None
    assert report.layers[2].rules["percentile_98"].num_outliers >= 16
    assert torch.equal(before, model(images).sequence)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_predicted_direction_of_a_network_reads_its_own_blocks(tiny):
    """A strong linear path planted in one block's attention is predicted; the gated planted model is not, and its gain says so."""
    for ffn in ("mlp", "swiglu"):
        model = VisionTransformer(tiny.replace(ffn=ffn)).requires_grad_(False)
        reads, writes = torch.linalg.qr(torch.randn(32, 3, generator=torch.Generator().manual_seed(0))).Q.T[:2]
        reads, writes = (each - each.mean() for each in (reads, writes))
        model.blocks[0].attn.qkv.weight[64:] = torch.outer(writes, reads)
        model.blocks[0].attn.proj.weight.copy_(30 * torch.eye(32))
        found = predicted_direction(model, 1)
        assert abs(found.vector @ (writes / writes.norm()).double()).item() > 0.99
        assert found.gain > 5 * found.runner_up
    planted = predicted_direction(planted_model(), 3)
    outlier = hidden_states(planted_model(), planted_image({3}))[3][0, 4].double()
    assert abs(planted.vector @ outlier / outlier.norm()).item() < 0.05
    assert planted.gain == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="1 to 4"):
        predicted_direction(planted_model(), 5)

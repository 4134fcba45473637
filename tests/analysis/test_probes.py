"""Linear probes: what is put into tokens is found in them, and nothing else (P20, P21)."""

from __future__ import annotations

import json

import pytest
import torch

from dinokit.analysis.linear import fit_classifier, fit_ridge
from dinokit.analysis.probes import pixel_probe, position_probe, split_images, token_probe
from tests.tolerances import max_error

GRID, NUM = (4, 4), 16


def planted_tokens(num_images: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normal tokens hold their position (one-hot) and their pixels; outliers, one an image, at each place in turn, are all the same."""
    pixels = torch.randn(num_images, NUM, 12, generator=torch.Generator().manual_seed(seed)) * 5 + 3
    tokens = torch.cat([torch.eye(NUM).expand(num_images, -1, -1), pixels, torch.zeros(num_images, NUM, 1)], dim=-1)
    outliers = torch.arange(NUM) == torch.arange(num_images)[:, None] % NUM
    tokens[outliers] = 300 * torch.eye(29)[28]
    return tokens, pixels, outliers


def halves(num: int) -> torch.Tensor:
    return torch.arange(num) < num // 2


@pytest.mark.parametrize("fit_on", ["all", "separate"])
def test_position_is_found_in_normal_tokens_and_guessed_for_outliers(fit_on):
    """Top-1 of 1.00 against 1 in 16 positions; the distance is in patches."""
    tokens, _, outliers = planted_tokens()
    scores = position_probe(tokens, outliers, GRID, fit_on=fit_on, train=halves(64))
    assert scores["normal"].top1 == 1.0
    assert scores["normal"].distance == 0.0
    assert scores["outlier"].top1 == 1 / NUM
    assert 1.3 < scores["outlier"].distance < 2.7  # from any one place of a 4 x 4 grid to all of them
    assert (scores["normal"].num_tokens, scores["outlier"].num_tokens) == (32 * 15, 32)


def test_positions_that_outliers_never_take_do_not_count():
    """With outliers at 4 places only, the best guess is right once in 4."""
    tokens, _, _ = planted_tokens()
    outliers = torch.arange(NUM) == torch.tensor([0, 3, 12, 15])[torch.arange(64) % 4][:, None]
    tokens[outliers] = 300 * torch.eye(29)[28]
    tokens[~outliers & (tokens[..., 28] > 0)] = 0.0
    scores = position_probe(tokens, outliers, GRID, fit_on="separate", train=halves(64))
    assert scores["outlier"].top1 == 0.25


@pytest.mark.parametrize("fit_on", ["all", "separate"])
def test_pixels_are_rebuilt_from_normal_tokens_and_not_from_outliers(fit_on):
    """Error 0 against the deviation of the pixels themselves, which is what the best constant leaves."""
    tokens, pixels, outliers = planted_tokens(512)
    train = halves(512)
    scores = pixel_probe(tokens, pixels, outliers, fit_on=fit_on, train=train)
    assert scores["normal"].rmse < 1e-3
    assert scores["normal"].l2 < 1e-2
    assert scores["outlier"].rmse == pytest.approx(5.0, rel=0.05)
    mean = pixels[outliers][:256].mean(0)
    best_constant = (pixels[outliers][256:] - mean).norm(dim=-1).mean().item()
    assert scores["outlier"].l2 == pytest.approx(best_constant, rel=0.02)


def test_kinds_without_tokens_have_no_score():
    """None, and no made-up number."""
    tokens, pixels, outliers = planted_tokens()
    nothing = torch.zeros_like(outliers)
    assert position_probe(tokens, nothing, GRID)["outlier"] is None
    assert pixel_probe(tokens, pixels, nothing)["outlier"] is None


@pytest.mark.parametrize(("share", "classes"), [(0.25, 10), (0.5, 4), (0.0, 5)])
def test_the_class_is_found_where_it_was_put(share, classes):
    """In class token, outliers and register always; in a normal token with probability p, else it is guessed: p + (1-p)/C."""
    num, patches = 2000 * classes // 5, 8
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num) % classes
    code = 5 * torch.eye(classes)[labels]
    tokens = torch.zeros(num, patches, classes)
    tokens[:, : round(share * (patches - 2))] = code[:, None]
    shuffled = torch.stack([torch.randperm(patches - 2, generator=generator) for _ in range(num)])
    tokens[:, : patches - 2] = tokens[:, : patches - 2].gather(1, shuffled[..., None].expand(-1, -1, classes))
    held = round(share * (patches - 2)) / (patches - 2)
    tokens[:, -2:] = 60 * code[:, None]
    outliers = torch.zeros(num, patches, dtype=torch.bool)
    outliers[:, -2:] = True
    found = token_probe(code, tokens, outliers, labels, code[:, None], repeats=2)
    assert found.rows["cls"].accuracy == found.rows["outlier"].accuracy == found.rows["register_1"].accuracy == 1.0
    assert found.rows["normal"].accuracy == pytest.approx(held + (1 - held) / classes, abs=0.03)
    assert list(found.rows) == ["cls", "normal", "outlier", "register_1"]
    assert (found.coverage, found.num_classes) == (1.0, classes)


def test_a_quarter_of_tokens_with_the_class_of_ten_gives_0_325():
    """The closed form 0.25 + 0.75 / 10, with one patch in four carrying the class."""
    num, labels = 6000, torch.arange(6000) % 10
    code = torch.eye(10)[labels]
    tokens = torch.zeros(num, 5, 10)
    tokens[:, 0] = code
    tokens[:, 4] = 30 * code
    outliers = torch.arange(5).expand(num, 5) == 4
    found = token_probe(code, tokens, outliers, labels)
    assert found.rows["normal"].accuracy == pytest.approx(0.325, abs=0.02)
    assert found.rows["cls"].accuracy == found.rows["outlier"].accuracy == 1.0


def test_all_rows_are_of_the_same_images_and_coverage_says_how_many():
    """Images without outliers are left out everywhere, even where the class token would be right."""
    labels = torch.arange(40) % 2
    code = torch.eye(2)[labels]
    tokens, outliers = torch.randn(40, 6, 2), torch.zeros(40, 6, dtype=torch.bool)
    outliers[:30, 2] = True
    tokens[outliers] = code[:30]
    code[30:] = float("nan")  # would show if they took part
    found = token_probe(code, tokens, outliers, labels, seed=3)
    assert (found.coverage, found.num_train, found.num_test) == (0.75, 15, 15)
    assert found.rows["cls"].accuracy == found.rows["outlier"].accuracy == 1.0
    json.dumps(found.to_dict(), allow_nan=False)
    assert found == token_probe(code, tokens, outliers, labels, seed=3)
    with pytest.raises(ValueError, match="1 of 40 images"):
        token_probe(code, tokens, outliers & (torch.arange(40) == 0)[:, None], labels)
    with pytest.raises(ValueError, match="no image is left"):
        token_probe(code, tokens, outliers, labels, train=torch.ones(40, dtype=torch.bool))


def test_ridge_is_least_squares_and_the_classifier_is_calibrated():
    """Against torch's solver, and against frequencies: a probe without information predicts how often classes occur."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 7, generator=generator), torch.randn(200, 3, generator=generator)
    probe = fit_ridge(x, y, penalty=0.0)
    design = torch.cat([x, torch.ones(200, 1)], 1).double()
    assert max_error(probe(x), design @ torch.linalg.lstsq(design, y.double()).solution) < 1e-9
    labels = (torch.arange(200) % 4 == 0).long()
    flat = fit_classifier(torch.ones(200, 3), labels, 2)
    assert flat(torch.ones(1, 3)).softmax(-1)[0].tolist() == pytest.approx([0.75, 0.25], abs=1e-3)
    for wrong in (torch.tensor([0, 2]), torch.tensor([-1, 0])):
        with pytest.raises(ValueError, match="2 classes count from 0"):
            fit_classifier(torch.ones(2, 3), wrong, 2)
    with pytest.raises(ValueError, match="no token"):
        fit_ridge(torch.ones(0, 3), torch.ones(0, 2))


def test_images_are_divided_the_same_way_for_the_same_seed():
    """About half, never all, never none."""
    assert torch.equal(split_images(100, seed=1), split_images(100, seed=1))
    assert not torch.equal(split_images(100, seed=1), split_images(100, seed=2))
    assert [int(split_images(num).sum()) for num in (2, 3, 10, 101)] == [1, 2, 5, 50]
    assert int(split_images(10, share=1.0).sum()) == 9
    with pytest.raises(ValueError, match="1 image"):
        split_images(1)


def test_settings_that_mean_nothing_are_refused():
    """With those that do."""
    tokens, pixels, outliers = planted_tokens()
    with pytest.raises(ValueError, match="'all' or 'separate'"):
        pixel_probe(tokens, pixels, outliers, fit_on="both")
    with pytest.raises(ValueError, match="do not fill"):
        position_probe(tokens, outliers, (4, 5))

"""What happens to crops: rates, orders, and the whole against one change after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dinokit.images import IMAGENET_MEAN, IMAGENET_STD
from dinokit.train.data import photometric
from dinokit.train.data.photometric import IDENTITY, Photometric, altered, draw_choices
from dinokit.train.data.pixelops import blended, blurred, hue_shifted, solarized
from dinokit.train.data.recipe import Augmentation

PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
CLOSE = 3e-6
MANY = 20_000
EVERYTHING = Photometric(grey=0.3, blur=0.5, solarize=0.4)


def rate_of(mask: np.ndarray) -> float:
    return float(np.mean(mask))


@pytest.mark.parametrize(("preset", "rates"), [("dinov2", (0.0, 0.9, 0.5)), ("dino", (1.0, 0.1, 0.5))])
def test_quirk_the_released_recipe_blurs_with_swapped_rates(preset, rates):
    """Crops are blurred as often as the preset really does it; only the second global crop is solarised."""
    rules = Augmentation.dinov2(blur=preset).rules
    assert len(rules) == 10
    for crop, (rule, rate) in enumerate(zip(rules[:3], rates, strict=True)):
        choices = draw_choices(0, np.arange(MANY), crop, rule)
        assert rate_of(choices.blur) == pytest.approx(rate, abs=0.015)
        assert rate_of(choices.solarize) == pytest.approx(0.2 if crop == 1 else 0.0, abs=0.015)


def test_everything_happens_as_often_and_as_much_as_it_should():
    """Rates, ranges, and all 24 orders of the jitter's parts."""
    choices = draw_choices(0, np.arange(MANY), 3, Photometric(blur=0.5))
    jittered = choices.hue_at >= 0
    assert rate_of(choices.flip) == pytest.approx(0.5, abs=0.015)
    assert rate_of(jittered) == pytest.approx(0.8, abs=0.015)
    assert rate_of((choices.blends[:, 4] == (0, 1, 0)).all(axis=1)) == pytest.approx(0.2, abs=0.015)
    assert np.abs(choices.turns).max() <= 0.1
    assert np.abs(choices.turns).max() > 0.0995
    assert choices.sigmas.min() >= 0.1
    assert choices.sigmas.max() <= 2.0
    assert choices.sigmas.mean() == pytest.approx(1.05, abs=0.02)
    weights = choices.blends[jittered, :4]
    assert ((weights == IDENTITY).all(axis=2).argmax(axis=1) == choices.hue_at[jittered]).all()
    contrast = weights[..., 2] != 0
    saturation = weights[..., 1] != 0
    brightness = ~contrast & ~saturation & (weights != IDENTITY).any(axis=2)
    for mask, most in ((brightness, 0.4), (contrast, 0.4), (saturation, 0.2)):
        factors = weights[mask][:, 0]
        assert abs(factors.min() - (1 - most)) < 1e-3
        assert abs(factors.max() - (1 + most)) < 1e-3
    code = brightness.argmax(axis=1) * 16 + contrast.argmax(axis=1) * 4 + saturation.argmax(axis=1)
    found, counts = np.unique(code, return_counts=True)
    assert len(found) == 24
    expected = jittered.sum() / 24
    assert ((counts - expected) ** 2 / expected).sum() < 49.7  # chi-square, 23 degrees of freedom, p = .001


def test_a_crop_is_altered_the_same_in_any_company(monkeypatch):
    """Alone, in a batch, in pieces of another size: the choices are equal, the pixels to the last bits of float32."""
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 3, 20, 24), dtype=np.uint8))
    visits = np.arange(9) + (5 << 33)
    whole = altered(pixels, draw_choices(2, visits, 1, EVERYTHING), *PLAIN)
    monkeypatch.setattr(photometric, "CPU_ELEMENTS", 3 * 20 * 24 * 2)
    assert (altered(pixels, draw_choices(2, visits, 1, EVERYTHING), *PLAIN) - whole).abs().max() < CLOSE
    for i in range(9):
        alone = altered(pixels[i : i + 1], draw_choices(2, visits[i : i + 1], 1, EVERYTHING), *PLAIN)
        assert (alone[0] - whole[i]).abs().max() < CLOSE


def test_the_whole_is_one_change_after_the_other():
    """Each crop by itself through flip, jitter in its order, grey, blur, solarisation, normalisation."""
    n = 64
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (n, 3, 15, 13), dtype=np.uint8))
    choices = draw_choices(0, np.arange(n), 4, EVERYTHING)
    found = altered(pixels, choices, IMAGENET_MEAN, IMAGENET_STD)
    for i in range(n):
        x = pixels[i : i + 1].float() / 255
        if choices.flip[i]:
            x = x.flip(-1)
        for turn in range(5):
            if choices.hue_at[i] == turn:
                x = hue_shifted(x, torch.tensor([choices.turns[i]]))
            else:
                x = blended(x, torch.from_numpy(choices.blends[i, turn])[None])
        if choices.blur[i]:
            x = blurred(x, torch.tensor([choices.sigmas[i]]))
        if choices.solarize[i]:
            x = solarized(x)
        x = (x[0] - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
        assert (found[i] - x).abs().max() < 10 * CLOSE


def test_nothing_but_normalisation_is_left_when_all_is_switched_off():
    """Every rate zero: the pixels themselves; a result in half precision is the rounded one."""
    rule = Photometric(flip=0.0, jitter_rate=0.0, grey=0.0)
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    choices = draw_choices(0, np.arange(2), 0, rule)
    assert ((altered(pixels, choices, *PLAIN) * 255).round() == pixels).all()
    half = torch.empty(pixels.shape, dtype=torch.bfloat16)
    assert torch.equal(altered(pixels, choices, *PLAIN, half), altered(pixels, choices, *PLAIN).bfloat16())


def test_jitter_without_hue_leaves_hue_alone():
    """A part of zero does nothing."""
    choices = draw_choices(0, np.arange(500), 0, Photometric(jitter=(0.4, 0.0, 0.2, 0.0)))
    assert (choices.hue_at == -1).all()
    assert (choices.blends[:, :4, 2] == 0).all()


@pytest.mark.parametrize(
    "fields",
    [{"flip": 1.2}, {"blur": -0.1}, {"jitter": (0.4, 0.4, 0.2, 0.6)}, {"sigma": (0.0, 2.0)}, {"jitter": (-1, 0, 0, 0)}],
)
def test_settings_out_of_range_are_refused(fields):
    """With the name of the setting."""
    with pytest.raises(ValueError, match=next(iter(fields))):
        Photometric(**fields)

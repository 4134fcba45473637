"""Positions on other grids: closed forms of each rule, and the cache."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from dinokit.config import OFFSET_PLAIN, SIZE_ANTIALIAS, SIZE_PLAIN, PositionRule
from dinokit.model import VisionTransformer
from dinokit.model.posembed import PositionCache, resample
from tests.tolerances import CLOSED_FORM, max_error


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def matrix(old: int, new: int, rule: PositionRule) -> np.ndarray:
    """One axis of the resampling as a dense matrix, from the closed forms of Meta's and PyTorch's definitions."""
    weights = np.zeros((new, old))
    for d in range(new):
        if rule.antialias:
            scale = old / new
            stretch = max(scale, 1.0)
            center = scale * (d + 0.5)
            first, last = int(max(center - 2 * stretch + 0.5, 0)), int(min(center + 2 * stretch + 0.5, old))
            taps = np.arange(first, last)
            w = cubic((taps - center + 0.5) / stretch, -0.5)
            weights[d, taps] = w / w.sum()
        else:
            src = (d + 0.5) * old / (new + rule.offset) - 0.5
            i = int(np.floor(src))
            for k in range(i - 1, i + 3):
                weights[d, min(max(k, 0), old - 1)] += cubic(np.array(src - k), -0.75)
    return weights


@pytest.mark.parametrize("rule", [SIZE_ANTIALIAS, SIZE_PLAIN, OFFSET_PLAIN])
@pytest.mark.parametrize(
    ("old", "new"), [((37, 37), (16, 16)), ((37, 37), (17, 25)), ((5, 5), (8, 4)), ((4, 7), (5, 5))]
)
def test_resampling_equals_its_closed_form(rule, old, new):
    """Each rule is a separable linear map, written out here in float64."""
    torch.manual_seed(0)
    table = torch.randn(1, 1 + old[0] * old[1], 6)
    rows, columns = matrix(old[0], new[0], rule), matrix(old[1], new[1], rule)
    patches = table[0, 1:].numpy().reshape(*old, 6)
    expected = np.einsum("ai,bj,ijd->abd", rows, columns, patches).reshape(-1, 6)
    found = resample(table, old, new, rule)
    assert max_error(found[0, 1:].double(), torch.from_numpy(expected)) <= CLOSED_FORM
    assert torch.equal(found[:, 0], table[:, 0])


@pytest.mark.parametrize("rule", [SIZE_ANTIALIAS, SIZE_PLAIN, OFFSET_PLAIN])
def test_the_trained_grid_is_returned_untouched(rule):
    """Same object, so the same bits."""
    table = torch.randn(1, 26, 4)
    assert resample(table, (5, 5), (5, 5), rule) is table


@pytest.mark.parametrize("side", [39, 43, 78, 86, 115, 123, 156])
def test_quirk_the_offset_gives_the_asked_grid_where_the_plain_ratio_would_not(side):
    """Sizes at which a scale factor without offset comes out one short."""
    assert resample(torch.randn(1, 1 + 37 * 37, 1), (37, 37), (side, side), OFFSET_PLAIN).shape[1] == 1 + side * side


def test_an_offset_that_misses_the_grid_is_refused():
    """Not silently cut."""
    with pytest.raises(ValueError, match=r"offset 1\.5"):
        resample(torch.randn(1, 26, 1), (5, 5), (7, 7), PositionRule(1.5, False))


def test_half_precision_tables_are_resampled_in_float32():
    """The result is the float32 one, rounded once."""
    table = torch.randn(1, 26, 8).bfloat16()
    expected = resample(table.float(), (5, 5), (3, 8), SIZE_ANTIALIAS).bfloat16()
    assert torch.equal(resample(table, (5, 5), (3, 8), SIZE_ANTIALIAS), expected)


def test_the_cache_resamples_once_a_grid(tiny, monkeypatch):
    """Four forwards over two sizes cost two resamplings."""
    import dinokit.model.posembed as posembed

    calls = []
    original = posembed.resample
    monkeypatch.setattr(posembed, "resample", lambda *args: calls.append(args[2]) or original(*args))
    model = VisionTransformer(tiny).eval()
    with torch.no_grad():
        for size in (56, 98, 56, 98):
            model(torch.randn(1, 3, size, size))
    assert calls == [(4, 4), (7, 7)]


@pytest.mark.parametrize("edit", ["data", "no_grad", "load", "dtype"])
def test_the_cache_notices_every_change_of_the_table(tiny, edit):
    """Edits through `.data` too, which version counters miss: a stale table would be a silently wrong vector."""
    model = VisionTransformer(tiny).eval()
    images = torch.randn(1, 3, 56, 98)
    with torch.no_grad():
        model(images)
        if edit == "data":
            model.pos_embed.data.mul_(3)
        elif edit == "no_grad":
            model.pos_embed.mul_(3)
        elif edit == "load":
            model.load_state_dict({**model.state_dict(), "pos_embed": torch.randn_like(model.pos_embed)})
        else:
            model.double()
            images = images.double()
        fresh = copy.deepcopy(model)
        fresh.positions = PositionCache()
        assert torch.equal(model(images).sequence, fresh(images).sequence)


def test_the_cache_is_bounded(tiny):
    """Many sizes don't fill the memory."""
    model = VisionTransformer(tiny).eval()
    with torch.no_grad():
        for columns in range(1, 20):
            model(torch.randn(1, 3, 14, 14 * columns))
    assert len(model.positions.tables) <= model.positions.limit


def test_gradients_reach_the_table_through_resampling(tiny):
    """Training at another size trains the table."""
    model = VisionTransformer(tiny)
    model(torch.randn(1, 3, 56, 98)).sequence.square().sum().backward()
    assert model.pos_embed.grad.abs().sum() > 0


def test_the_cache_survives_inference_mode(tiny):
    """A table cached under inference mode serves later forwards, also those with gradients of other parameters."""
    model = VisionTransformer(tiny).eval()
    images = torch.randn(1, 3, 56, 98)
    with torch.inference_mode():
        first = model(images).sequence.clone()
    model.pos_embed.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(model(images).sequence, first)
    model(images).sequence.sum().backward()
    assert model.blocks[0].mlp.fc1.weight.grad is not None

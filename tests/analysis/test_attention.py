"""Where tokens look: budgets and maps on the planted model, rollout and value-weighting in closed form (P4, V1, V2)."""

from __future__ import annotations

import pytest
import torch

from dinokit.analysis.attention import (
    attention_budget,
    cls_maps,
    mass_mask,
    query_maps,
    register_maps,
    rollout,
    value_weighted,
)
from dinokit.analysis.planted import planted_image
from dinokit.model.capture import capture
from dinokit.repair import AttentionBias, mean_keys_and_values
from tests.analysis.test_planted import planted_model
from tests.model.test_vit import make
from tests.tolerances import CLOSED_FORM, SAME_MATH, max_error


def marked(places, num: int = 16) -> torch.Tensor:
    mask = torch.zeros(1, num, dtype=torch.bool)
    mask[0, list(places)] = True
    return mask


def test_the_budget_of_the_class_token_shows_the_drain():
    """0.98074 of it goes to two outliers, 14 normal patches share what is left; both heads alike."""
    attention = capture(planted_model(), planted_image({3, 9}), attention=[-1]).attention[3]
    budget = attention_budget(attention, marked({3, 9}))
    assert budget.outliers[0].tolist() == pytest.approx([2 * 0.49037] * 2, abs=1e-5)
    assert budget.cls[0].tolist() == pytest.approx([(1 - 2 * 0.49037) / 15] * 2, abs=1e-6)
    assert budget.normal[0].tolist() == pytest.approx([(1 - 2 * 0.49037) * 14 / 15] * 2, abs=1e-5)
    assert budget.registers.shape == (1, 2, 0)
    assert sum(budget.to_dict().values()) == pytest.approx(1, abs=SAME_MATH)


def test_scaling_patches_up_hides_what_a_register_takes():
    """With a register 0.95739 never reach a patch; a map of patches alone looks even all the same."""
    attention = capture(planted_model(4), planted_image(()), attention=[-1]).attention[3]
    budget = attention_budget(attention, marked(()), num_registers=4)
    assert budget.to_dict()["register_1"] == pytest.approx(0.95739 * (1 / (1 + 3 * 0.95739 / 381.95)), abs=1e-4)
    assert budget.normal.max() < 0.05
    patches = budget.of_patches()
    assert patches.normal.min().item() == pytest.approx(1, abs=SAME_MATH)
    assert patches.to_dict()["register_1"] == 0
    nothing = attention_budget(torch.eye(3).expand(1, 1, 3, 3), marked((), 2))
    assert nothing.of_patches().normal.item() == 0


@pytest.mark.parametrize("registers", [0, 1, 4, 8])
@pytest.mark.parametrize("size", [(70, 70), (56, 98)])
def test_maps_are_rows_of_the_attention_without_its_prefix(tiny, registers, size):
    """For any number of registers and any grid; each map sums to what did not go to class token and registers."""
    model = make(tiny.replace(num_register_tokens=registers))
    read = capture(model, torch.randn(2, 3, *size), attention=[-1])
    attention, grid = read.attention[1], read.grid
    maps = cls_maps(attention, registers, grid)
    assert maps.shape == (2, 2, *grid)
    assert torch.equal(maps.flatten(2), attention[:, :, 0, 1 + registers :])
    rows = register_maps(attention, registers, grid)
    assert rows.shape == (2, 2, registers, *grid)
    for register in range(registers):
        assert torch.equal(rows[:, :, register], query_maps(attention, 1 + register, registers, grid))
    budget = attention_budget(attention, torch.zeros(2, grid[0] * grid[1], dtype=torch.bool), registers)
    assert max_error(maps.sum((-1, -2)), 1 - budget.cls - budget.registers.sum(-1)) <= SAME_MATH
    with pytest.raises(ValueError, match="registers and a grid of"):
        cls_maps(attention, registers + 1, grid)
    with pytest.raises(ValueError, match="are more than"):
        attention_budget(attention, torch.zeros(2, 99, dtype=torch.bool), registers)


def test_attention_to_a_bias_is_counted_as_no_token(tiny):
    """A repaired form with one key more: the share of that key stands under `elsewhere`, and maps leave it out."""
    model, images = make(tiny), torch.randn(2, 3, 70, 70)
    form = AttentionBias(model, [(0, 3)], mean_keys_and_values(model, [(0, 3)], [images]))
    attention = capture(form, images, attention=[-1]).attention[1]
    budget = attention_budget(attention, torch.zeros(2, 25, dtype=torch.bool), 4)
    assert torch.equal(budget.elsewhere, attention[:, :, 0, -1])
    assert cls_maps(attention, 4, (5, 5)).shape == (2, 2, 5, 5)
    assert sum(budget.to_dict().values()) == pytest.approx(1, abs=SAME_MATH)


@pytest.mark.parametrize(("depth", "tokens", "expected"), [(4, 5, 0.1875), (1, 10, 0.05), (8, 4, 255 / 256 / 4)])
def test_rollout_of_even_attention_is_the_closed_form(depth, tokens, expected):
    """A patch's weight at the class token is (1 - 2^-L) / N."""
    even = torch.full((1, 3, tokens, tokens), 1 / tokens)
    rolled = rollout([even] * depth)
    assert expected == pytest.approx((1 - 2.0**-depth) / tokens)
    assert max_error(rolled[0, 0, 1:], torch.full((tokens - 1,), expected)) <= SAME_MATH
    assert rolled[0, 0, 0].item() == pytest.approx(expected + 2.0**-depth, abs=SAME_MATH)


def test_rollout_multiplies_in_the_order_of_the_blocks():
    """Token 1 looks at token 2 first, then the class token at token 1: [.5, .25, .25]; the other way round [.5, .5, 0]."""
    first, second = torch.eye(3).repeat(2, 1, 1, 1)
    first[0, 1] = torch.tensor([0.0, 0.0, 1.0])
    second[0, 0] = torch.tensor([0.0, 1.0, 0.0])
    assert rollout([first[None], second[None]])[0, 0].tolist() == [0.5, 0.25, 0.25]
    assert rollout([second[None], first[None]])[0, 0].tolist() == [0.5, 0.5, 0.0]


def test_rollout_fuses_heads_and_keeps_rows_at_one():
    """By mean, maximum or minimum; of any attention."""
    weights = [torch.randn(2, 3, 6, 6).softmax(-1) for _ in range(4)]
    rolled = [rollout(weights, fusion) for fusion in ("mean", "max", "min")]
    for each in rolled:
        assert max_error(each.sum(-1), torch.ones(2, 6)) <= SAME_MATH
    assert max_error(rolled[0], rolled[1]) > 1e-3
    with pytest.raises(ValueError, match="'mean', 'max' or 'min'"):
        rollout(weights, "median")
    with pytest.raises(ValueError, match="no attention"):
        rollout([])
    with pytest.raises(ValueError, match="as many keys as queries"):
        rollout([weights[0][..., :5]])


def test_value_weighted_attention_is_the_length_of_what_is_moved(tiny):
    """Brute force over heads and tokens; and what all tokens move adds up to the block's attention output."""
    model, images = make(tiny), torch.randn(1, 3, 70, 70)
    read = capture(model, images, attention=[0], v=[0])
    weight = model.blocks[0].attn.proj.weight.detach()
    moved = value_weighted(read.attention[0], read.v[0], weight)
    for head, i, j in [(0, 0, 0), (1, 3, 7), (1, 29, 12)]:
        vector = read.attention[0][0, head, i, j] * (weight[:, 16 * head : 16 * (head + 1)] @ read.v[0][0, head, j])
        assert moved[0, head, i, j].item() == pytest.approx(vector.norm().item(), rel=1e-5)
    with pytest.raises(ValueError, match="another number"):
        value_weighted(read.attention[0], read.v[0], weight[:, :20])
    with pytest.raises(ValueError, match="one value a key"):
        value_weighted(read.attention[0], read.v[0][:, :, 1:], weight)


def test_value_weighting_shows_only_outliers_on_the_planted_model():
    """Normal patches get attention and move nothing: their values are 0."""
    model = planted_model()
    read = capture(model, planted_image({3, 9}), attention=[3], v=[3])
    moved = value_weighted(read.attention[3], read.v[3], model.blocks[3].attn.proj.weight)[0, 0, 0, 1:]
    assert max_error(moved[[3, 9]], torch.full((2,), 0.49037 * 0.990881 * 2**0.5 / 2)) <= CLOSED_FORM
    moved[[3, 9]] = 0
    assert moved.abs().max() <= SAME_MATH


def test_a_mass_mask_is_the_fewest_patches_that_hold_the_share():
    """Brute force, ties to the earlier patch, row by row, zeros never."""
    assert mass_mask(torch.tensor([0.5, 0.1, 0.3, 0.1]), 0.6).tolist() == [True, False, True, False]
    assert mass_mask(torch.tensor([0.25, 0.25, 0.25, 0.25]), 0.5).tolist() == [True, True, False, False]
    assert mass_mask(torch.tensor([[0.0, 1.0], [0.0, 0.0]]), 1.0).tolist() == [[False, True], [False, False]]
    for seed in range(20):
        weights = torch.rand(30, generator=torch.Generator().manual_seed(seed))
        mask = mass_mask(weights, 0.6)
        held = weights[mask].sum() / weights.sum()
        assert held >= 0.6
        assert held - weights[mask].min() / weights.sum() < 0.6
        assert weights[mask].min() >= weights[~mask].max()
    with pytest.raises(ValueError, match="share"):
        mass_mask(torch.rand(3), 0.0)

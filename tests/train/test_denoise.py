"""Targets of PH-Reg: shifts, and the average over them against brute force."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from dinokit.config import ViTConfig
from dinokit.model import VisionTransformer
from dinokit.train.denoise import draw_shifts
from dinokit.train.guides import tokens_of
from tests.train.small_run import small

GRID = (5, 4)


@given(st.integers(0, 9), st.integers(0, 99), st.integers(1, 12), st.floats(0, 0.9))
def test_shifts_are_a_function_of_seed_and_step(seed, step, count, share):
    """The first is none, the others no larger than their share of the grid."""
    shifts = draw_shifts(seed, step, count, GRID, share)
    assert shifts == draw_shifts(seed, step, count, GRID, share)
    assert len(shifts) == count
    assert shifts[0] == (0, 0)
    assert all(abs(shift[i]) <= share * GRID[i] for shift in shifts for i in range(2))


def test_all_shifts_come_up_equally_often():
    """Each of three rows and three columns."""
    drawn = [draw_shifts(0, step, 2, (4, 4), 0.3)[1] for step in range(900)]
    for axis in range(2):
        for value in (-1, 0, 1):
            assert 240 <= sum(shift[axis] == value for shift in drawn) <= 360


def test_denoised_targets_are_the_average_patch_by_patch():
    """Each patch from all passes in which it did not roll over an edge, mirrored ones included."""
    torch.manual_seed(0)
    config = ViTConfig(embed_dim=8, depth=2, num_heads=2, ffn_dim=16, patch_size=4, image_size=(16, 16))
    teacher = VisionTransformer(config).eval().requires_grad_(False)
    recipe = small("distill.mode=features", "distill.shifts=4", "distill.shift_share=0.5", "mirrored=true", "seed=3")
    crops = torch.randn(2, 3, 16, 16)
    found = tokens_of(teacher, crops, (4, 4), recipe, step=7)
    shifts = draw_shifts(3, 7, 4, (4, 4), 0.5)
    assert len(set(shifts)) > 1
    total, count, classes = torch.zeros(2, 4, 4, 8), torch.zeros(4, 4), []
    for mirrored in (False, True):
        for down, right in shifts:
            image = crops.flip(-1) if mirrored else crops
            tokens = teacher(image.roll((4 * down, 4 * right), (-2, -1)))
            classes.append(tokens.cls)
            for row in range(4):
                for column in range(4):
                    at = (row + down, (3 - column if mirrored else column) + right)
                    if 0 <= at[0] < 4 and 0 <= at[1] < 4:
                        total[:, row, column] += tokens.patches[:, at[0] * 4 + at[1]]
                        count[row, column] += 1
    expected = (total / count[..., None]).flatten(1, 2)
    assert torch.allclose(found.patches, expected, atol=1e-5)
    assert torch.allclose(found.classes, torch.stack(classes).mean(dim=0), atol=1e-5)
    assert not torch.allclose(expected, teacher(crops).patches, atol=1e-2)
    plain = tokens_of(teacher, crops, (4, 4), replace(recipe, distill=replace(recipe.distill, shifts=0)), 7)
    assert torch.equal(plain.patches, teacher(crops).patches)

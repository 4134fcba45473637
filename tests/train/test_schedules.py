"""Rates at recorded iterations of three recipes, and that schedules put together keep their parts."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinokit.train.schedules import (
    RECIPES,
    Constant,
    Cosine,
    Frozen,
    Linear,
    Recipe,
    Then,
    warm_up_cosine,
    warm_up_stable_decay,
)

EXACT = 1e-12
NAMES = {"lr": "lr", "last_layer_lr": "last_layer_lr", "weight_decay": "weight_decay", "momentum": "momentum",
         "teacher_temperature": "teacher_temp"}  # fmt: skip
CUSTOM = Recipe(
    iterations=500, batch_size=96, base_lr=1e-3, min_lr=1e-5, warm_up=100, weight_decay=0.05, weight_decay_end=0.3,
    momentum=0.99, teacher_temperature=0.03, teacher_temperature_end=0.06, teacher_temperature_warm_up=150,
    last_layer_freeze=50,
)  # fmt: skip


@pytest.mark.parametrize("name", ["short", "long", "custom"])
def test_recipes_are_the_references(recorded, name):
    """All five rates at twenty iterations each, those at which the reference changes its course among them."""
    data = recorded("schedules")
    schedules = {**RECIPES, "custom": CUSTOM}[name].schedules()
    for row, iteration in enumerate(data[f"{name}/iterations"].tolist()):
        for ours, theirs in NAMES.items():
            assert asdict(schedules(iteration))[ours] == pytest.approx(
                data.number_at(f"{name}/{theirs}", row), abs=EXACT
            )


def test_published_recipes_say_what_the_configurations_say(ssl):
    """Lengths, batches and ends, from the reference's own table."""
    table = json.loads((ssl / "configs.json").read_text())["schedules"]
    for name, recipe in RECIPES.items():
        theirs = table[name]
        per_epoch = theirs["iterations_per_epoch"]
        assert recipe.iterations == per_epoch * theirs["epochs"]
        assert recipe.warm_up == per_epoch * theirs["lr_warmup_epochs"]
        assert recipe.last_layer_freeze == per_epoch * theirs["freeze_last_layer_epochs"]
        assert recipe.teacher_temperature_warm_up == per_epoch * theirs["teacher_temp_warmup_epochs"]
        assert (recipe.batch_size, recipe.base_lr) == (theirs["global_batch"], theirs["base_lr"])


def test_frozen_then_warm_up_then_cosine_is_the_bare_reference_schedule(recorded):
    """43 iterations, past the end, too."""
    bare = Then(Constant(0.0), 5, warm_up_cosine(0.8, 0.2, 35, 7, start=0.1))
    expected = recorded("schedules")["raw/values"].numpy()
    assert np.abs(np.array([bare(i) for i in range(43)]) - expected).max() <= EXACT


@given(
    iterations=st.integers(1, 400), share=st.floats(0, 1), start=st.floats(-2, 2), end=st.floats(-2, 2),
    at=st.integers(0, 1000),
)  # fmt: skip
def test_every_schedule_stays_between_its_ends_and_holds_the_last(iterations, share, start, end, at):
    """Also with a warm-up of no or one iteration, and past its end."""
    low, high = min(start, end, 0.0), max(start, end, 0.0)
    warm = int(share * iterations)
    for schedule in (
        Linear(start, end, iterations),
        Cosine(start, end, iterations),
        warm_up_cosine(start, end, iterations, warm),
    ):
        assert low - 1e-9 <= schedule(at) <= high + 1e-9
        assert schedule(iterations) == schedule(iterations + 5) == pytest.approx(end)


def test_warm_up_stable_decay_can_be_prolonged():
    """Two lengths agree until the shorter one begins to fall; both end at 0."""
    short, long = (warm_up_stable_decay(0.5, n, 10, 20) for n in (100, 300))
    assert [short(i) for i in range(80)] == [long(i) for i in range(80)]
    assert short(9) == short(50) == long(279) == 0.5
    assert short(85) == pytest.approx(0.25)
    assert short(100) == long(300) == long(999) == 0.0


def test_a_freeze_covers_the_schedule_and_does_not_shift_it():
    """0 for its iterations, then what would have been anyway."""
    frozen, plain = Frozen(5, Linear(0.0, 1.0, 11)), Linear(0.0, 1.0, 11)
    assert [frozen(i) for i in range(5)] == [0.0] * 5
    assert [frozen(i) for i in range(5, 12)] == [plain(i) for i in range(5, 12)]

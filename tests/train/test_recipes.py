"""Recipes: each one makes a step, every setting can be written and read, mistakes are told."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dinokit.config import VARIANTS
from dinokit.train.feed import TensorFeed
from dinokit.train.recipe import TrainingRecipe
from dinokit.train.recipes import RECIPES, changed, resolve
from dinokit.train.run import build_network, read_log, train
from dinokit.train.schedules import RECIPES as PUBLISHED
from dinokit.train.settings import flatten, from_json, to_json, with_settings
from tests.train.small_run import small

# What makes any recipe small, without touching what it is about.
SMALL = (
    "model.embed_dim=16", "model.num_heads=2", "model.ffn_dim=32", "model.depth=2", "heads.prototypes=16", "heads.hidden_dim=16",
    "heads.bottleneck_dim=8", "heads.patch_bottleneck_dim=8", "steps=1", "batch_size=4", "log_every=1", "watch.every=0", "init=",
    "augmentation.local_crops.count=1", "model.image_size=56,56",
)  # fmt: skip


# These need trained networks: tests/train/test_stages.py
FROM_NETWORKS = ("gram", "distill", "distill_features", "post_hoc_registers", "high_res")


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in FROM_NETWORKS])
def test_every_recipe_takes_a_step(name, tmp_path):
    """With its own losses, schedules, crops and optimiser, on a network that fits a test."""
    whole = RECIPES[name]()
    p = whole.model.patch_size
    sizes = [f"augmentation.global_crops.size={4 * p}", f"augmentation.local_crops.size={2 * p}"]
    recipe = changed(
        whole, [*SMALL, *sizes, "heads.patch_prototypes=" + ("16" if whole.heads.patch_prototypes else "0")]
    )
    images = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8)
    state = train(recipe, TensorFeed(images), tmp_path / "run")
    (record,) = read_log(tmp_path / "run")
    assert state.step == record["step"] == 1
    assert math.isfinite(record["loss"])
    assert record["dino"] > 0
    assert (tmp_path / "run/export/model/model.safetensors").is_file()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_its_command_its_cost_and_its_result(name):
    """In its docstring; and it comes back from JSON as it was."""
    text = RECIPES[name].__doc__
    assert f"{name}" in text
    assert "dinokit" in text
    assert "Cost:" in text
    assert "Result" in text
    recipe = RECIPES[name]()
    assert recipe.name == name
    assert from_json(TrainingRecipe, json.loads(json.dumps(to_json(recipe)))) == recipe


@pytest.mark.parametrize(("ours", "theirs"), [("paper_short", "short"), ("paper_long", "long")])
def test_the_papers_recipes_have_the_published_rates(ours, theirs):
    """At every phase of the run."""
    recipe, published = RECIPES[ours](), PUBLISHED[theirs]
    assert (recipe.steps, recipe.batch_size) == (published.iterations, published.batch_size)
    for step in (0, 1, 1249, 1250, 12_499, 37_499, 60_000, 124_999, recipe.steps - 1):
        assert recipe.rates()(step) == published.schedules()(step)


def test_settings_are_read_by_their_types():
    """Numbers in any spelling, words, booleans, several values, none; a last part alone; a pattern; a published shape."""
    recipe = resolve(
        "small",
        ["lr=2e-3", "steps=2e4", "batch_size=1_024", "compile=yes", "koleo_end=none", "drop_path_group=8", "mask_ratio=0.2, 0.4",
         "*.jitter=.1,.1,.1,0", "targets=centring", "model=vitb14", "model.position=0.1,false"],
    )  # fmt: skip
    assert (recipe.schedule.lr, recipe.steps, recipe.batch_size, recipe.compile) == (2e-3, 20_000, 1024, True)
    assert (recipe.losses.koleo_end, recipe.drop_path_group, recipe.losses.mask_ratio) == (None, 8, (0.2, 0.4))
    assert {recipe.augmentation.first.jitter, recipe.augmentation.local.jitter} == {(0.1, 0.1, 0.1, 0.0)}
    assert recipe.model.embed_dim == VARIANTS["vitb14"].embed_dim
    assert (recipe.model.patch_size, recipe.model.layer_scale_init) == (16, 1e-5)
    assert recipe.model.position == (0.1, False)
    assert recipe.losses.targets == "centring"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lrr=1", "no setting 'lrr'. Did you mean schedule.lr"),
        ("schedule.warmup=1", "schedule.warm_up"),
        ("jitter=1", r"could be augmentation.first.jitter, .*write one of them, or \*.jitter"),
        ("steps=1.5", "steps is '1.5'; it must be a whole number"),
        ("lr=fast", "schedule.lr is 'fast'; it must be a number"),
        ("compile=perhaps", "true or false"),
        ("targets=softmax", "one of sinkhorn, centring"),
        ("mask_ratio=0.1", "write 2 values"),
        ("steps", "write key=value"),
        ("batch_size=7", None),
        ("accumulate=3", "can't be accumulated from 3 equal parts"),
        ("model=vith14", "must be one of vits14"),
        ("augmentation.local_crops.size=97", "97 pixels and patches 16"),
        ("model.embed_dropout=0.1", "no checkpoint holds"),
        ("drop_path=1", "a rate lies in 0 to 1"),
        ("steps=0", "at least 1"),
        ("model.num_heads=5", "multiple of the heads"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_told(setting, message):
    """What is wrong, what the rule is, and what might have been meant; a right one passes."""
    if message is None:
        assert resolve("tiny", [setting]).batch_size == 7
        return
    with pytest.raises(ValueError, match=message):
        resolve("tiny", [setting])


def test_settings_that_fit_together_only_pass():
    """Patch size and crops change at once; one after the other neither would do."""
    recipe = resolve("tiny", ["model.patch_size=14", "augmentation.local_crops.size=98"])
    assert recipe.model.patch_size == 14
    with pytest.raises(ValueError, match="no recipe 'huge'"):
        resolve("huge")


@given(
    st.sampled_from(sorted(k for k, v in flatten(resolve("tiny")).items() if type(v) in (int, float))),
    st.integers(1, 3),
)
def test_any_number_can_be_set_by_its_name(key, value):
    """Only that one changes; or the recipe refuses what does not fit."""
    recipe = resolve("tiny")
    try:
        other = flatten(with_settings(recipe, [f"{key}={value}"]))
    except ValueError:
        return
    changed_keys = {k for k, v in flatten(recipe).items() if other[k] != v}
    assert changed_keys <= {key, "augmentation.seed" if key == "seed" else key}


def test_one_seed_a_run():
    """The seed decides the start and the crops; other random numbers around do not."""
    assert resolve("tiny", ["seed=5"]).augmentation.seed == 5
    torch.manual_seed(1)
    a = build_network(small())
    torch.manual_seed(2)
    b, c = build_network(small()), build_network(small("seed=1"))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.backbone.pos_embed, c.backbone.pos_embed)


def test_koleos_weight_and_constant_rates():
    """Half a cosine from one to the other; after the warm-up nothing moves where rates are constant; a fall at the end for wsd."""
    recipe = resolve("tiny", ["steps=100", "warm_up=10", "koleo=1", "koleo_end=0.5"])
    assert [recipe.objective(step).koleo_weight for step in (0, 50, 100)] == pytest.approx([1.0, 0.75, 0.5])
    constant = changed(recipe, ["shape=constant"]).rates()
    assert constant(20) == constant(99)
    wsd = changed(recipe, ["shape=wsd", "cool_down=20"]).rates()
    assert wsd(20).lr == wsd(79).lr > wsd(95).lr > 0


def test_the_recipe_of_the_shipped_networks_is_the_one_that_lies_beside_them():
    """Also by its name with a hyphen; the twin differs in its registers alone."""
    from dinokit.train.run import read_recipe
    from dinokit.weights.zoo import BUNDLED

    for name, registers in (("tiny-procedural-reg4", 4), ("tiny-procedural", 0)):
        recipe = resolve("tiny-procedural", [f"model.num_register_tokens={registers}"])
        assert read_recipe(BUNDLED / name) == recipe

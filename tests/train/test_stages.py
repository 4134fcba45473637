"""Recipes that begin with trained networks: what they learn from whom, that they can be continued, and mistakes that are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dinokit
from dinokit.analysis.planted import planted, planted_image
from dinokit.cli import main as entry
from dinokit.cli.train_sources import KnnWatcher
from dinokit.errors import WeightsError
from dinokit.images import ImageTransform
from dinokit.model import VisionTransformer
from dinokit.train import guides as guides_module
from dinokit.train.begin import begin, find_guides, freeze, start_from
from dinokit.train.feed import TensorFeed, parts_of
from dinokit.train.frozen import read_network
from dinokit.train.gram import gram_loss
from dinokit.train.heads import parametrized_names
from dinokit.train.parallel import World
from dinokit.train.recipe import TrainingRecipe
from dinokit.train.recipes import changed, resolve
from dinokit.train.run import BEST, Watched, ended_by_itself, read_log, read_recipe, train
from dinokit.train.step import aim, learn
from dinokit.weights.load import Pretrained, Provenance
from dinokit.weights.save import save
from tests.train.small_run import feed, run, small, two_processes, values
from tests.train.test_parallel import assert_alike

ALONE = World(0, 1, torch.device("cpu"))
TINY = (
    "steps=4", "batch_size=8", "drop_path=0", "log_every=1", "watch.every=2", "save.every=2", "save.keep=9", "precision=fp32",
    "model.depth=2", "model.embed_dim=16", "model.num_heads=2", "model.ffn_dim=32", "model.patch_size=4", "model.image_size=16,16",
    "augmentation.global_crops.size=16", "augmentation.local_crops.size=8", "heads.hidden_dim=16", "heads.bottleneck_dim=8",
    "heads.patch_bottleneck_dim=8", "schedule.warm_up=1", "schedule.lr=1e-3", "scale_lr=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The export of a short run, wider than the students: 24, with heads of 12 and 10 prototypes."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(folder, "steps=1", "model.embed_dim=24", "model.ffn_dim=48", "watch.every=0")
    return folder / "export"


@pytest.fixture(scope="module")
def other(trained, tmp_path_factory) -> Path:
    """The same network with one number changed."""
    folder = tmp_path_factory.mktemp("other") / "export"
    shutil.copytree(trained, folder)
    for file in ("teacher_with_heads.pth",):
        content = torch.load(folder / file)
        content["teacher"]["dino_head.mlp.0.bias"][0] += 1
        torch.save(content, folder / file)
    return folder


def tiny(name: str, trained: Path, *settings: str) -> TrainingRecipe:
    """A stage's own recipe at tiny size."""
    named = {
        "distill": [f"teacher={trained}"],
        "distill_features": [f"teacher={trained / 'model'}"],
        "gram": [f"init={trained}", f"anchor={trained / 'model'}", "gram.start=1"],
        "high_res": [f"init={trained}", "augmentation.global_crops.size=24"],
        "post_hoc_registers": [f"init={trained / 'model'}", "add_registers=3"],
        "continued": [f"init={trained / 'model'}", "heads.prototypes=12", "heads.patch_prototypes=10", "backbone_freeze=1"],
    }  # fmt: skip
    return resolve(name, [*TINY, *named[name], *settings])


STAGES = ("distill", "distill_features", "gram", "high_res", "post_hoc_registers", "continued")


def go(recipe: TrainingRecipe, folder: Path, resume: bool = False):
    return train(recipe, feed(), folder, watched=Watched(torch.randn(6, 3, 16, 16)), resume=resume)


@pytest.mark.parametrize("name", STAGES)
def test_interrupted_equals_uninterrupted(name, trained, tmp_path):
    """Every stage, bit for bit: weights, optimiser, average, log, export; frozen networks are in no checkpoint."""
    torch.manual_seed(0)
    go(tiny(name, trained), tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b/checkpoints/step-000000004")
    shutil.rmtree(tmp_path / "b/export")
    (tmp_path / "b/checkpoints/latest").unlink()
    torch.manual_seed(0)
    go(read_recipe(tmp_path / "b"), tmp_path / "b", resume=True)
    one, two = values(tmp_path / "a", 4), values(tmp_path / "b", 4)
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())
    strip = [r for r in read_log(tmp_path / "a") if r["kind"] == "train"]
    assert strip == [r for r in read_log(tmp_path / "b") if r["kind"] == "train"]
    files = [(tmp_path / run / "export/model/model.safetensors").read_bytes() for run in "ab"]
    assert files[0] == files[1]
    assert not any("guide" in key or "anchor" in key for key in one)


@pytest.mark.parametrize(("name", "setting"), [("distill", "distill.teacher"), ("gram", "gram.anchor")])
def test_another_teacher_is_refused_when_a_run_goes_on(name, setting, trained, other, tmp_path):
    """By its sum, whatever its name is; the same file under another name is welcome."""
    go(tiny(name, trained, "steps=2"), tmp_path / "run")
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    which = "" if name == "distill" else "/model"
    change = resolve(name, [*TINY, "steps=3", f"init={trained}" if name == "gram" else "init=", f"{setting}={other}"])
    with pytest.raises(WeightsError, match=rf"{setting} {other} has sha256 .* and the run began with"):
        go(change, tmp_path / "run", resume=True)
    again = changed(read_recipe(tmp_path / "run"), ["steps=3", f"{setting}={moved}{which}"])
    assert go(again, tmp_path / "run", resume=True).step == 3


# ---- distillation by heads


def test_the_student_sees_everything_and_is_compared_everywhere(trained):
    """No masks, all patches of both global crops with equal weights, also when a batch is taken in parts."""
    recipe = begin(tiny("distill", trained, "batch_size=4"), True)[0]
    batch = next(feed()(recipe, ALONE, 0))
    assert not batch.hide
    assert torch.equal(batch.masks.indices, torch.arange(8 * 16))
    assert torch.equal(batch.masks.weights, torch.full((8 * 16,), 1 / 16))
    assert [(part.hide, len(part.masks.indices)) for part in parts_of(batch, 2)] == [(False, 4 * 16)] * 2
    shown = next(feed()(begin(tiny("distill", trained, "losses.patches=shown"), True)[0], ALONE, 0))
    assert not shown.hide
    assert 0 < len(shown.masks.indices) < 16 * 16


def test_distillation_follows_the_teachers_heads(trained, tmp_path):
    """Its prototypes, its targets; the average of the student is exported, has moved, and its mask token has not."""
    state = go(tiny("distill", trained), tmp_path / "run")
    recipe = read_recipe(tmp_path / "run")
    assert (recipe.heads.prototypes, recipe.heads.patch_prototypes) == (12, 10)
    assert (recipe.distill.mode, recipe.drop_path) == ("prototypes", 0)
    assert len(recipe.distill.sha256) == 64
    assert state.student.backbone.mask_token.abs().max() == 0
    exported = dinokit.load(tmp_path / "run/export/model").model
    assert torch.equal(exported.pos_embed, state.teacher.backbone.pos_embed)
    assert not torch.equal(exported.pos_embed, state.student.backbone.pos_embed)
    text = (tmp_path / "run/export/README.md").read_text()
    assert f"by the projection heads of a frozen teacher ({trained})" in text


def test_targets_come_from_the_frozen_network(trained, tmp_path):
    """The first step's loss is that of `aim` and `learn` with the teacher's logits."""
    recipe, student, guides = begin(tiny("distill", trained, "steps=1"), True)
    batch = next(feed()(recipe, ALONE, 0))
    logits = guides.to(ALONE.device).heads.teach(batch)
    centers = {"dino": torch.zeros(12), "ibot": torch.zeros(10)}
    taught = aim(logits, centers, recipe.rates()(0).teacher_temperature, recipe.objective(0))
    expected = learn(student, batch, taught, recipe.objective(0)).total
    go(recipe, tmp_path / "run")
    record = next(r for r in read_log(tmp_path / "run") if r["kind"] == "train")
    assert record["loss"] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.slow
def test_a_student_comes_nearer_to_its_teacher(trained, tmp_path):
    """Cross-entropy less the targets' entropy falls, by heads; the error falls, by features."""
    go(tiny("distill", trained, "steps=40", "watch.every=0", "schedule.lr=3e-3", "save.every=99"), tmp_path / "a")
    records = [r for r in read_log(tmp_path / "a") if r["kind"] == "train"]
    gap = [r["dino"] - r["target_entropy"] for r in records]
    assert np.mean(gap[-10:]) < 0.8 * np.mean(gap[:10])
    # a layer scale of 1e-5 needs long runs to open
    go(
        tiny("distill_features", trained, "steps=25", "watch.every=0", "layer_scale_init=1", "save.every=99"),
        tmp_path / "b",
    )
    losses = [r["loss"] for r in read_log(tmp_path / "b") if r["kind"] == "train"]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_metas_checkpoints_are_teachers(trained, tmp_path):
    """Names wrapped by FSDP, weight norm as either version of PyTorch writes it, one head or two."""
    state = torch.load(trained / "teacher_with_heads.pth")["teacher"]
    shutil.copytree(trained / "model", tmp_path / "model")
    expected = read_network(str(trained)).network
    for wrap in (dict, parametrized_names, lambda s: {f"_fsdp_wrapped_module.{n}": t for n, t in s.items()}):
        torch.save({"teacher": wrap(state)}, tmp_path / "teacher_with_heads.pth")
        found = read_network(str(tmp_path)).network
        for (name, ours), theirs in zip(found.named_parameters(), expected.parameters(), strict=True):
            assert torch.equal(ours, theirs), name
    one = {name: t for name, t in state.items() if not name.startswith("ibot_head")}
    torch.save({"teacher": one}, tmp_path / "teacher_with_heads.pth")
    assert read_network(str(tmp_path / "teacher_with_heads.pth")).network.ibot_head is None
    recipe, _ = find_guides(tiny("distill", tmp_path))
    assert (recipe.heads.prototypes, recipe.heads.patch_prototypes) == (12, 0)
    plain = {n: t for n, t in state.items() if "last_layer" not in n} | {
        "dino_head.last_layer.weight": torch.ones(3, 8)
    }
    torch.save({"teacher": plain}, tmp_path / "teacher_with_heads.pth")
    with pytest.raises(WeightsError, match=r"dino_head has .*distill.mode=features"):
        read_network(str(tmp_path))


MISFITS = [
    (["heads.prototypes=16"], "12 prototypes and 10 for patches .* student's 16 and 0: set heads.prototypes=12"),
    (["model.patch_size=8", "model.image_size=16,16"], "patches have 4 pixels and the student's 8"),
    (["teacher="], "distill.teacher is not set: --set distill.teacher=PATH"),
    (["distill.mode=off"], "distill.mode off: set distill.mode=auto"),
    (["distill.mode=features"], "heads.prototypes is 0.*losses.dino=0 and losses.ibot=0"),
    (["distill.mode=prototypes", "teacher=MODEL"], "has no heads.*distill.mode=features"),
    (["distill.mode=features", "losses.dino=0", "losses.ibot=0", "adapter=none"], "16 wide and the teacher 24"),
    (["distill.shift_share=1"], "a share of the crop's sides"),
    (["gram.scale=0"], "gram.scale is 0; it must be at least 1"),
    (["distill.mode=features", "class_weight=0", "patch_weight=0"], "give one of them a weight"),
    (["add_registers=1"], "set init"),
    (["optimizer.trained=blocks.7.*"], "'blocks.7.*', which fits no parameter"),
]


@pytest.mark.parametrize(
    ("settings", "message"), MISFITS, ids=lambda each: str(each[0]) if isinstance(each, list) else ""
)
def test_what_does_not_fit_is_told_with_the_way_out(settings, message, trained):
    """Before anything is trained or written."""
    with pytest.raises(ValueError, match=message):
        begin(tiny("distill", trained, *(s.replace("MODEL", str(trained / "model")) for s in settings)), True)


# ---- distillation of features


def test_a_teacher_without_heads_teaches_features(trained, tmp_path):
    """ "auto" says so; the student has no heads, hides nothing, and its export has no heads either."""
    said: list[str] = []
    recipe = tiny("distill", trained, f"teacher={trained / 'model'}", "steps=1")
    state = train(recipe, feed(), tmp_path / "run", say=said.append)
    assert any("has no heads: its features are learned" in text for text in said)
    stored = read_recipe(tmp_path / "run")
    assert (stored.distill.mode, stored.losses.dino, stored.by_heads) == ("features", 0, False)
    assert state.student.dino_head is None
    assert state.centers == {}
    record = next(r for r in read_log(tmp_path / "run") if r["kind"] == "train")
    assert record["loss"] == pytest.approx(record["class_features"] + record["patch_features"])
    assert not (tmp_path / "run/export/teacher_with_heads.pth").exists()
    assert dinokit.load(tmp_path / "run/export/model").config.embed_dim == 16


def test_a_teacher_may_have_other_patches_and_registers(trained):
    """Its map is brought to the student's grid; crops to whole patches of its own."""
    teacher = dinokit.load(trained / "model").model
    assert teacher.config.num_register_tokens == 2
    recipe = tiny("distill_features", trained, "model.num_register_tokens=5", "model.patch_size=6",
                  "augmentation.global_crops.size=18", "augmentation.local_crops.size=6", "model.image_size=18,18")  # fmt: skip
    crops = torch.randn(2, 3, 18, 18)
    found = guides_module.tokens_of(teacher, crops, (3, 3), recipe, 0)
    assert found.patches.shape == (2, 9, 24)
    pixels = torch.nn.functional.interpolate(crops, size=(16, 16), mode="bicubic", antialias=True)
    assert torch.equal(found.classes, teacher(pixels).cls)
    recipe, student, guides = begin(recipe, True)
    batch = next(feed()(recipe, ALONE, 0))
    outputs = student(batch)
    assert outputs.features.patches.shape == (16, 9, 24)
    shown = guides.show(batch, recipe, recipe.objective(0), 0)
    assert shown.features.patches.shape == (16, 9, 24)


def test_features_and_the_objective_may_go_together(trained, tmp_path):
    """With heads of the student's own and weights for both."""
    recipe = tiny("distill_features", trained, "losses.dino=1", "losses.ibot=1", "local_crops.count=2", "steps=1",
                  "heads.prototypes=12", "heads.patch_prototypes=10")  # fmt: skip
    go(recipe, tmp_path / "run")
    record = next(r for r in read_log(tmp_path / "run") if r["kind"] == "train")
    parts = record["dino"] + record["ibot"] + record["class_features"] + record["patch_features"]
    assert record["loss"] == pytest.approx(parts, rel=1e-5)


@pytest.mark.slow
def test_two_processes_distil_as_one_does(trained, tmp_path):
    """By heads and by features: the same weights up to rounding."""
    settings = {
        "heads": ("distill.mode=auto", f"teacher={trained}", "losses.patches=all", "drop_path=0", "steps=2"),
        "features": ("distill.mode=features", f"teacher={trained}", "losses.dino=0", "losses.ibot=0", "losses.koleo=0",
                     "koleo_end=none", "drop_path=0", "steps=2"),
    }  # fmt: skip
    jobs = [
        (str(tmp_path / f"{kind}-{name}"), kind, False, each)
        for name, each in settings.items()
        for kind in ("ddp", "fsdp")
    ]
    two_processes(tmp_path / "store", jobs)
    for name, each in settings.items():
        run(tmp_path / f"one-{name}", *each)
        for kind in ("ddp", "fsdp"):
            assert_alike(tmp_path / f"one-{name}", tmp_path / f"{kind}-{name}", 2)


# ---- Gram anchoring


def test_similarities_are_anchored_from_the_start_on(trained, tmp_path):
    """No term before; its weighted value in the loss from then on; the anchor enlarged sees more patches, and is brought back."""
    recipe = tiny("gram", trained, "steps=2")
    go(recipe, tmp_path / "run")
    first, second = (r for r in read_log(tmp_path / "run") if r["kind"] == "train")
    assert "gram" not in first
    terms = second["dino"] + second["ibot"] + 0.1 * (second["koleo_0"] + second["koleo_1"]) + 2 * second["gram"]
    assert second["loss"] == pytest.approx(terms, rel=1e-5)
    anchor = dinokit.load(trained / "model").model
    crops = torch.randn(2, 3, 16, 16)
    same = guides_module.patches_of(anchor, crops, (4, 4))
    twice = guides_module.patches_of(anchor, crops, (4, 4), scale=2)
    assert torch.equal(same, anchor(crops).patches)
    assert twice.shape == same.shape
    assert not torch.allclose(twice, same, atol=1e-2)


def test_the_anchor_is_what_the_run_begins_from_unless_named(trained):
    """Then nothing has changed yet, and the term of whole crops is zero."""
    recipe, student, guides = begin(tiny("gram", trained, "anchor=", "gram.start=0", "losses.patches=shown"), True)
    assert recipe.gram.anchor == str(trained)
    batch = next(feed()(recipe, ALONE, 0))
    shown = guides.to(ALONE.device).show(batch, recipe, recipe.objective(0), 0)
    assert gram_loss(student(batch).patches, shown.anchor).item() == pytest.approx(0, abs=1e-10)


# ---- continued, and high resolution


def test_heads_come_along_where_the_file_has_them(trained):
    """Then their shape is the recipe's and nothing is frozen first; from weights alone, heads are new and freezing stays."""
    said: list[str] = []
    recipe, network = start_from(tiny("high_res", trained), said.append)
    assert (recipe.heads.prototypes, recipe.heads.hidden_dim, recipe.schedule.backbone_freeze) == (12, 16, 0)
    assert "nothing is frozen" in said[0]
    theirs = torch.load(trained / "teacher_with_heads.pth")["teacher"]["ibot_head.mlp.0.weight"]
    assert torch.equal(network.ibot_head.mlp[0].weight, theirs)
    recipe, network = start_from(tiny("continued", trained))
    assert recipe.schedule.backbone_freeze == 1
    assert network.dino_head is None


def test_high_resolution_trains_a_table_of_its_own_grid(trained, tmp_path):
    """It begins as the old one resampled, is trained, and is exported so; the export takes either size of image."""
    old = dinokit.load(trained / "model").model
    network = start_from(tiny("high_res", trained))[1]
    assert (old.config.grid, network.backbone.config.grid) == ((4, 4), (6, 6))
    image = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        assert torch.allclose(network.backbone(image).sequence, old(image).sequence, atol=1e-6)
    go(tiny("high_res", trained), tmp_path / "run")
    pre = dinokit.load(tmp_path / "run/export/model")
    assert pre.config.image_size == (24, 24)
    assert pre.transform.crop == (24, 24)
    assert pre.model(torch.randn(1, 3, 16, 16)).grid == (4, 4)
    assert not torch.equal(pre.model.pos_embed, network.backbone.pos_embed)


def test_ibots_weight_rises_from_nothing():
    """In a straight line, to what it is from then on."""
    recipe = resolve("continued", ["ibot_warm_up=4", "losses.ibot=0.5"])
    assert [recipe.objective(step).ibot_weight for step in range(6)] == [0, 0.125, 0.25, 0.375, 0.5, 0.5]
    assert resolve("small").objective(0).ibot_weight == 1


class Falling:
    """k-NN accuracy as told, look by look."""

    def __init__(self, *scores: float) -> None:
        self.scores = iter(scores)

    def __call__(self, backbone: VisionTransformer) -> dict[str, float]:
        return {"knn": next(self.scores)}


def test_the_best_is_kept_and_a_run_that_forgets_ends(trained, tmp_path):
    """A tenth below the best is too much: the run ends a step later, says why, and the best one's export is there."""
    recipe = tiny("continued", trained, "watch.stop=true", "watch.every=1", "steps=9", "save.every=99")
    said: list[str] = []
    state = train(
        recipe, feed(), tmp_path / "run", watched=Watched(None, [Falling(0.8, 0.9, 0.82, 0.80, 0.7)]), say=said.append
    )
    assert state.step == 4
    assert "ended after step 3: k-NN accuracy is 0.800, and was 0.900 at step 1" in said[-1]
    assert ended_by_itself(tmp_path / "run", 4) in said
    best = dinokit.load(tmp_path / "run" / BEST / "model").model
    again = train(tiny("continued", trained, "steps=1"), feed(), tmp_path / "one")
    assert torch.equal(best.pos_embed, again.teacher.backbone.pos_embed)
    assert not (tmp_path / "run/export").exists()
    resumed = train(
        read_recipe(tmp_path / "run"),
        feed(),
        tmp_path / "run",
        resume=True,
        watched=Watched(None, [Falling(*[0.85] * 9)]),
    )
    assert resumed.step == 9
    assert ended_by_itself(tmp_path / "run", 9) is None


def test_a_new_network_is_guarded_after_the_first_fifth_only(tmp_path):
    """Before that accuracy may do as it likes; nothing is kept unless asked for."""
    recipe = small("watch.stop=true", "watch.every=1", "steps=10", "watch.grace=0.5")
    scores = Falling(0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)
    assert train(recipe, feed(), tmp_path / "a", watched=Watched(None, [scores])).step == 6
    train(small("steps=1", "watch.every=1"), feed(), tmp_path / "b", watched=Watched(None, [Falling(0.1, 0.2)]))
    assert not (tmp_path / "b" / BEST).exists()


# ---- registers afterwards


def test_only_what_is_named_is_trained(trained):
    """Registers, positions, patch embedding, the last block; other tensors get no gradient and no optimiser."""
    network = begin(tiny("post_hoc_registers", trained), True)[1]
    names = {name for name, p in network.backbone.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in names} == {"register_tokens", "pos_embed", "patch_embed", "blocks"}
    assert all(name.startswith("blocks.1.") for name in names if name.startswith("blocks"))
    assert network.backbone.config.num_register_tokens == 2 + 3
    freeze(network, resolve("small", []))
    assert not network.backbone.norm.weight.requires_grad


@torch.no_grad()
def artefacts(model: VisionTransformer, places: tuple[int, ...]) -> tuple[float, float]:
    """Mean norm after the last block at some places, and at all others, of images whose patches are random codes."""
    images = torch.stack([coded(seed) for seed in range(8)])
    *_, x = model.stream(images)
    norms = x[:, model.config.num_prefix_tokens :].norm(dim=-1)
    rest = [i for i in range(16) if i not in places]
    return norms[:, list(places)].mean().item(), norms[:, rest].mean().item()


def coded(seed: int) -> torch.Tensor:
    return planted_image((), codes=np.random.default_rng(seed).integers(0, 16, 16).tolist())[0]


@pytest.mark.slow
def test_artefacts_of_a_place_fade(tmp_path):
    """On the planted network, where two positions carry a vector three times a token's size: afterwards they are half as long."""
    places = (5, 10)
    config, weights = planted(locked=dict.fromkeys(places, 24.0))
    model = VisionTransformer(
        config.replace(ffn_dim=64)
    )  # files state the width as a whole ratio: idle neurons fill it up
    for name, tensor in weights.items():
        if ".mlp.fc1." in name:
            weights[name] = torch.cat([tensor, torch.zeros_like(tensor)])
        if name.endswith("mlp.fc2.weight"):
            weights[name] = torch.cat([tensor, torch.zeros_like(tensor)], dim=1)
    model.load_state_dict(weights)
    provenance = Provenance(name="planted", path=tmp_path, files=(tmp_path,), layout="official")
    save(Pretrained(model=model.eval(), transform=ImageTransform(), provenance=provenance), tmp_path / "model", "hf")
    images = torch.stack([coded(seed) for seed in range(32)])
    pixels = (images * 255).to(torch.uint8)
    recipe = resolve(
        "post_hoc_registers",
        [f"init={tmp_path / 'model'}", "add_registers=2", "steps=100", "batch_size=8", "precision=fp32", "watch.every=0",
         "schedule.lr=0.3", "min_lr=0.02", "warm_up=1", "momentum=0.5", "momentum_end=0.5", "shifts=6", "shift_share=0.5",
         "mirrored=false", "trained=register_tokens,pos_embed", "log_every=1", "save.every=999", "model.image_size=16,16",
         "model.patch_size=4", "augmentation.global_crops.size=16", "augmentation.local_crops.size=8",
         "augmentation.global_crops.scale=1,1", "augmentation.global_crops.ratio=1,1", "augmentation.mean=0,0,0",
         "augmentation.std=1,1,1"],
    )  # fmt: skip
    before, usual = artefacts(model, places)
    state = train(recipe, TensorFeed(pixels), tmp_path / "run")
    after, still = artefacts(state.teacher.backbone, places)
    losses = [r["loss"] for r in read_log(tmp_path / "run") if r["kind"] == "train"]
    assert before > 3 * usual
    assert after < before / 2, (before, after, usual, still, losses[0], losses[-1])
    assert still < 1.5 * usual
    assert np.mean(losses[-10:]) < losses[0]


# ---- the command line


def test_a_stage_from_the_command_line(tmp_path, capsys):
    """All settings can be looked at without a teacher; without one nothing begins."""
    arguments = [
        "train",
        "procedural:textures",
        "--out",
        str(tmp_path / "run"),
        "--recipe",
        "distill",
        "--device",
        "cpu",
    ]
    assert entry._run([*arguments, "--dry-run"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["distill"]["mode"] == "auto"
    assert shown["losses"]["patches"] == "all"
    settings = [o for setting in TINY for o in ("--set", setting)]
    assert entry._run([*arguments, *settings, "--steps", "1", "--workers", "0"]) == 2
    assert "--set distill.teacher=PATH" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_command_answers_with_the_best_where_the_guard_ends_a_run(trained, tmp_path, capsys, monkeypatch):
    """Exit code 0, the best network's path on stdout, the reason on stderr."""
    for label, colour in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(3):
            noise = np.random.default_rng(i).integers(-30, 30, (24, 24, 3))
            Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(tmp_path / "photos" / label / f"{i}.png")
    monkeypatch.setattr(KnnWatcher, "__call__", Falling(0.9, 0.2, 0.2).__call__)
    photos, out = str(tmp_path / "photos"), tmp_path / "run"
    settings = [*TINY, "batch_size=4", f"init={trained / 'model'}", "watch.stop=true", "watch.every=1", "heads.prototypes=12",
                "heads.patch_prototypes=10"]  # fmt: skip
    arguments = [
        "train",
        photos,
        "--labels",
        photos,
        "--out",
        str(out),
        "--recipe",
        "continued",
        "--device",
        "cpu",
        "--workers",
        "0",
    ]
    assert entry._run([*arguments, *(o for setting in settings for o in ("--set", setting))]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(out / BEST / "model")
    assert "ended after step 1: k-NN accuracy is 0.200, and was 0.900 at step 0" in captured.err

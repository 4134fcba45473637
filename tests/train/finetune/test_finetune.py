"""Runs on constructed data: they beat constants, resume to the bit, keep the best, and their files open."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import dinokit
from dinokit.errors import OutputError, WeightsError
from dinokit.model.dense import DepthRule, dense_spec
from dinokit.train.finetune import FinetuneRecipe, finetune_classifier, finetune_dense, read_log
from dinokit.train.finetune.examples import for_pixels
from dinokit.train.finetune.loop import finetune, groups_of, prepare
from dinokit.train.finetune.tasks import Classification, Classifier, iou_of
from dinokit.weights.heads import load_dense
from tests.train.finetune.made import SIZE, backbone, bar_masks, colours, depths

RECIPE = FinetuneRecipe(steps=40, batch_size=8, lr=1e-2, size=SIZE, judge_every=40, log_every=1, flip=0.0)
RANGE = DepthRule(nearest=0.2, farthest=2.5)


@pytest.mark.parametrize(
    ("kind", "registers", "mode"), [("linear", 0, "linear"), ("linear", 2, "full"), ("ms", 2, "lora")]
)
def test_segmentation_beats_the_constant(tmp_path, kind, registers, mode):
    """By far, with registers and without, in every mode; head and backbone come back from their files."""
    pre, (train, val) = backbone(registers), bar_masks()
    before = {name: tensor.clone() for name, tensor in pre.model.state_dict().items()}
    spec = dense_spec("segmentation", kind, 32, 2, 2)
    found, chosen = finetune_dense(pre, spec, train, val, tmp_path, replace(RECIPE, mode=mode))
    assert chosen.metrics["mIoU"] > 0.75  # a constant has at most a half
    assert all(torch.equal(tensor, before[name]) for name, tensor in pre.model.state_dict().items())
    again = load_dense(pre if mode == "linear" else tmp_path / "model", tmp_path / "head.safetensors")
    image = val[0][0]
    assert torch.equal(again.segment(image), found.segment(image))
    assert again.transform == found.transform


@pytest.mark.parametrize("bins", [1, 32])
def test_depth_beats_the_constant(tmp_path, bins):
    """By bins and by regression: the error is well below that of the mean depth."""
    train, val = depths()
    mean = torch.stack([depth for _, depth in train]).mean()
    constant = np.mean([(depth - mean).square().mean().sqrt() for _, depth in val])
    spec = dense_spec("depth", "linear", 32, 2, bins, RANGE)
    recipe = replace(RECIPE, gradient_weight=0.1, steps=100, judge_every=100)
    _, chosen = finetune_dense(backbone(), spec, train, val, tmp_path, recipe)
    assert chosen.metrics["rmse"] < 0.85 * constant


def test_dpt_learns(tmp_path):
    """A few steps on one scene lower its loss."""
    train, _ = depths()
    spec = dense_spec("depth", "dpt", 32, 2, rule=RANGE)
    recipe = replace(RECIPE, steps=6, batch_size=1, size=8, lr=1e-3, warm_up=0)
    finetune_dense(backbone(), spec, train[:1], [], tmp_path, recipe)
    losses = [record["loss"] for record in read_log(tmp_path)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("inputs", ["cls+mean", "4cls+mean"])
def test_a_classifier_opens_with_load(tmp_path, inputs):
    """With class names and the crop it was trained at, and the same logits; the wide head from its own file."""
    pre = backbone() if inputs == "cls+mean" else _deep()
    recipe = replace(RECIPE, steps=40, scale=(0.3, 1.0), label_smoothing=0.1, mixup=0.2)
    pairs = colours()
    found, chosen = finetune_classifier(
        pre, pairs[:12], pairs[12:], tmp_path, recipe, classes=["red", "green", "blue"], inputs=inputs
    )
    assert chosen.metrics == {"accuracy": 1.0}
    whole = inputs == "cls+mean"
    again = dinokit.load(tmp_path / "model", head=None if whole else tmp_path / "head.pth")
    if whole:
        assert again.labels == {0: "red", 1: "green", 2: "blue"}
    assert again.transform.crop == (SIZE, SIZE)
    image = pairs[0][0]
    assert torch.equal(again.logits(image), found.logits(image))


def _deep() -> dinokit.Pretrained:
    torch.manual_seed(0)
    pre = backbone()
    return replace(pre, model=dinokit.VisionTransformer(pre.config.replace(depth=4)).eval())


@pytest.mark.parametrize("mode", ["linear", "full", "lora"])
def test_interrupted_equals_uninterrupted(tmp_path, mode):
    """The network, its best step and the log, bit for bit, though the run stopped between two checkpoints."""
    recipe = replace(RECIPE, mode=mode, steps=9, judge_every=3, batch_size=4, scale=(0.3, 1.0), flip=0.5, mixup=0.4)

    def run(folder, **options):
        pre, pairs = backbone(), colours()
        torch.manual_seed(1)
        network = Classifier(pre.model, dinokit.LinearHead(32, 3))
        chosen = finetune(network, Classification(pre.transform), pairs[:12], pairs[12:], folder, recipe, **options)
        return network.state_dict(), chosen

    whole, best = run(tmp_path / "whole")
    run(tmp_path / "cut", until=4)
    torch.rand(5)
    resumed, again = run(tmp_path / "cut", resume=True, workers=1)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert best == again
    assert read_log(tmp_path / "cut") == read_log(tmp_path / "whole")


def test_the_best_is_kept_not_the_last(tmp_path):
    """A judge that likes the second look best gets the network of that look."""

    class Fickle(Classification):
        looks: list = []  # noqa: RUF012

        def judge(self, network, pairs, recipe):
            self.looks.append({name: tensor.clone() for name, tensor in network.head.state_dict().items()})
            return {"accuracy": (0.1, 0.9, 0.9, 0.3)[len(self.looks) - 1]}

    pre, pairs = backbone(), colours()
    network, task = Classifier(pre.model, dinokit.LinearHead(32, 3)), Fickle(pre.transform)
    chosen = finetune(network, task, pairs, pairs, tmp_path, replace(RECIPE, steps=8, judge_every=2, batch_size=4))
    assert (chosen.step, chosen.metrics) == (4, {"accuracy": 0.9})
    assert all(torch.equal(network.head.state_dict()[name], tensor) for name, tensor in task.looks[1].items())
    assert not torch.equal(network.head.linear.weight, task.looks[3]["linear.weight"])


def test_a_run_is_not_mixed_with_another(tmp_path):
    """Without resume the folder is refused; with it another recipe or a damaged checkpoint is."""
    pre, pairs, recipe = backbone(), colours(), replace(RECIPE, steps=2, judge_every=2)
    options = {"classes": ["a", "b", "c"]}
    finetune_classifier(pre, pairs, [], tmp_path, recipe, **options)
    with pytest.raises(OutputError, match="holds a run already"):
        finetune_classifier(pre, pairs, [], tmp_path, recipe, **options)
    with pytest.raises(WeightsError, match="another recipe, head or backbone"):
        finetune_classifier(pre, pairs, [], tmp_path, replace(recipe, lr=0.5), resume=True, **options)
    (tmp_path / "checkpoint.pth").write_bytes(b"broken")
    with pytest.raises(WeightsError, match="can't be read"):
        finetune_classifier(pre, pairs, [], tmp_path, recipe, resume=True, **options)


def test_rates_fall_towards_the_input_and_the_head_has_its_own():
    """Every learning parameter is in one group; biases and norms are not decayed."""
    pre = backbone()
    network, recipe = (
        Classifier(pre.model, dinokit.LinearHead(32, 3)),
        replace(RECIPE, mode="full", layerwise_decay=0.5),
    )
    prepare(network, recipe)
    groups = groups_of(network, recipe)
    found = {name: group for group in groups for name, _ in group["params"]}
    assert set(found) == {name for name, p in network.named_parameters() if p.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(found)
    assert found["head.linear.weight"]["is_last_layer"]
    assert [found[f"backbone.blocks.{i}.attn.qkv.weight"]["lr_multiplier"] for i in (0, 1)] == [0.25, 0.5]
    assert found["backbone.pos_embed"]["lr_multiplier"] == 0.125
    assert found["backbone.blocks.1.norm1.weight"]["wd_multiplier"] == found["head.linear.bias"]["wd_multiplier"] == 0.0
    assert found["backbone.blocks.1.attn.qkv.weight"]["wd_multiplier"] == 1.0


@pytest.mark.parametrize("scale", [(0.5, 0.5), (1.0, 1.0), (2.0, 2.0)])
def test_image_and_target_are_cut_and_mirrored_alike(scale):
    """An image whose grey is its target's number still is, wherever it is cut; padding is unknown."""
    pre = backbone()
    target = (torch.arange(40)[:, None] // 10 * 3 + torch.arange(60)[None] // 20) * 20
    image = target[:, :, None].expand(-1, -1, 3).numpy().astype(np.uint8)
    transform = replace(pre.transform, mean=(0.0,) * 3, std=(1.0,) * 3, rescale=1.0, resample="nearest")
    make = for_pixels(transform, replace(RECIPE, size=24, scale=scale, flip=0.5), 255, lambda _: None)
    seen = set()
    for visit in range(12):
        pixels, labels = make((image, target), visit)
        known = labels != 255
        assert pixels.shape == (3, 24, 24)
        assert torch.equal(pixels[0][known], labels[known].float())
        assert (pixels[0][~known] == 0).all()
        assert known.float().mean() == (1.0 if scale[0] >= 1 else 12 * 18 / 24**2)
        seen.add(tuple(labels.flatten().tolist()))
    assert len(seen) > 1


def test_iou_is_its_definition():
    """Classes that occur nowhere do not count."""
    found = iou_of(torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]]))
    assert found == {"mIoU": pytest.approx((3 / 6 + 4 / 7) / 2), "pixel_accuracy": pytest.approx(0.7)}


def test_misuse_is_named(tmp_path):
    """No images, one class, labels out of range, a form that does not learn, absurd settings."""
    pre, (train, val) = backbone(), bar_masks()
    with pytest.raises(ValueError, match="no image to learn from"):
        finetune_classifier(pre, [], [], tmp_path / "a", RECIPE, classes=["a", "b"])
    with pytest.raises(ValueError, match="needs two"):
        finetune_classifier(pre, colours(), [], tmp_path / "b", RECIPE, classes=["a"])
    wrong = [(image, mask + 5) for image, mask in train]
    with pytest.raises(ValueError, match="2 count from 0"):
        finetune_dense(pre, dense_spec("segmentation", "linear", 32, 2, 2), wrong, val, tmp_path / "c", RECIPE)
    with pytest.raises(ValueError, match="does not learn"):
        finetune_classifier(pre.optimize(), colours(), [], tmp_path / "d", RECIPE, classes=["a", "b", "c"])
    for wrong_setting in ({"mode": "half"}, {"steps": 0}, {"lr": 0.0}, {"flip": 2.0}):
        with pytest.raises(ValueError, match=next(iter(wrong_setting))):
            FinetuneRecipe(**wrong_setting)

"""Files of dense heads: Meta's layouts written out name by name, ours, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dinokit
from dinokit.config import ViTConfig
from dinokit.errors import OutputError, WeightsError
from dinokit.images import ImageTransform
from dinokit.model.dense import DepthRule, build_head, dense_spec
from dinokit.weights.heads import load_dense, load_dense_head, save_dense_head
from dinokit.weights.load import Provenance

D = 16
PLAIN = ViTConfig(embed_dim=D, depth=12, num_heads=2, ffn_dim=16, patch_size=7, image_size=(14, 14))
REGISTERS = replace(PLAIN, num_register_tokens=4)


def pretrained(config: ViTConfig) -> dinokit.Pretrained:
    torch.manual_seed(0)
    path = Path("none")
    return dinokit.Pretrained(
        model=dinokit.VisionTransformer(config).eval(), transform=ImageTransform.dinov2(),
        provenance=Provenance(name="tiny", path=path, files=(path,), layout="official"),
    )  # fmt: skip


def meta_segmentation(levels: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released linear (1) and ms (4) heads."""
    width = levels * D
    return {
        "conv_seg.weight": (classes, width, 1, 1), "conv_seg.bias": (classes,), "bn.weight": (width,), "bn.bias": (width,),
        "bn.running_mean": (width,), "bn.running_var": (width,), "bn.num_batches_tracked": (),
    }  # fmt: skip


def meta_linear_depth(levels: int) -> dict[str, tuple[int, ...]]:
    return {"conv_depth.weight": (256, 2 * D * levels, 1, 1), "conv_depth.bias": (256,)}


def meta_dpt() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released DPT depth heads."""
    found: dict[str, tuple[int, ...]] = {}
    widths = (D // 8, D // 4, D // 2, D)
    for i, width in enumerate(widths):
        found[f"reassemble_blocks.projects.{i}.conv.weight"] = (width, D, 1, 1)
        found[f"reassemble_blocks.projects.{i}.conv.bias"] = (width,)
        found[f"reassemble_blocks.readout_projects.{i}.0.weight"] = (D, 2 * D)
        found[f"reassemble_blocks.readout_projects.{i}.0.bias"] = (D,)
        found[f"convs.{i}.conv.weight"] = (256, width, 3, 3)
        found[f"fusion_blocks.{i}.project.conv.weight"] = (256, 256, 1, 1)
        found[f"fusion_blocks.{i}.project.conv.bias"] = (256,)
        for unit in (1, 2) if i else (2,):
            for conv in (1, 2):
                found[f"fusion_blocks.{i}.res_conv_unit{unit}.conv{conv}.conv.weight"] = (256, 256, 3, 3)
    for i, width, kernel in ((0, widths[0], 4), (1, widths[1], 2), (3, widths[3], 3)):
        found[f"reassemble_blocks.resize_layers.{i}.weight"] = (width, width, kernel, kernel)
        found[f"reassemble_blocks.resize_layers.{i}.bias"] = (width,)
    found |= {"project.conv.weight": (256, 256, 3, 3), "project.conv.bias": (256,)}
    for i, shape in ((0, (128, 256, 3, 3)), (2, (32, 128, 3, 3)), (4, (1, 32, 1, 1))):
        found |= {f"conv_depth.head.{i}.weight": shape, f"conv_depth.head.{i}.bias": shape[:1]}
    return found


def write(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"decode_head.{name}": torch.tensor(3) if not shape else torch.rand(shape, generator=generator)
        for name, shape in shapes.items()
    }
    torch.save({"meta": {"CLASSES": ["a"]}, "state_dict": tensors}, path)
    return path


LAYOUTS = {
    "ade20k_linear": (meta_segmentation(1, 150), "segmentation", "linear", (11,), 150),
    "voc2012_ms": (meta_segmentation(4, 21), "segmentation", "ms", (8, 9, 10, 11), 21),
    "nyu_linear": (meta_linear_depth(1), "depth", "linear", (11,), 256),
    "nyu_linear4": (meta_linear_depth(4), "depth", "ms", (2, 5, 8, 11), 256),
    "nyu_dpt": (meta_dpt(), "depth", "dpt", (2, 5, 8, 11), 1),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_files_in_the_released_layouts_load_whole(tmp_path, name):
    """Task, kind and blocks come from names and shapes; every tensor lands where its name says."""
    shapes, task, kind, blocks, outputs = LAYOUTS[name]
    path = write(tmp_path / "any.pth", shapes)
    head, _ = load_dense_head(path, PLAIN)
    assert (head.spec.task, head.spec.kind, head.spec.blocks, head.spec.num_outputs) == (task, kind, blocks, outputs)
    stored = torch.load(path, weights_only=True)["state_dict"]
    state = head.state_dict()
    assert {f"decode_head.{key}" for key in state} == set(stored)
    assert all(torch.equal(value, stored[f"decode_head.{key}"]) for key, value in state.items())


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_missing_left_over_or_misshapen_is_named(tmp_path, name):
    """A tensor fewer, one more, one of another shape."""
    shapes = LAYOUTS[name][0]
    gone = next(key for key in reversed(shapes) if key.endswith("bias"))
    fewer = {key: shape for key, shape in shapes.items() if key != gone}
    with pytest.raises(WeightsError, match=f"lacks decode_head.{gone}"):
        load_dense_head(write(tmp_path / "fewer.pth", fewer), PLAIN)
    with pytest.raises(WeightsError, match=r"left over decode_head\.extra"):
        load_dense_head(write(tmp_path / "more.pth", {**shapes, "extra": (1,)}), PLAIN)
    with pytest.raises(WeightsError, match=f"decode_head.{gone} is \\(77,\\)"):
        load_dense_head(write(tmp_path / "shape.pth", {**shapes, gone: (77,)}), PLAIN)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_head_of_another_backbone_is_refused(tmp_path, name):
    """Its width differs from the network's."""
    path = write(tmp_path / "any.pth", LAYOUTS[name][0])
    with pytest.raises(WeightsError, match="belongs to the backbone"):
        load_dense_head(path, replace(PLAIN, embed_dim=24))


def test_a_file_that_is_no_dense_head_says_what_it_holds(tmp_path):
    """A classifier, for example."""
    torch.save({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, tmp_path / "c.pth")
    with pytest.raises(WeightsError, match="no dense head: it holds bias, weight"):
        load_dense_head(tmp_path / "c.pth", PLAIN)


@pytest.mark.parametrize("config", [PLAIN, REGISTERS], ids=["plain", "registers"])
def test_any_backbone_of_the_width_takes_the_same_file(tmp_path, config):
    """Answers have the image's size; depth keeps to its range."""
    pre, image = pretrained(config), np.random.default_rng(0).integers(0, 256, (30, 45, 3), np.uint8)
    dense = load_dense(pre, write(tmp_path / "s.pth", meta_segmentation(4, 21)), size=21)
    assert dense.segment(image).shape == (30, 45)
    depth = load_dense(pre, write(tmp_path / "d.pth", meta_linear_depth(1)), size=21, rule=DepthRule(farthest=80.0))
    found = depth.depth(image)
    assert found.shape == (30, 45)
    assert 0.001 <= found.min() <= found.max() <= 80
    with pytest.raises(ValueError, match="use depth"):
        depth.segment(image)
    with pytest.raises(ValueError, match="use segment"):
        dense.depth(image)


@pytest.mark.parametrize(("task", "kind"), [("segmentation", "ms"), ("segmentation", "dpt"), ("depth", "linear")])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_is_saved_comes_back(tmp_path, task, kind, suffix):
    """In our file with its range, labels and size; in Meta's the tensors alone."""
    rule = DepthRule(nearest=0.5, farthest=7.0, spacing="log")
    head = build_head(dense_spec(task, kind, D, 12, 4, rule)).eval()
    path = save_dense_head(head, tmp_path / f"h{suffix}", labels={0: "sky"}, size=42)
    ours = suffix == ".safetensors"
    found = load_dense(pretrained(REGISTERS), path, rule=None if ours else rule)
    assert found.spec == head.spec
    assert all(
        torch.equal(a, b)
        for a, b in zip(head.state_dict().values(), found.model.head.state_dict().values(), strict=True)
    )
    assert found.labels == ({0: "sky"} if ours else None)
    assert found.transform.resize.size == (42 if ours else 518)
    with pytest.raises(OutputError, match="exists already"):
        save_dense_head(head, path)


def test_our_file_for_a_deeper_network_is_refused(tmp_path):
    """It reads a block that is not there."""
    path = save_dense_head(build_head(dense_spec("depth", "linear", D, 24)), tmp_path / "h.safetensors")
    with pytest.raises(WeightsError, match="reads; this one is 16 wide and has blocks 0 to 11"):
        load_dense_head(path, PLAIN)


def test_released_heads_go_by_name_with_plain_backbones_only():
    """Of a backbone without a published name, and under an unknown name, it says what to do."""
    with pytest.raises(ValueError, match="plain backbones alone"):
        load_dense(pretrained(PLAIN), "nyu_dpt")
    with pytest.raises(ValueError, match="neither a file nor a released head: ade20k_linear"):
        load_dense(pretrained(PLAIN), "nyu_m2f")

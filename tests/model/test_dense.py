"""Dense heads: their formulas by brute force, shapes at any size, and that registers never reach them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dinokit.config import ViTConfig
from dinokit.model import VisionTransformer
from dinokit.model.dense import DenseModel, DenseSpec, DepthRule, build_head, dense_spec
from dinokit.tokens import Tokens
from tests.tolerances import CLOSED_FORM, max_error

D = 16


def network(registers: int = 0, depth: int = 4) -> VisionTransformer:
    torch.manual_seed(3)
    config = ViTConfig(
        embed_dim=D,
        depth=depth,
        num_heads=2,
        ffn_dim=32,
        patch_size=7,
        image_size=(14, 14),
        num_register_tokens=registers,
    )
    return VisionTransformer(config).eval()


def tokens(count: int, grid=(2, 3), registers: int = 0, seed: int = 0) -> list[Tokens]:
    generator = torch.Generator().manual_seed(seed)
    length = 1 + registers + grid[0] * grid[1]
    return [Tokens(torch.randn(2, length, D, generator=generator), registers, grid) for _ in range(count)]


def with_registers(plain: Tokens, count: int, value: float) -> Tokens:
    filled = torch.full((plain.sequence.shape[0], count, D), value)
    sequence = torch.cat([plain.sequence[:, :1], filled, plain.sequence[:, 1:]], dim=1)
    return Tokens(sequence, count, plain.grid)


def randomised(spec: DenseSpec) -> torch.nn.Module:
    """A head none of whose parameters or statistics is at its neutral value."""
    torch.manual_seed(5)
    head = build_head(spec).eval()
    for tensor in head.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.3 * torch.randn(tensor.shape) if tensor.ndim > 1 else torch.rand(tensor.shape) + 0.5)
    return head


@pytest.mark.parametrize("kind", ["linear", "ms"])
def test_linear_segmentation_is_batch_norm_and_a_matrix(kind):
    """Each patch on its own, its levels side by side, in float64."""
    spec = dense_spec("segmentation", kind, D, 4, 5)
    head, levels = randomised(spec), tokens(len(spec.blocks))
    found = head(levels)
    s = {name: tensor.double().numpy() for name, tensor in head.state_dict().items()}
    x = torch.cat([level.patches for level in levels], dim=-1).double().numpy()
    x = (x - s["bn.running_mean"]) / np.sqrt(s["bn.running_var"] + 1e-5) * s["bn.weight"] + s["bn.bias"]
    expected = x @ s["conv_seg.weight"][:, :, 0, 0].T + s["conv_seg.bias"]
    assert max_error(found.flatten(2).transpose(1, 2), torch.from_numpy(expected)) < CLOSED_FORM


@pytest.mark.parametrize("kind", ["linear", "ms"])
def test_linear_depth_equals_the_released_order_of_operations(kind):
    """Patch and class token of each level enlarged four times, side by side, then the matrix, then bins by ReLU + 0.1."""
    spec = dense_spec("depth", kind, D, 4, rule=DepthRule(farthest=80.0))
    head, levels = randomised(spec), tokens(len(spec.blocks))
    large = [
        F.interpolate(
            torch.cat([level.patch_map, level.cls[:, :, None, None].expand_as(level.patch_map)], dim=1),
            scale_factor=4, mode="bilinear", align_corners=False,
        )
        for level in levels
    ]  # fmt: skip
    weight, bias = head.conv_depth.weight[:, :, 0, 0].double(), head.conv_depth.bias.double()
    scores = torch.einsum("oc,bchw->bohw", weight, torch.cat(large, dim=1).double()) + bias[:, None, None]
    shares = scores.clamp_min(0) + 0.1
    bins = torch.from_numpy(np.linspace(0.001, 80, 256))
    expected = (shares * bins[:, None, None]).sum(1) / shares.sum(1)
    assert head(levels).shape == (2, 1, 8, 12)
    assert max_error(head(levels)[:, 0] / 80, expected / 80) < CLOSED_FORM


def test_bins_and_their_weights_follow_their_names():
    """Ends are the range; "log" has equal ratios; softmax of equal scores is the mean; one output is its ReLU above the nearest."""
    uniform, log = DepthRule(nearest=1.0, farthest=16.0), DepthRule(nearest=1.0, farthest=16.0, spacing="log")
    assert uniform.bins(4).tolist() == [1.0, 6.0, 11.0, 16.0]
    assert torch.allclose(log.bins(5), torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]))
    zeros = torch.zeros(1, 4, 1, 1)
    assert DepthRule(nearest=1.0, farthest=16.0, weighting="softmax")(zeros).item() == pytest.approx(8.5)
    peaked = torch.tensor([0.0, 50.0, 0.0, 0.0])[None, :, None, None]
    assert DepthRule(nearest=1.0, farthest=16.0, weighting="softmax")(peaked).item() == pytest.approx(6.0)
    assert uniform(torch.tensor([-2.0, 3.0]).view(2, 1, 1, 1)).flatten().tolist() == [1.0, 4.0]


def dpt_by_hand(head, levels) -> torch.Tensor:
    """The fused map, written out a second time from the paper and the released names."""
    s, maps = {name: tensor.double() for name, tensor in head.state_dict().items()}, []
    for i, level in enumerate(levels):
        both = torch.cat([level.patches, level.cls[:, None].repeat(1, level.patches.shape[1], 1)], -1).double()
        name = f"reassemble_blocks.readout_projects.{i}.0"
        x = F.gelu(both @ s[f"{name}.weight"].T + s[f"{name}.bias"]).mT.reshape(len(both), D, *level.grid)
        name = f"reassemble_blocks.projects.{i}.conv"
        x = F.conv2d(x, s[f"{name}.weight"], s[f"{name}.bias"])
        name = f"reassemble_blocks.resize_layers.{i}"
        if i in (0, 1):
            x = F.conv_transpose2d(x, s[f"{name}.weight"], s[f"{name}.bias"], stride=(4, 2)[i])
        if i == 3:
            x = F.conv2d(x, s[f"{name}.weight"], s[f"{name}.bias"], stride=2, padding=1)
        maps.append(F.conv2d(x, s[f"convs.{i}.conv.weight"], padding=1))

    def residual(x, name):
        y = F.conv2d(x.clamp_min(0), s[f"{name}.conv1.conv.weight"], padding=1)
        return F.conv2d(y.clamp_min(0), s[f"{name}.conv2.conv.weight"], padding=1) + x

    out = None
    for i, x in enumerate(reversed(maps)):
        name = f"fusion_blocks.{i}"
        if out is not None:
            x = F.interpolate(x, out.shape[2:], mode="bilinear", align_corners=False)
            x = out + residual(x, f"{name}.res_conv_unit1")
        x = residual(x, f"{name}.res_conv_unit2")
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        out = F.conv2d(x, s[f"{name}.project.conv.weight"], s[f"{name}.project.conv.bias"])
    return F.conv2d(out, s["project.conv.weight"], s["project.conv.bias"], padding=1).clamp_min(0)


@pytest.mark.parametrize("grid", [(2, 2), (1, 3)])
@torch.no_grad()
def test_dpt_equals_its_definition_on_even_and_odd_grids(grid):
    """The fused map and the depth above it, in float64."""
    spec = dense_spec("depth", "dpt", D, 4)
    torch.manual_seed(0)
    head, levels = build_head(spec).eval(), tokens(4, grid)
    fused = dpt_by_hand(head, levels)
    e = {name: tensor.double() for name, tensor in head.conv_depth.head.state_dict().items()}
    x = F.conv2d(fused, e["0.weight"], e["0.bias"], padding=1)
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    x = F.conv2d(F.conv2d(x, e["2.weight"], e["2.bias"], padding=1).clamp_min(0), e["4.weight"], e["4.bias"])
    assert max_error(head(levels), x.clamp_min(0) + 0.001) < CLOSED_FORM


CASES = [
    ("segmentation", "linear"),
    ("segmentation", "ms"),
    ("segmentation", "dpt"),
    ("depth", "linear"),
    ("depth", "ms"),
    ("depth", "dpt"),
]


@pytest.mark.parametrize(("task", "kind"), CASES)
@torch.no_grad()
def test_registers_never_reach_a_head(task, kind):
    """Tokens with registers of any value give the same numbers, to the last bit."""
    spec = dense_spec(task, kind, D, 4, 3)
    head, plain = randomised(spec), tokens(len(spec.blocks), (1, 2))
    expected = head(plain)
    for value in (0.0, 1e6, float("nan")):
        assert torch.equal(head([with_registers(level, 4, value) for level in plain]), expected)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize(("task", "kind"), CASES)
@torch.no_grad()
def test_every_pixel_gets_an_answer_whatever_the_size(task, kind, registers):
    """Odd sizes, sides that are no multiple of the patch, with registers and without."""
    model = DenseModel(network(registers), build_head(dense_spec(task, kind, D, 4, 3))).eval()
    for size in ((14, 7), (9, 17)):
        found = model(torch.randn(1, 3, *size))
        assert found.shape == (1, 3 if task == "segmentation" else 1, *size)
        assert torch.isfinite(found).all()


@torch.no_grad()
def test_padding_goes_around_and_is_cut_off_again():
    """An image that fits is not touched; one that does not equals its padded self, cut."""
    model = DenseModel(network(), randomised(dense_spec("segmentation", "linear", D, 4, 3))).eval()
    image = torch.randn(1, 3, 12, 14)
    padded = F.pad(image, (0, 0, 1, 1))
    assert torch.equal(model(image), model(padded)[:, :, 1:13])


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, (2, 5, 8, 11)), (24, (4, 11, 17, 23)), (40, (9, 19, 29, 39)), (2, (0, 0, 0, 1))]
)
def test_depth_heads_read_the_published_blocks_quirk(depth, blocks):
    """24 blocks are not divided evenly; networks of fewer than four are read twice in places."""
    assert dense_spec("depth", "dpt", D, depth).blocks == blocks
    assert dense_spec("depth", "ms", D, depth).blocks == blocks


def test_blocks_are_read_in_the_heads_order_normed_as_it_says():
    """Segmentation after the final norm, depth before it."""
    model = network()
    image = torch.randn(1, 3, 14, 14)
    for task, normed in (("segmentation", True), ("depth", False)):
        spec = dense_spec(task, "ms", D, 4, 3)
        states = list(model.stream(image))
        expected = [model.norm(states[i + 1]) if normed else states[i + 1] for i in spec.blocks]
        found = DenseModel(model, build_head(spec)).levels(image)
        assert all(torch.equal(a.sequence, b) for a, b in zip(found, expected, strict=True))


def test_what_can_not_be_is_refused():
    """With what to do."""
    with pytest.raises(ValueError, match="number of classes"):
        dense_spec("segmentation", "linear", D, 4)
    with pytest.raises(ValueError, match="made for it"):
        DenseModel(network(depth=2), build_head(dense_spec("segmentation", "linear", D, 4, 3)))
    with pytest.raises(ValueError, match="nearest must be above 0"):
        DepthRule(nearest=0.0)
    with pytest.raises(ValueError, match="multiple of it"):
        build_head(dense_spec("depth", "dpt", 20, 4))
    with pytest.raises(ValueError, match="no description"):
        DenseSpec.from_dict({"task": "depth"})
    spec = dense_spec("depth", "ms", D, 4)
    assert DenseSpec.from_dict(spec.to_dict()) == spec

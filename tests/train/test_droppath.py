"""Stochastic depth on subsets: the reference's sums and gradients, how many are kept, and who."""

from __future__ import annotations

import pytest
import torch

from dinokit.config import ViTConfig
from dinokit.model import VisionTransformer
from dinokit.model.layers import Block
from dinokit.train.counter import Stream
from dinokit.train.droppath import BlockSubsets, add_on_subset, block_on_subset, draw_subsets, num_kept, run_blocks
from tests.train.golden import DTYPES, assert_equal, leaves

STREAM = Stream(0, "drop path")
CONFIG = ViTConfig(embed_dim=16, depth=3, num_heads=2, ffn_dim=32, num_register_tokens=2, image_size=(28, 28))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["subset_0", "subset_1", "subset_2", "subset_3"])
def test_a_subset_is_added_as_in_the_reference(recorded, case, dtype):
    """Result and gradients of both paths; the branch sees the kept samples only."""
    data = recorded("drop_path", dtype)
    x, branch = leaves(data[f"{case}/x"], data[f"{case}/branch"])
    kept = num_kept(data.number(f"{case}/ratio"), len(x))
    assert kept == int(data.number(f"{case}/kept"))
    subset = data[f"{case}/permutation"][:kept]
    seen = []
    y = add_on_subset(x, lambda rows: seen.append(rows) or branch[subset], subset)
    assert torch.equal(seen[0], x[subset])
    (y * data[f"{case}/cotangent"]).sum().backward()
    assert_equal(y, data[f"{case}/y"])
    assert_equal(x.grad, data[f"{case}/grad_x"])
    assert_equal(branch.grad, data[f"{case}/grad_branch"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_on_subsets_is_the_references(recorded, dtype):
    """Two groups of crops with permutations of their own, in training; all samples in evaluation."""
    data = recorded("drop_path", dtype)
    prefix = "block/weights/"
    block = Block(ViTConfig(embed_dim=16, depth=1, num_heads=int(data.number("block/num_heads")), ffn_dim=64), 0.0)
    block.load_state_dict({name: data[prefix + name] for name in data.names(prefix)})
    block = block.to(dtype)
    total = torch.zeros((), dtype=dtype)
    for group in "01":
        (x,) = leaves(data[f"block/x{group}"])
        kept = num_kept(data.number("block/ratio"), len(x))
        chosen = BlockSubsets(*(data[f"block/permutation_{branch}{group}"][:kept] for branch in ("attn", "mlp")))
        y = block_on_subset(block, x, chosen)
        assert_equal(y, data[f"block/y{group}"])
        assert_equal(block(x), data[f"block/y{group}_eval"])
        part = (y * data[f"block/cotangent{group}"]).sum()
        assert_equal(torch.autograd.grad(part, x, retain_graph=True)[0], data[f"block/grad_x{group}"])
        total = total + part
    total.backward()
    assert_equal(block.ls1.gamma.grad, data["block/grad_ls1_gamma"])
    assert_equal(block.ls2.gamma.grad, data["block/grad_ls2_gamma"])
    assert_equal(block.attn.qkv.weight.grad, data["block/grad_qkv_weight"])


def test_the_number_kept_is_the_references(recorded):
    """The whole part in double precision, at least one: 1, not 2, of 10 at 0.8."""
    data = recorded("drop_path")
    for i, rate in enumerate(data["kept/ratios"].tolist()):
        for j, batch in enumerate(data["kept/batch_sizes"].tolist()):
            assert num_kept(rate, batch) == data["kept/counts"][i, j], (rate, batch)
    assert num_kept(0.8, 10) == 1


def test_subsets_depend_on_seed_step_and_samples_only():
    """Drawn twice the same; other steps, seeds, blocks and branches choose others; the same rows by id in another order."""
    ids, rates = torch.arange(100, 164), (0.3, 0.0, 0.6)

    def members(stream: Stream, step: int, samples: torch.Tensor) -> list[set[int]]:
        drawn = draw_subsets(stream, step, samples, rates)
        assert drawn[1] is None
        return [set(samples[rows].tolist()) for entry in drawn if entry for rows in entry]

    first = members(STREAM, 7, ids)
    assert [len(rows) for rows in first] == [44, 44, 25, 25]
    assert first == members(STREAM, 7, ids) == members(STREAM, 7, ids.flip(0))
    assert len({frozenset(rows) for rows in first}) == 4
    assert first != members(STREAM, 8, ids)
    assert first != members(Stream(1, "drop path"), 7, ids)
    assert draw_subsets(STREAM, 0, ids, (0.0, 0.0)) == [None, None]


def test_every_sample_is_kept_equally_often():
    """Over 400 steps within five standard errors of the rate."""
    ids = torch.arange(20)
    counts = torch.zeros(20)
    for step in range(400):
        for rows in draw_subsets(STREAM, step, ids, (0.4,))[0]:
            counts[rows] += 1
    share = counts / 800
    assert (share - 0.6).abs().max() < 5 * (0.6 * 0.4 / 800) ** 0.5


def test_chosen_among_few_two_processes_choose_as_one():
    """With `together` a divisor of both halves, the halves' subsets are the whole's."""
    ids = torch.arange(24)
    whole = draw_subsets(STREAM, 3, ids, (0.3, 0.5), together=4)
    halves = [draw_subsets(STREAM, 3, half, (0.3, 0.5), together=4) for half in (ids[:12], ids[12:])]
    for index in range(2):
        for branch in range(2):
            joined = torch.cat([halves[0][index][branch], halves[1][index][branch] + 12])
            assert torch.equal(joined, whole[index][branch])
    with pytest.raises(ValueError, match="together is 5, for a batch of 24"):
        draw_subsets(STREAM, 0, ids, (0.3,), together=5)


def test_groups_of_crops_run_as_if_alone_and_checkpointing_changes_nothing():
    """Two lengths through all blocks equal the network's own blocks; with subsets, recomputed gradients are the same."""
    model = VisionTransformer(CONFIG)
    images = [torch.randn(3, 3, 28, 28), torch.randn(5, 3, 14, 14)]
    nothing = [[None] * 3] * 2
    for image, x in zip(images, run_blocks(model, [model.embed(i) for i in images], nothing), strict=True):
        assert torch.equal(model.norm(x), model(image).sequence)
    subsets = [draw_subsets(STREAM, 0, torch.arange(len(i)), (0.5, 0.0, 0.2)) for i in images]
    gradients = []
    for enabled in (False, True):
        model.set_gradient_checkpointing(enabled)
        model.zero_grad()
        sum(x.square().sum() for x in run_blocks(model, [model.embed(i) for i in images], subsets)).backward()
        gradients.append([p.grad.clone() for p in model.blocks.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))

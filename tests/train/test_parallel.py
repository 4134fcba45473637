"""One process and two, copied and spread: the same training."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from dinokit.train.network import Network, crop_subsets
from dinokit.train.optim import GroupRule, adamw, parameter_groups
from dinokit.train.parallel import World, join, place, reshard
from dinokit.train.run import build_network
from tests.train.small_run import feed, run, small, two_processes, values

SAME = 1e-5  # of weights that moved by 5e-4; other orders of summation
SAME_MOMENTS = 1e-3  # of the largest
# Keys' biases have no effect, so that their gradients are nothing but rounding; Adam takes steps of the same length all the same.
WANDERS = "attn.qkv.bias"
PARTS = ("accumulate=2", "drop_path_group=2", "losses.koleo=0", "losses.koleo_end=none")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """One process alone; two by DDP and by FSDP2; two that continue what one began, and the other way round."""
    folder = tmp_path_factory.mktemp("parallel")
    run(folder / "alone")
    run(folder / "parts", *PARTS)
    run(folder / "whole", *PARTS[1:])
    run(folder / "bf16", "precision=bf16")
    run(folder / "all_layers", "drop_path=0")
    for name in ("one_then_two", "one_then_two_fsdp"):
        shutil.copytree(folder / "alone", folder / name)
        for step in ("4", "6"):
            shutil.rmtree(folder / name / f"checkpoints/step-00000000{step}")
    jobs = [
        ("ddp", "ddp", False, ()),
        ("fsdp", "fsdp", False, ()),
        ("fsdp_recomputed", "fsdp", False, ("activation_checkpointing=true",)),
        ("fsdp_all_layers", "fsdp", False, ("drop_path=0",)),
        ("parts_of_two", "ddp", False, PARTS),
        ("parts_of_two_fsdp", "fsdp", False, PARTS),
        ("one_then_two", "ddp", True, ()),
        ("one_then_two_fsdp", "fsdp", True, ()),
    ]
    two_processes(folder / "store", [(str(folder / name), *rest) for name, *rest in jobs])
    for kind in ("ddp", "fsdp"):
        name = f"two_{kind}_then_one"
        shutil.copytree(folder / kind, folder / name)
        for step in ("4", "6"):
            shutil.rmtree(folder / name / f"checkpoints/step-00000000{step}")
        run(folder / name, resume=True)
    return folder


def assert_alike(a: Path, b: Path, step: int = 6, *, koleo: bool = True) -> None:
    first, second = values(a, step), values(b, step)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if WANDERS in name or not tensor.numel():
            continue
        error, largest = (tensor - second[name]).abs().max(), tensor.abs().max()
        assert error <= (SAME_MOMENTS * largest if name.startswith("optimizers.") else SAME), name
    for one, two in zip(*(trained(f) for f in (a, b)), strict=True):
        for name, value in one.items():
            if name.startswith("koleo_") and not koleo:
                continue
            assert two[name] == pytest.approx(value, rel=1e-4, abs=SAME), (one["step"], name)


def trained(folder: Path) -> list[dict]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "kind"} for r in records if r["kind"] == "train"]


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "fsdp_recomputed"])
def test_two_processes_train_as_one(runs, kind):
    """Weights, optimiser, teacher, and every number of the log, with masks, stochastic depth and KoLeo over both."""
    assert_alike(runs / "alone", runs / kind)


def test_whole_blocks_train_alike_too(runs):
    """Without stochastic depth a block runs by its own `forward`, which reaches its parts by other ways."""
    assert_alike(runs / "all_layers", runs / "fsdp_all_layers")


@pytest.mark.parametrize("name", ["one_then_two", "one_then_two_fsdp", "two_ddp_then_one", "two_fsdp_then_one"])
def test_a_checkpoint_continues_in_another_number_of_processes(runs, name):
    """From step 2 on, copied and spread."""
    assert_alike(runs / "alone", runs / name)


@pytest.mark.parametrize("name", ["parts", "parts_of_two", "parts_of_two_fsdp"])
def test_a_batch_in_parts_trains_as_a_whole_one(runs, name):
    """Targets and masks are those of the batch; without KoLeo, which compares the images of a part, nothing differs."""
    assert_alike(runs / "whole", runs / name, koleo=False)


def test_half_precision_is_close_and_another(runs):
    """bf16 by autocast: weights stay in single precision, losses near those of fp32."""
    one, two = trained(runs / "alone"), trained(runs / "bf16")
    assert one[0]["loss"] != two[0]["loss"]
    assert one[0]["loss"] == pytest.approx(two[0]["loss"], rel=0.02)
    assert all(t.dtype != torch.bfloat16 for t in values(runs / "bf16", 6).values())
    assert all(math.isfinite(record["loss"]) for record in two)


@pytest.mark.parametrize("rate", ["0", "0.5"])
def test_a_spread_network_is_gathered_block_by_block(group_of_one, rate):
    """While a block runs, its own parameters are whole and those of blocks and heads before and behind it are not."""
    recipe = small(f"drop_path={rate}", "drop_path_group=none", "model.depth=3")
    placed = place(build_network(recipe), optimizers, group_of_one, "fsdp")
    seen = watch_gathering(placed.state.student)
    batch = next(feed()(recipe, group_of_one, 0))
    subsets = crop_subsets(0, 0, batch, (recipe.drop_path,) * 3)
    outputs = placed(batch, subsets)
    assert [(own, others) for _, own, others in seen] == [(True, 0)] * len(seen)
    assert [unit for unit, *_ in seen] == ["0", "0", "1", "1", "2", "2", "dino_head", "ibot_head"]  # two sizes of crops
    outputs.class_tokens.sum().backward()
    placed.state.teacher.teach(batch)
    reshard(placed.state.teacher)
    for network in (placed.state.student, placed.state.teacher):
        assert all(isinstance(p, DTensor) for p in network.parameters())


def optimizers(network: Network) -> list[torch.optim.Optimizer]:
    return [adamw(parameter_groups(network, GroupRule()))]


def watch_gathering(network: Network) -> list[tuple[str, bool, int]]:
    """Filled whenever a unit begins: its name, whether it is whole, and how many other units are."""
    units: dict[str, nn.Module] = {
        **dict(network.backbone.blocks.named_children()), "dino_head": network.dino_head, "ibot_head": network.ibot_head,
    }  # fmt: skip
    seen = []

    def whole(unit: nn.Module) -> bool:
        return not any(isinstance(p, DTensor) for p in unit.parameters())

    for name, unit in units.items():
        first = unit.norm1 if name.isdigit() else unit.mlp[0]

        def look(*_, name=name, unit=unit):
            others = [other for other in units.values() if other is not unit]
            seen.append((name, whole(unit), sum(whole(other) for other in others)))

        first.register_forward_pre_hook(look)
    return seen


@pytest.fixture
def torchrun(monkeypatch) -> None:
    """Its variables, for one process."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


@pytest.fixture
def group_of_one(torchrun) -> Iterator[World]:
    with join("cpu") as world:
        yield world


def test_one_process_alone_needs_no_group(monkeypatch):
    """Without torchrun's variables there is one process, and none of the group's functions is called."""
    monkeypatch.delenv("RANK", raising=False)
    with join("cpu") as world:
        assert world == World(0, 1, torch.device("cpu"))
        world.barrier()
        assert world.mean(torch.tensor(2.0)) == 2
        assert world.same("x") == "x"


def test_torchruns_variables_make_a_group(torchrun):
    """A group of one, ended with the block."""
    with join("cpu") as world:
        assert dist.is_initialized()
        assert (world.rank, world.size, world.first) == (0, 1, True)
        assert world.same([1]) == [1]
    assert not dist.is_initialized()
    assert os.environ["RANK"] == "0"

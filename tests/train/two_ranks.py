"""What each of two processes does in `test_two_ranks`; results go to a file."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dinokit.train.losses import koleo
from dinokit.train.masking import BlockRule, Masks, draw_masks
from dinokit.train.network import Batch, crop_subsets
from dinokit.train.schedules import Rates
from dinokit.train.state import TrainState
from dinokit.train.step import Objective, losses, update
from dinokit.train.targets import mean_of_rows, next_center, sinkhorn
from tests.train.golden import Recorded, leaves

B, NUM_LOCAL, STEPS = 6, 2, 3
RATES = Rates(1e-3, 1e-3, 0.04, 0.9, 0.06)


def training(state: TrainState, rank: int | None) -> list[float]:
    """Some steps on the whole batch, or on one rank's half of it; the losses of the whole batch."""
    own = slice(None) if rank is None else slice(rank * B // 2, (rank + 1) * B // 2)
    group = None if rank is None else dist.group.WORLD
    student = state.student if rank is None else DistributedDataParallel(state.student)
    history = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        crops = [
            torch.randn(n, B, 3, size, size, generator=generator, dtype=torch.float64)[:, own].flatten(0, 1)
            for n, size in ((2, 16), (NUM_LOCAL, 8))
        ]
        samples = torch.arange(B) + B * step
        masks = Masks.of(draw_masks(0, step, samples.numpy(), (4, 4), BlockRule(8), own=own), torch.float64)
        batch = Batch(*crops, masks, samples[own])
        subsets = crop_subsets(0, step, batch, state.student.backbone.config.drop_path, together=3)
        found = losses(student, state.teacher, state.centers, batch, 0.06, Objective(), subsets, group)
        total = found.total.detach().clone()
        if group is not None:
            dist.all_reduce(total)
            total /= 2
        history.append(total.item())
        update(state, found, RATES)
    return history


def work(rank: int, folder: str, fixtures: str) -> None:
    """One process."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    world = dist.group.WORLD
    results = {}
    for dtype in (torch.float32, torch.float64):
        data = Recorded(Path(fixtures) / "two_ranks.npz", dtype)
        for kind in ("cls", "patch"):
            logits = data[f"{kind}_logits_rank{rank}"]
            zero = torch.zeros(logits.shape[1], dtype=dtype)
            results[f"{kind}_probs_sinkhorn_rank{rank}", dtype] = sinkhorn(logits, data.number("temp"), group=world)
            results[f"{kind}_center_after", dtype] = next_center(zero, logits, world)
            results[f"{kind}_mean_of_rows", dtype] = mean_of_rows(logits, zero, world)
            results[f"{kind}_one_empty", dtype] = sinkhorn(
                logits[: len(logits) * rank], data.number("temp"), group=world
            )
        (x,) = leaves(torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=dtype)[rank])
        loss = koleo(x, neighbours=2, group=world)
        loss.backward()
        results["koleo", dtype] = loss.detach()
        results["koleo_grad", dtype] = x.grad
    state: TrainState = torch.load(f"{folder}/state.pt", weights_only=False)
    results["history"] = training(state, rank)
    results["state"] = {name: copy.deepcopy(getattr(state, name).state_dict()) for name in ("student", "teacher")}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()

"""One process or many: who this process is, and a state spread or copied over all of them.

Promise: the loop and the model know nothing of it; DDP and FSDP2 train alike, up to rounding.
Source: torchrun's environment; Li et al. 2020 (DDP); Zhao et al. 2023 and torch.distributed.fsdp.fully_shard (FSDP2).
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dinokit.train.droppath import Subsets
from dinokit.train.network import Batch, Network, StudentOutputs
from dinokit.train.state import TrainState

Spread = Literal["ddp", "fsdp"]
Optimizers = Callable[[Network], Iterable[torch.optim.Optimizer]]


@dataclass(frozen=True)
class World:
    """This process among all. `group` is None for one process alone."""

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all."""
        if self.group is not None:
            dist.barrier(self.group)

    def mean(self, x: Tensor) -> Tensor:
        """The mean over all processes."""
        if self.group is None:
            return x
        x = x.clone()
        dist.all_reduce(x, group=self.group)
        return x / self.size

    def same(self, value: Any) -> Any:
        """The first process's value, everywhere."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]


@contextmanager
def join(device: torch.device | str = "cpu") -> Iterator[World]:
    """The world that torchrun (or whoever set its variables) describes; one process alone without it.

    A group that exists already is used, and left alone afterwards.
    """
    place = torch.device(device)
    started = False
    if "RANK" in os.environ and not dist.is_initialized():
        if place.type == "cuda":
            place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(place)
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        started = True
    try:
        if dist.is_initialized():
            yield World(dist.get_rank(), dist.get_world_size(), place, dist.group.WORLD)
        else:
            yield World(0, 1, place)
    finally:
        if started:
            dist.destroy_process_group()


@dataclass(frozen=True)
class Placed:
    """A state on its device, with what calls its student: the student itself, or what wraps it."""

    state: TrainState
    student: nn.Module

    def __call__(self, batch: Batch, subsets: tuple[Subsets, Subsets] | None = None) -> StudentOutputs:
        """The student's pass."""
        with warnings.catch_warnings():
            # scores are views of one tensor, and nothing changes them in place
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
            return self.student(batch, subsets)  # type: ignore[no-any-return]

    def without_sync(self) -> AbstractContextManager[None]:
        """Inside, backward adds gradients up without exchanging them; for all parts of a batch but the last."""
        if isinstance(self.student, DistributedDataParallel):
            return self.student.no_sync()
        if isinstance(self.student, FSDPModule):
            return _fsdp_without_sync(self.student)
        return nullcontext()


@contextlib.contextmanager
def _fsdp_without_sync(student: FSDPModule) -> Iterator[None]:
    student.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        student.set_requires_gradient_sync(True)


def place(network: Network, optimizers: Optimizers, world: World, spread: Spread = "ddp") -> Placed:
    """A new state: copied to every process ("ddp"), or parameters, gradients and optimiser spread over them ("fsdp").

    Every process must come with the same `network`.
    """
    network.to(world.device)
    if world.group is None:
        state = TrainState.new(network, optimizers)
        return Placed(state, state.student)
    if spread == "fsdp":
        # the optimiser is made of the spread parameters; the teacher is copied before
        state = TrainState.new(network, lambda student: optimizers(_shard(student, world)))
        _shard(state.teacher, world)
        return Placed(state, state.student)
    state = TrainState.new(network, optimizers)
    ids = [world.device.index] if world.device.type == "cuda" else None
    wrapped = DistributedDataParallel(
        state.student, device_ids=ids, process_group=world.group, gradient_as_bucket_view=True
    )
    return Placed(state, wrapped)


def _shard(network: Network, world: World) -> Network:
    """FSDP2, a unit a block, a unit a head, and one for the rest: spread at rest, each gathered while it runs.

    A unit's hooks are at the modules that hold its parameters, not at the block or head: stochastic depth and the losses call parts of
    these, past the hooks of the whole.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))  # explicit, or a machine with GPUs would take them
    heads = [head for head in (network.dino_head, network.ibot_head) if head is not None]
    for unit in (*network.backbone.blocks, *heads):
        fully_shard(_holders(unit), mesh=mesh)
    fully_shard(network, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(network, "teach")
    return network


def _holders(unit: nn.Module) -> list[nn.Module]:
    """The modules below with parameters of their own; whoever runs the unit calls each of them."""
    return [module for module in unit.modules() if next(module.parameters(recurse=False), None) is not None]


def reshard(network: nn.Module) -> None:
    """Let go of gathered parameters, after passes without a backward one."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(x: Tensor) -> Tensor:
    """A tensor that may be spread over processes, whole; all processes must ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def plain(network: Network, blank: Callable[[], Network]) -> Network:
    """`network` itself if it is not spread, else a whole one with its values; all processes must ask.

    `blank` makes one of the same shape, with any values.
    """
    if not isinstance(network, FSDPModule):
        return network
    state = {name: whole(tensor.detach()) for name, tensor in network.state_dict().items()}
    found = blank()
    found.load_state_dict(state, assign=True)
    return found.eval().requires_grad_(False)

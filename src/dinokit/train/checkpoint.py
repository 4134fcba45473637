"""Checkpoints of a run: folders that appear whole or not at all, readable by any number of processes.

Promise: a process killed at any moment leaves the last checkpoint as it was; a state saved by n processes continues in m of them, and
in n bit for bit. Source: torch.distributed.checkpoint.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from dinokit._version import __version__
from dinokit.atomic import sync_folder, write_atomically, write_json
from dinokit.errors import StorageError, WeightsError
from dinokit.train.parallel import World
from dinokit.train.state import TrainState

LATEST, ABOUT = "latest", "about.json"
NAME = re.compile(r"^step-(\d{9})$")


def save(state: TrainState, folder: Path, world: World) -> Path:
    """Write the state as `folder`/step-N, then point `folder`/latest to it.

    All processes take part; the folder must be one that all of them see.

    Raises:
        StorageError: the disk refuses. What was there before is as it was.
    """
    target = folder / f"step-{state.step:09d}"
    part = folder / f".{target.name}.tmp"
    if world.first:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
    world.barrier()
    try:
        with _alone_or_not():
            state_dict_saver.save(tensors(state), storage_writer=FileSystemWriter(part), no_dist=world.group is None)
    except CheckpointException as error:
        raise StorageError(f"{target} can't be written: {error}. Earlier checkpoints are as they were.") from error
    if world.first:
        write_json(part / ABOUT, {"step": state.step, "processes": world.size, "writer": f"dinokit {__version__}"})
        sync_folder(part)
        if target.exists():  # of a run that was continued from an earlier step
            _remove(target)
        part.rename(target)
        sync_folder(folder)
        write_atomically(folder / LATEST, lambda file: file.write(f"{target.name}\n".encode()))
    world.barrier()
    return target


def load(state: TrainState, checkpoint: Path, world: World) -> None:
    """Put a saved state into one of the same networks and optimisers, however either is spread.

    Raises:
        WeightsError: the checkpoint is damaged, or of other networks or optimisers.
    """
    reader = FileSystemReader(checkpoint)
    try:
        metadata = reader.read_metadata().state_dict_metadata
    except (OSError, EOFError, ValueError, AttributeError) as error:
        raise WeightsError(f"{checkpoint} can't be read as a checkpoint: {error}. Use an earlier one.") from error
    saved = {name: about for name, about in metadata.items() if isinstance(about, TensorStorageMetadata)}
    wanted = _to_fill(state, saved)
    _check(saved, wanted, checkpoint)
    with _alone_or_not():
        state_dict_loader.load(wanted, storage_reader=reader, no_dist=world.group is None)
    with torch.no_grad():
        for i, optimizer in enumerate(state.optimizers):
            _fill_optimizer(optimizer, f"optimizers.{i}.", wanted)
    for name in state.centers:
        state.centers[name] = wanted[f"centers.{name}"]
    state.step = int(wanted["step"])


def tensors(state: TrainState) -> dict[str, Tensor]:
    """All of a state as tensors under flat names; parameters are named as in the network, and so is what optimisers keep of them."""
    found: dict[str, Tensor] = {"step": torch.tensor(state.step)}
    for kind, network in (("student", state.student), ("teacher", state.teacher)):
        found |= {f"{kind}.{name}": tensor for name, tensor in network.state_dict().items()}
    found |= {f"centers.{name}": center for name, center in state.centers.items()}
    for i, optimizer in enumerate(state.optimizers):
        for name, parameter in _named(optimizer):
            kept = optimizer.state.get(parameter, {})
            found |= {f"optimizers.{i}.{name}.{key}": value for key, value in kept.items()}
    return found


def _named(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)


def _to_fill(state: TrainState, saved: dict[str, TensorStorageMetadata]) -> dict[str, Tensor]:
    """The tensors to read into: those of the networks, new ones for what optimisers keep, as the checkpoint has it."""
    wanted = {name: tensor for name, tensor in tensors(state).items() if not name.startswith("optimizers.")}
    wanted |= {f"centers.{name}": torch.empty_like(center) for name, center in state.centers.items()}
    for i, optimizer in enumerate(state.optimizers):
        parameters = dict(_named(optimizer))
        prefix = f"optimizers.{i}."
        for name, about in saved.items():
            if name.startswith(prefix):
                of, _, _ = name.removeprefix(prefix).rpartition(".")
                if of in parameters:
                    wanted[name] = _blank(parameters[of], about)
    return wanted


def _blank(parameter: Tensor, about: TensorStorageMetadata) -> Tensor:
    """Like the parameter, spread as it is; or a number beside it, such as the count of steps."""
    if about.size == parameter.shape:
        return torch.zeros_like(parameter, dtype=about.properties.dtype, requires_grad=False)
    return torch.zeros(about.size, dtype=about.properties.dtype, device=parameter.device)


def _fill_optimizer(optimizer: torch.optim.Optimizer, prefix: str, wanted: dict[str, Tensor]) -> None:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in wanted.items():
        if name.startswith(prefix):
            of, _, key = name.removeprefix(prefix).rpartition(".")
            found.setdefault(of, {})[key] = tensor
    optimizer.state.clear()
    for name, parameter in _named(optimizer):
        if name in found:
            optimizer.state[parameter] = found[name]


def _check(saved: dict[str, TensorStorageMetadata], wanted: dict[str, Tensor], checkpoint: Path) -> None:
    odd = sorted(saved.keys() ^ wanted.keys())
    if odd:
        where = "the checkpoint has no" if odd[0] in wanted else "this run has no"
        raise WeightsError(
            f"{checkpoint}: {where} {odd[0]} ({len(odd)} differ); continue with the recipe it was made with."
        )
    for name, tensor in wanted.items():
        if tuple(saved[name].size) != tuple(tensor.shape):
            raise WeightsError(
                f"{checkpoint}: {name} is {tuple(saved[name].size)}, here {tuple(tensor.shape)}; continue with the recipe it was "
                f"made with."
            )


def latest(folder: Path) -> Path | None:
    """The checkpoint to continue from: what `latest` points to, or the newest whole one; None without any."""
    pointer = folder / LATEST
    if pointer.is_file():
        target = folder / pointer.read_text().strip()
        if (target / ABOUT).is_file():
            return target
    found = complete(folder)
    return found[max(found)] if found else None


def complete(folder: Path) -> dict[int, Path]:
    """All whole checkpoints, by step."""
    if not folder.is_dir():
        return {}
    found = {int(match[1]): path for path in folder.iterdir() if (match := NAME.match(path.name))}
    return {step: path for step, path in sorted(found.items()) if (path / ABOUT).is_file()}


def prune(folder: Path, keep: int, keep_every: int) -> None:
    """Remove all but the last `keep` checkpoints and those of every `keep_every` steps (0: none)."""
    found = complete(folder)
    for step in list(found)[: -max(keep, 1)]:
        if not keep_every or step % keep_every:
            _remove(found[step])


def _remove(checkpoint: Path) -> None:
    """By another name first, so that a half removed one is none."""
    gone = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(checkpoint, gone)
    shutil.rmtree(gone)


@contextmanager
def _alone_or_not() -> Iterator[None]:
    """PyTorch warns where there is no process group, which for one process is how it should be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield


def about(checkpoint: Path) -> dict[str, Any]:
    """What stands beside a checkpoint: step, number of processes, writer."""
    import json

    content: dict[str, Any] = json.loads((checkpoint / ABOUT).read_text())
    return content

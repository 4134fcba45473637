"""The loop of fine-tuning, the same for all tasks.

Promise: interrupted equals uninterrupted, bit for bit on a CPU; the best network by validation is kept, and files appear whole or not
at all.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinokit.errors import OutputError, WeightsError
from dinokit.train.counter import Stream
from dinokit.train.finetune.examples import Pair, batches
from dinokit.train.finetune.lora import add_lora, merge_lora
from dinokit.train.finetune.recipe import FinetuneRecipe
from dinokit.train.finetune.tasks import TaskOf, Trained
from dinokit.train.log import JsonLines, Record
from dinokit.train.optim import GroupRule, adamw, clip_gradients, parameter_groups, set_rates
from dinokit.train.settings import to_json
from dinokit.weights import files

CHECKPOINT, BEST, LOG = "checkpoint.pth", "best.pth", "log.jsonl"
# what torch.load raises on bytes that are no pickle, or half of one
DAMAGE = (OSError, EOFError, RuntimeError, pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError)
UNDECAYED = r"bias$|norm|gamma|(^|\.)bn\."


@dataclass
class Chosen:
    """The best so far; `step` 0: none was judged."""

    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


def finetune(
    network: Trained,
    task: TaskOf,
    train: Sequence[Pair],
    val: Sequence[Pair],
    folder: str | Path,
    recipe: FinetuneRecipe,
    *,
    resume: bool = False,
    workers: int = 2,
    progress: bool = False,
    until: int | None = None,
) -> Chosen:
    """Train `network` in place on its device, and leave it as it was best on `val` (without one: as it was last).

    `folder` gets `log.jsonl`, `checkpoint.pth` and `best.pth`. `until` stops early, as an interruption would.

    Raises:
        OutputError: there is a run in the folder already, and `resume` was not asked for.
        WeightsError: the checkpoint is damaged, or of another recipe or backbone.
        ImageError: an image can't be read.
        ValueError: no images, targets that don't fit, or a loss that is no number any more.
    """
    if not train:
        raise ValueError("there is no image to learn from.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    prepare(network, recipe)
    optimizer = adamw(groups_of(network, recipe))
    identity, begun, best = _identity(network, recipe), 0, Chosen()
    if (folder / CHECKPOINT).exists():
        if not resume:
            raise OutputError(f"{folder} holds a run already; go on with it (resume), or choose another folder.")
        begun, best = _load(folder / CHECKPOINT, network, optimizer, identity)
    device = next(network.parameters()).device
    made = batches(train, task.example(recipe), recipe, begun, workers)
    last = min(recipe.steps, until or recipe.steps)
    with closing(JsonLines(folder / LOG, begun)) as log:
        for step, batch in _watched(begun, last, made, progress):
            _train_mode(network, recipe)
            set_rates([optimizer], recipe.rates(step))
            with _seeded(recipe, step), torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                loss = task.loss(network, (batch[0].to(device), batch[1].to(device)), step, recipe)
            loss.backward()
            if not math.isfinite(value := loss.item()):
                raise ValueError(
                    f"the loss is {value} at step {step}; lower lr (now {recipe.lr}), or look at the targets."
                )
            clip_gradients(network, recipe.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done = step + 1
            if done % recipe.log_every == 0 or done == recipe.steps:
                log.add({"kind": "train", "step": done, "loss": value, "lr": recipe.rates(step).last_layer_lr})
            if done % recipe.judge_every == 0 or done == recipe.steps:
                if val:
                    best = _judged(network, task, val, recipe, done, best, folder, log)
                log.sync()
                _save(folder / CHECKPOINT, network, optimizer, identity, done, best)
    return _chosen(network, folder, best) if last == recipe.steps else best


def _judged(
    network: Trained, task: TaskOf, val: Sequence[Pair], recipe: FinetuneRecipe, done: int, best: Chosen,
    folder: Path, log: JsonLines,
) -> Chosen:  # fmt: skip
    """The better of the best so far and the network as it is, which is written if it is that."""
    network.eval()
    with torch.no_grad():
        metrics = task.judge(network, val, recipe)
    log.add({"kind": "judged", "step": done, **metrics})
    sign = 1 if task.up else -1
    if best.step and sign * metrics[task.best] <= sign * best.metrics[task.best]:
        return best
    files.write_pickle(folder / BEST, {"network": learned(network)})
    return Chosen(done, metrics)


def _chosen(network: Trained, folder: Path, best: Chosen) -> Chosen:
    """At the end of a run: the best network, without additions, in evaluation mode."""
    if best.step:
        fill(network, _read(folder / BEST)["network"])
    merge_lora(network)
    network.requires_grad_(True).eval()
    return best


def prepare(network: Trained, recipe: FinetuneRecipe) -> None:
    """What learns and what does not, by mode; additions are drawn from the recipe's seed."""
    network.head.requires_grad_(True)
    network.backbone.requires_grad_(recipe.mode == "full")
    if recipe.mode == "full":
        network.backbone.mask_token.requires_grad_(False)  # has no part here
    if recipe.mode == "lora":
        with _seeded(recipe, -1):
            add_lora(network.backbone, recipe.lora_rank, recipe.lora_alpha, recipe.lora_targets)


def groups_of(network: Trained, recipe: FinetuneRecipe) -> list[dict[str, Any]]:
    """Optimiser groups: the head's at its own rate, the backbone's falling towards the input."""
    backbone = GroupRule(recipe.layerwise_decay, 1.0, undecayed=UNDECAYED)
    head = GroupRule(1.0, 1.0, undecayed=UNDECAYED, last_layer="")
    return [
        *parameter_groups(nn.ModuleDict({"head": network.head}), head),
        *parameter_groups(nn.ModuleDict({"backbone": network.backbone}), backbone),
    ]


def learned(network: Trained) -> dict[str, Tensor]:
    """Parameters that learn, and the head's statistics, by name."""
    found = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    found |= {name: buffer for name, buffer in network.named_buffers() if name.startswith("head.")}
    return {name: tensor.cpu().clone() for name, tensor in found.items()}


@torch.no_grad()
def fill(network: Trained, tensors: dict[str, Tensor]) -> None:
    """The reverse of `learned`."""
    own = dict(network.named_parameters()) | dict(network.named_buffers())
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def read_log(folder: str | Path) -> list[Record]:
    """What a run wrote: losses ("train") and judgements ("judged"), by step."""
    from dinokit.train import log

    return log.read_log(Path(folder) / LOG)


def _save(
    path: Path, network: Trained, optimizer: torch.optim.Optimizer, identity: str, step: int, best: Chosen
) -> None:
    content = {"step": step, "identity": identity, "best": {"step": best.step, "metrics": best.metrics}}
    files.write_pickle(path, content | {"network": learned(network), "optimizer": optimizer.state_dict()})


def _load(path: Path, network: Trained, optimizer: torch.optim.Optimizer, identity: str) -> tuple[int, Chosen]:
    content = _read(path)
    if content.get("identity") != identity:
        raise WeightsError(
            f"{path} was made with another recipe, head or backbone; go on with those it was made with, or choose another folder."
        )
    fill(network, content["network"])
    optimizer.load_state_dict(content["optimizer"])
    return content["step"], Chosen(**content["best"])


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except DAMAGE as error:
        raise WeightsError(f"{path} can't be read ({error}); delete it and begin again.") from error
    return content


def _identity(network: Trained, recipe: FinetuneRecipe) -> str:
    """A sum over the recipe, the names of what learns, and all that does not learn, by which a checkpoint knows its run."""
    digest = hashlib.blake2b(json.dumps(to_json(recipe), sort_keys=True).encode(), digest_size=16)
    for name, parameter in sorted(network.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        if not parameter.requires_grad:
            digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _train_mode(network: Trained, recipe: FinetuneRecipe) -> None:
    network.train()
    if recipe.mode == "linear":
        network.backbone.eval()


@contextmanager
def _seeded(recipe: FinetuneRecipe, step: int) -> Iterator[None]:
    """PyTorch's generator as a function of the step, for dropout and the like; what it was before comes back."""
    low, high = Stream(recipe.seed, f"finetune/{step}").key
    with torch.random.fork_rng():
        torch.manual_seed(low | (high & 0x7FFFFFFF) << 32)
        yield


def _watched(begun: int, last: int, made: Iterator[Any], progress: bool) -> Iterator[tuple[int, Any]]:
    from tqdm import tqdm

    steps = range(begun, last)
    bar: Callable[[Any], Any] = lambda x: tqdm(x, desc="fine-tuning", unit="step", disable=None)  # noqa: E731
    return zip(bar(steps) if progress else steps, made, strict=False)

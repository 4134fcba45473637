"""A training step beside the plain arithmetic and lightly's losses: time in turns, losses that agree, peak memory.

python benchmarks/training_peers.py [--batch 4] [--prototypes 65536] [--rounds 5] [--lightly FOLDER] [--parts head step] [--json FILE]

`plain` is the objective written down from its formulas (docs/objective.md), eagerly: a pass a crop, every logit kept, Sinkhorn-Knopp on
exp(logits), log-softmax and a product for each pair of crops, masks drawn one by one in Python. `lightly` is the package's DINOLoss,
IBOTPatchLoss and KoLeoLoss on passes of equal crops together; they centre their targets, so our step with centring is beside them.
FOLDER is an unpacked wheel (`pip download lightly --no-deps`, `unzip`); nothing but these three losses is imported from it.
Seconds are the process's own, of one thread, which other work on the machine does not change much. CPU and Linux only.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import multiprocessing
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import common
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinokit.config import VARIANTS, ViTConfig
from dinokit.train.crossentropy import Projection
from dinokit.train.data import Augmentation
from dinokit.train.masking import Masks, draw_masks, half_of
from dinokit.train.network import Batch, Network, StudentOutputs, TeacherOutputs
from dinokit.train.optim import GroupRule, adamw, clip_gradients, parameter_groups
from dinokit.train.recipe import Heads, ScheduleSettings, TrainingRecipe
from dinokit.train.run import build_network
from dinokit.train.schedules import Rates
from dinokit.train.state import TrainState
from dinokit.train.step import Objective, advance, aim, learn
from dinokit.train.targets import by_centring, by_sinkhorn

STUDENT_T, TEACHER_T, KOLEO = 0.1, 0.04, 0.1
RATES = Rates(1e-4, 1e-4, 0.04, 0.994, TEACHER_T)
AGREE = 1e-4  # relative, of losses of some units in single precision
LIGHTLY = ("lightly", "lightly.loss", "lightly.models", "lightly.models.modules")


def lightly_losses(folder: str) -> tuple[type, type, type]:
    """The three losses alone: their packages' own imports ask for torchvision, which none of the three uses."""
    for name in LIGHTLY:
        module = ModuleType(name)
        module.__path__ = [str(Path(folder, *name.split(".")))]
        sys.modules[name] = module
    import lightly.models.modules.center as center

    sys.modules["lightly.models.modules"].center = center
    from lightly.loss.dino_loss import DINOLoss
    from lightly.loss.ibot_loss import IBOTPatchLoss
    from lightly.loss.koleo_loss import KoLeoLoss

    return DINOLoss, IBOTPatchLoss, KoLeoLoss


class Plain:
    """The formulas, one after the other."""

    def targets(self, logits: Tensor) -> Tensor:
        q = torch.exp(logits.float() / TEACHER_T).T
        rows, columns = q.shape
        q = q / q.sum()
        for _ in range(3):
            q = q / q.sum(dim=1, keepdim=True) / rows
            q = q / q.sum(dim=0, keepdim=True) / columns
        return (q * columns).T

    def __call__(self, teacher: TeacherOutputs, student: list[Tensor], patches: Tensor, cls: Tensor, masks: Masks):
        targets = self.targets(teacher.class_logits).chunk(2)
        patch_targets = self.targets(teacher.patch_logits)
        dino, pairs = torch.zeros(()), 0
        for s, logits in enumerate(student):
            for t, target in enumerate(targets):
                if s != t:
                    dino = dino - (target * F.log_softmax(logits / STUDENT_T, dim=-1)).sum(dim=-1).mean()
                    pairs += 1
        at_patches = -(patch_targets * F.log_softmax(patches / STUDENT_T, dim=-1)).sum(dim=-1)
        ibot = (at_patches * masks.weights).sum() / len(masks.masks)
        koleo = sum(self.koleo(x) for x in cls.chunk(2))
        return dino / pairs + ibot + KOLEO * koleo

    def koleo(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=-1)
        similarity = (x @ x.T).fill_diagonal_(-2)
        return -(F.pairwise_distance(x, x[similarity.argmax(dim=1)], eps=1e-8) + 1e-8).log().mean()


class Lightly:
    """lightly's three losses."""

    def __init__(self, folder: str, prototypes: int) -> None:
        dino, ibot, koleo = lightly_losses(folder)
        shared = {"output_dim": prototypes, "teacher_temp": TEACHER_T, "student_temp": STUDENT_T}
        self.dino, self.ibot, self.koleo = dino(warmup_teacher_temp=TEACHER_T, **shared), ibot(**shared), koleo()

    def __call__(self, teacher: TeacherOutputs, student: list[Tensor], patches: Tensor, cls: Tensor, masks: Masks):
        side = math.isqrt(masks.masks.shape[1])
        dino = self.dino(list(teacher.class_logits.chunk(2)), student)
        ibot = self.ibot(teacher.patch_logits, patches, masks.masks.unflatten(1, (side, side)))
        return dino + ibot + KOLEO * sum(self.koleo(x) for x in cls.chunk(2))


def eager_losses(network: Network, teacher: TeacherOutputs, tokens: list[Tensor], patches: Tensor, masks: Masks, rule):
    """Class tokens crop by crop, and masked patches, through the head to the loss."""
    student = [network.dino_head(x) for x in tokens]
    return rule(teacher, student, network.patch_head(patches), torch.cat(tokens[:2]), masks)


def eager_passes(network: Network, crops: list[Tensor], masks: list[Tensor | None]) -> list[Tensor]:
    """Normed sequences, one list entry after the other."""
    found = []
    for x, mask in zip(crops, masks, strict=True):
        sequence = network.backbone.embed(x, mask)
        for index in range(network.backbone.config.depth):
            sequence = network.backbone.run_block(index, sequence)
        found.append(network.backbone.norm(sequence))
    return found


class Subject:
    """One way to train, with a state of its own that begins as all others'."""

    def __init__(self, name: str, network: Network, batch: Batch, lightly: str) -> None:
        rule = GroupRule(1.0)
        self.name, self.batch = name, batch
        self.state = TrainState.new(copy.deepcopy(network), lambda n: [adamw(parameter_groups(n, rule))])
        centring = name in ("ours, centring", "lightly")
        self.objective = Objective(targets=by_centring if centring else by_sinkhorn)
        prototypes = network.dino_head.num_prototypes
        self.eager = {"plain": Plain, "lightly": lambda: Lightly(lightly, prototypes)}.get(name, lambda: None)()
        generator = torch.Generator().manual_seed(1)
        count = len(batch.global_crops) + len(batch.local_crops) + len(batch.masks.indices)
        self.tokens = torch.randn(count, network.backbone.config.embed_dim, generator=generator)

    def head(self) -> float:
        """From tokens to the loss and gradients of tokens and heads; what both sides do behind the backbone."""
        state, batch = self.state, self.batch
        sizes = [len(batch.global_crops), len(batch.local_crops), len(batch.masks.indices)]
        tokens = self.tokens.clone().requires_grad_()
        class_tokens, _, patches = tokens.split(sizes)
        with torch.no_grad():
            told = state.teacher.dino_head(torch.cat([class_tokens, patches]) * 0.9)
            teacher = TeacherOutputs(*told.split([sizes[0], sizes[2]]))
        if self.eager is None:
            features, prototypes = state.student.dino_head.project(tokens)
            outputs = StudentOutputs(class_tokens, *(Projection(part, prototypes) for part in features.split(sizes)))
            taught = aim(teacher, state.centers, TEACHER_T, self.objective)
            loss = learn(lambda *_: outputs, batch, taught, self.objective).total
        else:
            crops = list(tokens[: sizes[0] + sizes[1]].split(len(batch.samples)))
            loss = eager_losses(state.student, teacher, crops, patches, batch.masks, self.eager)
        loss.backward()
        state.student.zero_grad(set_to_none=True)
        return loss.item()

    def step(self) -> float:
        """A whole step: teacher, targets, student, losses, backward, clipping, AdamW, the teacher's movement."""
        state, batch = self.state, self.batch
        if self.eager is None:
            taught = aim(state.teacher.teach(batch), state.centers, TEACHER_T, self.objective)
            found = learn(state.student, batch, taught, self.objective)
            loss, centers = found.total, taught.centers
        else:
            loss, centers = self.eager_loss(), state.centers
        loss.backward()
        clip_gradients(state.student)
        advance(state, centers, RATES)
        return loss.item()

    def eager_loss(self) -> Tensor:
        batch, network, b = self.batch, self.state.student, len(self.batch.samples)
        prefix, chosen = network.backbone.config.num_prefix_tokens, batch.masks.indices
        split = b if self.name == "plain" else 2 * b
        crops, masks = list(batch.global_crops.split(split)), list(batch.masks.masks.split(split))
        local = list(batch.local_crops.split(b if self.name == "plain" else len(batch.local_crops)))
        with torch.no_grad():
            seen = torch.cat(eager_passes(self.state.teacher, crops, [None] * len(crops)))
            head = self.state.teacher.dino_head
            teacher = TeacherOutputs(head(seen[:, 0]), head(seen[:, prefix:].flatten(0, 1)[chosen]))
        found = eager_passes(network, [*crops, *local], [*masks, *(None for _ in local)])
        patches = torch.cat(found[: len(crops)])[:, prefix:].flatten(0, 1)[chosen]
        tokens = list(torch.cat([x[:, 0] for x in found]).split(b))
        return eager_losses(network, teacher, tokens, patches, batch.masks, self.eager)


def loop_masks(count: int, grid: tuple[int, int], rng: random.Random) -> np.ndarray:
    """Block masks by definition: half of the crops, 10 to 50 %, a rectangle at a time."""
    masks = np.zeros((count, *grid), bool)
    for i in range(count // 2):
        low = 0.1 + 0.4 * i / (count // 2)
        target, limit = int(rng.uniform(low, low + 0.8 / count) * grid[0] * grid[1]), grid[0] * grid[1] // 2
        left, tries = target, 0
        while left > 0 and tries < 10:
            area = rng.uniform(4, max(4, min(left, limit)))
            aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            tries += 1
            if 0 < h < grid[0] and 0 < w < grid[1]:
                top, beside = rng.randint(0, grid[0] - h), rng.randint(0, grid[1] - w)
                block = masks[i, top : top + h, beside : beside + w]
                gain = block.size - block.sum()
                if 0 < gain <= left:
                    block[:] = True
                    left, tries = left - gain, 0
    rng.shuffle(order := list(range(count)))
    return masks[order]


def make(options: argparse.Namespace) -> tuple[Network, Batch]:
    """ViT-S/16 with registers, heads as in the short recipe, and a batch of noise."""
    vit = ViTConfig(
        embed_dim=32, depth=2, num_heads=2, ffn_dim=64, patch_size=16, image_size=(64, 64), num_register_tokens=4
    )
    large, small, local, head = 64, 32, 4, Heads(prototypes=options.prototypes, hidden_dim=64, bottleneck_dim=16)
    if not options.tiny:
        vit = VARIANTS["vits14_reg"].replace(patch_size=16, image_size=(224, 224))
        large, small, local, head = 224, 96, 8, Heads(prototypes=options.prototypes)
    recipe = TrainingRecipe(
        model=vit, heads=head, steps=1, batch_size=options.batch, schedule=ScheduleSettings(lr=1e-3, warm_up=1),
        augmentation=Augmentation.dinov2(local_size=96), precision="fp32",
    )  # fmt: skip
    generator, samples, side = torch.Generator().manual_seed(0), torch.arange(options.batch), large // 16
    crops = [
        torch.randn(n * options.batch, 3, size, size, generator=generator) for n, size in ((2, large), (local, small))
    ]
    masks = draw_masks(0, 0, samples.numpy(), (side, side), half_of(large, 16))
    return build_network(recipe), Batch(*crops, Masks.of(masks), samples)


def timed(work: Callable[[], float]) -> tuple[float, float]:
    """CPU seconds, and what came of it."""
    gc.collect()
    begun = time.process_time()
    found = work()
    return time.process_time() - begun, found


def peak(name: str, part: str, options: argparse.Namespace, answer) -> None:
    """In a process of its own: by how many MiB the first time raises the most memory that was in use."""
    torch.set_num_threads(1)
    subject = Subject(name, *make(options), options.lightly)
    before = most_memory()
    getattr(subject, part)()
    answer.put(most_memory() - before)


def most_memory() -> float:
    """MiB that this process had at most. Not `ru_maxrss`, which a child inherits from whoever started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def memory(name: str, part: str, options: argparse.Namespace) -> float:
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    process = context.Process(target=peak, args=(name, part, options, answer))
    process.start()
    process.join()
    return answer.get()


def compare(part: str, subjects: list[Subject], options: argparse.Namespace) -> dict[str, object]:
    """In turns, the order turning by one each round; the first round only warms up, and its losses are compared."""
    losses = {s.name: timed(getattr(s, part))[1] for s in subjects}
    seconds: dict[str, list[float]] = {s.name: [] for s in subjects}
    for i in range(options.rounds):
        for s in subjects[i % len(subjects) :] + subjects[: i % len(subjects)]:
            seconds[s.name].append(timed(getattr(s, part))[0])
    found = {}
    for s in subjects:
        own = "ours, centring" if s.name == "lightly" else "ours"
        ratios = [theirs / ours for theirs, ours in zip(seconds[s.name], seconds[own], strict=True)]
        difference = abs(losses[s.name] - losses[own]) / abs(losses[own])
        if s.name != "ours, centring" and difference > AGREE:
            raise SystemExit(f"{part}: {s.name} has loss {losses[s.name]}, {own} {losses[own]}: not the same objective")
        found[s.name] = {
            "beside": own, "loss": losses[s.name], "cpu_seconds": statistics.median(seconds[s.name]),
            "ratio": statistics.median(ratios), "ratios": sorted(ratios), "peak_mib": memory(s.name, part, options),
        }  # fmt: skip
        print(part, s.name, {k: v for k, v in found[s.name].items() if k != "ratios"}, file=sys.stderr, flush=True)
    return found


def masks_part(options: argparse.Namespace, crops: int = 256) -> dict[str, object]:
    """Masks of a batch of 128 images: all at once, and one by one."""
    rng, side = random.Random(0), 14
    ours, loop = [], []
    for step in range(options.rounds + 1):
        samples = np.arange(crops // 2)
        begun = time.process_time()
        draw_masks(0, step, samples, (side, side), half_of(224, 16))
        middle = time.process_time()
        loop_masks(crops, (side, side), rng)
        ours.append(middle - begun)
        loop.append(time.process_time() - middle)
    ratios = sorted(b / a for a, b in zip(ours[1:], loop[1:], strict=True))
    milliseconds = {"ours": 1000 * statistics.median(ours[1:]), "loop": 1000 * statistics.median(loop[1:])}
    return {"crops": crops, "milliseconds": milliseconds, "ratio": statistics.median(ratios), "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--prototypes", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=["head", "step"], default=["head", "step"])
    parser.add_argument("--lightly", default="", help="folder of the unpacked wheel; without, its losses are left out")
    parser.add_argument("--tiny", action="store_true", help="a network of two narrow blocks, to see that it runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = ["ours", "plain", *(["ours, centring", "lightly"] if options.lightly else [])]
    found: dict[str, object] = {"masks": masks_part(options)}
    for part in options.parts:
        network, batch = make(options)
        found[part] = compare(part, [Subject(name, network, batch, options.lightly) for name in names], options)
    about = {"batch": options.batch, "prototypes": options.prototypes, "rounds": options.rounds, "threads": 1}
    print(json.dumps(found, indent=1))
    common.write_result(options.json, "training_peers", about, **found)


if __name__ == "__main__":
    main()

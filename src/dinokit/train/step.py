"""One training step: losses of a batch, and what follows from their gradient.

Promise: no random numbers, no output; everything that changes is in `TrainState`, and changes in `update` only.
Source: Oquab et al. 2023, section 4; dinov2/train/ssl_meta_arch.py and train.py. Formulas: docs/objective.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from dinokit.train.distill import FeatureLoss, Features, feature_terms
from dinokit.train.droppath import Subsets
from dinokit.train.gram import gram_loss
from dinokit.train.losses import STUDENT_TEMPERATURE, dino_loss, ibot_loss, koleo
from dinokit.train.network import Batch, Network, StudentOutputs, TeacherOutputs
from dinokit.train.optim import CLIP_NORM, clip_gradients, set_rates
from dinokit.train.schedules import Rates
from dinokit.train.state import TrainState
from dinokit.train.targets import TargetRule, all_reduce, by_sinkhorn, follow

Student = Callable[[Batch, tuple[Subsets, Subsets] | None], StudentOutputs]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Which losses, and how much of each.

    `koleo_across_processes` seeks neighbours among the images of all processes, so that the loss does not depend on how many
    there are; the official code seeks in a process's own.
    """

    targets: TargetRule = by_sinkhorn
    dino_weight: float = 1.0
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    student_temperature: float = STUDENT_TEMPERATURE
    koleo_neighbours: int = 1
    koleo_across_processes: bool = True
    compare: FeatureLoss = "smooth_l1"
    class_feature_weight: float = 0.0
    patch_feature_weight: float = 0.0
    gram_weight: float = 0.0


class Losses(NamedTuple):
    """The number to differentiate, its unweighted terms by name, what to watch, and the centres for the next step."""

    total: Tensor
    terms: dict[str, Tensor]
    watch: dict[str, Tensor]
    centers: dict[str, Tensor]


class Taught(NamedTuple):
    """What a teacher makes of a batch: targets of class tokens (crop by crop) and of masked patches, what to watch, next centres."""

    targets: Float[Tensor, "global k"]
    patch_targets: Float[Tensor, "m kp"]
    watch: dict[str, Tensor]
    centers: dict[str, Tensor]


class Shown(NamedTuple):
    """What frozen networks say of a batch's global crops: tokens to be learned, and patches whose similarities are to be kept."""

    features: Features = Features()
    anchor: Float[Tensor, "global n e"] | None = None


NOTHING = Shown()


def aim(
    outputs: TeacherOutputs,
    centers: dict[str, Tensor],
    teacher_temperature: float,
    objective: Objective,
    group: dist.ProcessGroup | None = None,
) -> Taught:
    """Targets from the teacher's logits, over all rows of all processes."""
    next_centers = {}
    targets, next_centers["dino"] = objective.targets(outputs.class_logits, centers["dino"], teacher_temperature, group)
    patch_targets, next_centers["ibot"] = objective.targets(
        outputs.patch_logits, centers["ibot"], teacher_temperature, group
    )
    return Taught(targets, patch_targets, _watch(targets, group), next_centers)


def learn(
    student: Student,
    batch: Batch,
    taught: Taught | None,
    objective: Objective,
    subsets: tuple[Subsets, Subsets] | None = None,
    group: dist.ProcessGroup | None = None,
    shown: Shown = NOTHING,
) -> Losses:
    """Total = dino_weight (dino_local + dino_global) + koleo_weight (koleo_0 + koleo_1) + ibot_weight ibot, where a student has heads.

    To which comes what frozen networks have shown: class_feature_weight class_features + patch_feature_weight patch_features +
    gram_weight gram. `student` is a `Network` or what wraps one. KoLeo is of each global crop by itself, never across an image's.
    """
    outputs = student(batch, subsets)
    terms: dict[str, Tensor] = {}
    total: Tensor | float = 0.0
    if taught is not None:
        terms |= _compared(outputs, taught, batch, objective)
    if taught is not None or objective.koleo_weight:
        near = group if objective.koleo_across_processes else None
        spread = [koleo(tokens, objective.koleo_neighbours, near) for tokens in outputs.class_tokens.chunk(2)]
        terms |= {"koleo_0": spread[0], "koleo_1": spread[1]}
    terms |= _kept(outputs, shown, objective)
    for weight, names in _weighted(objective):
        found = [terms[name] for name in names if name in terms]
        if found:
            total = total + weight * (found[0] if len(found) == 1 else found[0] + found[1])
    assert isinstance(total, Tensor)
    watch, centers = ({}, {}) if taught is None else (taught.watch, taught.centers)
    return Losses(total, {name: term.detach() for name, term in terms.items()}, watch, centers)


def _weighted(objective: Objective) -> tuple[tuple[float, tuple[str, ...]], ...]:
    """The sum of the losses: weights, and the terms that they are of."""
    return (
        (objective.dino_weight, ("dino_local", "dino_global")),
        (objective.koleo_weight, ("koleo_0", "koleo_1")),
        (objective.ibot_weight, ("ibot",)),
        (objective.class_feature_weight, ("class_features",)),
        (objective.patch_feature_weight, ("patch_features",)),
        (objective.gram_weight, ("gram",)),
    )


def _compared(outputs: StudentOutputs, taught: Taught, batch: Batch, objective: Objective) -> dict[str, Tensor]:
    """The losses against targets over prototypes."""
    assert outputs.global_scores is not None
    assert outputs.local_scores is not None
    assert outputs.patch_scores is not None
    temperature = objective.student_temperature
    targets = taught.targets.unflatten(0, (2, -1))
    dino = dino_loss(outputs.global_scores, outputs.local_scores, targets, temperature)
    ibot = ibot_loss(
        outputs.patch_scores, taught.patch_targets, batch.masks.weights, len(batch.global_crops), temperature
    )
    return {"dino_local": dino.local_crops, "dino_global": dino.global_crops, "ibot": ibot}


def _kept(outputs: StudentOutputs, shown: Shown, objective: Objective) -> dict[str, Tensor]:
    """The losses against what frozen networks show."""
    features = feature_terms(outputs.features, shown.features, objective.compare)
    found = {"class_features": features.classes, "patch_features": features.patches}
    if shown.anchor is not None:
        assert outputs.patches is not None
        found["gram"] = gram_loss(outputs.patches, shown.anchor)
    return {name: term for name, term in found.items() if term is not None}


def losses(
    student: Student,
    teacher: Network,
    centers: dict[str, Tensor],
    batch: Batch,
    teacher_temperature: float,
    objective: Objective,
    subsets: tuple[Subsets, Subsets] | None = None,
    group: dist.ProcessGroup | None = None,
) -> Losses:
    """`aim` at what the teacher says of the batch, and `learn` it."""
    taught = aim(teacher.teach(batch), centers, teacher_temperature, objective, group)
    return learn(student, batch, taught, objective, subsets, group)


def _watch(targets: Tensor, group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """How sharp the targets of class tokens are (this process's rows), and how much of all falls to one prototype."""
    entropy = torch.special.entr(targets).sum(dim=-1).mean()
    shares = all_reduce(targets.mean(dim=0), group) / (1 if group is None else dist.get_world_size(group))
    return {"target_entropy": entropy, "largest_prototype_share": shares.amax()}


def update(state: TrainState, found: Losses, rates: Rates, clip_norm: float = CLIP_NORM) -> dict[str, Tensor]:
    """Backward, clipping by module, `advance`, in this order; norms of the gradients by module.

    Where the loss or a norm is not finite, it is too late here: look at `found.total` before.
    """
    found.total.backward()
    norms = clip_gradients(state.student, clip_norm)
    advance(state, found.centers, rates)
    return norms


def advance(state: TrainState, centers: dict[str, Tensor], rates: Rates) -> None:
    """Optimiser, teacher, centres, step number, in this order, by the gradients that are there; they are gone afterwards."""
    set_rates(state.optimizers, rates)
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    follow(state.teacher, state.student, rates.momentum)
    state.centers = centers
    state.step += 1

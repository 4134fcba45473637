"""The three losses: DINO on class tokens, iBOT on masked patches, KoLeo on features.

Promise: float32 or better whatever the autocast; none of them is NaN for an empty or a one-image batch.
Source: Oquab et al. 2023, section 4; Zhou et al. 2022 (iBOT); Sablayrolles et al. 2019 (KoLeo); dinov2/train/ssl_meta_arch.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dinokit.train.crossentropy import Scores, cross_entropy, num_rows
from dinokit.train.numerics import at_least_float32, exactly

STUDENT_TEMPERATURE = 0.1
KOLEO_EPS = 1e-8


class DinoTerms(NamedTuple):
    """The two parts of the class-token loss; their sum is its mean over all pairs of crops."""

    local_crops: Float[Tensor, ""]
    global_crops: Float[Tensor, ""]


def dino_loss(
    global_scores: Scores,
    local_scores: Scores,
    targets: Float[Tensor, "2 b k"],
    temperature: float = STUDENT_TEMPERATURE,
) -> DinoTerms:
    """Cross-entropy over all pairs (teacher's global crop, student's other crop), averaged over pairs and images.

    Rows of the scores are crop by crop, all images of a crop together. With 2 global and L local crops there are n = 2 + 2 L
    pairs: a global crop is paired with the other one, a local crop with both. As cross-entropy is linear in its target,
    sum_g CE(P_g, s) = CE(P_0 + P_1, s): one pass over each student row, not one a pair.

    Raises:
        ValueError: other than two global crops, or numbers of rows that fit no whole number of crops.
    """
    if len(targets) != 2 or num_rows(global_scores) != 2 * targets.shape[1]:
        raise ValueError(
            f"targets of {len(targets)} crops of {targets.shape[1]} images and {num_rows(global_scores)} rows of global scores: "
            f"the loss is defined for two global crops with a row for each image."
        )
    batch = targets.shape[1]
    pairs = 2 + 2 * (num_rows(local_scores) // batch)
    weight = 1.0 / (pairs * batch)

    def weights(scores: Scores) -> Tensor:
        return targets.new_full((num_rows(scores),), weight)

    return DinoTerms(
        cross_entropy(local_scores, targets[0] + targets[1], weights(local_scores), temperature),
        cross_entropy(global_scores, targets.flip(0).flatten(0, 1), weights(global_scores), temperature),
    )


def ibot_loss(
    scores: Scores,
    targets: Float[Tensor, "m k"],
    weights: Float[Tensor, " m"],
    num_crops: int,
    temperature: float = STUDENT_TEMPERATURE,
) -> Float[Tensor, ""]:
    """Cross-entropy at the masked patches, averaged in each crop by `weights` and then over all `num_crops` global crops.

    Crops without a mask count in the divisor. Zero, with zero gradients, if nothing is masked.
    """
    return cross_entropy(scores, targets, weights / num_crops, temperature)


class _Gather(torch.autograd.Function):
    """Rows of all processes, in order of rank; the gradient of a row is the sum of what all processes say about it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        return grad.chunk(dist.get_world_size(ctx.group))[dist.get_rank(ctx.group)], None


def koleo(x: Float[Tensor, "n d"], neighbours: int = 1, group: dist.ProcessGroup | None = None) -> Float[Tensor, ""]:
    """-mean log distance of each direction in `x` to its nearest, which spreads features evenly; the gradient moves both.

    Neighbours are sought in the process's own rows, as in the official code, or with `group` among those of all processes
    (equally many each); then the mean over the processes is the loss of the joined rows. `neighbours` above 1 averages over
    so many nearest. The distance is that of the difference, exact for near duplicates where sqrt(2 - 2 cos) is not.
    0, with zero gradients, where a row has no other one.
    """
    with exactly(x):
        own = F.normalize(at_least_float32(x), dim=-1, eps=KOLEO_EPS)
        rows = own if group is None else _Gather.apply(own, group)  # type: ignore[no-untyped-call]
        first = 0 if group is None else len(own) * dist.get_rank(group)
        if len(rows) < 2:
            return rows.sum() * 0.0
        with torch.no_grad():
            similarity = own @ rows.T
            here = torch.arange(len(own), device=x.device)
            similarity[here, first + here] = -torch.inf
            nearest = similarity.topk(min(neighbours, len(rows) - 1), dim=-1).indices
        distance = (own[:, None] - rows[nearest] + KOLEO_EPS).norm(dim=-1)
        loss: Tensor = -(distance + KOLEO_EPS).log().mean()
        return loss

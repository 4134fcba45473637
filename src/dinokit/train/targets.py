"""From the teacher's logits to targets: centring, Sinkhorn-Knopp; and the teacher's own movement.

Promise: float32 or better whatever the autocast, inputs untouched; the same numbers from one process or several.
Source: Caron et al. 2021 (DINO), section 3.1; Cuturi 2013; Ruan et al. 2023, section 3; Oquab et al. 2023, section 4.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dinokit.train.numerics import at_least_float32, exactly, rows_at_once

CENTER_MOMENTUM = 0.9
SINKHORN_ITERATIONS = 3


def all_reduce(x: Tensor, group: dist.ProcessGroup | None, how: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """`x` summed (or as `how` says) over the processes of `group`, in place; alone without a group."""
    if group is not None:
        dist.all_reduce(x, op=how, group=group)
    return x


@torch.no_grad()
def sinkhorn(
    logits: Float[Tensor, "n k"],
    temperature: float,
    iterations: int = SINKHORN_ITERATIONS,
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "n k"]:
    """Targets whose rows sum to 1 and whose prototypes have nearly equal shares, over the rows of all processes.

    An iteration makes the totals of all prototypes equal, then every row sum to 1. Processes may hold different numbers of
    rows, also none.

    With E = exp(logits / T) the result is diag(v) E diag(u), where u = 1 / (E' v) and v = 1 / (E u) in turn from v = 1; the
    number of prototypes or rows cancels. E never exists: the first u is formed from entries less their prototype's maximum,
    and what follows from F, in which the row's maximum is taken off, too. Every row and every prototype of F then has an entry
    of exactly 1 and none above, hence three iterations meet no sum outside of m^-3 to m^3, m being the larger of the
    numbers of rows and prototypes: single precision suffices for any logits, without a case of its own.
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; Sinkhorn-Knopp needs at least 1.")
    with exactly(logits):
        z = at_least_float32(logits) / temperature
        floor = torch.finfo(z.dtype).min
        top = z.amax(dim=0) if len(z) else z.new_full(z.shape[1:], floor)
        z -= all_reduce(top, group, dist.ReduceOp.MAX)
        totals = z.new_zeros(z.shape[1])
        for rows in z.split(rows_at_once(z.shape[1])):
            totals += rows.exp().sum(dim=0)
        u = all_reduce(totals, group).reciprocal_()
        f = z.sub_(z.amax(dim=1, keepdim=True)).exp_() if len(z) else z
        v = (f @ u).reciprocal_()
        for _ in range(iterations - 1):
            u = all_reduce(f.T @ v, group).reciprocal_()
            v = (f @ u).reciprocal_()
        return f.mul_(u).mul_(v[:, None])


@torch.no_grad()
def centred(logits: Float[Tensor, "n k"], center: Float[Tensor, " k"], temperature: float) -> Float[Tensor, "n k"]:
    """Targets softmax((logits - center) / temperature)."""
    with exactly(logits):
        return ((at_least_float32(logits) - center) / temperature).softmax(dim=-1)


def mean_of_ranks(
    logits: Float[Tensor, "n k"], default: Float[Tensor, " k"], group: dist.ProcessGroup | None
) -> Tensor:
    """The mean of the processes' means, as the official code has it; a process without rows votes for `default`.

    Depends on how rows are spread over processes where their numbers differ (masked patches).
    """
    mean = logits.mean(dim=0, dtype=default.dtype) if len(logits) else default.clone()
    return all_reduce(mean, group) / (1 if group is None else dist.get_world_size(group))


def mean_of_rows(logits: Float[Tensor, "n k"], default: Float[Tensor, " k"], group: dist.ProcessGroup | None) -> Tensor:
    """The mean of the rows of all processes; `default` where nobody has any."""
    total = torch.cat([logits.sum(dim=0, dtype=default.dtype), default.new_tensor([len(logits)])])
    total = all_reduce(total, group)
    return torch.where(total[-1] > 0, total[:-1] / total[-1].clamp(min=1), default)


Mean = Callable[[Tensor, Tensor, dist.ProcessGroup | None], Tensor]


@torch.no_grad()
def next_center(
    center: Float[Tensor, " k"],
    logits: Float[Tensor, "n k"],
    group: dist.ProcessGroup | None = None,
    momentum: float = CENTER_MOMENTUM,
    mean: Mean = mean_of_ranks,
) -> Float[Tensor, " k"]:
    """The centre that the *next* step uses: c <- m c + (1 - m) mean of this step's logits."""
    return center * momentum + mean(logits, center, group) * (1 - momentum)


TargetRule = Callable[[Tensor, Tensor, float, dist.ProcessGroup | None], tuple[Tensor, Tensor]]
"""How the teacher's logits become targets: (logits, centre, temperature, group) -> (targets, the next step's centre)."""


def by_sinkhorn(
    logits: Tensor, center: Tensor, temperature: float, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """`TargetRule` of the long recipe; the centre stays as it is."""
    return sinkhorn(logits, temperature, group=group), center


def by_centring(
    logits: Tensor, center: Tensor, temperature: float, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """`TargetRule` of the short recipe."""
    return centred(logits, center, temperature), next_center(center, logits, group)


TARGET_RULES: dict[str, TargetRule] = {"centring": by_centring, "sinkhorn": by_sinkhorn}


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move every parameter of the teacher: t <- m t + (1 - m) s. Buffers stay.

    Raises:
        ValueError: their parameters have other names.
    """
    theirs, ours = dict(teacher.named_parameters()), dict(student.named_parameters())
    if theirs.keys() != ours.keys():
        name = min(theirs.keys() ^ ours.keys())
        raise ValueError(f"teacher and student differ: parameter {name!r} is in only one of them; build both alike.")
    torch._foreach_lerp_([own(p) for p in theirs.values()], [own(ours[name]) for name in theirs], 1.0 - momentum)


def own(parameter: Tensor) -> Tensor:
    """This process's part of a parameter that is spread over processes; else the parameter itself."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter

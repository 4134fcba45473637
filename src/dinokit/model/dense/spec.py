"""What a dense head is: its task, which blocks it reads, how its outputs become metres. Data, so that files can say it.

Source: Oquab et al. 2023, section 7.4; facebookresearch/dinov2, hub/depthers.py and the configurations beside the released heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

Task = Literal["segmentation", "depth"]
HeadKind = Literal["linear", "ms", "dpt"]
Spacing = Literal["uniform", "log"]
Weighting = Literal["linear", "softmax"]
TASKS: tuple[Task, ...] = get_args(Task)
HEAD_KINDS: tuple[HeadKind, ...] = get_args(HeadKind)

NUM_BINS = 256
NEAREST, FARTHEST = 0.001, 10.0
BIN_FLOOR = 0.1
# Which blocks the released depth heads read. 24 blocks are not divided evenly there (4, not 5), which a formula would miss.
FOUR_BLOCKS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}


@dataclass(frozen=True, kw_only=True)
class DepthRule:
    """How scores become depth between `nearest` and `farthest` metres.

    With several outputs, each stands for a bin: bins are spaced "uniform" or "log" from nearest to farthest, weighted by ReLU + 0.1 of
    the scores ("linear", as released) or by their softmax, and the weighted mean is the depth. With one output, depth is its ReLU plus
    `nearest`.
    """

    nearest: float = NEAREST
    farthest: float = FARTHEST
    spacing: Spacing = "uniform"
    weighting: Weighting = "linear"

    def __post_init__(self) -> None:
        if not 0 < self.nearest < self.farthest:
            raise ValueError(
                f"depths from {self.nearest} to {self.farthest}: the nearest must be above 0 and below the farthest."
            )
        if self.spacing not in get_args(Spacing) or self.weighting not in get_args(Weighting):
            raise ValueError(
                f"bins are spaced {self.spacing!r} and weighted {self.weighting!r}; known are uniform and log, linear and softmax."
            )

    @property
    def start(self) -> float:
        """Bias to begin regression with. At 0, half of the outputs lie below, where ReLU has no slope to learn from."""
        return 0.2 * self.farthest

    def bins(self, count: int) -> Float[Tensor, " bins"]:
        """Depths of the bins."""
        if self.spacing == "log":
            low, high = math.log(self.nearest), math.log(self.farthest)
            return torch.linspace(low, high, count, dtype=torch.float64).exp().float()
        return torch.linspace(self.nearest, self.farthest, count)

    def __call__(self, scores: Float[Tensor, "b o h w"]) -> Float[Tensor, "b 1 h w"]:
        """Depth of each place."""
        if scores.shape[1] == 1:
            return scores.relu() + self.nearest
        if self.weighting == "softmax":
            weights = scores.softmax(dim=1)
        else:
            weights = scores.relu() + BIN_FLOOR
            weights = weights / weights.sum(dim=1, keepdim=True)
        bins = self.bins(scores.shape[1]).to(device=scores.device, dtype=scores.dtype)
        return torch.einsum("bohw,o->bhw", weights, bins)[:, None]


@dataclass(frozen=True, kw_only=True)
class DenseSpec:
    """A head on a network `embed_dim` wide: what it reads and gives.

    `blocks` are 0-based; `normed` says whether the final layer norm is applied to what they give (as for released segmentation heads,
    not for depth). `num_outputs` counts classes, or bins of depth (1: depth by regression).
    """

    task: Task
    kind: HeadKind
    embed_dim: int
    blocks: tuple[int, ...]
    normed: bool
    num_outputs: int
    rule: DepthRule = DepthRule()

    def __post_init__(self) -> None:
        if self.task not in TASKS or self.kind not in HEAD_KINDS:
            raise ValueError(
                f"a {self.kind!r} head for {self.task!r}: kinds are {', '.join(HEAD_KINDS)}, tasks {', '.join(TASKS)}."
            )
        if self.kind == "dpt" and len(self.blocks) != 4:
            raise ValueError(f"a DPT head reads four blocks; {len(self.blocks)} are named.")
        if not self.blocks or self.num_outputs < (2 if self.task == "segmentation" else 1):
            raise ValueError(
                f"{self.num_outputs} outputs from {len(self.blocks)} blocks: segmentation needs two classes, depth one output, both a "
                f"block to read."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"blocks": list(self.blocks)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> DenseSpec:
        """The reverse of `to_dict`.

        Raises:
            ValueError: a field is missing, unknown or out of its range.
        """
        try:
            rule = DepthRule(**content["rule"])
            return cls(**{**content, "blocks": tuple(content["blocks"]), "rule": rule})
        except (KeyError, TypeError) as error:
            raise ValueError(f"no description of a dense head: {error}.") from error


def four_blocks(depth: int) -> tuple[int, ...]:
    """Which four blocks a head for depth reads: the published ones; of other networks the ends of four equal parts.

    Networks of fewer than four blocks are read twice in places.
    """
    return FOUR_BLOCKS.get(depth) or tuple(max(depth * part // 4, 1) - 1 for part in (1, 2, 3, 4))


def dense_spec(
    task: Task,
    kind: HeadKind,
    embed_dim: int,
    depth: int,
    num_outputs: int | None = None,
    rule: DepthRule = DepthRule(),
) -> DenseSpec:
    """The published arrangement for a network of `depth` blocks.

    Segmentation: "linear" reads the last block, "ms" the last four, after the final norm; depth: "linear" the last, "ms" (Meta's
    "linear4") and "dpt" four blocks throughout the network, without it. DPT for segmentation reads as DPT for depth does. `num_outputs`
    for depth is 256 bins, one output for DPT, unless given.

    Raises:
        ValueError: a segmentation head without a number of classes, or an unknown kind.
    """
    if num_outputs is None:
        if task == "segmentation":
            raise ValueError("a segmentation head needs the number of classes (num_outputs).")
        num_outputs = 1 if kind == "dpt" else NUM_BINS
    last = tuple(range(depth - 4, depth)) if depth >= 4 else four_blocks(depth)
    spread = kind == "dpt" or task == "depth"
    blocks = (depth - 1,) if kind == "linear" else four_blocks(depth) if spread else last
    return DenseSpec(
        task=task,
        kind=kind,
        embed_dim=embed_dim,
        blocks=blocks,
        normed=task == "segmentation" and kind != "dpt",
        num_outputs=num_outputs,
        rule=rule,
    )

"""`TrainState`: everything that a training step changes, and so everything that a checkpoint must hold.

Promise: a state loaded into a new one continues bit for bit; random numbers need no state, being functions of the step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dinokit.train.network import Network


@dataclass
class TrainState:
    """Student and teacher with their heads, the centres of their targets, the optimisers, and the number of steps taken.

    `centers` are {"dino", "ibot"}, none without heads; Sinkhorn-Knopp leaves them at zero.
    """

    student: Network
    teacher: Network
    optimizers: tuple[torch.optim.Optimizer, ...]
    centers: dict[str, Tensor]
    step: int = 0

    @classmethod
    def new(cls, student: Network, optimizers: Callable[[Network], Iterable[torch.optim.Optimizer]]) -> TrainState:
        """A student at its beginning, with a teacher that is its copy and never sees a gradient."""
        teacher = copy.deepcopy(student).eval().requires_grad_(False)
        centers = {}
        for name, head in (("dino", student.dino_head), ("ibot", student.patch_head)):
            if head is not None:
                weight = head.last_layer.weight_g
                # not narrower than single precision: centres are means over many steps
                dtype = torch.promote_types(weight.dtype, torch.float32)
                centers[name] = weight.new_zeros(head.num_prototypes, dtype=dtype)
        return cls(student.train(), teacher, tuple(optimizers(student)), centers)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, not copied."""
        return {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "centers": dict(self.centers),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same networks and optimisers.

        Raises:
            ValueError: another number of optimisers, or centres of other lengths.
            RuntimeError: parameters of other names or shapes.
        """
        if len(state["optimizers"]) != len(self.optimizers):
            raise ValueError(
                f"the state has {len(state['optimizers'])} optimisers, this run {len(self.optimizers)}; "
                f"continue with the optimiser it was made with."
            )
        for name, center in self.centers.items():
            if state["centers"][name].shape != center.shape:
                raise ValueError(
                    f"the state's {name} centre has {len(state['centers'][name])} numbers for {len(center)} prototypes; "
                    f"continue with the heads it was made with."
                )
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.centers = {name: state["centers"][name].to(center) for name, center in self.centers.items()}
        self.step = int(state["step"])

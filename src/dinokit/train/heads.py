"""The projection head: an MLP, a unit sphere, and prototypes with a norm of their own.

Parameter names are those of Meta's training code (`mlp.0.weight`, `last_layer.weight_g`, `last_layer.weight_v`).
Source: Caron et al. 2021 (DINO), appendix C; Salimans and Kingma 2016 (weight normalisation); dinov2/layers/dino_head.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinokit.train.crossentropy import Projection
from dinokit.train.numerics import at_least_float32, exactly

# A norm below this is taken for it; Meta's code, too, has the larger value for half precision, whose smallest number is 6e-8.
NORM_EPS, NORM_EPS_FLOAT16 = 1e-12, 1e-6


def official_std(fan_in: int) -> float:  # noqa: ARG001 - a `Std`
    """Meta's: 0.02 whatever the width, which suits widths about 2000."""
    return 0.02


def fan_in_std(fan_in: int) -> float:
    """1 / sqrt(width): keeps the signal's size in narrow heads, too."""
    return float(fan_in**-0.5)


Std = Callable[[int], float]


class Prototypes(nn.Module):
    """Unit directions with a trainable norm each: w_k = g_k v_k / ||v_k||."""

    def __init__(self, width: int, num_prototypes: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.empty(num_prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(num_prototypes, width))

    def forward(self) -> Float[Tensor, "k d"]:
        """The weights."""
        directions: Tensor = self.weight_v / self.weight_v.norm(dim=1, keepdim=True)
        return self.weight_g * directions


class ProjectionHead(nn.Module):
    """Tokens to logits over prototypes: logit_k = w_k . x / ||x|| with x = MLP(token)."""

    def __init__(
        self,
        embed_dim: int,
        num_prototypes: int,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        std: Std = official_std,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}; a head has at least one linear layer before its prototypes.")
        widths = [embed_dim, *(hidden_dim,) * (num_layers - 1), bottleneck_dim]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU()]
        # One layer alone is not wrapped, so that its name is `mlp.weight`, as in Meta's files.
        self.mlp: nn.Module = nn.Sequential(*layers[:-1]) if num_layers > 1 else layers[0]
        self.last_layer = Prototypes(bottleneck_dim, num_prototypes)
        self.reset_parameters(std)

    @torch.no_grad()
    def reset_parameters(self, std: Std = official_std) -> None:
        """Truncated normal weights of `std(inputs of the layer)`, no biases, prototypes of norm 1 in uniform random directions."""
        for module in self.mlp.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std(module.in_features))
                nn.init.zeros_(module.bias)
        nn.init.ones_(self.last_layer.weight_g)
        # as a new nn.Linear's: the length of v sets how fast its direction turns
        nn.init.kaiming_uniform_(self.last_layer.weight_v, a=5**0.5)

    @property
    def num_prototypes(self) -> int:
        """Length of the logits."""
        return self.last_layer.weight_g.shape[0]

    def bottleneck(self, tokens: Float[Tensor, "n d"]) -> Float[Tensor, "n bottleneck"]:
        """What the MLP makes of tokens, of length 1; in float32 or better."""
        x: Tensor = self.mlp(tokens)
        eps = NORM_EPS_FLOAT16 if x.dtype == torch.float16 else NORM_EPS
        with exactly(x):
            return F.normalize(at_least_float32(x), dim=-1, eps=eps)

    def project(self, tokens: Float[Tensor, "n d"]) -> Projection:
        """The logits, unfinished: `cross_entropy` takes them so, and never holds them all."""
        return Projection(self.bottleneck(tokens), self.last_layer())

    def forward(self, tokens: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Logits over the prototypes."""
        return self.project(tokens).logits()


PARAMETRIZED = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
"""How PyTorch names the two tensors of a weight norm since its parametrizations; `weight_g`, `weight_v` before."""


def read_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A head's (or several heads') state under our names, whichever way its weight norm was written."""
    return {_renamed(name, PARAMETRIZED): tensor for name, tensor in state.items()}


def parametrized_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state for code that uses `torch.nn.utils.parametrizations.weight_norm`."""
    table = {f"last_layer.{ours}": f"last_layer.{theirs}" for theirs, ours in PARAMETRIZED.items()}
    return {_renamed(name, table): tensor for name, tensor in state.items()}


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name

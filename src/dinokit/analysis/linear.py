"""Linear probes in plain PyTorch: ridge regression in closed form and logistic regression by L-BFGS.

Both start from nothing random, so the same tokens give the same probe. Channels are brought to mean 0 and deviation 1 first, as
artefacts would otherwise set the scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A linear map of tokens, standardisation included."""

    weight: Float[Tensor, "out d"]
    bias: Float[Tensor, " out"]
    mean: Float[Tensor, " d"]
    deviation: Float[Tensor, " d"]

    def __call__(self, tokens: Float[Tensor, "m d"]) -> Float[Tensor, "m out"]:
        """What it says of each token: class scores, or predicted values."""
        return F.linear((tokens.to(self.mean) - self.mean) / self.deviation, self.weight, self.bias)


def fit_ridge(tokens: Float[Tensor, "m d"], targets: Float[Tensor, "m out"], penalty: float = 1e-6) -> Probe:
    """Least squares with `penalty` times the mean square of standardised weights; in float64.

    Raises:
        ValueError: no token.
    """
    mean, deviation = _standards(tokens.double())
    z, y = (tokens.double() - mean) / deviation, targets.double()
    middle = y.mean(dim=0)
    gram = z.T @ z / len(z)
    gram += penalty * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram, z.T @ (y - middle) / len(z)).T
    return Probe(weight=weight, bias=middle, mean=mean, deviation=deviation)


def fit_classifier(
    tokens: Float[Tensor, "m d"],
    labels: Int64[Tensor, " m"],
    num_classes: int,
    penalty: float = 1e-4,
    max_steps: int = 200,
) -> Probe:
    """Multinomial logistic regression: mean cross-entropy + penalty/2 times the sum of squared weights; in float32.

    Raises:
        ValueError: no token, or a label outside of 0 to num_classes - 1.
    """
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        raise ValueError(
            f"labels lie in {int(labels.min())} to {int(labels.max())}; {num_classes} classes count from 0."
        )
    mean, deviation = _standards(tokens.float())
    z, labels = (tokens.detach().float() - mean) / deviation, labels.to(tokens.device)
    weight = torch.zeros(num_classes, z.shape[1], device=z.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=z.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=max_steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(z, weight, bias), labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return Probe(weight=weight.detach(), bias=bias.detach(), mean=mean, deviation=deviation)


def _standards(tokens: Tensor) -> tuple[Tensor, Tensor]:
    if not len(tokens):
        raise ValueError("there is no token to fit a probe to.")
    tokens = tokens.detach()
    deviation = tokens.std(dim=0, correction=0)
    # channels that never change say nothing; dividing by their rounding error would make noise of them
    quiet = deviation <= 1e-6 * tokens.abs().amax(dim=0)
    return tokens.mean(dim=0), torch.where(quiet, 1.0, deviation)

"""Logistic regression by L-BFGS on given features: scikit-learn's solution, without scikit-learn, on any device and by blocks.

It minimises C * (sum of cross-entropies) + 1/2 * (sum of squared weights); the intercept is free. Source: the objective is
scikit-learn's and cuML's; the 45 values of C are those of DINOv2's evaluation (facebookresearch/dinov2, eval/log_regression.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from dinokit.evals.knn import Vectors, check_labelled
from dinokit.evals.metrics import topk_accuracy

C_GRID: tuple[float, ...] = tuple(float(c) for c in 10 ** np.linspace(-6, 5, 45))
BLOCK_ROWS = 65_536
MAX_ITERATIONS, TOLERANCE = 1000, 1e-12
HISTORY = 20
CHANGE = 1e-3  # of the loss, beside the gradient: a loss is flat to second order where its gradient is small

Watched = Callable[[Iterable[float]], Iterable[float]]


@dataclass(frozen=True, kw_only=True)
class LogisticRegression:
    """The solution at `c`; `weight` and `bias` are of the precision that was asked for."""

    weight: Float[Tensor, "classes d"]
    bias: Float[Tensor, " classes"]
    c: float
    iterations: int

    def scores(self, features: Vectors) -> Float[Tensor, "m classes"]:
        """Class scores before the softmax."""
        parts = [
            F.linear(torch.as_tensor(features[i : i + BLOCK_ROWS]).to(self.weight), self.weight, self.bias)
            for i in range(0, len(features), BLOCK_ROWS)
        ]
        return torch.cat(parts)


@dataclass(frozen=True, kw_only=True)
class LogregScore:
    """`top1` and `top5` on the test set, of the C that did best on the held-out part (`held_out`: accuracy by C)."""

    top1: float
    top5: float | None
    c: float
    held_out: dict[float, float]


def fit_logreg(
    features: Vectors,
    labels: Int64[Tensor, " m"],
    num_classes: int,
    c: float = 1.0,
    *,
    start: LogisticRegression | None = None,
    max_iterations: int = MAX_ITERATIONS,
    tolerance: float = TOLERANCE,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> LogisticRegression:
    """The minimum at `c`, from `start` (a solution at another C) or from zero; features are read by blocks.

    `tolerance` is of the gradient. Deterministic.

    Raises:
        ValueError: no features, labels that don't fit, or c not above 0.
    """
    check_labelled(features, labels, "train")
    if c <= 0 or int(labels.max()) >= num_classes:
        raise ValueError(
            f"C is {c} (it must be above 0); labels go up to {int(labels.max())}, classes are {num_classes}."
        )
    mean, variance = _moments(features)
    mean = mean.to(device=device, dtype=dtype)
    # Curvature at zero, by which variables are scaled: the minimum stays, the way to it gets shorter by orders of magnitude.
    flat = (1 - 1 / num_classes) / num_classes
    curvature = torch.cat([flat * variance + 1 / (c * len(labels)), torch.tensor([flat], dtype=torch.float64)])
    scale = curvature.rsqrt().to(mean)
    point = torch.zeros(num_classes, features.shape[1] + 1, dtype=dtype, device=device)  # the last column is the bias
    if start is not None:
        bias = start.bias + start.weight @ mean
        point.copy_(torch.cat([start.weight, bias[:, None]], dim=1) / scale)
    point.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [point],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=tolerance * CHANGE,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        value, gradient = loss_and_gradient(point.detach() * scale, features, labels, c, mean)
        point.grad = gradient * scale
        return value

    optimizer.step(loss)
    found = point.detach() * scale
    weight = found[:, :-1]
    iterations = int(optimizer.state[point]["n_iter"])
    return LogisticRegression(weight=weight, bias=found[:, -1] - weight @ mean, c=c, iterations=iterations)


def logreg(
    train: Vectors,
    train_labels: Int64[Tensor, " m"],
    test: Vectors,
    test_labels: Int64[Tensor, " q"],
    *,
    cs: Sequence[float] = C_GRID,
    held_out_share: float = 0.1,
    seed: int = 0,
    max_iterations: int = MAX_ITERATIONS,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
    watched: Watched = iter,
) -> LogregScore:
    """C is chosen on a held-out part of `train` (the smallest of equals), then all of `train` is fitted and `test` judged.

    Values of C are taken in rising order, each from the solution before it. `watched` wraps them, for a progress bar.

    Raises:
        ValueError: as `fit_logreg`, or too few vectors to hold any out.
    """
    check_labelled(test, test_labels, "test")
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    fitted, held = split(len(train_labels), held_out_share, seed)
    options = {"max_iterations": max_iterations, "device": device, "dtype": dtype}
    part, part_labels = _rows(train, fitted), train_labels[fitted]
    judged, judged_labels = _rows(train, held), train_labels[held]
    accuracy: dict[float, float] = {}
    found: LogisticRegression | None = None
    best: LogisticRegression | None = None
    for c in watched(sorted(cs)):
        found = fit_logreg(part, part_labels, num_classes, c, start=found, **options)  # type: ignore[arg-type]
        accuracy[c] = topk_accuracy(found.scores(judged), judged_labels, (1,))[1]
        best = found if best is None or accuracy[c] > accuracy[best.c] else best
    assert best is not None
    final = fit_logreg(train, train_labels, num_classes, best.c, start=best, **options)  # type: ignore[arg-type]
    top = topk_accuracy(final.scores(test), test_labels)
    return LogregScore(top1=top[1], top5=top.get(5) if num_classes > 5 else None, c=best.c, held_out=accuracy)


def split(num: int, share: float, seed: int) -> tuple[Int64[Tensor, " fitted"], Int64[Tensor, " held"]]:
    """Numbers to fit on and about `share` of them held out, at least one each; ascending.

    Raises:
        ValueError: fewer than two.
    """
    if num < 2 or not 0 < share < 1:
        raise ValueError(f"{num} rows with {share} of them held out: it takes two rows, and a share between 0 and 1.")
    order = torch.randperm(num, generator=torch.Generator().manual_seed(seed))
    held = min(max(round(share * num), 1), num - 1)
    return order[held:].sort().values, order[:held].sort().values


def _rows(vectors: Vectors, numbers: Tensor) -> Vectors:
    return vectors[numbers] if isinstance(vectors, Tensor) else vectors[numbers.numpy()]


def loss_and_gradient(
    point: Float[Tensor, "classes columns"],
    features: Vectors,
    labels: Int64[Tensor, " m"],
    c: float,
    mean: Float[Tensor, " d"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "classes columns"]]:
    """Mean cross-entropy + |weight|^2 / (2 C m) and its gradient, by blocks; the same minimum as the sum's, one scale for all C.

    `point` holds the weights, and in its last column the intercepts for features less `mean`.
    """
    weight, bias = point[:, :-1], point[:, -1]
    penalty = 1 / (c * len(labels))
    loss = penalty / 2 * weight.square().sum()
    gradient = torch.cat([penalty * weight, torch.zeros_like(bias)[:, None]], dim=1)
    for i in range(0, len(labels), BLOCK_ROWS):
        x = torch.as_tensor(features[i : i + BLOCK_ROWS]).to(point) - mean
        y = labels[i : i + BLOCK_ROWS].to(point.device)
        logs = F.linear(x, weight, bias).log_softmax(dim=1)
        loss = loss - logs.gather(1, y[:, None]).sum() / len(labels)
        error = logs.exp()
        error.scatter_add_(1, y[:, None], error.new_full((len(y), 1), -1.0))
        error /= len(labels)
        gradient[:, :-1] += error.T @ x
        gradient[:, -1] += error.sum(dim=0)
    return loss, gradient


def _moments(features: Vectors) -> tuple[Tensor, Tensor]:
    """Mean and variance of each column, in float64, by blocks."""
    total = torch.zeros(2, features.shape[1], dtype=torch.float64)
    for i in range(0, len(features), BLOCK_ROWS):
        block = torch.as_tensor(features[i : i + BLOCK_ROWS]).double().cpu()
        total += torch.stack([block.sum(dim=0), block.square().sum(dim=0)])
    mean, square = total / len(features)
    return mean, (square - mean.square()).clamp_min(0)

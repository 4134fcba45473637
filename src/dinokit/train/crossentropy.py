"""Cross-entropy between soft targets and softmax(scores / temperature), for many prototypes, with little memory.

Promise: value and gradient equal the plain form's; log softmax is never stored, and scores need not be, either.
Source: the identity -sum_k q_k log softmax(z)_k = (sum_k q_k) logsumexp(z) - q . z.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from dinokit.train.numerics import at_least_float32, exactly, matmul_dtype, rows_at_once


class Projection(NamedTuple):
    """Scores that are not calculated yet: `features` times `prototypes`, transposed."""

    features: Float[Tensor, "n d"]
    prototypes: Float[Tensor, "k d"]

    def logits(self) -> Float[Tensor, "n k"]:
        """The scores."""
        return self.features @ self.prototypes.T


Scores = Tensor | Projection


def num_rows(scores: Scores) -> int:
    """Rows of either kind of scores."""
    return len(scores.features if isinstance(scores, Projection) else scores)


def cross_entropy(
    scores: Scores,
    targets: Float[Tensor, "m k"],
    weights: Float[Tensor, " n"],
    temperature: float,
    chunk_rows: int | None = None,
) -> Float[Tensor, ""]:
    """sum_i weights_i CE(targets_(i mod m), softmax(scores_i / temperature)), differentiable by the scores.

    The n rows of `scores` are a whole number of repetitions of the m rows of `targets` (several crops with one target), whose
    rows may sum to anything (two teachers added: 2). `chunk_rows` rows of targets are worked on at a time. Scores as a
    `Projection` exist for one such chunk only, and with gradients wanted, these are formed in the same pass, so that
    no matrix product is done twice.

    Raises:
        ValueError: the numbers of rows do not fit.
    """
    n, m = num_rows(scores), len(targets)
    if len(weights) != n or (n and (not m or n % m)):
        raise ValueError(
            f"{n} rows of scores, {m} of targets, {len(weights)} weights: scores need one weight each and "
            f"a whole number of repetitions of the targets."
        )
    if isinstance(scores, Projection):
        return _FromFeatures.apply(*scores, targets, weights, temperature, chunk_rows)  # type: ignore[no-any-return, no-untyped-call]
    return _FromLogits.apply(scores, targets, weights, temperature, chunk_rows)  # type: ignore[no-any-return, no-untyped-call]


def plain_cross_entropy(
    scores: Scores, targets: Float[Tensor, "m k"], weights: Float[Tensor, " n"], temperature: float
) -> Float[Tensor, ""]:
    """The same by definition, through `log_softmax`; for few prototypes and for comparison."""
    logits = scores.logits() if isinstance(scores, Projection) else scores
    with exactly(logits):
        log_p = (at_least_float32(logits) / temperature).log_softmax(dim=-1)
        repeated = targets.repeat(len(logits) // max(len(targets), 1), 1)
        return -(weights * (repeated * log_p).sum(dim=-1)).sum()


def _repeated(n: int, targets: Tensor) -> tuple[int, int]:
    """(Repetitions, rows of targets) of n rows of scores."""
    return n // max(len(targets), 1), len(targets)


def _chunks(targets: Tensor, repeats: int, chunk_rows: int | None) -> Iterator[tuple[int, int]]:
    """Rows a to b of the targets, and of each repetition of them among the scores."""
    size = chunk_rows or rows_at_once(targets.shape[1] * max(repeats, 1))
    for a in range(0, len(targets), size):
        yield a, min(a + size, len(targets))


def _loss_of(z: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted loss, log-sum-exps and masses of a chunk; `z` (r c k) are scores over temperature, `targets` (c k)."""
    lse = z.logsumexp(dim=-1)
    mass = targets.sum(dim=-1)
    hit = torch.linalg.vecdot(z, targets.expand_as(z))
    return (weights * (mass * lse - hit)).sum(), lse, mass


def _gradient_of(z: Tensor, targets: Tensor, weights: Tensor, lse: Tensor, mass: Tensor, temperature: float) -> Tensor:
    """The gradient weights (mass softmax(z) - targets) / temperature, in the memory of `z`."""
    p = z.sub_(lse[..., None]).exp_()
    return p.mul_(mass[..., None]).sub_(targets).mul_((weights / temperature)[..., None])


class _FromLogits(torch.autograd.Function):
    """Scores exist; their gradient is written once, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor, temperature: float, chunk_rows: int | None
    ) -> Tensor:
        shape = repeats, _ = _repeated(len(logits), targets)
        total = torch.zeros((), dtype=at_least_float32(logits[:0]).dtype, device=logits.device)
        grouped, grouped_weights = logits.unflatten(0, shape), weights.unflatten(0, shape)
        with exactly(logits):
            for a, b in _chunks(targets, repeats, chunk_rows):
                z = at_least_float32(grouped[:, a:b]) / temperature
                total += _loss_of(z, targets[a:b].to(z.dtype), grouped_weights[:, a:b])[0]
        ctx.save_for_backward(logits, targets, weights)
        ctx.settings = temperature, chunk_rows, shape
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, weights = ctx.saved_tensors
        temperature, chunk_rows, shape = ctx.settings
        out = torch.empty_like(logits)
        grouped, grouped_out = logits.unflatten(0, shape), out.unflatten(0, shape)
        scaled = (weights * grad).unflatten(0, shape)
        with exactly(logits):
            for a, b in _chunks(targets, shape[0], chunk_rows):
                z = at_least_float32(grouped[:, a:b]) / temperature
                q = targets[a:b].to(z.dtype)
                grouped_out[:, a:b] = _gradient_of(
                    z, q, scaled[:, a:b], z.logsumexp(dim=-1), q.sum(dim=-1), temperature
                )
        return out, None, None, None, None


class _FromFeatures(torch.autograd.Function):
    """Scores of a chunk are calculated, used for loss and gradients, and forgotten."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        prototypes: Tensor,
        targets: Tensor,
        weights: Tensor,
        temperature: float,
        chunk_rows: int | None,
    ) -> Tensor:
        shape = repeats, _ = _repeated(len(features), targets)
        dtype = at_least_float32(features[:0]).dtype
        total = torch.zeros((), dtype=dtype, device=features.device)
        wanted = any(ctx.needs_input_grad[:2])
        product = matmul_dtype(features)
        with exactly(features):
            f, w = features.to(product), prototypes.to(product)
            grouped, grouped_weights = f.unflatten(0, shape), weights.unflatten(0, shape)
            d_features = torch.zeros_like(features, dtype=dtype) if wanted else None
            d_prototypes = torch.zeros_like(prototypes, dtype=dtype) if wanted else None
            for a, b in _chunks(targets, repeats, chunk_rows):
                rows = grouped[:, a:b].flatten(0, 1)
                z = at_least_float32(rows @ w.T).unflatten(0, (repeats, b - a)).div_(temperature)
                q = targets[a:b].to(z.dtype)
                row_weights = grouped_weights[:, a:b]
                loss, lse, mass = _loss_of(z, q, row_weights)
                total += loss
                if d_features is not None and d_prototypes is not None:
                    g = _gradient_of(z, q, row_weights, lse, mass, temperature).flatten(0, 1).to(product)
                    d_features.unflatten(0, shape)[:, a:b] = (g @ w).unflatten(0, (repeats, b - a)).to(dtype)
                    if product == dtype:
                        d_prototypes.addmm_(g.T, rows)
                    else:  # products in half precision are added up in single precision
                        d_prototypes += (g.T @ rows).to(dtype)
        if d_features is not None and d_prototypes is not None:
            ctx.save_for_backward(d_features, d_prototypes)
        ctx.dtypes = features.dtype, prototypes.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_features, d_prototypes = ctx.saved_tensors
        of_features, of_prototypes = ctx.dtypes
        return (d_features * grad).to(of_features), (d_prototypes * grad).to(of_prototypes), None, None, None, None

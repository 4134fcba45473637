"""What the matrices should give, in plain tensor arithmetic: float64 products, the documented levels, and how far rounding may go."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dinokit.native import After, FloatMatrix, Int8Matrix, Int16Matrix

MATRICES = {"float32": FloatMatrix, "int16": Int16Matrix, "int8": Int8Matrix}
UNIT = 2.0**-24  # float32's rounding, relative
STEEPEST = 1.13  # of GELU
GELU_ERROR = 2.0**-22  # of the input's magnitude
HALF = 0.501  # a step: rounding, and what float32 loses on the way to it
WEIGHT_LEVELS = {"int16": 2047, "int8": 127}


@dataclass(frozen=True)
class Case:
    """A layer and its inputs."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    factor: Tensor | None
    residual: Tensor

    @property
    def scaled_weight(self) -> Tensor:
        """float64, LayerScale folded in."""
        weight = self.weight.double()
        return weight if self.factor is None else weight * self.factor.double()[:, None]

    @property
    def scaled_bias(self) -> Tensor:
        """float64, LayerScale folded in."""
        bias = self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias
        return bias.double() if self.factor is None else bias.double() * self.factor.double()

    def product(self) -> Tensor:
        """The exact y."""
        return F.linear(self.x.double(), self.scaled_weight, self.scaled_bias)

    def spread(self) -> Tensor:
        """The sum of all terms' magnitudes, which rounding errors are a part of."""
        return F.linear(self.x.double().abs(), self.scaled_weight.abs(), self.scaled_bias.abs())

    def run(self, kind: str, after: After = After.NOTHING) -> Tensor:
        """What the matrix gives."""
        matrix = MATRICES[kind](self.weight, self.bias, self.factor)
        return matrix(self.x, after, self.residual.clone() if after == After.ADD else None)


def made(rows: int, outputs: int, inputs: int, seed: int, *, shape: str = "normal", extras: bool = True) -> Case:
    """A random layer; inputs normal, one-sided as after GELU, or with a token a thousand times louder than the others."""
    torch.manual_seed(seed)
    x = torch.randn(rows, inputs)
    if shape == "one-sided":
        x = F.gelu(x)
    if shape == "loud":
        x[rows // 2] *= 1000
    bias, factor = (torch.randn(outputs), torch.rand(outputs) - 0.3) if extras else (None, None)
    return Case(x, torch.randn(outputs, inputs), bias, factor, torch.randn(rows, outputs))


def followed(y: Tensor, after: After, residual: Tensor) -> Tensor:
    """float64 `y` and what comes after it."""
    match after:
        case After.NOTHING:
            return y
        case After.GELU:
            return F.gelu(y)
        case After.ADD:
            return y + residual.double()


def allowed(bound: Tensor, y: Tensor, after: After, residual: Tensor) -> Tensor:
    """The error of what comes after `y` where that of `y` is at most `bound`."""
    match after:
        case After.NOTHING:
            return bound
        case After.GELU:
            return STEEPEST * bound + GELU_ERROR * (y.abs() + bound)
        case After.ADD:
            return bound + UNIT * (y.abs() + bound + residual.double().abs())


def step_of_inputs(x: Tensor, kind: str) -> Tensor:
    """A row's step, float64: its largest magnitude over 2047, or its span (with 0) over 127."""
    low, high = x.double().amin(-1).clamp_max(0), x.double().amax(-1).clamp_min(0)
    return torch.maximum(high, -low) / 2047 if kind == "int16" else (high - low) / 127


def quantisation_bound(case: Case, kind: str) -> Tensor:
    """How far half a step on each side can take a product of integers from the exact one."""
    weight_error = HALF * (case.scaled_weight.abs().amax(1) / WEIGHT_LEVELS[kind])[None].expand(len(case.x), -1)
    input_error = HALF * step_of_inputs(case.x, kind)[:, None]
    inputs = case.x.shape[-1]
    of_weights = case.x.double().abs().sum(-1, keepdim=True) * weight_error
    of_inputs = input_error * case.scaled_weight.abs().sum(1)
    return of_weights + of_inputs + inputs * input_error * weight_error + rounding_bound(case)


def rounding_bound(case: Case) -> Tensor:
    """How far sums of float32 can be from the exact ones."""
    return (case.x.shape[-1] + 4) * UNIT * case.spread()


def by_levels(case: Case, kind: str) -> tuple[Tensor, Tensor]:
    """The product of the documented integers, in int64, brought to float64; and how far float32 may be from it."""
    levels = WEIGHT_LEVELS[kind]
    weight_step = case.weight.abs().amax(1) / levels
    weights = (case.weight / weight_step[:, None]).round().long()
    low, high = case.x.amin(-1).clamp_max(0), case.x.amax(-1).clamp_min(0)
    step = torch.maximum(high, -low) / levels if kind == "int16" else (high - low) / levels
    zero = torch.zeros_like(step) if kind == "int16" else (-low * (1 / step)).round()
    inputs = (case.x * (1 / step)[:, None]).round().long() + zero.long()[:, None]
    inputs = inputs.clamp(-levels if kind == "int16" else 0, levels)
    totals = zero.long()[:, None] * weights.sum(1)
    scale = step.double()[:, None] * weight_step.double()
    scale = scale if case.factor is None else scale * case.factor.double()
    spread = scale.abs() * (inputs.abs() @ weights.abs().T + totals.abs()) + case.scaled_bias.abs()
    roundings = -(-case.x.shape[-1] // 512) + 6  # parts of sums brought to float32 and added; scales, zero, bias
    return scale * (inputs @ weights.T - totals) + case.scaled_bias, roundings * UNIT * spread

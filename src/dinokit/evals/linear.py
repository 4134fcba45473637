"""Linear probes, all at once: every learning rate and every choice of tokens learns from the same batches in one matrix product each.

Features are extracted once; the network is not run again. Heads don't know of each other: each learns what it would learn alone.
Source: Oquab et al. 2023, section 7.1, and facebookresearch/dinov2, eval/linear.py: SGD with momentum 0.9, no decay, cosine to 0,
weights from N(0, 0.01), 13 learning rates in proportion to the batch, class tokens of 1 or 4 blocks with or without the mean patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from dinokit.evals.knn import Vectors, check_labelled
from dinokit.evals.logreg import split

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
RATE_BATCH = 256
"""Learning rates are of this batch size, and grow in proportion to the real one."""
MOMENTUM, INITIAL_STD = 0.9, 0.01
BATCH_SIZE, STEPS = 128, 12_500
JUDGED_ROWS = 4096

Watched = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True, kw_only=True)
class HeadScore:
    """One head: which `columns` it read ("1 block, cls"), its learning rate, accuracies on the held-out part and on the test set."""

    columns: str
    learning_rate: float
    held_out: float
    test: float


@dataclass(frozen=True, kw_only=True)
class LinearScore:
    """All heads, in the order of their columns and rates. `best` did best on the held-out part, so its test accuracy is honest."""

    heads: tuple[HeadScore, ...]

    @property
    def best(self) -> HeadScore:
        """Of equals, the one with the smallest learning rate."""
        return max(self.heads, key=lambda head: (head.held_out, -head.learning_rate))

    @property
    def best_on_test(self) -> HeadScore:
        """Chosen by the test set itself, as the official code reports; flattering by as much as choosing among heads is worth."""
        return max(self.heads, key=lambda head: (head.test, -head.learning_rate))

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "best": asdict(self.best),
            "best_on_test": asdict(self.best_on_test),
            "heads": [asdict(head) for head in self.heads],
        }


class Heads:
    """Linear classifiers over slices of one feature vector, a weight tensor (rates, classes, width) a slice."""

    def __init__(
        self, columns: Mapping[str, slice], num_classes: int, rates: Iterable[float], seed: int, device: torch.device
    ) -> None:
        self.columns = dict(columns)
        self.rates = torch.tensor(list(rates), device=device)
        generator = torch.Generator().manual_seed(seed)
        self.weights, self.biases = {}, {}
        for name, part in self.columns.items():
            width = part.stop - part.start
            # one start for all rates, so that they differ in nothing else
            start = torch.randn(num_classes, width, generator=generator) * INITIAL_STD
            self.weights[name] = start.to(device).repeat(len(self.rates), 1, 1)
            self.biases[name] = torch.zeros(len(self.rates), num_classes, device=device)
        self._velocity = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self._bias_velocity = {name: torch.zeros_like(bias) for name, bias in self.biases.items()}

    def scores(self, name: str, features: Float[Tensor, "m f"]) -> Float[Tensor, "m rates classes"]:
        """Class scores of all rates for one choice of columns: one matrix product."""
        weight = self.weights[name]
        flat = F.linear(features[:, self.columns[name]], weight.flatten(0, 1), self.biases[name].flatten())
        return flat.view(len(features), *weight.shape[:2])

    def step(self, features: Float[Tensor, "m f"], labels: Int64[Tensor, " m"], scale: float) -> None:
        """One step of gradient descent with momentum on the mean cross-entropy, at `scale` times each head's rate."""
        share = 1 / len(labels)
        for name, weight in self.weights.items():
            error = self.scores(name, features).softmax(dim=-1)  # m, rates, classes
            error[torch.arange(len(labels), device=labels.device), :, labels] -= 1
            gradient = error.flatten(1).T @ features[:, self.columns[name]]
            velocity = self._velocity[name].mul_(MOMENTUM).add_(gradient.view_as(weight), alpha=share)
            weight.addcmul_(velocity, self.rates[:, None, None], value=-scale)
            bias_velocity = self._bias_velocity[name].mul_(MOMENTUM).add_(error.sum(dim=0), alpha=share)
            self.biases[name].addcmul_(bias_velocity, self.rates[:, None], value=-scale)

    def accuracy(self, name: str, features: Vectors, labels: Int64[Tensor, " m"]) -> Float[Tensor, " rates"]:
        """Of all rates for one choice of columns."""
        hits = torch.zeros(len(self.rates), dtype=torch.float64)
        for i in range(0, len(labels), JUDGED_ROWS):
            block = torch.as_tensor(features[i : i + JUDGED_ROWS]).to(self.rates.device).float()
            predicted = self.scores(name, block).argmax(dim=-1).cpu()
            hits += (predicted == labels[i : i + JUDGED_ROWS, None]).sum(dim=0)
        return hits / len(labels)


def linear_probe(
    train: Vectors,
    train_labels: Int64[Tensor, " m"],
    test: Vectors,
    test_labels: Int64[Tensor, " q"],
    *,
    columns: Mapping[str, slice] | None = None,
    rates: Iterable[float] = LEARNING_RATES,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    held_out_share: float = 0.1,
    seed: int = 0,
    device: torch.device | str = "cpu",
    watched: Watched = iter,
) -> LinearScore:
    """Fit every head on `train` less a held-out part, and judge each on that part and on `test`.

    `columns` names the slices of a vector that heads read (see `features.head_columns`); by default there is one, all of it.
    Batches are drawn without replacement, pass after pass. The same seed gives the same heads. `watched` wraps the steps.

    Raises:
        ValueError: vectors and labels that don't fit, or a setting out of its range.
    """
    check_labelled(train, train_labels, "train")
    check_labelled(test, test_labels, "test")
    if train.shape[1] != test.shape[1] or steps < 1 or batch_size < 1:
        raise ValueError(
            f"train vectors are {train.shape[1]} wide, test vectors {test.shape[1]}; {steps} steps of {batch_size}: widths must agree "
            f"and numbers be at least 1."
        )
    columns = {"all": slice(0, train.shape[1])} if columns is None else columns
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    fitted, held = split(len(train_labels), held_out_share, seed)
    rates = list(rates)
    batch_size = min(batch_size, len(fitted))
    scaled = [rate * batch_size / RATE_BATCH for rate in rates]
    place = torch.device(device)
    heads = Heads(columns, num_classes, scaled, seed, place)
    batches = shuffled_batches(len(fitted), batch_size, seed)
    for step, numbers in zip(watched(range(steps)), batches, strict=False):
        chosen = fitted[numbers]
        features, labels = take(train, chosen).to(place).float(), train_labels[chosen].to(place)
        heads.step(features, labels, (1 + math.cos(math.pi * step / steps)) / 2)
    held_rows = take(train, held)
    found = []
    for name in heads.columns:
        on_held = heads.accuracy(name, held_rows, train_labels[held])
        on_test = heads.accuracy(name, test, test_labels)
        found += [
            HeadScore(columns=name, learning_rate=rate, held_out=float(a), test=float(b))
            for rate, a, b in zip(rates, on_held, on_test, strict=True)
        ]
    return LinearScore(heads=tuple(found))


def shuffled_batches(num: int, size: int, seed: int) -> Iterator[Int64[Tensor, " b"]]:
    """Numbers below `num` in batches of `size`, for ever: each pass in a new order, its odd end left out."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(num, generator=generator)
        yield from order[: num // size * size].split(size)


def take(vectors: Vectors, numbers: Int64[Tensor, " b"]) -> Float[Tensor, "b f"]:
    """These rows; of a memory-mapped array in the order of the disk."""
    if isinstance(vectors, Tensor):
        return vectors[numbers]
    ascending = numbers.sort()
    rows = torch.from_numpy(np.ascontiguousarray(vectors[ascending.values.numpy()]))
    out = torch.empty_like(rows)
    out[ascending.indices] = rows
    return out

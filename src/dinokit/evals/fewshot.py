"""Few-shot classification: some images a class to learn from, drawn anew in each episode.

Promise: the same seed draws the same episodes. Two learners: the nearest mean of a class by cosine, and logistic regression.
Source: nearest mean: Snell et al. 2017; episodes: Vinyals et al. 2016.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor

from dinokit.evals.knn import Vectors, check_labelled
from dinokit.evals.linear import take
from dinokit.evals.logreg import fit_logreg

Learner = Literal["centroid", "logreg"]
LEARNERS: tuple[Learner, ...] = get_args(Learner)
SHOTS = (1, 2, 5, 10)
EPISODES = 10
TWO_SIDED_95 = 1.96


@dataclass(frozen=True, kw_only=True)
class FewShotScore:
    """Mean accuracy over the episodes, and the half width of its 95 % interval (0 for one episode)."""

    shots: int
    learner: Learner
    accuracy: float
    interval: float
    episodes: tuple[float, ...]


def few_shot(
    train: Vectors,
    train_labels: Int64[Tensor, " m"],
    test: Vectors,
    test_labels: Int64[Tensor, " q"],
    *,
    shots: Sequence[int] = SHOTS,
    learners: Sequence[Learner] = LEARNERS,
    episodes: int = EPISODES,
    ways: int | None = None,
    c: float = 1.0,
    seed: int = 0,
    watched: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> tuple[FewShotScore, ...]:
    """For each number of shots and learner, accuracy on `test` after seeing that many images of each class.

    `ways` draws so many classes an episode, and judges on their test images only; by default all classes. `c` is that of the logistic
    regression, on vectors of length 1. Episode i sees the same images whatever the learner.

    Raises:
        ValueError: labels that don't fit, a class with fewer images than shots, or a setting out of its range.
    """
    check_labelled(train, train_labels, "train")
    check_labelled(test, test_labels, "test")
    classes = train_labels.unique()
    _check(train_labels, test_labels, classes, shots, learners, episodes, ways)
    found: dict[tuple[int, Learner], list[float]] = {(n, learner): [] for n in shots for learner in learners}
    queries = F.normalize(torch.as_tensor(test[:]).float(), dim=1)
    for episode in watched(range(episodes)):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + episode)
        chosen = classes if ways is None else classes[torch.randperm(len(classes), generator=generator)[:ways]]
        orders = [_shuffled(train_labels, int(label), generator) for label in chosen]
        judged = torch.isin(test_labels, chosen).nonzero()[:, 0]
        truth = _positions(test_labels[judged], chosen)
        for n in shots:
            support = F.normalize(take(train, torch.cat([order[:n] for order in orders])).float(), dim=1)
            labels = torch.arange(len(chosen)).repeat_interleave(n)
            for learner in learners:
                scores = _scores(learner, support, labels, queries[judged], len(chosen), c)
                found[n, learner].append((scores.argmax(dim=1) == truth).double().mean().item())
    return tuple(_score(n, learner, values) for (n, learner), values in found.items())


def _scores(learner: Learner, support: Tensor, labels: Tensor, queries: Tensor, num: int, c: float) -> Tensor:
    if learner == "centroid":
        means = torch.zeros(num, support.shape[1]).index_add_(0, labels, support)
        return queries @ F.normalize(means, dim=1).T
    return fit_logreg(support, labels, num, c, tolerance=1e-7).scores(queries)


def _shuffled(labels: Tensor, label: int, generator: torch.Generator) -> Int64[Tensor, " m"]:
    numbers = (labels == label).nonzero()[:, 0]
    return numbers[torch.randperm(len(numbers), generator=generator)]


def _positions(labels: Tensor, chosen: Tensor) -> Tensor:
    """Where in `chosen` each label stands."""
    table = torch.full((int(max(labels.max(), chosen.max())) + 1,), -1)
    table[chosen] = torch.arange(len(chosen))
    return table[labels]


def _score(shots: int, learner: Learner, values: list[float]) -> FewShotScore:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return FewShotScore(
        shots=shots,
        learner=learner,
        accuracy=statistics.fmean(values),
        interval=TWO_SIDED_95 * deviation / math.sqrt(len(values)),
        episodes=tuple(values),
    )


def _check(
    train_labels: Int64[Tensor, " m"],
    test_labels: Int64[Tensor, " q"],
    classes: Tensor,
    shots: Sequence[int],
    learners: Sequence[str],
    episodes: int,
    ways: int | None,
) -> None:
    if unknown := set(learners) - set(LEARNERS):
        raise ValueError(f"learner {sorted(unknown)[0]!r}; it must be one of {', '.join(LEARNERS)}.")
    fewest = int(train_labels.bincount()[classes].min())
    if not shots or min(shots) < 1 or max(shots) > fewest:
        raise ValueError(
            f"shots {list(shots)}: the smallest class has {fewest} images to learn from; ask for 1 to that."
        )
    if episodes < 1 or not (ways is None or 2 <= ways <= len(classes)):
        raise ValueError(f"{episodes} episodes of {ways} classes: at least 1 episode, and 2 to {len(classes)} classes.")
    if not torch.isin(classes, test_labels).all():
        missing = classes[~torch.isin(classes, test_labels)].tolist()
        raise ValueError(f"class {missing[0]} has no test image; leave it out of the train set.")

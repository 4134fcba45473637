"""The evaluations of vectors with labels, each from a `Classified` to a `Result`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from dinokit.evals import fewshot, knn, linear, logreg, retrieval
from dinokit.evals.features import Watched
from dinokit.evals.knn import Vectors
from dinokit.evals.labelled import Classified
from dinokit.evals.metrics import rankme
from dinokit.evals.results import Result

RANKME_ROWS = 25_600  # as many as its authors take


def knn_result(
    found: Classified,
    *,
    ks: Sequence[int] = knn.KS,
    temperature: float = knn.TEMPERATURE,
    centred: bool = False,
    leave_one_out: bool = False,
    device: torch.device | str = "cpu",
) -> Result:
    """k-NN on the test set; where there is none, or with `leave_one_out`, each train vector by the others.

    Raises:
        ValueError: as `knn.knn`.
    """
    alone = leave_one_out or found.test is None
    vectors = last_cls(found, found.train)
    started = time.perf_counter()
    options: dict[str, Any] = {"ks": ks, "temperature": temperature, "centred": centred, "device": device}
    if alone:
        score = knn.knn_leave_one_out(vectors, found.train_labels, **options)
    else:
        test, labels = found.tested()
        score = knn.knn(vectors, found.train_labels, last_cls(found, test), labels, **options)
    metrics = {f"top-1, k={k}": value for k, value in score.top1.items()}
    metrics |= {f"top-5, k={k}": value for k, value in score.top5.items()}
    metrics["RankMe"] = rankme(torch.as_tensor(vectors[:RANKME_ROWS]))
    settings = {"k": list(ks), "temperature": temperature, "centred": centred, "leave_one_out": alone}
    return _result("knn", found, settings, metrics, started, {"best_k": score.best_k})


def linear_result(
    found: Classified,
    *,
    steps: int = linear.STEPS,
    batch_size: int = linear.BATCH_SIZE,
    rates: Sequence[float] = linear.LEARNING_RATES,
    held_out_share: float = 0.1,
    seed: int = 0,
    device: torch.device | str = "cpu",
    watched: Watched = iter,
) -> Result:
    """All heads; the metrics are those of the head that did best on the held-out part, and of the best on the test set.

    Raises:
        ValueError: as `linear.linear_probe`, or no test set.
    """
    test, labels = found.tested()
    started = time.perf_counter()
    settings = {"steps": steps, "batch_size": batch_size, "held_out_share": held_out_share, "seed": seed}
    score = linear.linear_probe(
        found.train,
        found.train_labels,
        test,
        labels,
        columns=found.columns,
        rates=rates,
        device=device,
        watched=watched,
        steps=steps,
        batch_size=batch_size,
        held_out_share=held_out_share,
        seed=seed,
    )
    metrics = {
        "top-1, head chosen on held-out": score.best.test,
        "top-1, head chosen on test": score.best_on_test.test,
    }
    return _result("linear", found, {**settings, "rates": list(rates)}, metrics, started, score.to_dict())


def logreg_result(
    found: Classified,
    *,
    cs: Sequence[float] = logreg.C_GRID,
    held_out_share: float = 0.1,
    seed: int = 0,
    max_iterations: int = logreg.MAX_ITERATIONS,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
    watched: Watched = iter,
) -> Result:
    """Logistic regression on the class token of the last block.

    Raises:
        ValueError: as `logreg.logreg`, or no test set.
    """
    test, labels = found.tested()
    started = time.perf_counter()
    score = logreg.logreg(
        last_cls(found, found.train),
        found.train_labels,
        last_cls(found, test),
        labels,
        cs=cs,
        held_out_share=held_out_share,
        seed=seed,
        max_iterations=max_iterations,
        device=device,
        dtype=dtype,
        watched=watched,
    )
    metrics = {"top-1": score.top1} | ({} if score.top5 is None else {"top-5": score.top5})
    settings = {"C": list(cs), "held_out_share": held_out_share, "seed": seed, "max_iterations": max_iterations}
    return _result("logreg", found, settings, metrics, started, {"C": score.c, "held_out": score.held_out})


def few_shot_result(found: Classified, *, watched: Watched = iter, **settings: Any) -> Result:
    """Few-shot accuracy; `settings` are those of `fewshot.few_shot`.

    Raises:
        ValueError: as `fewshot.few_shot`, or no test set.
    """
    test, labels = found.tested()
    started = time.perf_counter()
    scores = fewshot.few_shot(
        last_cls(found, found.train), found.train_labels, last_cls(found, test), labels, watched=watched, **settings
    )
    metrics = {}
    for score in scores:
        metrics[f"{score.shots}-shot, {score.learner}"] = score.accuracy
        metrics[f"{score.shots}-shot, {score.learner}, +- 95 %"] = score.interval
    return _result("fewshot", found, settings, metrics, started, {"scores": [asdict(score) for score in scores]})


def retrieval_result(found: Classified, *, ks: Sequence[int] = retrieval.KS) -> Result:
    """Each vector of the test set (of the train set where there is none) asks for the others of its class.

    Raises:
        ValueError: labels that don't fit.
    """
    vectors, labels = (found.train, found.train_labels) if found.test is None else found.tested()
    started = time.perf_counter()
    score = retrieval.retrieval_by_labels(last_cls(found, vectors), labels, ks=ks)
    metrics = {"mAP": score.map} | {f"precision at {k}": value for k, value in score.precision_at.items()}
    return _result("retrieval", found, {"k": list(ks)}, metrics, started, {"queries": score.queries})


def last_cls(found: Classified, vectors: Vectors) -> Vectors:
    """The part of each vector that one-vector evaluations read: the first of its columns."""
    return vectors[:, next(iter(found.columns.values()))]


def _result(
    task: str, found: Classified, settings: Any, metrics: dict[str, float], started: float, details: Any
) -> Result:
    return Result(
        task=task,
        data=found.data,
        model=found.model,
        settings=settings,
        metrics=metrics,
        seconds={"features": found.seconds, "evaluation": time.perf_counter() - started},
        details=details,
        failed=found.failed,
    )

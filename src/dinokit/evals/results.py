"""What an evaluation gives: metrics with everything that they depend on, as JSON and as a table beside published numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dinokit._version import __version__
from dinokit.evals.published import Published, published
from dinokit.store import Feature, identify
from dinokit.tokens import Pool
from dinokit.weights.load import Pretrained

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Result:
    """One evaluation. `metrics` maps names to numbers (shares in [0, 1]); `model` is what made the features.

    `details` holds what is too long for a table (all heads, classes, videos); `failed` the inputs that could not be used, and why.
    """

    task: str
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    details: Mapping[str, Any] = field(default_factory=dict)
    failed: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; numbers that are not finite become None."""
        content = {
            "schema": SCHEMA,
            "dinokit": __version__,
            "task": self.task,
            "data": self.data,
            "model": self.model,
            "settings": self.settings,
            "metrics": self.metrics,
            "seconds": self.seconds,
            "details": self.details,
            "failed": [{"input": name, "error": error} for name, error in self.failed],
        }
        plain: dict[str, Any] = _plain(content)
        return plain

    @property
    def published(self) -> tuple[Published, ...]:
        """What papers have for this task and a network of this size, on their data."""
        sizes = [self.model.get(name) for name in ("embed_dim", "patch_size", "registers")]
        return published(self.task, *map(int, sizes)) if None not in sizes else ()  # type: ignore[arg-type]

    def table(self) -> str:
        """A line a metric; below it what was published for a network of this size."""
        width = max(map(len, self.metrics), default=0)
        lines = [f"{name:<{width}}  {value:.4f}" for name, value in self.metrics.items()]
        if self.published:
            lines += ["", "published, not measured here:", *(f"  {row}" for row in self.published)]
        return "\n".join(lines)


def identity_of(pre: Pretrained, pooling: Pool) -> dict[str, Any]:
    """Which network, form and preprocessing made features; with the `compat_id` that collections of such vectors have."""
    found = identify(pre, [Feature(pooling=pooling, dim=pre.config.embed_dim)])
    return {
        **found.model,
        "pooling": pooling,
        "compat_id": found.compat_id(found.features[0]),
        "preprocess": dict(found.preprocess),
        "made_with": dict(found.made_with),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, str):  # names of files need not be text
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value

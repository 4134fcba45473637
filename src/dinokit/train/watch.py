"""What a run looks at while it trains: the teacher's features on some images, and alarms when training goes nowhere.

Promise: looking changes nothing. An alarm is a function of the log; it says what was seen, what it means, and what usually helps.
Source: Darcet et al. 2024 (outlier norms, registers); collapse: Caron et al. 2021, section 5.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dinokit.analysis.attention import attention_budget
from dinokit.analysis.detectors import robust
from dinokit.analysis.norms import norms_of
from dinokit.analysis.rank import rankme
from dinokit.model import VisionTransformer
from dinokit.train.log import ALARM, TRAIN, WATCH, Record
from dinokit.train.recipe import TrainingRecipe

Watcher = Callable[[VisionTransformer], dict[str, float]]
"""Numbers about a teacher's backbone; `dinokit train` gives k-NN accuracy so (`knn`)."""

AT_ONCE = 64
RECENT = 5  # records of the log that an alarm looks at


@dataclass(frozen=True)
class TokenWatcher:
    """RankMe of class tokens, high-norm patches, and where the class token's attention goes; on a fixed set of normalised images."""

    pixels: Float[Tensor, "n c h w"]

    @torch.no_grad()
    def __call__(self, backbone: VisionTransformer) -> dict[str, float]:
        """`rankme`, `outlier_share`, `attention_registers`, `attention_outliers`, `attention_cls`."""
        features, outliers, budgets = [], [], []
        prefix = backbone.config.num_prefix_tokens
        last = backbone.config.depth - 1
        for images in self.pixels.split(AT_ONCE):
            before = None
            x = None
            for x_next in backbone.stream(images.to(backbone.cls_token)):
                before, x = x, x_next
            assert before is not None
            assert x is not None
            found = robust(norms_of(x)[:, prefix:])
            budget = attention_budget(
                backbone.block_weights(last, before), found.mask, backbone.config.num_register_tokens
            ).to_dict()
            features.append(backbone.norm(x[:, 0]).float().cpu())
            outliers.append(found.share * len(images))
            budgets.append((budget, len(images)))
        n, classes = len(self.pixels), torch.cat(features)

        def mean(*starts: str) -> float:
            return sum(v * m for b, m in budgets for name, v in b.items() if name.startswith(starts)) / n

        return {
            "rankme": rankme(classes) if classes.any() else 0.0,  # nothing but zeros is for an alarm, not for an end
            "outlier_share": sum(outliers) / n,
            "attention_cls": mean("cls"),
            "attention_registers": mean("register_"),
            "attention_outliers": mean("outliers"),
        }


@dataclass(frozen=True)
class Alarm:
    """What is wrong, in a word and in sentences."""

    name: str
    text: str


def alarms(records: Sequence[Record], recipe: TrainingRecipe, rank_limit: int) -> list[Alarm]:
    """What the log so far gives reason to say. `rank_limit` is the largest RankMe that the watched images allow."""
    step = records[-1]["step"] if records else 0
    if step < max(recipe.watch.grace * recipe.steps, recipe.schedule.warm_up):
        return []
    found = [
        _uniform(records, recipe),
        _concentrated(records, recipe),
        _rank(records, recipe, rank_limit),
        _knn(records, recipe),
    ]
    return [alarm for alarm in found if alarm is not None]


def _recent(records: Sequence[Record], key: str) -> list[float]:
    """The last values that are finite; none where a run has no such number, as one that learns features alone."""
    values = [record.get(key, math.nan) for record in records if record["kind"] == TRAIN]
    return [value for value in values if math.isfinite(value)][-RECENT:]


def _uniform(records: Sequence[Record], recipe: TrainingRecipe) -> Alarm | None:
    recent = _recent(records, "dino")
    if not recent or not recipe.losses.dino:
        return None
    loss, uniform = sum(recent) / len(recent), math.log(recipe.heads.prototypes)
    if abs(loss - uniform) > recipe.watch.uniform * uniform:
        return None
    s = recipe.schedule
    return Alarm(
        "uniform",
        f"the class-token loss is {loss:.3f} and ln K = {uniform:.3f}: the student guesses, and learns nothing. Usual ways out: "
        f"sharper targets (schedule.teacher_temperature_end, now {s.teacher_temperature_end:g}; 0.02 to 0.04), a faster teacher "
        f"(schedule.momentum, now {s.momentum:g}; 0.95 to 0.99), weaker colours (*.jitter), fewer prototypes (heads.prototypes, now "
        f"{recipe.heads.prototypes}), heads.init=fan_in where heads are narrow, a larger batch or learning rate.",
    )


def _concentrated(records: Sequence[Record], recipe: TrainingRecipe) -> Alarm | None:
    recent = _recent(records, "largest_prototype_share")
    if not recent or min(recent) <= recipe.watch.concentrated:
        return None
    return Alarm(
        "concentrated",
        f"one prototype has {recent[-1]:.0%} of all targets: every image looks the same to the teacher. Usual ways out: "
        f"losses.targets=sinkhorn (now {recipe.losses.targets}), a lower learning rate (schedule.lr, now {recipe.schedule.lr:g}), a "
        f"longer warm-up (schedule.warm_up, now {recipe.schedule.warm_up}), more KoLeo (losses.koleo, now {recipe.losses.koleo:g}). "
        f"Begin again: a teacher that has come here does not come back.",
    )


def _rank(records: Sequence[Record], recipe: TrainingRecipe, rank_limit: int) -> Alarm | None:
    ranks = [record["rankme"] for record in records if record["kind"] == WATCH and "rankme" in record]
    if len(ranks) < 2:
        return None
    now, start = ranks[-1], ranks[0]
    low, fallen = recipe.watch.rank_share * rank_limit, recipe.watch.rank_drop * start
    if now >= max(low, fallen):
        return None
    why = f"{now:.1f}, from {start:.1f} at the start" if now < fallen else f"{now:.1f} of {rank_limit} possible"
    return Alarm(
        "rank",
        f"features use few directions (RankMe {why}): they collapse onto a few axes although losses may look fine. Usual ways out: "
        f"more KoLeo (losses.koleo, now {recipe.losses.koleo:g}; 0.5 to 1 for small collections), less iBOT (losses.ibot, now "
        f"{recipe.losses.ibot:g}), a larger batch, a lower learning rate (schedule.lr, now {recipe.schedule.lr:g}).",
    )


def _knn(records: Sequence[Record], recipe: TrainingRecipe) -> Alarm | None:
    scores = [record["knn"] for record in records if record["kind"] == WATCH and "knn" in record]
    if len(scores) < 2 or scores[-1] >= (1 - recipe.watch.knn_drop) * max(scores):
        return None
    return Alarm(
        "knn",
        f"k-NN accuracy is {scores[-1]:.3f} and was {max(scores):.3f}: features forget. Go back to an earlier checkpoint; then a "
        f"lower learning rate (schedule.lr, now {recipe.schedule.lr:g}), a slower teacher (schedule.momentum, now "
        f"{recipe.schedule.momentum:g}), the backbone frozen for longer (schedule.backbone_freeze, now "
        f"{recipe.schedule.backbone_freeze}).",
    )


def is_news(alarm: Alarm, records: Sequence[Record]) -> bool:
    """Whether the last look did not raise the same alarm: words are for what is new, the log has all."""
    looks = [record["step"] for record in records if record["kind"] == WATCH]
    before = looks[-2] if len(looks) > 1 else -1
    return not any(r["kind"] == ALARM and r["step"] == before and r["name"] == alarm.name for r in records)

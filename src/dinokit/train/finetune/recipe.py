"""How a network is fine-tuned: one frozen dataclass, and what each task starts from.

Promise: with the same data, backbone and recipe, a CPU gives the same bits.
Source: linear: Oquab et al. 2023, section 7; layer-wise decay: Bao et al. 2022; LoRA: Hu et al. 2021; mixup: Zhang et al. 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dinokit.train.schedules import Rates, warm_up_cosine

Mode = Literal["linear", "full", "lora"]
MODES: tuple[Mode, ...] = get_args(Mode)
BACKBONE_LR: dict[Mode, float] = {"linear": 0.0, "full": 5e-5, "lora": 5e-4}
LORA_TARGETS = ("qkv", "proj", "fc1", "fc2", "w12", "w3")


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """The numbers of a run; lengths in steps.

    `mode` says what learns: the head alone ("linear"), all ("full"), or the head and low-rank additions to the matrices of the
    backbone ("lora"). `lr` is the head's rate, `backbone_lr` that of the last block (None: by mode), falling by `layerwise_decay` a
    block towards the input. `size` is in pixels: of crops in training, of the shortest edge (or crop) after it. `scale` is the range
    of what is seen: shares of the image's area for classifiers, factors of the image's size for dense heads. `mixup` is the parameter
    of the Beta distribution, 0 for none; it and `label_smoothing` are for classifiers, `gradient_weight` is for depth.
    """

    mode: Mode = "linear"
    steps: int = 1000
    batch_size: int = 16
    lr: float = 1e-3
    backbone_lr: float | None = None
    layerwise_decay: float = 0.75
    weight_decay: float = 1e-3
    warm_up: int = 100
    clip: float = 3.0
    size: int = 518
    scale: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.5
    label_smoothing: float = 0.0
    mixup: float = 0.0
    gradient_weight: float = 0.5
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = LORA_TARGETS
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    log_every: int = 10
    judge_every: int = 200

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; it must be one of {', '.join(MODES)}.")
        for name in ("steps", "batch_size", "size", "lora_rank", "log_every", "judge_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.lr <= 0 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"lr is {self.lr}, scale {self.scale}; lr is above 0, scale two numbers, 0 < low <= high.")
        if not (0 <= self.flip <= 1 and 0 <= self.label_smoothing < 1 and self.mixup >= 0):
            raise ValueError(
                f"flip is {self.flip}, label_smoothing {self.label_smoothing}, mixup {self.mixup}: a share, a share below 1, and a "
                f"number of at least 0."
            )

    def rates(self, step: int) -> Rates:
        """Of one step: warm-up, then half a cosine to 0. The head's rate is `last_layer_lr`."""
        warm = min(self.warm_up, self.steps // 10)
        share = warm_up_cosine(1.0, 0.0, self.steps, warm, start=1 / (warm + 1))(step)
        peak = BACKBONE_LR[self.mode] if self.backbone_lr is None else self.backbone_lr
        return Rates(share * peak, share * self.lr, self.weight_decay, 0.0, 0.0)


CLASSIFY = FinetuneRecipe(size=224, batch_size=64, scale=(0.25, 1.0), label_smoothing=0.1)
SEGMENTATION = FinetuneRecipe(scale=(0.5, 2.0), steps=10_000, judge_every=1000)
# The scale of a scene can't be told apart from its distance, so images for depth are not scaled.
DEPTH = FinetuneRecipe(steps=10_000, judge_every=1000)

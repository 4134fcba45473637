"""`Augmentation`: all that is random between an image and the crops that a network reads; data, not code paths.

Source: Oquab et al. 2023, appendix B; dinov2/data/augmentations.py and its configurations.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dinokit.images import IMAGENET_MEAN, IMAGENET_STD
from dinokit.train.data.crops import CropRule
from dinokit.train.data.photometric import BLUR_RATES, BLURS, Blur, Photometric, altered, draw_choices
from dinokit.train.data.views import Views

GLOBAL_CROPS = CropRule(count=2, size=224, scale=(0.32, 1.0))
LOCAL_CROPS = CropRule(count=8, size=98, scale=(0.05, 0.32))


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Two global crops and any number of local ones, with what happens to the first, the second, and each local one."""

    seed: int = 0
    global_crops: CropRule = GLOBAL_CROPS
    local_crops: CropRule = LOCAL_CROPS
    first: Photometric = field(default_factory=Photometric)
    second: Photometric = field(default_factory=Photometric)
    local: Photometric = field(default_factory=Photometric)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.global_crops.count != 2:
            raise ValueError(
                f"there are {self.global_crops.count} global crops; the objective takes two, one the other's target."
            )

    @classmethod
    def dinov2(
        cls, seed: int = 0, *, blur: Blur = "dinov2", global_size: int = 224, local_size: int = 98, num_local: int = 8
    ) -> Augmentation:
        """The official recipe. `blur`: "dinov2" as the released weights were trained, "dino" as the code says on its face.

        Local crops have 98 pixels for patches of 14, 96 for patches of 16.
        """
        if blur not in BLURS:
            raise ValueError(f"blur is {blur!r}; it must be one of {', '.join(BLURS)}.")
        rates = BLUR_RATES[blur]
        return cls(
            seed=seed,
            global_crops=CropRule(2, global_size, GLOBAL_CROPS.scale),
            local_crops=CropRule(num_local, local_size, LOCAL_CROPS.scale),
            first=Photometric(blur=rates[0]),
            second=Photometric(blur=rates[1], solarize=0.2),
            local=Photometric(blur=rates[2]),
        )

    @property
    def rules(self) -> tuple[Photometric, ...]:
        """What happens to each crop of an image, by its number: the two global ones first."""
        return self.first, self.second, *(self.local,) * self.local_crops.count

    def finish(
        self, views: Views, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> tuple[Float[Tensor, "gb 3 h w"], Float[Tensor, "lb 3 k k"], Int64[Tensor, " b"]]:
        """Global crops, local crops, and visits, as `dinokit.train.network.Batch` has them; `views` go to `device` as 8 bits."""
        moved = views if device is None else views.to(device)
        visits = views.visits.cpu().numpy()
        finished = []
        for crops, first in ((moved.global_crops, 0), (moved.local_crops, 2)):
            out = torch.empty(crops.shape, dtype=dtype, device=crops.device)
            for i in range(len(crops) // max(len(visits), 1)):
                rows = slice(i * len(visits), (i + 1) * len(visits))
                choices = draw_choices(self.seed, visits, first + i, self.rules[first + i])
                altered(crops[rows], choices, self.mean, self.std, out[rows])
            finished.append(out)
        return finished[0], finished[1], moved.visits.to(finished[0].device)

    def crop_rules(self) -> tuple[tuple[CropRule, int], tuple[CropRule, int]]:
        """Global and local crops with the number of the first of each."""
        return (self.global_crops, 0), (self.local_crops, self.global_crops.count)

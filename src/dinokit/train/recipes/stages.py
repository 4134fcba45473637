"""From weights that are there: continued training and the high-resolution stage."""

from __future__ import annotations

from dataclasses import replace

from dinokit.train.data import Augmentation
from dinokit.train.recipe import LossSettings, OptimizerSettings, Saving, ScheduleSettings, TrainingRecipe
from dinokit.train.recipes.pretraining import published_shape, small


def continued() -> TrainingRecipe:
    """On with released weights, on other images: new heads first, the backbone frozen, then everything at a low constant rate.

    dinokit train photos/ --out run --recipe continued --set init=facebook/dinov2-with-registers-small
    Cost: as `small`. Result: not measured. Released weights come without heads, and the smaller ones were distilled, without masks:
    watch k-NN (--labels), and stop where it falls.
    """
    return replace(
        small(),
        name="continued",
        model=published_shape("vits14_reg", patch_size=14),
        steps=20_000,
        init="facebook/dinov2-with-registers-small",
        augmentation=Augmentation.dinov2(local_size=98),
        losses=LossSettings(koleo=0.1, ibot=0.5),
        schedule=ScheduleSettings(
            shape="constant", lr=3e-5, warm_up=500, momentum=0.999, teacher_temperature_end=0.05,
            teacher_temperature_warm_up=0, last_layer_freeze=0, backbone_freeze=2000,
        ),
        optimizer=OptimizerSettings(),
    )  # fmt: skip


def high_res() -> TrainingRecipe:
    """The last, short phase at 518 pixels, from weights trained at a lower one.

    dinokit train photos/ --out run --recipe high_res --set init=run224/export/model
    Cost: an image has 5.4 times the patches. Result: not measured here; the paper has 10,000 steps and no learning rate (appendix B.2).
    """
    return replace(
        continued(),
        name="high_res",
        steps=10_000,
        batch_size=256,
        augmentation=Augmentation.dinov2(global_size=518, local_size=98),
        activation_checkpointing=True,
        save=Saving(every=500),
    )

"""On images that are calculated: presets that need no file."""

from __future__ import annotations

from dinokit.config import ViTConfig
from dinokit.train.data import Augmentation, CropRule, Photometric
from dinokit.train.recipe import (
    Heads,
    LossSettings,
    OptimizerSettings,
    Saving,
    ScheduleSettings,
    TrainingRecipe,
    Watching,
)

# No flips, for direction is a class; colours by little: with any hue the targets stay near the uniform ones (docs/training.md)
TEXTURE = Photometric(flip=0.0, jitter=(0.4, 0.4, 0.2, 0.1), jitter_rate=1.0, grey=0.0)


def two_minutes() -> TrainingRecipe:
    """Two minutes on one core of a laptop, without a file: procedural textures, a network of 130,000 parameters.

    dinokit train procedural:textures --out run --recipe two_minutes
    Cost: about 90 s of one core. Result: docs/training.md, with its controls.
    """
    vit = ViTConfig(
        embed_dim=48, depth=3, num_heads=4, ffn_dim=192, patch_size=4, image_size=(16, 16), num_register_tokens=2
    )
    return TrainingRecipe(
        name="two_minutes",
        model=vit,
        steps=500,
        batch_size=128,
        init_scale="fan_in",
        augmentation=Augmentation(
            global_crops=CropRule(2, 16, (0.4, 1.0)), local_crops=CropRule(2, 8, (0.15, 0.4)), first=TEXTURE,
            second=TEXTURE, local=TEXTURE,
        ),
        heads=Heads(
            prototypes=64, patch_prototypes=64, hidden_dim=96, bottleneck_dim=32, patch_bottleneck_dim=32, init="fan_in"
        ),
        losses=LossSettings(koleo=1.0, ibot=0.5),
        schedule=ScheduleSettings(
            lr=3e-3, scale_lr=False, warm_up=50, momentum=0.9, teacher_temperature_end=0.02,
            teacher_temperature_warm_up=0, last_layer_freeze=0,
        ),
        optimizer=OptimizerSettings(layerwise_decay=1.0, patch_embed=1.0),
        precision="fp32",
        watch=Watching(every=100),
        save=Saving(every=100),
    )  # fmt: skip


# Half of the crops are grey, so that colour seldom tells which two are of one image, and patterns keep their light and dark
MADE = Photometric(flip=0.0, grey=0.5)


def tiny_procedural() -> TrainingRecipe:
    """The networks that come with the package: calculated images alone, 0.8 million parameters, an hour of one core.

    dinokit train procedural:mixture --out run --recipe tiny_procedural
    dinokit train procedural:mixture --out run0 --recipe tiny_procedural --set model.num_register_tokens=0
    Cost: about an hour of one core each. Result: docs/shipped.md, beside pixels, random weights, and KoLeo alone.
    """
    vit = ViTConfig(
        embed_dim=128, depth=4, num_heads=4, ffn_dim=512, patch_size=8, image_size=(40, 40), num_register_tokens=4
    )
    return TrainingRecipe(
        name="tiny_procedural",
        model=vit,
        steps=5000,
        batch_size=64,
        init_scale="fan_in",
        augmentation=Augmentation(
            global_crops=CropRule(2, 40, (0.3, 1.0)), local_crops=CropRule(2, 24, (0.15, 0.5)), first=MADE,
            second=MADE, local=MADE,
        ),
        # one head for both tasks: a patch head of its own spends its prototypes on colours (docs/shipped.md)
        heads=Heads(prototypes=1024, hidden_dim=128, bottleneck_dim=48, init="fan_in"),
        losses=LossSettings(koleo=0.5, koleo_end=0.2, ibot=0.5),
        schedule=ScheduleSettings(
            lr=2e-3, scale_lr=False, warm_up=200, momentum=0.95, teacher_temperature_end=0.02,
            teacher_temperature_warm_up=0, last_layer_freeze=0,
        ),
        optimizer=OptimizerSettings(layerwise_decay=1.0, patch_embed=1.0),
        precision="fp32",
        watch=Watching(every=500),
        save=Saving(every=250),
    )  # fmt: skip

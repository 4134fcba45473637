"""From nothing: the presets by number of images, and the paper's two.

Source: dinov2/configs; Oquab et al. 2023, appendix B. Small-data presets: our measurements, docs/training.md.
"""

from __future__ import annotations

from dataclasses import replace

from dinokit.config import SIZE_ANTIALIAS, VARIANTS, ViTConfig
from dinokit.train.data import Augmentation
from dinokit.train.recipe import (
    Heads,
    LossSettings,
    OptimizerSettings,
    Saving,
    ScheduleSettings,
    TrainingRecipe,
    Watching,
)

LAYER_SCALE = 1e-5


def published_shape(variant: str, patch_size: int = 16, image_size: int = 224) -> ViTConfig:
    """A published shape as it is before training."""
    return VARIANTS[variant].replace(
        patch_size=patch_size,
        image_size=(image_size, image_size),
        layer_scale_init=LAYER_SCALE,
        position=SIZE_ANTIALIAS,
    )


def tiny() -> TrainingRecipe:
    """For up to about 10,000 images: a small network, strong KoLeo, sharp targets, a fast teacher, one head for both tasks.

    dinokit train photos/ --out run --recipe tiny
    Cost: 15 GFLOP an image and step; one recent GPU, some hours. Result: not measured at this size; the settings are those
    that were the best of what we tried on procedural textures (docs/training.md).
    """
    vit = ViTConfig(
        embed_dim=192, depth=12, num_heads=3, ffn_dim=768, patch_size=16, image_size=(224, 224), num_register_tokens=4,
        layer_scale_init=LAYER_SCALE,
    )  # fmt: skip
    return TrainingRecipe(
        name="tiny",
        model=vit,
        steps=20_000,
        batch_size=256,
        drop_path=0.1,
        augmentation=Augmentation.dinov2(local_size=96),
        heads=Heads(prototypes=1024, hidden_dim=1024, bottleneck_dim=128, init="fan_in"),
        losses=LossSettings(koleo=1.0, koleo_end=0.2, ibot=0.5),
        schedule=ScheduleSettings(
            lr=1e-3, warm_up=2000, momentum=0.95, teacher_temperature_end=0.03, teacher_temperature_warm_up=0,
            last_layer_freeze=0,
        ),
        optimizer=OptimizerSettings(layerwise_decay=1.0),
        watch=Watching(every=500),
        save=Saving(every=500),
    )  # fmt: skip


def small() -> TrainingRecipe:
    """For 10,000 to 300,000 images: ViT-S/16 with registers.

    dinokit train photos/ --out run --recipe small
    Cost: 130 GFLOP an image and step: 50,000 steps of 512 are 3.3 EFLOP, about 3 hours of one H100 at 30 %. Result: not measured.
    """
    return replace(
        tiny(),
        name="small",
        model=published_shape("vits14_reg"),
        steps=50_000,
        batch_size=512,
        heads=Heads(prototypes=8192, patch_prototypes=8192, init="fan_in"),
        losses=LossSettings(koleo=0.5, koleo_end=0.2),
        schedule=ScheduleSettings(
            lr=1e-3, warm_up=5000, momentum=0.98, teacher_temperature=0.03, teacher_temperature_end=0.05,
            teacher_temperature_warm_up=15_000, last_layer_freeze=0,
        ),
        watch=Watching(every=1000),
        save=Saving(every=1000),
    )  # fmt: skip


def base() -> TrainingRecipe:
    """For about a million images: ViT-B/16 with registers.

    torchrun --nproc-per-node 8 -m dinokit.cli.main train photos/ --out run --recipe base
    Cost: 470 GFLOP an image and step: 125,000 steps of 1024 are 60 EFLOP, about 7 hours of eight H100 at 30 %. Result: not measured.
    """
    return replace(
        small(),
        name="base",
        model=published_shape("vitb14_reg"),
        steps=125_000,
        batch_size=1024,
        drop_path=0.2,
        heads=Heads(prototypes=65_536, patch_prototypes=65_536),
        losses=LossSettings(koleo=0.1),
        schedule=ScheduleSettings(lr=1e-3, warm_up=12_500, momentum=0.992),
        optimizer=OptimizerSettings(),
        save=Saving(every=2500, keep_every=25_000),
    )


def paper_short() -> TrainingRecipe:
    """The official short recipe: ViT-L/16 on ImageNet-1k, without registers.

    torchrun --nnodes 4 --nproc-per-node 8 ... -m dinokit.cli.main train imagenet/train --out run --recipe paper_short
    Cost: a day of 32 A100. Result, published for the official code: k-NN 81.6, linear 82.9 on ImageNet-1k.
    """
    return TrainingRecipe(
        name="paper_short",
        model=published_shape("vitl14"),
        steps=125_000,
        batch_size=2048,
        drop_path=0.3,
        augmentation=Augmentation.dinov2(local_size=96),
        losses=LossSettings(targets="centring"),
        schedule=ScheduleSettings(lr=4e-3, warm_up=12_500, weight_decay_end=0.4, momentum=0.992),
        save=Saving(every=2500, keep_every=25_000),
    )


def paper_long() -> TrainingRecipe:
    """The official long recipe: ViT-L/14 on ImageNet-22k. For registers: --set model.num_register_tokens=4.

    torchrun --nnodes 12 --nproc-per-node 8 ... -m dinokit.cli.main train imagenet22k/ --out run --recipe paper_long
    Cost: 3.3 days of 96 A100. Result, published for the official code: k-NN 82.0, linear 84.5 on ImageNet-1k.
    """
    return replace(
        paper_short(),
        name="paper_long",
        model=published_shape("vitl14", patch_size=14),
        steps=625_000,
        batch_size=3072,
        drop_path=0.4,
        augmentation=Augmentation.dinov2(local_size=98),
        heads=Heads(prototypes=131_072, patch_prototypes=131_072, bottleneck_dim=384),
        losses=LossSettings(),
        schedule=ScheduleSettings(lr=2e-4, warm_up=100_000),
        optimizer=OptimizerSettings(layerwise_decay=1.0),
    )

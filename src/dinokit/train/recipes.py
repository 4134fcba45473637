"""The presets: functions that return a `TrainingRecipe`, each with its command, cost and result; and changes to them.

Source: dinov2/configs; Oquab et al. 2023, appendix B. Small-data presets: our measurements, docs/training.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from dinokit.config import SIZE_ANTIALIAS, VARIANTS, ViTConfig
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
from dinokit.train.settings import with_settings

LAYER_SCALE = 1e-5


def _vit(variant: str, patch_size: int = 16, image_size: int = 224) -> ViTConfig:
    """A published shape as it is before training."""
    return VARIANTS[variant].replace(
        patch_size=patch_size,
        image_size=(image_size, image_size),
        layer_scale_init=LAYER_SCALE,
        position=SIZE_ANTIALIAS,
    )


def tiny() -> TrainingRecipe:
    """For up to about 10,000 images: a small network, strong KoLeo, sharp constant targets, a fast teacher.

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
        heads=Heads(
            prototypes=1024, patch_prototypes=1024, hidden_dim=1024, bottleneck_dim=128, patch_bottleneck_dim=128,
            init="fan_in",
        ),
        losses=LossSettings(koleo=1.0, koleo_end=0.1),
        schedule=ScheduleSettings(
            lr=1e-3, warm_up=2000, momentum=0.98, teacher_temperature_end=0.03, teacher_temperature_warm_up=0,
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
        model=_vit("vits14_reg"),
        steps=50_000,
        batch_size=512,
        heads=Heads(prototypes=8192, patch_prototypes=8192, init="fan_in"),
        losses=LossSettings(koleo=0.5, koleo_end=0.1),
        schedule=ScheduleSettings(
            lr=1e-3, warm_up=5000, momentum=0.99, teacher_temperature=0.03, teacher_temperature_end=0.05,
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
        model=_vit("vitb14_reg"),
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
        model=_vit("vitl14"),
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
        model=_vit("vitl14", patch_size=14),
        steps=625_000,
        batch_size=3072,
        drop_path=0.4,
        augmentation=Augmentation.dinov2(local_size=98),
        heads=Heads(prototypes=131_072, patch_prototypes=131_072, bottleneck_dim=384),
        losses=LossSettings(),
        schedule=ScheduleSettings(lr=2e-4, warm_up=100_000),
        optimizer=OptimizerSettings(layerwise_decay=1.0),
    )


def continued() -> TrainingRecipe:
    """On with released weights, on other images: new heads first, the backbone frozen, then everything at a low constant rate.

    dinokit train photos/ --out run --recipe continued --set init=facebook/dinov2-with-registers-small
    Cost: as `small`. Result: not measured. Released weights come without heads, and the smaller ones were distilled, without masks:
    watch k-NN (--labels), and stop where it falls.
    """
    return replace(
        small(),
        name="continued",
        model=_vit("vits14_reg", patch_size=14),
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


TEXTURE = Photometric(
    flip=0.0, jitter=(0.4, 0.4, 0.4, 0.5), jitter_rate=1.0, grey=0.0
)  # a texture is the same in any colour


def tiny_procedural() -> TrainingRecipe:
    """Two minutes on one core of a laptop, without a file: procedural textures, a network of 130,000 parameters.

    dinokit train procedural:textures --out run --recipe tiny_procedural
    Cost: about 90 s of one core. Result: docs/training.md, with its controls.
    """
    vit = ViTConfig(
        embed_dim=48, depth=3, num_heads=4, ffn_dim=192, patch_size=4, image_size=(16, 16), num_register_tokens=2
    )
    return TrainingRecipe(
        name="tiny_procedural",
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
        losses=LossSettings(koleo=1.0),
        schedule=ScheduleSettings(
            lr=3e-3, scale_lr=False, warm_up=50, momentum=0.95, teacher_temperature_end=0.02,
            teacher_temperature_warm_up=0, last_layer_freeze=0,
        ),
        optimizer=OptimizerSettings(layerwise_decay=1.0, patch_embed=1.0),
        precision="fp32",
        watch=Watching(every=100),
        save=Saving(every=100),
    )  # fmt: skip


RECIPES: dict[str, Callable[[], TrainingRecipe]] = {
    f.__name__: f for f in (tiny, small, base, paper_short, paper_long, continued, high_res, tiny_procedural)
}


def resolve(name: str, assignments: Iterable[str] = ()) -> TrainingRecipe:
    """The preset `name` with `key=value` texts applied; `model=vitb14_reg` gives a published shape.

    Raises:
        ValueError: no such preset or setting, or a value that does not fit.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}; use one of {', '.join(RECIPES)}.")
    return changed(RECIPES[name](), assignments)


def changed(recipe: TrainingRecipe, assignments: Iterable[str]) -> TrainingRecipe:
    """A recipe with `key=value` texts applied."""
    settings = list(assignments)
    for shape in [text.removeprefix("model=").strip() for text in settings if text.startswith("model=")]:
        if shape not in VARIANTS:
            raise ValueError(
                f"model is {shape!r}; it must be one of {', '.join(VARIANTS)}, or set model.embed_dim and so on."
            )
        model = _vit(shape, recipe.model.patch_size).replace(
            image_size=recipe.model.image_size, layer_scale_init=recipe.model.layer_scale_init
        )
        recipe = replace(recipe, model=model)
    return with_settings(recipe, [text for text in settings if not text.startswith("model=")])

"""From weights that are there: continued training, high resolution, Gram anchoring, distillation, registers added afterwards."""

from __future__ import annotations

from dataclasses import replace

from dinokit.train.data import Augmentation, CropRule, Photometric
from dinokit.train.recipe import (
    Distillation,
    GramAnchoring,
    Heads,
    LossSettings,
    OptimizerSettings,
    Saving,
    ScheduleSettings,
    TrainingRecipe,
    Watching,
)
from dinokit.train.recipes.pretraining import published_shape, small

AS_IT_IS = Photometric(flip=0.0, jitter=(0.0, 0.0, 0.0, 0.0), jitter_rate=0.0, grey=0.0)


def continued() -> TrainingRecipe:
    """On with released weights, on other images: new heads first, the backbone frozen, then everything at a low constant rate.

    dinokit train photos/ --out run --recipe continued --set init=facebook/dinov2-with-registers-small --labels labelled/
    Cost: as `small`. Result: not measured. Released weights come without heads, and the smaller ones were distilled, without masks:
    watch k-NN (--labels); the best is kept in run/export-best, and --set watch.stop=true ends the run where it falls.
    """
    return replace(
        small(),
        name="continued",
        model=published_shape("vits14_reg", patch_size=14),
        steps=20_000,
        init="facebook/dinov2-with-registers-small",
        augmentation=Augmentation.dinov2(local_size=98),
        losses=LossSettings(koleo=0.1, ibot=0.5, ibot_warm_up=6000),
        schedule=ScheduleSettings(
            shape="constant", lr=3e-5, warm_up=500, momentum=0.999, teacher_temperature_end=0.05,
            teacher_temperature_warm_up=0, last_layer_freeze=0, backbone_freeze=2000,
        ),
        optimizer=OptimizerSettings(),
        watch=Watching(every=500, keep_best=True),
    )  # fmt: skip


def high_res() -> TrainingRecipe:
    """The last, short phase at 518 pixels, from a run at a lower resolution; positions begin resampled to the new grid.

    dinokit train photos/ --out run518 --recipe high_res --set init=run224/export
    Cost: an image has 5.4 times the patches. Result: not measured here; the paper has 10,000 steps and no learning rate (appendix B.2).
    Heads come with an export's folder, and nothing is frozen; from weights without heads, these are trained alone for 2000 steps.
    """
    return replace(
        continued(),
        name="high_res",
        steps=10_000,
        batch_size=256,
        init_positions="resample",
        augmentation=Augmentation.dinov2(global_size=518, local_size=98),
        losses=LossSettings(koleo=0.1),
        activation_checkpointing=True,
        save=Saving(every=500),
    )


def gram() -> TrainingRecipe:
    """On with a long run whose patches have become worse than they were: their similarities are held to those of an earlier network.

    dinokit train photos/ --out refined --recipe gram --set init=run/export --set anchor=run-at-100k/export/model
    Cost: as the objective, and a forward pass of the anchor on the global crops. Result: not measured here; the weight is DINOv3's.
    Without anchor it is the network of init. --set gram.scale=2 lets it see enlarged crops, at four times that pass's cost.
    """
    return replace(
        continued(),
        name="gram",
        steps=10_000,
        losses=LossSettings(koleo=0.1),
        gram=GramAnchoring(weight=2.0),
    )


def distill() -> TrainingRecipe:
    """A smaller network from a frozen larger one with its heads, as the paper made ViT-S, B and L; from features where there are none.

    dinokit train photos/ --out vits --recipe distill --set teacher=vitl/export --set model=vits14_reg
    Cost: a forward pass of the teacher on two crops and a student's step; the paper's ViT-S took 4500 A100 hours in all (model card).
    Result: not measured here. Learning rate and batch are the paper's (1e-3, 2048; appendix B), with the long recipe's other rates.
    """
    return TrainingRecipe(
        name="distill",
        model=published_shape("vits14_reg", patch_size=14),
        steps=625_000,
        batch_size=2048,
        augmentation=Augmentation.dinov2(local_size=98),
        heads=Heads(prototypes=0, bottleneck_dim=384),
        losses=LossSettings(patches="all"),
        distill=Distillation(mode="auto"),
        schedule=ScheduleSettings(lr=1e-3, scale_lr=False, warm_up=100_000),
        optimizer=OptimizerSettings(layerwise_decay=1.0),
        save=Saving(every=2500, keep_every=25_000),
    )


def distill_features() -> TrainingRecipe:
    """A smaller network from the tokens of released weights, or of any network that `dinokit.load` takes; no heads are needed.

    dinokit train photos/ --out small --recipe distill_features --set teacher=facebook/dinov2-with-registers-large
    Cost: a forward pass of the teacher and a step of the student on two crops; ViT-S from ViT-L: about 390 GFLOP an image.
    Result: not measured.
    """
    return replace(
        small(),
        name="distill_features",
        model=published_shape("vits14_reg", patch_size=14),
        augmentation=replace(Augmentation.dinov2(), local_crops=CropRule(0, 98, (0.05, 0.32))),
        losses=LossSettings(dino=0.0, ibot=0.0, koleo=0.0),
        distill=Distillation(mode="features"),
        drop_path=0.0,
        schedule=ScheduleSettings(lr=1e-3, warm_up=2500, weight_decay_end=0.04, momentum=0.999, last_layer_freeze=0),
        optimizer=OptimizerSettings(layerwise_decay=1.0),
    )


def post_hoc_registers() -> TrainingRecipe:
    """Registers for a network that was trained without (PH-Reg): it learns its own features, averaged over shifted and mirrored images.

    dinokit train photos/ --out repaired --recipe post_hoc_registers --set init=facebook/dinov2-small
    Cost: ten forward passes of the frozen network and a step of the student on two crops. Result: not measured here.
    Trained are registers, positions, patch embedding and the last block, as published; docs/training.md says what differs.
    """
    return TrainingRecipe(
        name="post_hoc_registers",
        model=published_shape("vits14", patch_size=14),
        steps=10_000,
        batch_size=64,
        init="facebook/dinov2-small",
        add_registers=16,
        augmentation=Augmentation(local_crops=CropRule(0, 98, (0.05, 0.32)), first=AS_IT_IS, second=AS_IT_IS),
        losses=LossSettings(dino=0.0, ibot=0.0, koleo=0.0),
        distill=Distillation(mode="features", adapter="none", compare="cosine_mse", shifts=5, mirrored=True),
        schedule=ScheduleSettings(
            lr=1e-4, scale_lr=False, min_lr=5e-6, warm_up=200, weight_decay=0.0, weight_decay_end=0.0, momentum=0.99,
            momentum_end=0.99, last_layer_freeze=0,
        ),
        optimizer=OptimizerSettings(
            layerwise_decay=1.0, patch_embed=1.0,
            trained=("register_tokens", "pos_embed", "patch_embed.*", "blocks.-1.*"),
        ),
        save=Saving(every=500),
    )  # fmt: skip

"""How a run begins: its network, what it starts from, who is frozen beside it; and the recipe with all that follows from the files.

Promise: a function of the recipe and the files it names; what is read again later is the same file, or refused.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dinokit.errors import WeightsError
from dinokit.model import VisionTransformer
from dinokit.model.posembed import resample
from dinokit.train.distill import adapter_between
from dinokit.train.frozen import Found, read_network, shape_of
from dinokit.train.guides import Guides
from dinokit.train.heads import ProjectionHead, fan_in_std, official_std
from dinokit.train.network import Network
from dinokit.train.recipe import Heads, TrainingRecipe

Say = Callable[[str], object]


def begin(recipe: TrainingRecipe, fresh: bool, say: Say = lambda _: None) -> tuple[TrainingRecipe, Network, Guides]:
    """The recipe with all that its files say, the network, and who is frozen beside it.

    Unless `fresh`, the network's numbers are a checkpoint's to come, and what it started from is not read again.

    Raises:
        UnknownModelError, HubError, WeightsError: as `dinokit.load`; or another teacher than the run began with.
        ValueError: a teacher is wanted and not named, or it does not fit the student.
    """
    recipe, guides = find_guides(recipe, say)
    begun = None
    if fresh:
        recipe, begun = start_from(recipe, say)
    _check_fit(recipe, guides)
    network = build_network(recipe, begun, guides.width)
    freeze(network, recipe)
    return recipe, network, guides


def _check_fit(recipe: TrainingRecipe, guides: Guides) -> None:
    p = recipe.model.patch_size
    if guides.heads is not None and (q := guides.heads.backbone.config.patch_size) != p:
        raise ValueError(
            f"the teacher's patches have {q} pixels and the student's {p}, so that iBOT has no pairs: set model.patch_size={q} and "
            f"crops that are multiples of it, or distill.mode=features."
        )
    if recipe.by_heads and not recipe.heads.prototypes:
        raise ValueError(
            "heads.prototypes is 0, as many as a teacher's heads have, and no teacher's heads are learned from: set "
            "heads.prototypes, or, to learn features alone, losses.dino=0 and losses.ibot=0 (the recipe distill_features)."
        )


def build_network(
    recipe: TrainingRecipe, begun: VisionTransformer | Network | None = None, teacher_dim: int | None = None
) -> Network:
    """Backbone and heads at their beginning; a function of the recipe's seed, whatever was drawn before.

    What `begun` has is taken as it is. `teacher_dim` is the width of the teacher whose features are learned.
    """
    had = begun if isinstance(begun, Network) else Network(begun) if begun is not None else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        vit = VisionTransformer(recipe.model) if had is None else had.backbone
        if had is None and recipe.init_scale == "fan_in":
            _rescale(vit)
        heads: tuple[ProjectionHead | None, ProjectionHead | None] = (None, None)
        if recipe.by_heads:
            heads = (had.dino_head, had.ibot_head) if had is not None and had.dino_head is not None else _heads(recipe)
        if recipe.distill.mode != "features":
            return Network(vit, *heads, dense=recipe.gram.weight > 0)
        assert teacher_dim is not None
        d, width = recipe.distill, vit.config.embed_dim
        adapter = adapter_between(width, teacher_dim, d.adapter, classes=d.class_weight > 0, patches=d.patch_weight > 0)
        return Network(vit, *heads, adapter, dense=True)


def _heads(recipe: TrainingRecipe) -> tuple[ProjectionHead, ProjectionHead | None]:
    h, width = recipe.heads, recipe.model.embed_dim
    std = fan_in_std if h.init == "fan_in" else official_std
    shape: dict[str, Any] = {"hidden_dim": h.hidden_dim, "num_layers": h.num_layers, "std": std}
    dino = ProjectionHead(width, h.prototypes, bottleneck_dim=h.bottleneck_dim, **shape)
    if not h.patch_prototypes:
        return dino, None
    return dino, ProjectionHead(width, h.patch_prototypes, bottleneck_dim=h.patch_bottleneck_dim, **shape)


def _rescale(vit: VisionTransformer) -> None:
    """Begin at 1 / sqrt(inputs) in linear layers and the patch embedding, 0.02 in tokens, as in positions.

    The official 0.02 suits widths of a thousand. Its tokens of 1e-6 grow a thousandfold in the first norm, and so do gradients, which
    only a layer scale of 1e-5 keeps in check.
    """
    for module in vit.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=fan_in_std(module.weight[0].numel()))
    for tokens in (vit.cls_token, vit.register_tokens):
        nn.init.normal_(tokens, std=official_std(vit.config.embed_dim))


def start_from(recipe: TrainingRecipe, say: Say = lambda _: None) -> tuple[TrainingRecipe, Network | None]:
    """What `recipe.init` names, if anything, with the registers and positions asked for; and the recipe for a network of this shape.

    Heads that come with it need no time alone: `backbone_freeze` is 0 then.

    Raises:
        UnknownModelError, HubError, WeightsError: as `dinokit.load`.
        ValueError: registers or positions are to be changed, and there is nothing to start from.
    """
    if not recipe.init:
        if recipe.add_registers or recipe.init_positions != "keep":
            raise ValueError(
                "add_registers and init_positions change the network that init names; set init, or leave them out."
            )
        return recipe, None
    found = read_network(recipe.init).network
    vit = found.backbone
    vit.config = vit.config.replace(drop_path=())
    if recipe.add_registers:
        _add_registers(vit, recipe.add_registers, recipe.seed)
    if recipe.init_positions == "resample":
        _resample_positions(vit, recipe.augmentation.global_crops.size)
    recipe = replace(recipe, model=vit.config)
    if found.dino_head is not None and recipe.by_heads and not _other_prototypes(recipe):
        recipe = replace(recipe, heads=shape_of(found, recipe.heads))
        if recipe.schedule.backbone_freeze:
            say(f"{recipe.init} comes with its heads: nothing is frozen at first (schedule.backbone_freeze=0).")
            recipe = replace(recipe, schedule=replace(recipe.schedule, backbone_freeze=0))
    else:
        found = Network(vit)
    found.train()
    return recipe, found


def _other_prototypes(recipe: TrainingRecipe) -> bool:
    """Whether heads answer to another network's prototypes, so that those of `init` say nothing."""
    return recipe.distill.mode in ("auto", "prototypes")


@torch.no_grad()
def _add_registers(vit: VisionTransformer, count: int, seed: int) -> None:
    """New registers behind those that are there, drawn as positions are: there is no trained stream yet that they could drown."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = torch.empty(1, count, vit.config.embed_dim, dtype=vit.register_tokens.dtype)
        nn.init.normal_(new, std=official_std(vit.config.embed_dim))
    vit.register_tokens = nn.Parameter(torch.cat([vit.register_tokens, new], dim=1))
    vit.config = vit.config.replace(num_register_tokens=vit.config.num_register_tokens + count)


@torch.no_grad()
def _resample_positions(vit: VisionTransformer, size: int) -> None:
    """The table that crops of `size` pixels would have got at every step, from now on trained itself."""
    config, grid = vit.config, (size // vit.config.patch_size,) * 2
    vit.pos_embed = nn.Parameter(resample(vit.pos_embed, config.grid, grid, config.position).clone())
    vit.config = config.replace(image_size=(size, size))


def find_guides(recipe: TrainingRecipe, say: Say = lambda _: None) -> tuple[TrainingRecipe, Guides]:
    """The frozen networks that a recipe names; and the recipe with their identity, and what else follows from them.

    Raises:
        UnknownModelError, HubError, WeightsError: as `dinokit.load`; or another file than the run began with.
        ValueError: a teacher is wanted and not named, or it does not fit the student.
    """
    guides = Guides()
    if recipe.distill.mode != "off":
        recipe, guides = _find_teacher(recipe, say)
    if recipe.gram.weight:
        found = _named(recipe.gram.anchor or recipe.init, "gram.anchor", recipe.gram.sha256)
        recipe = replace(recipe, gram=replace(recipe.gram, anchor=found.name, sha256=found.sha256))
        guides = replace(guides, anchor=found.backbone)
    return recipe, guides


def _find_teacher(recipe: TrainingRecipe, say: Say) -> tuple[TrainingRecipe, Guides]:
    d = recipe.distill
    # a student that begins as its own teacher (PH-Reg) names it once
    found = _named(d.teacher or (recipe.init if d.mode == "features" else ""), "distill.teacher", d.sha256)
    mode = d.mode
    if mode == "auto" and found.network.dino_head is None:
        say(f"{found.name} has no heads: its features are learned, and nothing else (distill.mode=features).")
        mode, alone = "features", replace(recipe.losses, dino=0.0, ibot=0.0, koleo=0.0)
        recipe = replace(recipe, losses=alone, heads=Heads())
    elif mode == "auto":
        mode = "prototypes"
    recipe = replace(recipe, distill=replace(d, teacher=found.name, sha256=found.sha256, mode=mode))
    if mode == "features":
        return recipe, Guides(teacher=found.backbone)
    return _fitted(recipe, found), Guides(heads=found.network)


def _named(name: str, setting: str, sha256: str) -> Found:
    if not name:
        raise ValueError(
            f"{setting} is not set: --set {setting}=PATH, an export's folder or any name that dinokit.load takes."
        )
    found = read_network(name)
    if sha256 and found.sha256 != sha256:
        raise WeightsError(
            f"{setting} {name} has sha256 {found.sha256[:12]}..., and the run began with {sha256[:12]}...: give the file it began "
            f"with, or begin another run, with {setting.rpartition('.')[0]}.sha256 empty."
        )
    return found


def _fitted(recipe: TrainingRecipe, found: Found) -> TrainingRecipe:
    """The recipe with the teacher's numbers of prototypes, where it leaves them open.

    Raises:
        ValueError: there are no heads, or other numbers of prototypes.
    """
    theirs, ours = found.network, recipe.heads
    if theirs.dino_head is None:
        raise ValueError(
            f"{found.name} has no heads, which released weights come without: learn its features (distill.mode=features), or give an "
            f"export's folder or a file with dino_head."
        )
    numbers = theirs.dino_head.num_prototypes, 0 if theirs.ibot_head is None else theirs.ibot_head.num_prototypes
    if not ours.prototypes:
        recipe = replace(recipe, heads=replace(ours, prototypes=numbers[0], patch_prototypes=numbers[1]))
    elif (ours.prototypes, ours.patch_prototypes) != numbers:
        raise ValueError(
            f"the teacher's heads have {numbers[0]} prototypes and {numbers[1]} for patches (0: one head for both), the student's "
            f"{ours.prototypes} and {ours.patch_prototypes}: set heads.prototypes={numbers[0]} and "
            f"heads.patch_prototypes={numbers[1]}, or heads.prototypes=0 for as many as the teacher's."
        )
    return recipe


def freeze(network: Network, recipe: TrainingRecipe) -> None:
    """Switch gradients off for what a recipe does not train, and for the mask token where nothing is masked.

    Raises:
        ValueError: a pattern of `optimizer.trained` fits no parameter.
    """
    backbone = network.backbone
    if recipe.optimizer.trained:
        names = [name for name, _ in backbone.named_parameters()]
        wanted = {name for pattern in recipe.optimizer.trained for name in _fitting(pattern, names, recipe.model.depth)}
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name in wanted)
    if not recipe.hides:
        backbone.mask_token.requires_grad_(False)


def _fitting(pattern: str, names: list[str], depth: int) -> list[str]:
    parts = pattern.split(".")
    if parts[0] == "blocks" and len(parts) > 1 and parts[1].startswith("-") and parts[1][1:].isdigit():
        parts[1] = str(depth + int(parts[1]))
    found = fnmatch.filter(names, ".".join(parts))
    if not found:
        raise ValueError(
            f"optimizer.trained has {pattern!r}, which fits no parameter of the backbone; they are named as pos_embed, "
            f"blocks.0.attn.qkv.weight, and blocks.-1.* is the last block."
        )
    return found

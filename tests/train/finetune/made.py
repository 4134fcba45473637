"""Small scenes with masks and depth, and a tiny backbone that knows where it looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import dinokit
from dinokit.config import ViTConfig
from dinokit.images import ImageTransform
from dinokit.train.data.shapetex import ShapeTex
from dinokit.weights.load import Provenance

SIZE, TRAIN, VAL = 32, 32, 12
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))


def backbone(registers: int = 2) -> dinokit.Pretrained:
    torch.manual_seed(0)
    config = ViTConfig(
        embed_dim=32,
        depth=2,
        num_heads=2,
        ffn_dim=64,
        num_register_tokens=registers,
        image_size=(SIZE, SIZE),
        patch_size=4,
    )
    model = dinokit.VisionTransformer(config).eval()
    torch.nn.init.normal_(model.pos_embed, std=0.5)  # positions are to weigh about as much as colours
    path = Path("tiny")
    provenance = Provenance(name="tiny", path=path, files=(path,), layout="official")
    return dinokit.Pretrained(model=model, transform=ImageTransform.dinov2(), provenance=provenance)


def scenes() -> list:
    data = ShapeTex(TRAIN + VAL, size=SIZE, seed=1)
    return [data.scene(i) for i in range(len(data))]


def bar_masks() -> tuple[list, list]:
    """Ground 0, a white bar of random width at the left 1, and a column that counts for nothing."""
    pairs = []
    for i in range(TRAIN + VAL):
        rng = np.random.default_rng(i)
        image, mask = rng.integers(0, 120, (SIZE, SIZE, 3)).astype(np.uint8), np.zeros((SIZE, SIZE), np.int64)
        width = int(rng.integers(6, 22))
        image[:, :width], mask[:, :width] = 250, 1
        mask[:, -1] = 255
        pairs.append((image, torch.from_numpy(mask)))
    return pairs[:TRAIN], pairs[TRAIN:]


def depths() -> tuple[list, list]:
    """Scenes in thick white fog, which tells depth even to a network that learned nothing."""
    pairs = []
    for scene in scenes():
        clear = np.exp(-1.5 * scene.depth)[..., None]
        foggy = (0.5 * scene.pixels * clear + 255 * (1 - clear)).clip(0, 255).astype(np.uint8)
        pairs.append((foggy, torch.from_numpy(scene.depth)))
    return pairs[:TRAIN], pairs[TRAIN:]


def colours(count: int = 18) -> list:
    pairs = []
    for i in range(count):
        noise = np.random.default_rng(i).integers(-30, 30, (40, 36, 3))
        pairs.append(((np.array(COLOURS[i % 3]) + noise).clip(0, 255).astype(np.uint8), i % 3))
    return pairs

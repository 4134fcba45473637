"""Photographs made up for tests, a tiny model on disk, and the collection that it makes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import dinokit
from dinokit.config import ViTConfig
from dinokit.images import decode
from dinokit.search.written import write_collection
from dinokit.store import Feature, identify
from dinokit.weights.load import Pretrained, Provenance

CONFIG = ViTConfig(embed_dim=32, depth=2, num_heads=2, ffn_dim=64, num_register_tokens=4, image_size=(70, 70))


def tiny_model(folder: Path, seed: int = 0) -> Pretrained:
    """A random network as a folder in the hub's layout, loaded from there."""
    torch.manual_seed(seed)
    network = dinokit.VisionTransformer(CONFIG).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.2)
    transform = dinokit.ImageTransform(resize=dinokit.images.transform.ShortestEdge(80), crop=(70, 70))
    provenance = Provenance(name="tiny", path=folder, files=(), layout="hf")
    dinokit.save(Pretrained(model=network, transform=transform, provenance=provenance), folder, "hf")
    return dinokit.load(folder)


def some_photos(folder: Path, count: int = 12) -> list[str]:
    """Coloured noise; pairs (0, 1), (2, 3), ... look alike; 1 and 3 are the bytes of 0 and 2."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for i in range(count):
        rng = np.random.default_rng(i // 2)
        colours = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        image = Image.fromarray(colours).resize((120, 90), Image.Resampling.BILINEAR)
        pixels = np.asarray(image, np.int16) + np.random.default_rng(100 + i).integers(-3, 4, (90, 120, 3))
        names.append(f"{i:02}.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / names[-1])
    for original, copy in ((0, 1), (2, 3)):
        (folder / names[copy]).write_bytes((folder / names[original]).read_bytes())
    return names


def embedded(
    pre: Pretrained, folder: Path, names: Sequence[str], out: Path, *, pooling: str = "cls", block: int | None = None
) -> Path:
    """The collection of these photographs, made by the plainest code."""
    from dinokit.model import intermediate_tokens

    vectors, widths, heights, sums = [], [], [], []
    for name in names:
        image = decode(str(folder / name))
        with torch.no_grad():
            pixels = pre.pixels(str(folder / name))
            tokens = pre.model(pixels) if block is None else intermediate_tokens(pre.model, pixels, [block])[0]
        vectors.append(tokens.pool(pooling)[0].numpy())
        widths.append(image.width)
        heights.append(image.height)
        sums.append(hashlib.sha256((folder / name).read_bytes()).hexdigest())
    feature = Feature(dim=len(vectors[0]), pooling=pooling, block=block)
    return write_collection(
        out,
        np.stack(vectors),
        list(names),
        identify(pre, [feature]),
        facts={"path": [str(folder / name) for name in names], "width": widths, "height": heights, "sha256": sums},
    )

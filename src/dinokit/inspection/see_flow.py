"""`flow`: what really reaches the class token, beside what it attends to: attention weighted by values, and rolled out through blocks.

Source: Kobayashi et al. 2020 (arXiv 2004.10102), Eq. 5; Abnar & Zuidema 2020 (arXiv 2005.00928), section 3.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from dinokit.analysis.attention import rollout, value_weighted
from dinokit.analysis.colour import Scale
from dinokit.analysis.panel import Section, panel
from dinokit.images import Decoded
from dinokit.images.decode import Source
from dinokit.inspection.drawn import (
    Seen,
    about,
    block,
    heat_tile,
    outlier_keys,
    overlay_tile,
    peak,
    photo_tile,
    subtitle,
)
from dinokit.inspection.look import Look
from dinokit.model.capture import block_attention
from dinokit.model.layers import Block
from dinokit.weights.load import Pretrained

PERCENTILE = 99.5


@torch.no_grad()
def flow(pre: Pretrained, image: Source | Decoded, found: Look) -> Seen:
    """Three maps of the class token over the patches, for the block that `found` looked at; runs the network once more.

    Attention, mean of heads; the length of what each patch adds to the class token, through value, output layer and layer scale,
    mean of heads; and attention rolled out from the first block to this one (heads averaged, half of each step the token itself).
    Keeps one matrix of tokens x tokens a block.

    Raises:
        ValueError: a form of the network whose attention has keys that are no tokens can't be rolled out.
    """
    pixels, at = pre.pixels(image), found.layer
    matrices, weighted = [], None
    for index, x in enumerate(pre.model.stream(pixels)):
        if index > at:
            break
        weights = block_attention(pre.model, index, x)
        matrices.append(weights.float().mean(dim=1, keepdim=True))
        if index == at:
            weighted = _moved(pre, index, x, weights)
    assert weighted is not None
    maps = {
        "Attention": (100 * found.attention_map().mean(dim=0), "attention to a patch, %"),
        "What attention moves": (_on_grid(weighted, found), "length of what a patch adds"),
        f"Rolled out, blocks 0 to {at}": (100 * _on_grid(rollout(matrices)[0, 0], found), "share that arrives, %"),
    }
    sections, numbers = [], {}
    for heading, (tensor, label) in maps.items():
        values = tensor.cpu().numpy()
        scale = Scale.of(values, label, percentile=PERCENTILE, zero=True)
        tiles = [
            photo_tile(found),
            overlay_tile(found, values, scale, "over the photograph"),
            heat_tile(found, values, scale, "alone"),
        ]
        sections.append(Section(heading, tiles, scale, outlier_keys(found), columns=3))
        numbers[heading.split(",")[0].lower()] = {"sum": float(values.sum()), "peak": peak(values)}
    picture = panel(
        sections, title=f"What reaches the class token in {block(found)}", subtitle=subtitle(found), columns=3
    )
    return Seen(picture, {**about(found), "layer": at, "maps": numbers})


def _moved(pre: Pretrained, index: int, x: Tensor, weights: Tensor) -> Float[Tensor, " t"]:
    """What each token adds to the class token in block `index`, mean of heads."""
    layer = pre.model.blocks[index]
    assert isinstance(layer, Block)
    _, _, values = layer.attn.split(layer.norm1(x))
    projection = layer.ls1.gamma[:, None] * layer.attn.proj.weight
    return value_weighted(weights[..., : values.shape[2]], values, projection)[0, :, 0].float().mean(dim=0)


def _on_grid(row: Float[Tensor, " t"], found: Look) -> Float[Tensor, "gh gw"]:
    rows, columns = found.grid
    return row[found.prefix : found.prefix + rows * columns].view(rows, columns)

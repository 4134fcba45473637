"""Pictures of whole maps: norms of all layers, PCA as colours, segments.

Each takes what `look` found and gives a `Seen`. Norms are those before the final layer norm, which makes all lengths alike.
Source: norms and outliers: Darcet et al. 2024, Fig. 3 and 4; PCA: Oquab et al. 2023, Fig. 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from dinokit.analysis.charts import CLS, OUTLIER, PATCH, REGISTER, histogram, layer_chart
from dinokit.analysis.colour import Scale, number
from dinokit.analysis.panel import MARGIN, Key, Section, Tile, panel, panel_width
from dinokit.analysis.pca import PatchPCA
from dinokit.analysis.render import OUTLIER as OUTLINE
from dinokit.analysis.render import enlarge, guide, label_map, outline_patches
from dinokit.analysis.segments import kmeans_segments
from dinokit.analysis.spectral import eigen_segments
from dinokit.analysis.upsample import joint_bilateral
from dinokit.inspection.drawn import (
    Seen,
    about,
    balanced,
    block,
    canvas,
    heat_tile,
    overlay_tile,
    photo_tile,
    span,
    subtitle,
)
from dinokit.inspection.look import Look

MAX_LAYER_MAPS = 12
NORM = "norm before the final layer norm"


def norms(found: Look, layer: int | None = None) -> Seen:
    """Lengths of the tokens after each block, before the final norm, and which patches stand out.

    `layer` counts blocks passed, 0 to depth, for the large map and the histogram; by default the layer in which patches stand out
    most, the last if none do.

    Raises:
        ValueError: a layer that is not there.
    """
    layer = telling_layer(found) if layer is None else layer
    if not 0 <= layer <= found.depth:
        raise ValueError(f"layer {layer}: norms are known after 0 to {found.depth} blocks.")
    patches, mask = found.norms[:, found.prefix :], _mask(found, layer)
    here = Scale.logarithmic(found.norm_map(layer), NORM)
    heat = heat_tile(found, found.norm_map(layer), here, "norm of each patch", _spread(found, layer))
    tiles = [
        photo_tile(found, mask),
        Tile(outline_patches(heat.image, mask), heat.caption, heat.note),
        overlay_tile(found, found.norm_map(layer), here, "over the photograph", f"median {number(float(patches[layer].median()))}"),
    ]  # fmt: skip
    heading = f"{_after(layer)}: {int(mask.sum())} of {mask.size} patches stand out"
    keys = [Key(OUTLINE, "outlier")] if mask.any() else []
    sections = [Section(heading, tiles, here, keys, columns=3)]
    lines = {"class token": (CLS, found.norms[:, 0].numpy())}
    lines |= {f"register {i}": (REGISTER, found.norms[:, i].numpy()) for i in range(1, found.prefix)}
    keys = [Key(PATCH, "patch"), Key(OUTLIER, "outlier"), Key(CLS, "class token")]
    keys += [Key(REGISTER, "registers")] if found.num_registers else []
    width = panel_width(4) - 2 * MARGIN
    chart = layer_chart(patches.numpy(), found.outliers.numpy(), lines, width=width)
    sections.append(Section("All tokens through the network", chart=chart, keys=keys))
    sections.append(_layer_maps(found))
    chart = histogram(patches[layer].numpy(), found.outliers[layer].numpy(), width=width, label=NORM)
    sections.append(Section(f"{_after(layer)}: how many patches have which norm", chart=chart, keys=keys[:2]))
    picture = panel(sections, title="Norms of tokens", subtitle=f"{subtitle(found)}. Outlier: {found.rule}.")
    return Seen(
        picture, {**about(found), "rule": found.rule, "shown_after_block": layer, "layers": _layer_numbers(found)}
    )


def fit_basis(looks: Sequence[Look], *, foreground: bool = False) -> PatchPCA:
    """One PCA over the patches of all images; patches that stand out after the block take no part in the fit.

    Raises:
        ValueError: no image, or no foreground.
    """
    keep = [torch.from_numpy(~found.outlier_map) for found in looks]
    return PatchPCA.fit([found.features for found in looks], foreground=foreground, keep=keep)


def pca(looks: Sequence[Look], basis: PatchPCA) -> Seen:
    """Patches as colours, all images by one basis; of a single image its three components too.

    Raises:
        ValueError: no image, or a basis of another network.
    """
    if not looks:
        raise ValueError("no image to colour.")
    sections = []
    for i, found in enumerate(looks):
        inside = float(basis.foreground(found.features).float().mean())
        note = f"{100 * inside:.0f} % foreground" if basis.threshold.isfinite() else ""
        tiles = [
            photo_tile(found),
            Tile(pca_picture(found, basis, smooth=False), "three components as red, green, blue", note),
            Tile(pca_picture(found, basis), "edges from the photograph"),
        ]
        keys = [Key(OUTLINE, "outlier, not in the fit")] if any(each.outlier_map.any() for each in looks) else []
        sections.append(Section("" if i else "Patches as colours", tiles, keys=[] if i else keys, columns=3))
    shares = [float(share) for share in basis.shares]
    if len(looks) == 1:
        scores = basis.scores(looks[0].features).numpy()
        scale = Scale.symmetric(scores, "score")
        tiles = [
            heat_tile(
                looks[0], score, scale, f"component {k + 1}: {100 * shares[k]:.0f} % of the variance", span(score)
            )
            for k, score in enumerate(scores)
        ]
        sections.append(Section("Its three components", tiles, scale, columns=3))
    many = "" if len(looks) == 1 else f", one basis for {len(looks)} images"
    picture = panel(sections, title=f"PCA after {block(looks[0])}{many}", subtitle=subtitle(looks[0]))
    rows = []
    for found in looks:
        mean = basis.scores(found.features).mean(dim=(1, 2)).tolist()
        inside = float(basis.foreground(found.features).float().mean())
        rows.append({**about(found), "mean_scores": mean, "foreground": inside})
    return Seen(picture, {"layer": looks[0].layer, "shares_of_variance": shares, "images": rows})


def pca_picture(found: Look, basis: PatchPCA, *, smooth: bool = True) -> Image.Image:
    """The patches of one image as colours, the size of its photograph or larger; `smooth` follows the photograph's edges."""
    ground, colours = canvas(found), basis.transform(found.features)
    if not smooth:
        return enlarge((255 * colours).round().to(torch.uint8).numpy(), (ground.height, ground.width))
    fine = joint_bilateral(colours.permute(2, 0, 1), guide(ground)).permute(1, 2, 0)
    return Image.fromarray((255 * fine).round().clamp(0, 255).to(torch.uint8).numpy())


def segments(found: Look, num: int | None = None) -> Seen:
    """Regions of one image, by eigenvectors of the graph of patches and by k-means of the tokens, as many of each.

    Without `num`, as many as the eigenvalues suggest.

    Raises:
        ValueError: `num` below 2 or above the number of patches.
    """
    features = found.tokens.patches[0]
    regions = eigen_segments(features, found.grid, num)
    clusters = kmeans_segments(features, found.grid, regions.num)
    tiles = [photo_tile(found)]
    ground = canvas(found)
    grey = ground.convert("L").convert("RGB")
    for labels, caption in ((regions.labels, "eigenvectors of the graph"), (clusters, "k-means of the tokens")):
        coloured = enlarge(label_map(labels.numpy()), (ground.height, ground.width))
        count = int(labels.max()) + 1
        tiles.append(Tile(Image.blend(grey, coloured, 0.62), caption, f"{count} regions"))
    picture = panel(
        [Section("Regions of patches, 0 the largest", tiles, keys=_region_keys(regions.num), columns=3)],
        title=f"Segments after {block(found)}",
        subtitle=subtitle(found),
    )
    shares = {
        name: [float(share) for share in torch.bincount(labels.flatten()) / labels.numel()]
        for name, labels in (("eigenvectors", regions.labels), ("kmeans", clusters))
    }
    numbers = {
        **about(found),
        "layer": found.layer,
        "num": regions.num,
        "background": regions.background,
        "shares": shares,
        "labels": regions.labels.tolist(),
        "eigenvalues": regions.eigenvalues.tolist(),
    }
    return Seen(picture, numbers)


def telling_layer(found: Look) -> int:
    """How many blocks were passed where the largest norm is furthest above the median, among layers with outliers; else all."""
    if not found.outliers.any():
        return found.depth
    patches = found.norms[:, found.prefix :]
    ratio = patches.max(dim=1).values / patches.median(dim=1).values.clamp(min=1e-12)
    return int(ratio.where(found.outliers.any(dim=1), torch.tensor(-1.0)).argmax())


def _layer_maps(found: Look) -> Section:
    chosen = sorted({round(i) for i in np.linspace(0, found.depth, min(found.depth + 1, MAX_LAYER_MAPS))})
    scale = Scale.logarithmic(found.norms[:, found.prefix :].numpy(), NORM)
    tiles = []
    for at in chosen:
        mask = _mask(found, at)
        heat = heat_tile(found, found.norm_map(at), scale, _after(at), _spread(found, at))
        tiles.append(Tile(outline_patches(heat.image, mask), heat.caption, heat.note))
    return Section("Layer by layer on one scale", tiles, scale, columns=balanced(len(tiles), 6))


def _mask(found: Look, at: int) -> np.ndarray:
    return found.outliers[at].reshape(found.grid).numpy()


def _spread(found: Look, at: int) -> str:
    return span(found.norm_map(at))


def _after(layer: int) -> str:
    return f"After block {layer}" if layer else "Before block 1"


def _region_keys(count: int) -> list[Key]:
    colours = label_map(np.arange(count)[None])[0]
    return [Key((int(r), int(g), int(b)), str(i)) for i, (r, g, b) in enumerate(colours)]


def _layer_numbers(found: Look) -> list[dict[str, Any]]:
    rows = []
    for at in range(found.depth + 1):
        values = found.norms[at, found.prefix :]
        row = {
            "after_block": at,
            "median": float(values.median()),
            "max": float(values.max()),
            "outliers": [list(divmod(int(i), found.grid[1])) for i in found.outliers[at].nonzero()[:, 0]],
            "class_token": float(found.norms[at, 0]),
            "registers": found.norms[at, 1 : found.prefix].tolist(),
        }
        rows.append(row)
    return rows

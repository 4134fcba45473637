"""What a method found and why, as a picture: the photograph with its boxes, the masks, the maps over the photograph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dinokit.analysis.colour import Scale
from dinokit.analysis.components import pixel_box
from dinokit.analysis.panel import PAPER, TILE, Section, Tile, colour_bar, fit_width, panel
from dinokit.analysis.render import BOX, draw_boxes, mark_patch, outline_patches, overlay
from dinokit.inspection.discover import Discovered, Photo

MEANING = {
    "degree": "degree: tokens that agree",
    "similarity": "affinity to the seed",
    "expansion": "affinity to all seeds, largest 1",
}
MAX_MAPS = 4
BAR_PADDING = 52  # what `colour_bar` adds to its length


def discover_panel(photo: Photo, results: Sequence[Discovered], *, patch_size: int, title: str) -> Image.Image:
    """One row a layer (blocks count from 0): boxes and seeds on the photograph, then the method's maps with their scales.

    Raises:
        ValueError: no results, or maps that are not finite.
    """
    sections = [_row(photo, result, patch_size) for result in results]
    columns = max(len(section.tiles) for section in sections)
    height, width = photo.size
    size = f"{photo.original_size[1]} x {photo.original_size[0]} pixels"
    seen = "" if photo.size == photo.original_size else f", seen at {width} x {height}"
    grid = f"{results[0].grid[0]} x {results[0].grid[1]} patches of {patch_size}"
    return panel(sections, title=title, subtitle=f"{size}{seen}; {grid}", columns=columns)


def _row(photo: Photo, result: Discovered, patch_size: int) -> Section:
    found, grid = result.found, result.grid
    whole = _padded(photo.image, grid, patch_size)
    marked = outline_patches(whole, found.masks.any(dim=0).numpy(), BOX)
    for seed in found.seeds:
        marked = mark_patch(marked, divmod(seed, grid[1]), grid)
    boxes = [pixel_box(box, patch_size, photo.size) for box in found.boxes]
    captions = ("box", "mask and seed") if len(boxes) == 1 else (f"{len(boxes)} boxes", "masks and seeds")
    tiles = [Tile(draw_boxes(photo.image, boxes), captions[0]), Tile(_cut(marked, photo), captions[1])]
    for name, values in list(found.maps.items())[:MAX_MAPS]:
        tiles.append(Tile(_map_with_bar(whole, photo, name, values)))
    note = "" if result.artefacts is None else f", {int(result.artefacts.sum())} artefact patches left out"
    return Section(heading=f"Block {result.layer}{note}", tiles=tiles)


def _map_with_bar(whole: Image.Image, photo: Photo, name: str, values: Float[Tensor, "gh gw"]) -> Image.Image:
    array = values.detach().cpu().numpy().astype(np.float64)
    label = MEANING.get(name, f"{name}, largest 1")
    if name not in ("degree", "similarity"):  # sums and eigenvectors: only their shape tells something
        array = array / max(float(np.abs(array).max()), np.finfo(np.float64).tiny)
    scale = Scale.of(array, label, zero=True) if name == "degree" else Scale.symmetric(array, label)
    picture = fit_width(_cut(overlay(whole, array, scale), photo), TILE)
    bar = colour_bar(scale, TILE - BAR_PADDING)
    joined = Image.new("RGB", (TILE, picture.height + bar.height + 6), PAPER)
    joined.paste(picture, (0, 0))
    joined.paste(bar.crop((0, 0, TILE, bar.height)), (0, picture.height + 6))
    return joined


def _padded(image: Image.Image, grid: tuple[int, int], patch_size: int) -> Image.Image:
    """On a canvas of whole patches, so that maps lie where the network saw them."""
    canvas = Image.new("RGB", (grid[1] * patch_size, grid[0] * patch_size))
    canvas.paste(image, (0, 0))
    return canvas


def _cut(image: Image.Image, photo: Photo) -> Image.Image:
    return image.crop((0, 0, photo.size[1], photo.size[0]))

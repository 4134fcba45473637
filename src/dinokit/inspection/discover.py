"""Objects in photographs without labels: images to features of a block's attention, features to boxes, boxes to CorLoc.

Photographs keep their size and are padded with zeros on the right and at the bottom to whole patches, as LOST does; padding patches
take part, boxes end where the photograph ends. One run of the network serves all layers that are asked for.
Source: Simeoni et al. 2021 (LOST); which features for which network: Darcet et al. 2024, section 3.3; artefact tokens left out by norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from dinokit.analysis.components import Box, pixel_box
from dinokit.analysis.corloc import BoxLike, CorLoc, corloc
from dinokit.analysis.discovery import Found, lost
from dinokit.errors import ImageError
from dinokit.images import Decoded, decode
from dinokit.images.decode import Source
from dinokit.inspection.datasets import Annotated
from dinokit.model.capture import block_indices
from dinokit.model.layers import Block
from dinokit.weights.load import Pretrained

Features = Literal["q", "k", "v"]
FEATURES: tuple[Features, ...] = get_args(Features)
ARTEFACT_FACTOR = 4.0
# No photograph of VOC or COCO is larger; of others the affinity matrix would fill the memory.
LONGEST_SIDE = 700


@runtime_checkable
class Finder(Protocol):
    """A method: features of one image and (rows, columns) of its patches to objects. `functools.partial` sets the rest."""

    def __call__(
        self, features: Float[Tensor, "n d"], hw: tuple[int, int], *, token_mask: Bool[Tensor, " n"] | None
    ) -> Found:
        """Objects, best first."""
        ...


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photograph as the network sees it: `pixels` normalised and padded, `image` what lies under them without padding.

    `size` is that of `image`, `original_size` that of the file after EXIF; both (height, width).
    """

    pixels: Float[Tensor, "1 3 h w"]
    image: Image.Image
    size: tuple[int, int]
    original_size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class LayerFeatures:
    """Features of all patches at one block. `artefacts` are the patches whose norm stands out there, if that was asked for."""

    layer: int
    features: Float[Tensor, "n d"]
    grid: tuple[int, int]
    artefacts: Bool[Tensor, " n"] | None


@dataclass(frozen=True, kw_only=True)
class Discovered:
    """Objects of one photograph, best first: `boxes` in its own pixels, `found` with masks and maps on the patch grid."""

    boxes: tuple[Box, ...]
    found: Found
    layer: int
    grid: tuple[int, int]
    size: tuple[int, int]
    artefacts: Bool[Tensor, " n"] | None

    @property
    def box(self) -> Box:
        """Of the best object."""
        return self.boxes[0]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """CorLoc of each layer over a data set, and which images could not be read (they count for nothing)."""

    scores: dict[int, CorLoc]
    failed: tuple[tuple[str, ImageError], ...]


def load_photo(pre: Pretrained, source: Source | Decoded, longest_side: int | None = LONGEST_SIDE) -> Photo:
    """An image normalised by the model's own mean and std, padded right and below with zeros to whole patches.

    Never enlarged; made smaller only if it is longer than `longest_side` pixels (None: never). Memory and time of the methods
    grow with the square of the patches, of those that need eigenvectors with the cube.

    Raises:
        ImageError: as `dinokit.images.decode`.
        ValueError: `longest_side` is shorter than a patch.
    """
    patch = pre.config.patch_size
    if longest_side is not None and longest_side < patch:
        raise ValueError(f"longest_side is {longest_side}; it must hold one patch of {patch} pixels.")
    decoded = source if isinstance(source, Decoded) else decode(source)
    image, original = decoded.image, (decoded.height, decoded.width)
    longest = max(original)
    if longest_side is not None and longest > longest_side:
        width, height = (max(1, round(side * longest_side / longest)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = replace(pre.transform, resize=None, crop=None)(image)
    size = (image.height, image.width)
    padded = F.pad(pixels, (0, -size[1] % patch, 0, -size[0] % patch))
    return Photo(
        pixels=padded[None].to(device=pre.device, dtype=pre.dtype), image=image, size=size, original_size=original
    )


@torch.no_grad()
def layer_features(
    pre: Pretrained,
    photo: Photo,
    layers: int | Sequence[int] = 1,
    *,
    features: Features = "k",
    artefact_factor: float | None = None,
) -> list[LayerFeatures]:
    """Queries, keys or values of the patches at chosen blocks (see `block_indices`), ascending; heads side by side, float32.

    With `artefact_factor`, patches whose norm, before or after that block and before any final norm, is above this many times the
    median of the image are called artefacts.

    Raises:
        ImageError: `nonfinite_embedding`.
        ValueError: a block that is not there, an unknown kind of features, or a factor of at most 1.
    """
    if features not in FEATURES:
        raise ValueError(f"features is {features!r}; it must be one of {', '.join(FEATURES)}.")
    if artefact_factor is not None and artefact_factor <= 1:
        raise ValueError(f"artefact_factor is {artefact_factor}; above 1 times the median, or half of all patches go.")
    wanted = block_indices(layers, pre.config.depth)
    size = (photo.pixels.shape[-2], photo.pixels.shape[-1])
    found: list[LayerFeatures] = []
    entering: Tensor | None = None
    for index, x in enumerate(pre.model.stream(photo.pixels)):
        if index and index - 1 in wanted:
            assert entering is not None
            block = pre.model.blocks[index - 1]
            assert isinstance(block, Block)
            heads = block.attn.split(block.norm1(entering))[FEATURES.index(features)]
            tokens = pre.model.tokens(heads.transpose(1, 2).flatten(2), size)
            if not torch.isfinite(tokens.patches).all():
                raise ImageError("nonfinite_embedding", f"block {index - 1} gives NaN or infinite values; use float32.")
            artefacts = None
            if artefact_factor is not None:
                before, after = (pre.model.tokens(stream, size).patches[0] for stream in (entering, x))
                artefacts = stands_out(before, artefact_factor) | stands_out(after, artefact_factor)
            found.append(
                LayerFeatures(
                    layer=index - 1, features=tokens.patches[0].float(), grid=tokens.grid, artefacts=artefacts
                )
            )
        if index - 1 == wanted[-1]:
            break
        entering = x
    return found


def stands_out(patches: Float[Tensor, "n d"], factor: float) -> Bool[Tensor, " n"]:
    """Which tokens have a norm above `factor` times the median."""
    norms = torch.linalg.vector_norm(patches.float(), dim=-1)
    return norms > factor * norms.median()  # type: ignore[no-any-return]


def discover(
    pre: Pretrained,
    image: Source | Decoded | Photo,
    find: Finder = lost,
    *,
    layers: int | Sequence[int] = 1,
    features: Features = "k",
    artefact_factor: float | None = None,
    longest_side: int | None = LONGEST_SIDE,
) -> list[Discovered]:
    """Objects of one photograph, once for each layer, ascending.

    `find` is a method of `dinokit.analysis`: `lost`, `tokencut`, `maskcut`, `deep_spectral`, or any function like them. With
    `artefact_factor`, artefact patches (see `layer_features`) are left out of it.

    Raises:
        ImageError: as `dinokit.images.decode`, or `nonfinite_embedding`.
        ValueError: as `layer_features`, `load_photo`, or `find`.
    """
    photo = image if isinstance(image, Photo) else load_photo(pre, image, longest_side)
    results = []
    for at in layer_features(pre, photo, layers, features=features, artefact_factor=artefact_factor):
        found = find(at.features, at.grid, token_mask=None if at.artefacts is None else ~at.artefacts)
        boxes = tuple(_original(pixel_box(box, pre.config.patch_size, photo.size), photo) for box in found.boxes)
        results.append(
            Discovered(
                boxes=boxes,
                found=found,
                layer=at.layer,
                grid=at.grid,
                size=photo.original_size,
                artefacts=at.artefacts,
            )
        )
    return results


def evaluate(
    pre: Pretrained,
    data: Iterable[Annotated],
    find: Finder = lost,
    *,
    layers: int | Sequence[int] = 1,
    features: Features = "k",
    artefact_factor: float | None = None,
    longest_side: int | None = LONGEST_SIDE,
    on_image: Callable[[Annotated, list[Discovered]], None] | None = None,
) -> Evaluation:
    """CorLoc of the best box of each image, for each layer, beside the two trivial baselines.

    Images without true boxes are skipped before the network runs; unreadable ones are reported. `on_image` is told of each image
    that was looked at; for a progress bar wrap `data`.

    Raises:
        ValueError: as `discover`.
    """
    wanted = block_indices(layers, pre.config.depth)
    boxes: dict[int, list[BoxLike]] = {layer: [] for layer in wanted}
    truths: list[Sequence[BoxLike]] = []
    sizes: list[tuple[int, int]] = []
    failed = []
    skipped = 0
    for item in data:
        if not item.boxes:
            skipped += 1
            continue
        try:
            results = discover(
                pre,
                item.path,
                find,
                layers=wanted,
                features=features,
                artefact_factor=artefact_factor,
                longest_side=longest_side,
            )
        except ImageError as error:
            failed.append((item.path, error))
            continue
        for result in results:
            boxes[result.layer].append(result.box)
        truths.append(item.boxes)
        sizes.append(results[0].size)
        if on_image is not None:
            on_image(item, results)
    scores = {layer: replace(corloc(boxes[layer], truths, sizes), skipped=skipped) for layer in wanted}
    return Evaluation(scores=scores, failed=tuple(failed))


def _original(box: Box, photo: Photo) -> Box:
    """A box of the picture that the network saw, in pixels of the file; rounded outwards."""
    (height, width), (full_height, full_width) = photo.size, photo.original_size
    return Box(
        box.left * full_width // width,
        box.top * full_height // height,
        -(-box.right * full_width // width),
        -(-box.bottom * full_height // height),
    )

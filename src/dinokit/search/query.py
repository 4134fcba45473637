"""Images as queries: embedded exactly as the collection was, or refused.

Promise: the model is the one that the collection's identity names, with the recorded transform; the `compat_id` that results is
compared, so that a cosine always means something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from dinokit.config import PositionRule
from dinokit.errors import IdentityError
from dinokit.images import ExactPreparation, FastTransform, ImageTransform, Preparation, Prepared, fast_jpeg
from dinokit.images.decode import Source
from dinokit.images.fast import GRADES
from dinokit.images.geometry import centre
from dinokit.model import intermediate_tokens
from dinokit.store import FeatureSet, identify
from dinokit.tokens import Tokens
from dinokit.weights.load import Pretrained, load

NOT_FIELDS = ("fingerprint", "decode")


def model_of(features: FeatureSet, *, name: str | Path | None = None, **options: Any) -> Pretrained:
    """The model that made a collection, with its transform. `name` says where it is if not where it was; `options` are those of `load`.

    Raises:
        IdentityError: what was loaded is not what made the collection.
        UnknownModelError, HubError, WeightsError: as `dinokit.load`.
    """
    recorded = features.identity.model
    if name is None:
        if not recorded.get("name"):
            raise IdentityError(f"{features.files[0].parent} does not name its model; say where it is.")
        name = recorded["name"]
        options.setdefault("revision", None if "@" in str(name) else recorded.get("revision"))
    pre = load(name, position=_positions(recorded), **options)
    return with_transform(pre, features)


def with_transform(pre: Pretrained, features: FeatureSet) -> Pretrained:
    """`pre` with the collection's transform.

    Raises:
        IdentityError: `pre` is not the model that made the collection.
    """
    values = {name: value for name, value in features.identity.preprocess.items() if name not in NOT_FIELDS}
    try:
        pre = replace(pre, transform=ImageTransform.from_dict(values))
    except ValueError as error:
        raise IdentityError(f"{features.files[0].parent}: its transform can't be used: {error}") from error
    require_model(pre, features)
    return pre


def require_model(pre: Pretrained, features: FeatureSet) -> None:
    """Refuse a model whose vectors can't be compared with the collection's.

    Raises:
        IdentityError: other weights, another form, other positions or another transform.
    """
    recorded, way = features.identity, preparation_of(pre.transform, features)
    found = identify(
        pre,
        [features.feature],
        decode=_decode_options(features),
        fingerprint=None if way is None else way.fingerprint,
    )
    if found.compat_id(features.feature) == features.compat_id:
        return
    for part in ("weights_sha256", "form", "positions"):
        if found.model[part] != recorded.model[part]:
            raise IdentityError(
                f"{pre.provenance.name} is not the model that made {features.files[0].parent}: {part} is {found.model[part]!r}, "
                f"recorded is {recorded.model[part]!r}. Give the model that made it, or embed again."
            )
    raise IdentityError(
        f"{features.files[0].parent}: the recorded transform has the fingerprint {recorded.preprocess['fingerprint']}, here it is "
        f"{found.preprocess['fingerprint']}: another version of dinokit made it. Embed again."
    )


def preparation_of(transform: ImageTransform, features: FeatureSet) -> Preparation | None:
    """The way, exact or fast, in which the collection's images were prepared; None if no way here has the recorded fingerprint."""
    recorded = features.identity.preprocess["fingerprint"]
    grades = GRADES if fast_jpeg.turbo() is not None else GRADES[:1]
    ways: list[Preparation] = [ExactPreparation(transform), *(FastTransform(transform, grade) for grade in grades)]
    return next((way for way in ways if way.fingerprint == recorded), None)


@torch.no_grad()
def embed_images(pre: Pretrained, features: FeatureSet, images: Sequence[Source]) -> Float32[np.ndarray, "q d"]:
    """One vector an image, as the collection's column holds them.

    Raises:
        IdentityError: `pre` is not what made the collection.
        ImageError: an image that can't be read.
    """
    require_model(pre, features)
    rows = [
        _tokens(pre, features, _prepared(pre, features, image)).pool(features.feature.pooling)[0] for image in images
    ]
    return _as_stored(torch.stack(rows), features)


@dataclass(frozen=True)
class Region:
    """A rectangle of an upright image in pixels: from (`left`, `top`) up to, not including, (`right`, `bottom`).

    Raises:
        ValueError: it is empty.
    """

    left: float
    top: float
    right: float
    bottom: float

    def __post_init__(self) -> None:
        if not (self.left < self.right and self.top < self.bottom):
            raise ValueError(
                f"the region {self} is empty; write left, top, right, bottom with left < right, top < bottom."
            )


@torch.no_grad()
def embed_region(pre: Pretrained, features: FeatureSet, image: Source, region: Region) -> Float32[np.ndarray, "1 d"]:
    """The mean of the patches in a region, each weighted with its share of the region.

    Only means are comparable with it, so the collection's column must be pooled by `mean`.

    Raises:
        ValueError: another pooling, or a region outside of what the transform's crop shows.
        IdentityError: `pre` is not what made the collection.
        ImageError: the image can't be read.
    """
    if features.feature.pooling != "mean":
        raise ValueError(
            f"a region is a mean of patches, but {features.files[0].parent} holds {features.feature.name!r} vectors. Embed the "
            f"collection with the pooling mean."
        )
    require_model(pre, features)
    prepared = _prepared(pre, features, image)
    tokens = _tokens(pre, features, prepared)
    weights = region_weights(
        region, (prepared.height, prepared.width), pre.transform, tokens.grid, pre.config.patch_size
    )
    vector = torch.from_numpy(weights).to(tokens.patches).flatten() @ tokens.patches[0]
    return _as_stored(vector[None], features)


def region_weights(
    region: Region, size: tuple[int, int], transform: ImageTransform, grid: tuple[int, int], patch_size: int
) -> Float32[np.ndarray, "gh gw"]:
    """How much of the region lies in each patch of an image of `size` (height, width); sums to 1.

    Raises:
        ValueError: none of it does.
    """
    target = transform.resize.target(*size) if transform.resize else size
    crop = transform.crop or target
    shares = []
    for axis, (low, high) in enumerate(((region.top, region.bottom), (region.left, region.right))):
        place = centre(target[axis], crop[axis], transform.crop_rounding)
        shift = place.before - place.start
        ends = [value * target[axis] / size[axis] + shift for value in (max(low, 0), min(high, size[axis]))]
        edges = np.arange(grid[axis] + 1) * patch_size
        inside = np.clip(np.minimum(edges[1:], ends[1]) - np.maximum(edges[:-1], ends[0]), 0, None)
        if not inside.any():
            first, last = (
                round((edge - shift) * size[axis] / target[axis])
                for edge in (max(0, shift), min(edges[-1], crop[axis]))
            )
            raise ValueError(
                f"the model sees pixels {max(first, 0)} to {min(last, size[axis])} {('down', 'across')[axis]} of this image "
                f"({size[1]} x {size[0]}); the region {low:g} to {high:g} is outside of them."
            )
        shares.append(inside / inside.sum())
    weights: Float32[np.ndarray, "gh gw"] = np.outer(*shares).astype(np.float32)
    return weights


def _prepared(pre: Pretrained, features: FeatureSet, image: Source) -> Prepared:
    way = preparation_of(pre.transform, features)
    assert way is not None  # `require_model` has refused otherwise
    return way.prepare(image, **_decode_options(features))


def _tokens(pre: Pretrained, features: FeatureSet, image: Prepared) -> Tokens:
    # a way's last step depends on the transform alone
    pixels = ExactPreparation(pre.transform).normalise(image.pixels)[None].to(device=pre.device, dtype=pre.dtype)
    if features.feature.block is None:
        return pre.model(pixels)  # type: ignore[no-any-return]
    return intermediate_tokens(pre.model, pixels, [features.feature.block])[0]


def _as_stored(vectors: Tensor, features: FeatureSet) -> Float32[np.ndarray, "q d"]:
    found = vectors.float().cpu()
    if features.feature.normalized:
        found = torch.nn.functional.normalize(found, dim=-1)
    array: Float32[np.ndarray, "q d"] = found.numpy()
    return array


def _positions(model: Mapping[str, Any]) -> PositionRule:
    return PositionRule(*model["positions"])


def _decode_options(features: FeatureSet) -> dict[str, Any]:
    values = features.identity.preprocess.get("decode") or {}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

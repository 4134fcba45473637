"""Other libraries' preprocessing settings as fields of an `ImageTransform`.

Every setting that changes pixels is either translated or refused; keys that say nothing about pixels are passed over.
Source: transformers' `preprocessor_config.json` of BitImageProcessor; timm's `pretrained_cfg` and evaluation transform.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dinokit.images.geometry import Exact, ShortestEdge

HF_TYPES = ("BitImageProcessor", "BitImageProcessorFast", "BitImageProcessorPil")
# What a key means where it is absent: the processor's own defaults, which are CLIP's numbers.
HF_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
# Pillow's numbers of its filters, as they stand in the files.
RESAMPLE_NAMES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
# True in a file, these would change pixels in ways that this transform has no field for.
HF_FOREIGN = ("do_pad", "do_flip_channel_order", "do_thumbnail", "do_align_long_axis", "do_random_crop")


def hf_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields for a BitImageProcessor's settings.

    Raises:
        ValueError: another processor, or a setting without a counterpart.
    """
    kind = config.get("image_processor_type", config.get("feature_extractor_type"))
    if kind is not None and kind not in (*HF_TYPES, "BitFeatureExtractor"):
        raise ValueError(f"image_processor_type is {kind!r}; an ImageTransform can be made from {', '.join(HF_TYPES)}.")
    for name in HF_FOREIGN:
        if config.get(name):
            raise ValueError(f"{name} is {config[name]!r}; an ImageTransform has no such step.")
    get = {name: default if config.get(name) is None else config[name] for name, default in HF_DEFAULTS.items()}
    if get["resample"] not in RESAMPLE_NAMES:
        raise ValueError(f"resample is {get['resample']!r}; it must be one of Pillow's numbers 0 to 5.")
    return {
        "resize": _hf_size(get["size"]) if get["do_resize"] else None,
        "crop": _pair("crop_size", get["crop_size"]) if get["do_center_crop"] else None,
        "crop_rounding": "floor",
        "resample": RESAMPLE_NAMES[get["resample"]],
        "mean": _triple("image_mean", get["image_mean"]) if get["do_normalize"] else (0.0, 0.0, 0.0),
        "std": _triple("image_std", get["image_std"]) if get["do_normalize"] else (1.0, 1.0, 1.0),
        "rescale": float(get["rescale_factor"]) if get["do_rescale"] else 1.0,
    }


def timm_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields for timm's evaluation transform.

    Raises:
        ValueError: a setting without a counterpart: crop mode "border", other than three channels, odd interpolation.
    """
    channels, height, width = config.get("input_size", (3, 224, 224))
    if channels != 3:
        raise ValueError(f"input_size is {tuple(config['input_size'])}; an ImageTransform makes 3 channels.")
    share = float(config.get("crop_pct") or 0.875)
    mode = config.get("crop_mode") or "center"
    resample = config.get("interpolation") or "bicubic"
    if resample not in RESAMPLE_NAMES.values():
        raise ValueError(f"interpolation is {resample!r}; it must be one of {', '.join(RESAMPLE_NAMES.values())}.")
    scaled = math.floor(height / share), math.floor(width / share)
    if mode == "squash":
        resize: Exact | ShortestEdge = Exact(*scaled)
    elif mode == "center" and height == width:
        resize = ShortestEdge(scaled[0])
    else:
        raise ValueError(
            f"crop_mode {mode!r} with input_size {(channels, height, width)} has no counterpart; "
            f"supported are 'center' for squares and 'squash'."
        )
    return {
        "resize": resize,
        "crop": (height, width),
        "crop_rounding": "half_even",
        "resample": resample,
        "mean": _triple("mean", config.get("mean", (0.485, 0.456, 0.406))),
        "std": _triple("std", config.get("std", (0.229, 0.224, 0.225))),
    }


def _hf_size(size: object) -> ShortestEdge | Exact:
    if isinstance(size, int):
        return ShortestEdge(size)  # files of the time before dictionaries
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        return ShortestEdge(int(size["shortest_edge"]))
    if isinstance(size, Mapping) and set(size) == {"height", "width"}:
        return Exact(int(size["height"]), int(size["width"]))
    raise ValueError(f"size is {size!r}; it must hold 'shortest_edge', or 'height' and 'width'.")


def _pair(name: str, size: object) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and set(size) == {"height", "width"}:
        return int(size["height"]), int(size["width"])
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    raise ValueError(f"{name} is {size!r}; it must hold 'height' and 'width'.")


def _triple(name: str, values: object) -> tuple[float, float, float]:
    if isinstance(values, int | float):
        values = (values, values, values)
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise ValueError(f"{name} is {values!r}; it must be three numbers.")
    return float(values[0]), float(values[1]), float(values[2])

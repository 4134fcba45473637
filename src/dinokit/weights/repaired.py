"""`repair(pre, method)`: the same `Pretrained` with a repaired form of its network inside; and calibrations as files.

Promise: what comes out is used like any other model (embedding, analysis, export), and what went in is not changed. A calibration
knows the weights it was made for and is refused for others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from dinokit.errors import OutputError, WeightsError
from dinokit.model import VisionTransformer
from dinokit.repair import (
    AttentionBias,
    Calibration,
    Denoised,
    MaskedKeys,
    MovedOutliers,
    NeighbourAttention,
    NeighbourMedian,
    TestTimeRegisters,
)
from dinokit.weights import files
from dinokit.weights.load import Pretrained

Method = Literal["registers", "bias", "moved", "mask_keys", "neighbours", "median", "denoise"]
METHODS: tuple[Method, ...] = get_args(Method)
SCHEMA = 1

KeysAndValues = tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, kw_only=True)
class CalibrationFile:
    """A calibration, the weights it is for, and the keys and values of "bias" if they were computed."""

    calibration: Calibration
    weights_sha256: str
    keys_and_values: KeysAndValues | None = None


def repair(
    pre: Pretrained,
    method: Method = "registers",
    calibration: CalibrationFile | str | Path | None = None,
    *,
    patches: Iterable[int] = (0,),
) -> Pretrained:
    """`pre` with its network in a repaired form.

    "registers": test-time registers; "bias": the same without a token; "moved": outliers at `patches` (row-major numbers) instead of
    where the network puts them (these three need a calibration). "mask_keys": outliers are no keys;
    "neighbours": NACLIP's attention in the last block; "median": outliers overwritten by their neighbours' median, cosmetic;
    "denoise": the average over shifted images, a forward pass a shift.

    Raises:
        ValueError: an unknown method, or one that needs a calibration and got none.
        WeightsError: the calibration is damaged or was made for other weights.
    """
    if isinstance(calibration, str | Path):
        calibration = load_calibration(calibration)
    if calibration is not None and calibration.weights_sha256 != pre.provenance.sha256:
        raise WeightsError(
            f"this calibration is for weights of sha256 {calibration.weights_sha256[:12]}..., {pre.provenance.name} has "
            f"{pre.provenance.sha256[:12]}...; neuron numbers mean nothing in another network. Calibrate again."
        )
    places = tuple(patches)
    form = method if calibration is None else f"{method} {calibration.calibration.neurons}"
    form += f" to {places}" if method == "moved" else ""
    return replace(
        pre, model=_form(pre.model, method, calibration, places), provenance=replace(pre.provenance, form=form)
    )


def _form(
    model: VisionTransformer, method: Method, file: CalibrationFile | None, patches: tuple[int, ...]
) -> VisionTransformer:
    match method:
        case "registers" | "bias" | "moved":
            if file is None:
                raise ValueError(
                    f"method {method!r} needs a calibration; `dinokit repair` or `dinokit.repair.calibrate` makes one."
                )
            if method == "registers":
                return TestTimeRegisters(model, file.calibration.neurons)
            if method == "moved":
                return MovedOutliers(model, file.calibration.neurons, patches)
            if file.keys_and_values is None:
                raise ValueError("method 'bias' needs the keys and values; calibrate with --bias.")
            return AttentionBias(model, file.calibration.neurons, file.keys_and_values)
        case "mask_keys":
            return MaskedKeys(model)
        case "neighbours":
            return NeighbourAttention(model)
        case "median":
            return NeighbourMedian(model)
        case "denoise":
            return Denoised(model)
    raise ValueError(f"method {method!r} is unknown; use one of {', '.join(METHODS)}.")


def save_calibration(
    path: str | Path,
    calibration: Calibration,
    pre: Pretrained,
    keys_and_values: Sequence[tuple[Tensor, Tensor]] | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write a calibration for the weights of `pre` as safetensors: what was found as JSON in its metadata, tensors for "bias".

    Raises:
        OutputError: the file exists.
        ValueError: `path` ends in something else than .safetensors.
    """
    path = Path(path)
    if path.suffix not in files.SAFETENSORS_SUFFIXES:
        raise ValueError(f"a calibration is a safetensors file; {path.name!r} does not end in .safetensors.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; choose another name, or allow it to be replaced.")
    content = {
        "schema": SCHEMA,
        "model": pre.provenance.name,
        "weights_sha256": pre.provenance.sha256,
        "calibration": asdict(calibration),
    }
    tensors = {
        f"{kind}.{index}": tensor
        for index, pair in enumerate(keys_and_values or ())
        for kind, tensor in zip(("key", "value"), pair, strict=True)
    }
    return files.write_safetensors(path, tensors, {"dinokit.calibration": json.dumps(content)})


def load_calibration(path: str | Path) -> CalibrationFile:
    """Read what `save_calibration` wrote.

    Raises:
        WeightsError: not there, damaged, or no calibration.
    """
    checkpoint = files.read(path)
    try:
        content = json.loads(checkpoint.metadata["dinokit.calibration"])
        if content["schema"] != SCHEMA:
            raise WeightsError(f"{path} has schema {content['schema']}; this version reads {SCHEMA}.")
        found = content["calibration"]
        calibration = Calibration(
            neurons=tuple((int(block), int(neuron)) for block, neuron in found["neurons"]),
            scores=tuple(map(float, found["scores"])),
            image_size=(int(found["image_size"][0]), int(found["image_size"][1])),
            **{name: found[name] for name in ("top_block", "norm_block", "factor", "num_images", "num_outliers")},
        )
        sha256 = str(content["weights_sha256"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path} holds no calibration of dinokit's ({error!r}).") from error
    pairs = len(checkpoint.tensors) // 2
    stored = tuple((checkpoint.tensors[f"key.{i}"], checkpoint.tensors[f"value.{i}"]) for i in range(pairs))
    return CalibrationFile(calibration=calibration, weights_sha256=sha256, keys_and_values=stored or None)

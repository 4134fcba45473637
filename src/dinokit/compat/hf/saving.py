"""`save_pretrained`: config.json and safetensors, under the hub's names, that transformers 4 and 5 open.

Promise: each file appears whole or not at all, the weights before the configuration that makes the folder loadable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dinokit.atomic import write_json
from dinokit.compat.hf.base import ModelBase
from dinokit.compat.hf.config_base import CONFIG_NAME
from dinokit.errors import OutputError
from dinokit.weights.files import FOLDER_WEIGHTS, write_safetensors

WHOLE, INDEX = FOLDER_WEIGHTS[:2]
METADATA = {"format": "pt"}
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def save_model(
    model: ModelBase,
    folder: str | Path,
    state_dict: Mapping[str, Tensor] | None = None,
    safe_serialization: bool = True,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write `model` (with `state_dict` in place of its own, where given), in shards of at most `max_shard_size`.

    A size is a number of bytes or text such as "200MB". Weights that the folder held before are replaced. Sets the
    configuration's `architectures` and `torch_dtype`.

    Raises:
        ValueError: `safe_serialization` is off (pickles are not written); a size that is none; a configuration that JSON can't hold.
        OSError: the folder is a file, or the disk refuses.
    """
    if not safe_serialization:
        raise ValueError("safe_serialization=False would write a pickle, which can run code when opened; leave it on.")
    limit = parse_size(max_shard_size)
    model.config.architectures = [type(model).__name__]
    model.config.torch_dtype = model.dtype
    model.config.to_json_string()  # refuses what JSON can't hold before anything is written
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} can't be made: {error.strerror or error}.") from error
    tensors = model.state_dict() if state_dict is None else state_dict
    written = _write_weights(folder, tensors, limit)
    model.config.to_json_file(folder / CONFIG_NAME)
    for path in folder.iterdir():
        is_weights = path.name in (WHOLE, INDEX) or _SHARD.fullmatch(path.name)
        if is_weights and path.name not in written:
            path.unlink()


def parse_size(size: int | str) -> int:
    """Bytes of a number, or of text such as "5GB" or "1.5MiB".

    Raises:
        ValueError: neither, or less than one byte.
    """
    if isinstance(size, int):
        number = float(size)
    else:
        found = re.fullmatch(r"([\d.]+)\s*([A-Za-z]*)", size.strip())
        if found is None or found[2].upper() not in UNITS or found[1].count(".") > 1 or found[1] == ".":
            raise ValueError(f"max_shard_size is {size!r}; give a number of bytes, or text such as '5GB' or '200MB'.")
        number = float(found[1]) * UNITS[found[2].upper()]
    if number < 1:
        raise ValueError(f"max_shard_size is {size!r}; a shard holds at least one byte.")
    return int(number)


def _write_weights(folder: Path, tensors: Mapping[str, Tensor], limit: int) -> set[str]:
    """Names of the files written: one, or shards and then their index."""
    shards = _shards(tensors, limit)
    if len(shards) == 1:
        write_safetensors(folder / WHOLE, tensors, METADATA)
        return {WHOLE}
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / name, shard, METADATA)
        weight_map.update(dict.fromkeys(shard, name))
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return {INDEX, *weight_map.values()}


def _shards(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Tensors in order, cut wherever the next one would go beyond the limit; one larger than the limit stands alone."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        grown = tensor.numel() * tensor.element_size()
        if shards[-1] and size + grown > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += grown
    return shards

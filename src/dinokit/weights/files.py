"""Files of tensors: safetensors, PyTorch pickles, folders with a configuration, shards. Reading refuses; writing is atomic.

Promise: a damaged, foreign or malicious file ends in a `WeightsError` that names it and the way out; pickles are opened with
`weights_only=True` and never otherwise; a file that is written appears whole or not at all.
Source: safetensors format description; hub layout of transformers (config.json beside model.safetensors).
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from dinokit.atomic import file_sha256, write_atomically
from dinokit.errors import WeightsError
from dinokit.weights.digest import FOLDER_WEIGHTS as FOLDER_WEIGHTS
from dinokit.weights.digest import INDEX_SUFFIX

MAX_HEADER_BYTES = 100_000_000
MAX_JSON_BYTES = 50_000_000
SAFETENSORS_SUFFIXES = (".safetensors",)
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")

FOLDER_CONFIG = "config.json"
FOLDER_PREPROCESSOR = "preprocessor_config.json"

# Where checkpoints keep their tensors. The teacher comes first: it is what is evaluated and released.
CONTAINER_KEYS = ("teacher", "model", "state_dict", "state", "model_state_dict", "model_state")


@dataclass(frozen=True)
class Checkpoint:
    """What was read: flat tensors as the file names them, and all that lay beside them.

    `container` is the key of the dict that held the tensors, "" where they were at the top.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    path: Path
    files: tuple[Path, ...]
    metadata: dict[str, Any] = field(default_factory=dict)
    container: str = ""
    config: dict[str, Any] | None = None
    preprocessor: dict[str, Any] | None = None

    def sha256(self) -> str:
        """Of the weight file; of the files' sums in order, where there are several shards. Reads all bytes."""
        sums = [file_sha256(path) for path in self.files]
        return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


def read(path: str | Path) -> Checkpoint:
    """Read a checkpoint: a `.safetensors`, `.pth`, `.pt` or `.bin` file, or a folder in the hub's layout.

    Raises:
        WeightsError: not there, damaged, not a checkpoint, or not safe to open.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path)
    if not path.exists():
        raise WeightsError(f"{path} does not exist.")
    if not path.is_file():
        raise WeightsError(f"{path} is not a regular file.")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path} is empty; delete it and download it again.")
    if path.suffix in SAFETENSORS_SUFFIXES:
        tensors, metadata = _read_safetensors(path)
        container = ""
    else:
        tensors, metadata, container = _unwrap(_read_pickle(path), path)
    beside = _read_beside(path.parent) if path.name in FOLDER_WEIGHTS else (None, None)
    return Checkpoint(tensors, path, (path,), metadata, container, *beside)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        WeightsError: unreadable, too large, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise WeightsError(
                f"{path} has {path.stat().st_size:,} bytes; a configuration has at most {MAX_JSON_BYTES:,}."
            )
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path} can't be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not valid JSON ({error}); delete it and download it again.") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path} holds a JSON {type(found).__name__}; an object is needed.")
    return found


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write tensors (made contiguous and unshared) as one safetensors file."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return write_atomically(path, lambda file: file.write(save(plain, dict(metadata or {}))))


def write_pickle(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Write with `torch.save`; what goes in must come out again under `weights_only=True`."""

    def write(file: IO[bytes]) -> None:
        try:
            torch.save(dict(content), file)
        except RuntimeError as error:  # the archive's writer covers what the disk said with a complaint of its own
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise

    return write_atomically(path, write)


def _read_beside(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The configuration and the preprocessing that the hub's layout keeps beside weights."""
    config, preprocessor = folder / FOLDER_CONFIG, folder / FOLDER_PREPROCESSOR
    return (
        read_json(config) if config.exists() else None,
        read_json(preprocessor) if preprocessor.exists() else None,
    )


def _read_folder(folder: Path) -> Checkpoint:
    for name in FOLDER_WEIGHTS:
        if (folder / name).exists():
            return replace(read(folder / name), path=folder)
    others = sorted(p.name for p in folder.iterdir() if p.suffix in (*SAFETENSORS_SUFFIXES, *PICKLE_SUFFIXES))
    hint = f" It has {', '.join(others[:5])}: name that file instead." if others else ""
    raise WeightsError(f"{folder} holds none of {', '.join(FOLDER_WEIGHTS)}.{hint}")


def _read_shards(index: Path) -> Checkpoint:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{index} has no weight_map; delete it and download it again.")
    tensors: dict[str, Tensor] = {}
    files = []
    for name in sorted({str(value) for value in weight_map.values()}):
        if Path(name).name != name or name in ("", ".", "..") or "\\" in name:
            raise WeightsError(
                f"{index} names the shard {name!r}; a shard must be a plain file name inside the folder."
            )
        shard = index.parent / name
        if not shard.is_file():
            raise WeightsError(f"{shard} is missing, though {index.name} lists it; download it again.")
        part = read(shard).tensors
        twice = tensors.keys() & part.keys()
        if twice:
            raise WeightsError(f"{shard} repeats {min(twice)}, which another shard holds.")
        tensors.update(part)
        files.append(shard)
    lost = sorted(weight_map.keys() - tensors.keys())
    if lost:
        raise WeightsError(
            f"{index} lists {lost[0]} and {len(lost) - 1} more that no shard holds; download the shards again."
        )
    config, preprocessor = _read_beside(index.parent)
    return Checkpoint(tensors, index, tuple(files), config=config, preprocessor=preprocessor)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    _refuse_duplicate_keys(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged ({error}); delete it and download it again.") from error


def _refuse_duplicate_keys(path: Path) -> None:
    """The format forbids a key twice, its reader accepts it and silently keeps one."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise WeightsError(f"{path} is damaged (its header has {twice!r} twice); delete it and download it again.")
        return found

    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > min(MAX_HEADER_BYTES, path.stat().st_size):
            raise WeightsError(
                f"{path} is damaged (its header claims {size:,} bytes, the file has {path.stat().st_size:,}); "
                f"delete it and download it again."
            )
        try:
            json.loads(file.read(size), object_pairs_hook=unique)
        except WeightsError:
            raise
        except (ValueError, RecursionError) as error:
            raise WeightsError(
                f"{path} is damaged (its header is not JSON); delete it and download it again."
            ) from error


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        magic = file.read(4)
    is_zip = magic == b"PK\x03\x04"
    if not is_zip and not magic.startswith(b"\x80\x02"):  # the pickle protocol of torch.save, before it wrote archives
        raise WeightsError(
            f"{path} is not a PyTorch checkpoint (it starts with {magic!r}); was a web page saved under this name?"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip or None)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"{path} is a pickle with more than tensors in it and was not opened, because opening could run code ({reason}). "
            f"Where you trust its source, load it there and save its state dict alone."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is damaged ({reason}); delete it and download it again.") from error


def _unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """The tensors of a pickle, what lay beside them, and the key they were under."""
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}; a dict of tensors is needed.")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors and len(tensors) == len(content):
        return tensors, {}, ""
    for key in CONTAINER_KEYS:
        if isinstance(content.get(key), Mapping):
            inner, metadata, deeper = _unwrap(content[key], path)
            beside = {str(name): value for name, value in content.items() if name != key}
            return inner, beside | metadata, f"{key}.{deeper}".rstrip(".")
    raise WeightsError(
        f"{path} holds no dict of tensors (its keys: {', '.join(sorted(map(str, content))[:10])}); "
        f"tensors are looked for at the top and under {', '.join(CONTAINER_KEYS)}."
    )

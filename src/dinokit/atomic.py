"""Files that appear whole or not at all, and sums of files: what every writer of dinokit stands on.

Promise: a temporary file beside the target, fsync, rename, fsync of the folder; on any failure nothing is left and `StorageError` says
why.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from dinokit.errors import DinokitError, StorageError


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then fsync and rename it; on any failure nothing is left.

    Raises:
        StorageError: the folder is missing or the disk refuses.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror or error}.") from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        sync_folder(path.parent)
    except DinokitError:  # said by `write` itself
        raise
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror or error}. Nothing was left there.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Write as the hub's files are: sorted keys, two spaces, a final newline."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a loss of power, where the system can."""
    if os.name != "posix":  # elsewhere a folder can't be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

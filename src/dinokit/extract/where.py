"""Where an image's bytes are, small enough to send to another process, and reading them."""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass

from dinokit.errors import ImageError
from dinokit.images import decode


@dataclass(frozen=True, slots=True)
class FileAt:
    """A file of its own."""

    path: str

    @property
    def name(self) -> str:
        """For messages."""
        return self.path


@dataclass(frozen=True, slots=True)
class Slice:
    """Part of a file."""

    name: str
    path: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Blob:
    """The bytes themselves; None for an empty cell of a table, or one that could not be read, which `problem` then explains."""

    name: str
    data: bytes | None
    problem: str = ""


Where = FileAt | Slice | Blob


class Named(io.BytesIO):
    """Bytes that error messages call by name."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


def read(where: Where) -> bytes:
    """All bytes.

    Raises:
        ImageError: `not_a_file`, `permission`, `zero_byte` or, where the disk fails, `truncated`.
    """
    match where:
        case Blob(name, data, problem):
            if problem:
                raise ImageError("truncated", f"{name}: {problem}")
            if data is None:
                raise ImageError("zero_byte", f"{name}: the cell is empty.")
            return data
        case Slice(name, path, offset, size):
            return _read_slice(name, path, offset, size)
        case FileAt(path):
            return _read_file(path)


def _read_file(path: str) -> bytes:
    try:
        if stat.S_ISREG(os.stat(path).st_mode):  # never open a pipe, which would wait for its writer
            with open(path, "rb") as file:
                return file.read()
    except (OSError, ValueError):
        pass  # `decode` has a code and a sentence for each
    except MemoryError as error:
        raise ImageError("too_many_pixels", f"{path}: does not fit into memory.") from error
    decode(path)
    raise ImageError("truncated", f"{path}: could not be read, and a moment later it could. Retry.")


def _read_slice(name: str, path: str, offset: int, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except PermissionError as error:
        raise ImageError("permission", f"{name}: {path} may not be read by this user.") from error
    except OSError as error:
        raise ImageError("not_a_file", f"{name}: {path} can't be read ({error.strerror or error}).") from error
    if len(data) < size:
        raise ImageError("truncated", f"{name}: {path} ends within it. Get the file again.")
    return data

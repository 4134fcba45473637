"""What a source says of its inputs: one `Entry` each, in a stable order, enough to find the bytes again and to see a change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True)
class Container:
    """A file that holds many images. `column` names the images of a table; `mtime_ns` is -1 where nothing is known."""

    kind: str
    path: str
    column: str = ""
    mtime_ns: int = -1

    @classmethod
    def of(cls, kind: str, path: str, column: str = "") -> Container:
        """With the time of the file's last change."""
        return cls(kind, path, column, os.stat(path).st_mtime_ns)


class Entry(NamedTuple):
    """One input. `path` is the file's (for people, if it lies in a container), `offset` where it begins in its container.

    Of a tar `offset` and `size` are bytes, of a table `offset` is the row. `size` and `mtime_ns` are -1 where they are not known.
    """

    id: str
    path: str
    container: Container | None = None
    offset: int = 0
    size: int = -1
    mtime_ns: int = -1


class Source(Protocol):
    """A collection of images.

    `name` is what ids begin with where there are several sources; empty for none.
    """

    @property
    def name(self) -> str:
        """Short, the same on any machine."""
        ...

    def entries(self) -> Iterator[Entry]:
        """All inputs, in an order that does not change between runs."""
        ...


def stamp(path: str) -> tuple[int, int]:
    """Size in bytes and time of the last change, -1 where there is no such file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return found.st_size, found.st_mtime_ns


def posix(path: str) -> str:
    """A path as an id: forward slashes, no `./`, undecodable bytes as backslash escapes."""
    text = os.path.normpath(path).replace(os.sep, "/") if path else path
    return readable(text)


def readable(path: str) -> str:
    """Text that any reader can take: bytes of a name that are no UTF-8 become backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace") if isinstance(path, str) else str(path)


def as_text(value: Any) -> str:
    """A cell of a table as part of an id."""
    return value if isinstance(value, str) else str(value)

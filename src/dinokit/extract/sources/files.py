"""Images that are files of their own: folders, and lists of paths."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dinokit.extract.sources.listing import Entry, posix, stamp
from dinokit.images.listing import walk


@dataclass(frozen=True)
class Folder:
    """All images below a folder, by suffix. Ids are paths relative to it."""

    root: str

    @property
    def name(self) -> str:
        """The folder's own name."""
        return os.path.basename(os.path.abspath(self.root))

    def entries(self) -> Iterator[Entry]:
        """Sorted name by name, folder by folder."""
        start = len(os.path.join(self.root, ""))
        for found in walk(self.root):
            try:
                size, mtime_ns = (status := found.stat()).st_size, status.st_mtime_ns
            except OSError:  # a link to nothing: the row will say so
                size, mtime_ns = -1, -1
            yield Entry(posix(found.path[start:]), found.path, None, 0, size, mtime_ns)


@dataclass(frozen=True)
class Paths:
    """Paths as somebody wrote them, with ids or without; those are then the paths, or relative to `root`.

    With `root`, relative paths are meant from there.
    """

    paths: Sequence[str]
    ids: Sequence[str] | None = None
    root: str = ""
    name: str = ""

    def entries(self) -> Iterator[Entry]:
        """In the order given."""
        for index, path in enumerate(self.paths):
            full = os.path.join(self.root, path)
            given = self.ids[index] if self.ids is not None else posix(self._relative(path, full))
            yield Entry(given, full, None, 0, *stamp(full))

    def _relative(self, path: str, full: str) -> str:
        if not self.root:
            return path
        found = os.path.relpath(full, self.root)
        return path if found.startswith("..") else found

"""Which files are images: folders to paths by suffix, in an order that does not depend on the file system."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from dinokit.errors import StorageError

# Names under which a folder's files count as images. A file that is named itself is always taken, whatever its name.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif"}
)


def list_images(sources: Iterable[str | Path]) -> list[str]:
    """Paths of all images: files as given, folders recursively by suffix, sorted within each folder.

    A path that is neither is kept: its row will say `not_a_file`, so that nothing that was named is lost.
    """
    found: list[str] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found.extend(str(Path(entry.path)) for entry in walk(str(source)))
        else:
            found.append(str(source))
    return found


def walk(folder: str) -> Iterator[os.DirEntry[str]]:
    """Every image below a folder, by suffix, sorted name by name; links to folders are not followed.

    Memory is that of the largest folder, not of the tree.

    Raises:
        StorageError: a folder can't be listed, so that images would be missed.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise StorageError(
            f"{folder} can't be listed: {error.strerror or error}. Change its permissions, or move it away."
        ) from error
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path)
        elif is_image_name(entry.name) and not _leads_to_folder(entry):
            yield entry


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle: no folder, and its row will say so
        return False


def is_image_name(name: str) -> bool:
    """Whether a name ends as those of images do."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES

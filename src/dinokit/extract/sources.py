"""Which images are meant: files, folders and lists to paths, in an order that does not depend on the file system."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

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
        found.extend(_walk(path) if path.is_dir() else [str(source)])
    return found


def _walk(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir():
            yield str(path)

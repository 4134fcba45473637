"""Tar shards (WebDataset): images are read by their place in the file, so any process can read any of them.

Ids are WebDataset's keys: the member's path up to the first dot of its name.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from dinokit.errors import StorageError
from dinokit.extract.sources.listing import Container, Entry, posix
from dinokit.images import is_image_name


@dataclass(frozen=True)
class Tar:
    """The images of one uncompressed tar file, by suffix."""

    path: str

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return os.path.basename(self.path).partition(".")[0]

    def entries(self) -> Iterator[Entry]:
        """In the order of the archive.

        Raises:
            StorageError: no tar, a compressed one (no place can be read in it by itself), or one that is cut short.
        """
        container = Container.of("tar", self.path)
        size = os.path.getsize(self.path)
        try:
            with tarfile.open(self.path, "r:") as archive:
                for member in archive:
                    if member.isreg() and is_image_name(member.name):
                        if member.offset_data + member.size > size:
                            raise StorageError(f"{self.path} is cut short in {member.name}. Get the file again.")
                        yield Entry(
                            _key(member.name), os.path.join(self.path, member.name), container, member.offset_data,
                            member.size, container.mtime_ns,
                        )  # fmt: skip
                    archive.members = []  # type: ignore[attr-defined]  # or all headers stay in memory
        except tarfile.TarError as error:
            raise StorageError(
                f"{self.path} is no plain tar file ({error}). Compressed ones can't be read in parts; unpack it first."
            ) from error


def _key(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return posix(f"{folder}/{base.partition('.')[0]}" if folder else base.partition(".")[0])

"""One image's bytes to facts and 8-bit pixels: the part of the job that runs in decoder processes.

Promise: an image that can't be used gives facts that say why; anything else that is raised is a bug or damage beyond Python.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dinokit.errors import ImageError
from dinokit.extract.rows import DecodeOptions
from dinokit.extract.where import Named, Where, read
from dinokit.images import Preparation


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What became of one input so far; the fields are columns of the result (`dinokit.store.schema.FACTS`)."""

    error_code: str | None = None
    error: str | None = None
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    frames: int | None = None
    notes: tuple[str, ...] = ()
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """Facts, and the pixels if there are any."""

    facts: Facts
    pixels: UInt8[np.ndarray, "3 h w"] | None = None


@dataclass(frozen=True, kw_only=True)
class How:
    """How images are prepared; goes to the decoder processes once."""

    preparation: Preparation
    options: DecodeOptions = field(default_factory=DecodeOptions)
    hash: bool = True

    def __call__(self, where: Where) -> Ready:
        """Read, summed, decoded, resized."""
        digest = None
        try:
            data = read(where)
            digest = hashlib.sha256(data).hexdigest() if self.hash else None
            found = self.preparation.prepare(Named(data, where.name), **asdict(self.options))
        except ImageError as error:
            return Ready(Facts(error_code=error.code, error=str(error), sha256=digest))
        facts = Facts(
            width=found.width, height=found.height, mode=found.mode, frames=found.frames, notes=found.notes, sha256=digest
        )  # fmt: skip
        return Ready(facts, found.pixels.numpy())

    def decode_settings(self) -> dict[str, Any] | None:
        """What is set otherwise than by default, for the identity; the limit of pixels changes no vector."""
        default = DecodeOptions()
        changed = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self.options).items()
            if name != "max_pixels" and value != getattr(default, name)
        }
        return changed or None

"""Work for decoder processes that misbehaves as told: sleeps, dies, once or always."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from dinokit.extract.prepare import Facts, How, Ready


def obey(task: Any) -> Any:
    """A number is answered; ("die", n), ("die once", file), ("sleep", seconds), ("bytes", n) do what they say."""
    match task:
        case ("die", _):
            os.kill(os.getpid(), signal.SIGKILL)
        case ("die once", file):
            if not Path(file).exists():
                Path(file).touch()
                os._exit(1)
            return "survived"
        case ("sleep", seconds):
            time.sleep(seconds)
        case ("bytes", count, _):
            return b"x" * count
        case ("pid", _):
            return os.getpid()
    return task


class Misbehaving(How):
    """Prepares images, but for those whose name says otherwise."""

    def __call__(self, where: Any) -> Ready:
        """By the name of the file."""
        name = Path(where.name).name
        if "hang" in name:
            time.sleep(60)
        if "crash" in name:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(where)


class Instant:
    """A preparation that takes no time: pixels from the first bytes."""

    fingerprint = "stub"

    def prepare(self, source: Any, **_: Any) -> Any:
        """Four by four pixels."""
        import torch

        from dinokit.images import Prepared

        data = source.read()[:48].ljust(48, b"\0")
        pixels = torch.from_numpy(np.frombuffer(data, np.uint8).reshape(3, 4, 4).copy())
        return Prepared(pixels=pixels, width=4, height=4, mode="RGB", frames=1)

    def normalise(self, pixels: Any) -> Any:
        """As they are."""
        return pixels.float() / 255


__all__ = ["Facts", "Instant", "Misbehaving", "obey"]

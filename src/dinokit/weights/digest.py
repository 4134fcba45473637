"""Where a folder keeps its weights, and their sha256, computed in a thread while other things are done.

Nothing here imports torch, whose import takes longer than the sum: a command begins the sum first. Promise: the sum is that of the file
that is there when it is asked for, or it is computed anew.
"""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from dinokit.atomic import file_sha256

# In the order in which a folder is searched; the first that is there holds the weights.
FOLDER_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX_SUFFIX = ".index.json"
# A thread waits for Python's lock twice a piece, a few milliseconds each time while others run Python: large pieces.
PIECE_BYTES = 16 << 20

_State = tuple[int, int, int, int]


class Digest:
    """The sha256 of a file, from now on in the making."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: tuple[str, _State] | None = None
        # A daemon: an error elsewhere ends the process without waiting for a sum that nobody wants any more.
        self._thread = threading.Thread(target=self._compute, name="sha256", daemon=True)
        self._thread.start()

    def result(self) -> str:
        """Hexadecimal; waits for it.

        Raises:
            OSError: the file can't be read.
        """
        self._thread.join()
        if self._found is None or self._found[1] != _state(os.stat(self.path)):
            return file_sha256(self.path)
        return self._found[0]

    def _compute(self) -> None:
        sum_, buffer = hashlib.sha256(), memoryview(bytearray(PIECE_BYTES))
        try:
            with self.path.open("rb", buffering=0) as file:
                state = _state(os.fstat(file.fileno()))
                while size := file.readinto(buffer):
                    sum_.update(buffer[:size])
                if _state(os.fstat(file.fileno())) == state:
                    self._found = sum_.hexdigest(), state
        except OSError:  # `result` meets it again, where it can be told
            return


def digest_ahead(model: str | Path) -> Digest | None:
    """The sum of the weights of `model`, if they are one local file or a folder's and there is a second processor to begin it on."""
    path = Path(model)
    if path.is_dir():
        path = next((path / name for name in FOLDER_WEIGHTS if (path / name).exists()), path)
    if path.name.endswith(INDEX_SUFFIX) or not path.is_file() or (os.cpu_count() or 1) < 2:
        return None
    return Digest(path)


def _state(stat: os.stat_result) -> _State:
    """What changes when a file is written or replaced."""
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns

"""A run's log: lines of JSON whose numbers depend on the run alone, and hooks for whoever draws them.

Promise: cut to a checkpoint's step, the log of an interrupted run goes on as if nothing had been. Times of the machine are in a file of
their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from dinokit.atomic import write_atomically
from dinokit.errors import MissingExtraError

Record = dict[str, Any]
TRAIN, WATCH, ALARM, SKIPPED, STOPPED = (
    "train",
    "watch",
    "alarm",
    "skipped",
    "stopped",
)  # the last: why a run ended by itself


class Logger(Protocol):
    """What a run tells; wandb, trackio and others fit in a few lines (docs/training.md)."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Values by name, after so many steps."""
        ...

    def words(self, step: int, text: str) -> None:
        """An alarm, a skipped step."""
        ...


class JsonLines:
    """A file of records, one a line, each with its `step`; what is there already up to `step` is kept and read."""

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path = path
        self.records = [record for record in read_log(path) if record["step"] <= step] if step else []
        text = "".join(_line(record) for record in self.records)
        write_atomically(path, lambda file: file.write(text.encode()))
        self._file = path.open("a", encoding="utf-8")

    def add(self, record: Record) -> None:
        """Write a record; the system has it when this returns."""
        self.records.append(record)
        self._file.write(_line(record))
        self._file.flush()

    def sync(self) -> None:
        """The disk has it when this returns; before a checkpoint, which must not be ahead of its log."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """No more."""
        self._file.close()


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=True) + "\n"


def read_log(path: Path) -> list[Record]:
    """Records of a file whose last line may have been cut off."""
    found = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break
    return found


class TensorBoard:
    """Numbers and words for TensorBoard, in `folder`.

    Raises:
        MissingExtraError: the package is not installed.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError('TensorBoard is not installed: pip install "dinokit[tensorboard]".') from error
        self._writer: Any = SummaryWriter(str(folder), purge_step=step or None)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """One curve a name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def words(self, step: int, text: str) -> None:
        """As text."""
        self._writer.add_text("alarms", text, step)

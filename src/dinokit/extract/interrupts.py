"""Ctrl-C: once means after this shard, twice means now."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any


class Interrupts:
    """While it is entered, the first SIGINT sets `asked` and calls `told`, the next raises KeyboardInterrupt.

    Outside the main thread signals can't be handled; there it does nothing.
    """

    def __init__(self, told: Callable[[], object]) -> None:
        self.asked = False
        self._told = told
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._told()

"""Writing beside the model, and how far the model may be ahead of it.

Promise: never are more rows embedded and not in place than the limit, so a kill at any moment costs no more than these. What goes wrong
in the thread that writes is raised in the one that embeds.
"""

from __future__ import annotations

import queue
import threading
from types import TracebackType
from typing import Protocol


class Finished(Protocol):
    """Something that can be put in place, or dropped."""

    @property
    def rows(self) -> int:
        """How many were embedded for it."""
        ...

    def commit(self) -> None:
        """Put it in place."""
        ...

    def abort(self) -> None:
        """Leave nothing of it."""
        ...


class Committer:
    """Puts what is finished in place, in turn. `limit` is in rows that are embedded and not in place, of all shards together."""

    def __init__(self, limit: int) -> None:
        self._limit, self._begun = limit, 0
        self._queue: queue.Queue[Finished | None] = queue.Queue(maxsize=1)
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="dinokit-writer", daemon=True)

    def __enter__(self) -> Committer:
        self._thread.start()
        return self

    def reserve(self, rows: int) -> None:
        """Wait until so many more may be embedded.

        Raises what went wrong with an earlier one.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or self._begun + rows <= self._limit)
            self._raise()
            self._begun += rows

    def put(self, made: Finished) -> None:
        """Have it written.

        Raises what went wrong with an earlier one.
        """
        if self._error is not None:
            made.abort()
        self._raise()
        self._queue.put(made)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None:
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (made := self._queue.get()) is not None:
            error: BaseException | None = None
            try:
                if self._error is None:
                    made.commit()
                else:  # the job is about to end
                    made.abort()
            except BaseException as caught:  # noqa: BLE001 - raised again by the thread that runs the job
                error = caught
            with self._changed:
                self._error = self._error or error
                self._begun -= made.rows
                self._changed.notify_all()

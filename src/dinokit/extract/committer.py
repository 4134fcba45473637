"""Writing beside the model: one thread takes finished shards in turn; what goes wrong there is raised where they are handed over."""

from __future__ import annotations

import queue
import threading
from types import TracebackType
from typing import Protocol


class Finished(Protocol):
    """Something that can be put in place, or dropped."""

    def commit(self) -> None:
        """Put it in place."""
        ...

    def abort(self) -> None:
        """Leave nothing of it."""
        ...


class Committer:
    """At most one shard waits while another is written, so that memory stays bounded."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Finished | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="dinokit-writer", daemon=True)

    def __enter__(self) -> Committer:
        self._thread.start()
        return self

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
            try:
                if self._error is None:
                    made.commit()
                else:  # the job is about to end
                    made.abort()
            except BaseException as error:  # noqa: BLE001 - raised again in `put`, by the thread that runs the job
                self._error = error

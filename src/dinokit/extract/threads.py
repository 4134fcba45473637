"""`Threads`: the same interface as `Workers` within the process, for a handful of images: no limit of time, no shield from crashes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class Threads(Generic[Task, Result]):
    """Apply `work` in two threads."""

    def __init__(self, work: Callable[[Task], Result], count: int = 2) -> None:
        self.work = work
        self.pool = ThreadPoolExecutor(count, thread_name_prefix="dinokit-decode")

    def __enter__(self) -> Threads[Task, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def map(self, tasks: Iterator[Task], ahead: int) -> Generator[Result, None, None]:
        """Results in order; at most `ahead` tasks are begun before their turn."""
        queue: deque[Future[Result]] = deque()
        for task in tasks:
            queue.append(self.pool.submit(self.work, task))
            if len(queue) >= ahead:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()

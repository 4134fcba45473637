"""`Workers`: decoder processes that may crash, hang or be killed without anybody noticing but the image that did it.

Promise: results come in the order of the tasks, one for each. A task that takes longer than the limit, or whose process dies twice,
gives what `failed` makes of it; the tasks beside it are done by somebody else.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Literal, TypeVar

from dinokit.errors import StorageError
from dinokit.extract import nursery

Task = TypeVar("Task")
Result = TypeVar("Result")
Reason = Literal["decode_timeout", "decoder_died"]
DEPTH = 2  # tasks that a worker holds: one it works on, one ready
SMALL = 32_768  # bytes of a task that fit into a socket while its reader is busy writing; a larger one waits for an idle worker
SINGLE_THREADED = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Worker:
    """One decoder process. `tasks` are the numbers it holds, the first of which it works on since `since`."""

    def __init__(self, pid: int, channel: Connection) -> None:
        self.pid, self.channel = pid, channel
        self.tasks: deque[int] = deque()
        self.since = 0.0


class Nursery:
    """The parent's end of `dinokit.extract.nursery`; started at once, waited for when first needed."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._pickled = pickle.dumps(work)
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket, self._ready = ours, False
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-m", nursery.__name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env={**os.environ, **SINGLE_THREADED},
                start_new_session=True,  # ctrl-C is for the parent alone
            )  # fmt: skip
        with Connection(os.dup(ours.fileno())) as hello:
            hello.send((sys.path, self._pickled))

    def fork(self) -> Worker:
        """A new worker; a nursery that was killed is replaced.

        Raises:
            StorageError: processes can't be started.
        """
        for _ in range(3):
            try:
                return self._fork()
            except (EOFError, OSError):
                self.close()
                self._start()
        raise StorageError(
            "decoder processes can't be started; use --workers 0, or look at limits of memory and processes."
        )

    def _fork(self) -> Worker:
        if not self._ready:
            with Connection(os.dup(self._socket.fileno())) as hello:
                hello.recv()
            self._ready = True
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            socket.send_fds(self._socket, [nursery.FORK], [theirs.fileno()])
            answer = self._socket.recv(8, socket.MSG_WAITALL)
            if len(answer) < 8:
                raise EOFError
            return Worker(int.from_bytes(answer, "little"), Connection(ours.detach()))

    def kill(self, worker: Worker) -> None:
        """At once; a worker that is dead already is no error."""
        worker.channel.close()
        with suppress(OSError):
            self._socket.sendall(nursery.KILL + worker.pid.to_bytes(8, "little"))

    def close(self) -> None:
        """End the nursery and all its workers."""
        self._socket.close()
        self.process.kill() if not self._ready else None
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()


class Workers(Generic[Task, Result]):
    """`count` processes that apply `work`; `failed(task, reason)` stands for a result that they can't give.

    `timeout` is in seconds a task, from the moment when it is begun.
    """

    def __init__(
        self,
        work: Callable[[Task], Result],
        count: int,
        *,
        timeout: float,
        failed: Callable[[Task, Reason], Result],
    ) -> None:
        self.nursery = Nursery(work)
        self.count, self.timeout, self.failed = count, timeout, failed

    def __enter__(self) -> Workers[Task, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self.nursery.close()

    def map(self, tasks: Iterator[Task], ahead: int) -> Generator[Result, None, None]:
        """Results in order; at most `ahead` tasks are begun before their turn.

        Raises whatever taking from `tasks` raises.
        """
        run = _Run(self, tasks, ahead)
        try:
            yield from run.results()
        finally:
            run.stop()


class _Run(Generic[Task, Result]):
    """One walk through tasks. A thread of its own talks with the workers, so that they never wait for the model."""

    def __init__(self, pool: Workers[Task, Result], tasks: Iterator[Task], ahead: int) -> None:
        self.pool, self.tasks, self.ahead = pool, tasks, ahead
        self.lock = threading.Condition()
        self.held: dict[int, Task] = {}  # given out, no result yet
        self.done: dict[int, Result] = {}
        self.again: deque[int] = deque()  # lost with another's worker
        self.suspects: deque[int] = deque()  # died once; to be tried alone
        self.tried: set[int] = set()
        self.workers: list[Worker] = []
        self.taken = self.given = 0
        self.exhausted = self.stopped = False
        self.error: BaseException | None = None
        self.wake_in, self.wake_out = os.pipe()
        self.thread = threading.Thread(target=self._guarded, name="dinokit-decoders", daemon=True)
        self.thread.start()

    def results(self) -> Iterator[Result]:
        while True:
            with self.lock:
                while self.given not in self.done and self.error is None and not self._finished():
                    self.lock.wait(1)
                if self.error is not None:
                    raise self.error
                if self.given not in self.done:
                    return
                result = self.done.pop(self.given)
                self.given += 1
            os.write(self.wake_out, b".")
            yield result

    def stop(self) -> None:
        self.stopped = True
        os.write(self.wake_out, b".")
        self.thread.join()
        for worker in self.workers:
            self.pool.nursery.kill(worker)
        os.close(self.wake_in)
        os.close(self.wake_out)

    def _finished(self) -> bool:
        return self.exhausted and self.given == self.taken

    def _guarded(self) -> None:
        try:
            while not self.stopped and not self._finished():
                self._turn()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for results
            self.error = error
        finally:
            with self.lock:
                self.lock.notify_all()

    def _turn(self) -> None:
        while len(self.workers) < self.pool.count and not self.exhausted:
            self.workers.append(self.pool.nursery.fork())
        for worker in self.workers:
            self._feed(worker)
        channels: dict[Any, Worker] = {worker.channel: worker for worker in self.workers}
        for found in wait([*channels, self.wake_in], self._patience()):
            if found == self.wake_in:
                os.read(self.wake_in, 4096)
            else:
                self._receive(channels[found])
        now = time.monotonic()
        for worker in list(self.workers):
            if worker.tasks and now - worker.since > self.pool.timeout:
                self._lose(worker, hung=True)

    def _patience(self) -> float:
        """Seconds until the first limit is reached."""
        begun = [worker.since for worker in self.workers if worker.tasks]
        return max(0.0, min(begun) + self.pool.timeout - time.monotonic()) + 0.005 if begun else 1.0

    def _feed(self, worker: Worker) -> None:
        if worker.tasks and worker.tasks[0] in self.tried:
            return  # it is on its own
        while len(worker.tasks) < DEPTH:
            if self.suspects:
                if worker.tasks:
                    return
                self._send(worker, self.suspects.popleft())
                return
            number = self._next()
            if number is None:
                return
            if worker.tasks and len(pickle.dumps(self.held[number])) > SMALL:
                self.again.appendleft(number)
                return
            self._send(worker, number)

    def _next(self) -> int | None:
        if self.again:
            return self.again.popleft()
        if self.exhausted or self.taken - self.given >= self.ahead:
            return None
        try:
            task = next(self.tasks)
        except StopIteration:
            self.exhausted = True
            with self.lock:
                self.lock.notify_all()
            return None
        self.held[self.taken] = task
        self.taken += 1
        return self.taken - 1

    def _send(self, worker: Worker, number: int) -> None:
        if not worker.tasks:
            worker.since = time.monotonic()
        worker.tasks.append(number)
        with suppress(OSError):  # a dead worker is noticed when it is read from
            worker.channel.send(self.held[number])

    def _receive(self, worker: Worker) -> None:
        try:
            result: Result = worker.channel.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self._lose(worker, hung=False)
            return
        self._settle(worker.tasks.popleft(), result)
        worker.since = time.monotonic()

    def _lose(self, worker: Worker, *, hung: bool) -> None:
        """A worker is gone or has to go: what it worked on is its fault, what it held besides is not."""
        self.workers.remove(worker)
        self.pool.nursery.kill(worker)
        if not worker.tasks:
            return
        guilty = worker.tasks.popleft()
        self.again.extend(worker.tasks)
        if hung or guilty in self.tried:
            reason: Reason = "decode_timeout" if hung else "decoder_died"
            self._settle(guilty, self.pool.failed(self.held[guilty], reason))
        else:
            self.tried.add(guilty)
            self.suspects.append(guilty)
        while len(self.workers) < self.pool.count:
            self.workers.append(self.pool.nursery.fork())

    def _settle(self, number: int, result: Result) -> None:
        del self.held[number]
        self.tried.discard(number)
        with self.lock:
            self.done[number] = result
            self.lock.notify_all()

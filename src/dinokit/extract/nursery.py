"""The process that decoder processes are forked from: it imports what they need once and never starts a thread.

    python -m dinokit.extract.nursery FD

Not `multiprocessing`: that runs the caller's main module again in each child, which hangs scripts without a guard, and gives no way
to kill one worker for certain. Memory of a fork is shared until written to.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

FORK, KILL = b"F", b"K"


def main() -> None:
    """Serve the parent until it goes; in a forked child, decode for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C goes to the whole group; the parent decides
    parent = socket.socket(fileno=int(sys.argv[1]))
    with Connection(os.dup(parent.fileno())) as hello:
        try:
            paths, pickled = hello.recv()
            sys.path[:] = paths
            work: Callable[[Any], Any] = pickle.loads(pickled)  # noqa: S301 - from our own parent
            gc.freeze()
            hello.send(os.getpid())
        except (EOFError, ConnectionError):
            return  # the parent was killed while we were importing
    channel = _serve(parent)
    if channel is not None:
        _decode(channel, work)


def _serve(parent: socket.socket) -> Connection | None:
    """Fork and kill as told. Returns only in a child, with its channel, or None in the nursery when the parent has gone."""
    children: set[int] = set()
    while True:
        try:
            message, handles, _, _ = socket.recv_fds(parent, 9, 1)
        except OSError:
            message, handles = b"", []
        _reap(children)
        if message[:1] == FORK:
            child = os.fork()
            if child == 0:
                parent.close()
                return Connection(handles[0])
            children.add(child)
            os.close(handles[0])
            parent.sendall(child.to_bytes(8, "little"))
        elif message[:1] == KILL:
            child = int.from_bytes(message[1:9], "little")
            if child in children:  # not yet reaped, so the number is still this child's
                os.kill(child, signal.SIGKILL)
        else:
            for child in children:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            return None


def _reap(children: set[int]) -> None:
    for child in list(children):
        with suppress(ChildProcessError):
            if os.waitpid(child, os.WNOHANG)[0]:
                children.discard(child)


def _decode(channel: Connection, work: Callable[[Any], Any]) -> None:
    try:
        while True:
            task = channel.recv()
            channel.send(work(task))
    except (EOFError, ConnectionError):
        return  # the parent has gone


if __name__ == "__main__":
    main()

"""A model hub on loopback: enough of the protocol for the real client, and faults on demand."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves the folders `root/ORGANISATION/NAME`; `fault` is "", "status:429", "truncate", "hang" or "gated"."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fault = ""
        self.requests: list[tuple[str, str]] = []
        self.url = ""


@contextmanager
def running_hub(root: Path) -> Iterator[Hub]:
    hub = Hub(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        hub_: ClassVar[Hub] = hub

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer(self, *, body: bool) -> None:
            hub.requests.append((self.command, self.path))
            parts = self.path.split("?")[0].strip("/").split("/")
            if hub.fault == "hang":
                time.sleep(20)
            if hub.fault.startswith("status:"):
                return self.refuse(int(hub.fault.split(":")[1]), "")
            if hub.fault == "gated":
                return self.refuse(401, "GatedRepo")
            if len(parts) < 5 or parts[2] != "resolve":
                if parts[-1].endswith(".pth"):
                    return self.serve(root / parts[-1], body)
                return self.refuse(404, "RepoNotFound")
            folder = root / parts[0] / parts[1]
            if not folder.is_dir():
                return self.refuse(404, "RepoNotFound")
            if parts[3] not in ("main", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            file = folder / "/".join(parts[4:])
            if not file.is_file():
                return self.refuse(404, "EntryNotFound")
            return self.serve(file, body)

        def serve(self, file: Path, body: bool) -> None:
            if not file.is_file():
                return self.refuse(404, "EntryNotFound")
            content = file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if body:
                self.wfile.write(content[: len(content) // 2] if hub.fault == "truncate" else content)
                if hub.fault == "truncate":
                    self.close_connection = True
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

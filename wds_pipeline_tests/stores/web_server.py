"""A web server over a folder, as nginx and Apache serve one: index pages, ranges, ETags."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Handler(SimpleHTTPRequestHandler):
    """Python's, with what it lacks. `etags`: tells them; `ranges`: sends parts."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, etags: bool, ranges: bool, **named: Any) -> None:
        self.etags, self.ranges = etags, ranges
        self.part: tuple[int, int] | None = None
        super().__init__(*args, **named)

    def log_message(self, *_: Any) -> None:
        """Requests are not logged."""

    def send_head(self) -> Any:
        """Python's, of a part where one is asked for."""
        self.part = None
        path = self.translate_path(self.path)
        wanted = self.headers.get("Range")
        if not wanted or not self.ranges or not os.path.isfile(path):
            return super().send_head()
        size = os.path.getsize(path)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or size), size - 1)
        if start >= size:
            self.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            return None
        self.part = start, end + 1
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.send_header("Content-Length", str(end + 1 - start))
        self.end_headers()
        return open(path, "rb")

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """What was asked for of it."""
        if self.part is None:
            super().copyfile(source, outputfile)
            return
        source.seek(self.part[0])
        outputfile.write(source.read(self.part[1] - self.part[0]))

    def end_headers(self) -> None:
        """With an ETag, of files."""
        path = self.translate_path(self.path)
        if self.etags and os.path.isfile(path):
            found = os.stat(path)
            self.send_header("ETag", f'"{found.st_mtime_ns:x}-{found.st_size:x}"')
        super().end_headers()


@contextmanager
def serve_web(folder: Path, *, etags: bool = True, ranges: bool = True) -> Iterator[str]:
    """Serves a folder until the end of the block; the URL of its root."""
    make = partial(Handler, directory=str(folder), etags=etags, ranges=ranges)
    server = ThreadingHTTPServer(("127.0.0.1", 0), make)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

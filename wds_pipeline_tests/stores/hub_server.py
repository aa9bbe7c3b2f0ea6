"""Enough of the Hugging Face Hub's API to read a dataset repository whose files are in a folder."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REPO = "datasets/me/data"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path

    def log_message(self, *_: Any) -> None:
        """Requests are not logged."""

    def _send(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, values: Any) -> None:
        self._send(200, json.dumps(values).encode(), Content_Type="application/json")

    def _missing(self, code: str) -> None:
        self._send(404, b"{}", X_Error_Code=code)

    def _entry(self, path: Path, expand: bool) -> dict[str, Any]:
        commit = {"id": COMMIT, "title": "t", "date": "2026-01-01T00:00:00.000Z"}
        more = {"lastCommit": commit} if expand else {}
        name = str(path.relative_to(self.folder))
        if path.is_dir():
            return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name, **more}
        data = path.read_bytes()
        return {"type": "file", "oid": _blob(data), "size": len(data), "path": name, **more}

    def do_HEAD(self) -> None:
        """Like GET."""
        self.do_GET()

    def do_GET(self) -> None:
        """The repository, a folder of it, a file."""
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        kind, _, rest = (
            url.path.removeprefix("/api").removeprefix(f"/{REPO}").partition("/")[2].partition("/")
        )
        revision, _, path = rest.partition("/")
        where = self.folder / unquote(path)
        if f"/{REPO}" not in url.path:
            self._missing("RepoNotFound")
        elif unquote(revision) not in ("", "main", COMMIT):
            self._missing("RevisionNotFound")
        elif kind in ("", "revision"):
            self._json({"id": "me/data", "sha": COMMIT, "siblings": [], "private": False})
        elif not where.exists():
            self._missing("EntryNotFound")
        elif kind == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() == "true"
            expand = query.get("expand", ["false"])[0].lower() == "true"
            found = sorted(where.rglob("*") if recursive else where.glob("*"))
            self._json([self._entry(each, expand) for each in found])
        elif kind == "resolve":
            self._file(where)

    def _file(self, where: Path) -> None:
        data = where.read_bytes()
        headers = {"ETag": f'"{_blob(data)}"', "X_Repo_Commit": COMMIT}
        wanted = self.headers.get("Range")
        if not wanted:
            self._send(200, data, **headers)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(data)), len(data) - 1)
        if start >= len(data):
            self._send(416, b"")
            return
        headers["Content_Range"] = f"bytes {start}-{end}/{len(data)}"
        self._send(206, data[start : end + 1], **headers)

    def do_POST(self) -> None:
        """Facts of some files."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "/paths-info/" not in self.path:
            self._missing("EntryNotFound")
            return
        paths = [self.folder / path for path in parse_qs(body.decode())["paths"]]
        self._json([self._entry(each, True) for each in paths if each.exists()])


@contextmanager
def serve_hub(folder: Path) -> Iterator[str]:
    """The Hub's endpoint."""
    handler = type("Hub", (_Hub,), {"folder": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""A web server of this process, with files and every way in which a download goes wrong."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HTML = b"<html>Sorry</html>"


class Web:
    """`files` are served by path; `asked` counts requests by path. Other paths go wrong by their names."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.users: list[str] = []
        self.release = threading.Event()  # ends what stalls
        self.hold_after: int | None = None
        self.url = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        web, path = self.web, self.path.partition("?")[0]
        web.asked[path] += 1
        if web.hold_after is not None and web.asked.total() > web.hold_after:
            web.release.wait(60)
        if "Authorization" in self.headers:
            web.users.append(self.headers["Authorization"])
        odd = getattr(self, "_" + path.strip("/").partition("/")[0].replace("-", "_"), None)
        if path in web.files:
            self._answer(200, web.files[path])
        elif odd is not None:
            odd()
        else:
            self._answer(404, b"not here")

    def _answer(self, code: int, data: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _first(self) -> bool:
        return self.web.asked[self.path] == 1

    def _busy(self) -> None:  # the first time
        if self._first():
            self._answer(503, b"", Retry_After="0")
        else:
            self._answer(200, b"after all")

    def _broken(self) -> None:
        self._answer(500, b"no")

    def _later(self) -> None:
        self._answer(429, b"", Retry_After="3600")

    def _moved(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/there.txt")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _circle(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/circle")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _away(self) -> None:
        self.send_response(302)
        self.send_header("Location", "file:///etc/passwd")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _large(self) -> None:  # says so
        self._answer(200, bytes(50_000))

    def _endless(self) -> None:  # says nothing of its size
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for _ in range(100):
                self.wfile.write(bytes(1000))
        except OSError:
            pass
        self.close_connection = True

    def _cut(self) -> None:  # the first time
        whole = b"the whole of it"
        self.send_response(200)
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(whole[:5] if self._first() else whole)
        self.close_connection = True

    def _stall(self) -> None:  # in the middle of the body
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"begun")
        self.wfile.flush()
        self.web.release.wait(60)
        self.close_connection = True

    def _drip(self) -> None:  # never silent for long, and never done
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        while not self.web.release.wait(0.05):
            try:
                self.wfile.write(b".")
            except OSError:
                break
        self.close_connection = True

    def _page(self) -> None:
        self._answer(200, HTML, Content_Type="text/html; charset=utf-8")

    def _empty(self) -> None:
        self._answer(200, b"")


@contextmanager
def serve() -> Iterator[Web]:
    """Starts one."""
    web = Web()
    handler = type("Handler", (_Handler,), {"web": web})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    web.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web
    finally:
        web.release.set()
        server.shutdown()
        server.server_close()
        thread.join()

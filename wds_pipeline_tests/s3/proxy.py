"""A proxy between an S3 client and its server, which goes wrong where a test wants it to.

The `Host` header is part of an S3 signature: the client signs for the proxy's address, and the proxy
hands the header on as it is. A request is read whole before anything happens to it, and so is a reply.
"""

from __future__ import annotations

import http.client
import random
import re
import socket
import struct
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from wds_pipeline_tests.s3.faults import PASS, Fault, Request, Rule

PATIENCE = 60.0  # seconds until a test that waits for a request gives up
_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}
_DONT_LINGER = struct.pack("ii", 1, 0)  # close() then sends a reset


class Proxy:
    """Requests come in at `endpoint` and go on to the server; `requests` are those seen, in order.

    `highest` is how many were under way at once, at most.
    """

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        assert parts.hostname and parts.port
        self.server = (parts.hostname, parts.port)
        self.requests: list[Request] = []
        self.highest = 0
        self._under_way = 0
        self._at_once: tuple[int, Fault | None] = (10**9, None)
        self._admitted = 0
        self._rules: list[Rule] = []
        self._changed = threading.Condition()
        self._held = 0
        self._released = 0  # how many of those held, first come, first served, may go on
        self._closed = False
        self._listener = _Listener(self)
        self.endpoint = f"http://127.0.0.1:{self._listener.server_port}"
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,))

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        """From its start to its end; what is still held then is dropped, the server never sees it."""
        self._thread.start()
        try:
            yield self
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            self._listener.shutdown()
            self._thread.join()
            self._listener.server_close()

    def on(
        self,
        fault: Fault,
        method: str = "",
        path: str = "",
        query: Mapping[str, str | bool] | None = None,
        *,
        header: str = "",
        nth: Collection[int] | None = None,
        times: int | None = None,
        probability: float = 1.0,
        seed: int = 0,
    ) -> Rule:
        """From now on the fault befalls such requests; of several rules, the first whose turn it is.

        `path` is a regular expression, searched in the path without its escapes. `query` has values,
        True for a name that must be there, False for one that must not. `nth` counts from 1.
        """
        chance = random.Random(seed)
        found = re.compile(path)
        rule = Rule(fault, method, found, query or {}, header, nth, times, probability, chance)
        with self._changed:
            self._rules.append(rule)
        return rule

    def remove(self, rule: Rule) -> None:
        """The rule holds no longer."""
        with self._changed:
            self._rules.remove(rule)

    def clear(self) -> None:
        """As if it were new: no rules, nothing seen, and what was held is let go."""
        self.release()
        with self._changed:
            self._rules.clear()
            self.requests.clear()
            self._at_once = (10**9, None)
            self.highest = self._under_way
            self._changed.notify_all()

    def limit(self, at_once: int, fault: Fault | None = None) -> None:
        """No more than so many requests at once get through: the others wait, or meet the fault."""
        with self._changed:
            self._at_once = (at_once, fault)

    def release(self) -> None:
        """What is held now goes on."""
        with self._changed:
            self._released = self._held
            self._changed.notify_all()

    def seen(self, method: str = "", path: str = "", **query: str | bool) -> list[Request]:
        """The requests so far that are such."""
        rule = Rule(PASS, method, re.compile(path), query)
        with self._changed:
            return [each for each in self.requests if rule.matches(each)]

    def wait_for(self, rule: Rule, hits: int = 1) -> Request:
        """Waits until the fault befell so many requests; returns the last of them."""
        with self._changed:
            done = self._changed.wait_for(lambda: len(rule.hits) >= hits, PATIENCE)
            assert done, f"waited {PATIENCE:.0f} s for {rule}"
            return rule.hits[hits - 1]

    def wait_held(self, count: int = 1) -> None:
        """Waits until so many are held that were not released."""
        with self._changed:
            enough = self._changed.wait_for(lambda: self._held - self._released >= count, PATIENCE)
            assert enough, f"waited {PATIENCE:.0f} s for {count} requests to be held"

    @property
    def held(self) -> int:
        """How many are held that were not released."""
        with self._changed:
            return self._held - self._released

    # What the handlers of requests call.

    def arrive(self, request: Request) -> Fault:
        """Records a request; returns what befalls it, once it may go on."""
        with self._changed:
            self.requests.append(request)
            self._under_way += 1
            self.highest = max(self.highest, self._under_way)
            fault = PASS
            for rule in self._rules:
                if rule.matches(request) and rule.befalls(free=fault is PASS):
                    rule.hits.append(request)
                    fault = rule.fault
            most, instead = self._at_once
            if self._admitted >= most and instead is not None:
                fault = instead
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._admitted < self._at_once[0] or fault is instead)
            self._admitted += 1
            request.fault = fault.name
            return fault

    def leave(self) -> None:
        """A request is done with."""
        with self._changed:
            self._under_way -= 1
            self._admitted -= 1
            self._changed.notify_all()

    def hold(self) -> bool:
        """Waits for `release`; False when it is the end."""
        with self._changed:
            self._held += 1
            mine = self._held
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._released >= mine or self._closed)
            return not self._closed

    def pause(self, seconds: float) -> None:
        """Waits, but not beyond the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, seconds)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client may keep its idle connections
    request_queue_size = 1024

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Closes without the usual shutdown, which would come before a reset."""
        with self._lock:
            self._connections.discard(request)
        self.close_request(request)

    def server_close(self) -> None:
        """Ends the connections too that clients keep for later."""
        super().server_close()
        with self._lock:
            for each in self._connections:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: Any) -> None:
        """A client that went away is none."""


@dataclass
class _Reply:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def log_message(self, *_: Any) -> None:
        """Requests are recorded, not logged."""

    def handle_request(self) -> None:
        body = self._read_body()
        if body is None:  # the client died in the middle of it
            self.close_connection = True
            return
        proxy = self.server.proxy
        parts = urlsplit(self.path)
        request = Request(
            self.command,
            unquote(parts.path),
            dict(parse_qsl(parts.query, keep_blank_values=True)),
            {name.lower(): value for name, value in self.headers.items()},
            len(body),
        )
        fault = proxy.arrive(request)
        try:
            self._act(request, body, fault)
        except OSError:
            self.close_connection = True
        finally:
            proxy.leave()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_OPTIONS = handle_request

    def _read_body(self) -> bytes | None:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        return body if len(body) == length else None

    def _act(self, request: Request, body: bytes, fault: Fault) -> None:
        proxy, reply = self.server.proxy, None
        if fault.delay:
            proxy.pause(fault.delay)
        if fault.hold == "request" and not proxy.hold():
            return self._reset()
        if fault.forward:
            if fault.flip_request is not None:
                body = _flipped(body, fault.flip_request)
            reply = self._forward(body)
            request.served = reply.status
        if fault.hold == "reply" and not proxy.hold():
            return self._reset()
        if fault.answer is not None:
            reply = _instead(fault)
        if fault.lost or reply is None:
            return self._reset()
        self._send(request, reply, fault)

    def _forward(self, body: bytes) -> _Reply:
        """Hands the request on, by a connection of its own, and takes the reply."""
        connection = http.client.HTTPConnection(*self.server.proxy.server, timeout=PATIENCE)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            chunked = "Transfer-Encoding" in self.headers
            for name, value in self.headers.items():
                if name.lower() not in _HOP:
                    connection.putheader(name, value)
            if chunked:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            found = connection.getresponse()
            return _Reply(found.status, found.getheaders(), found.read())
        except http.client.HTTPException as error:
            raise ConnectionError(f"the server gave no reply: {error!r}") from error
        finally:
            connection.close()

    def _send(self, request: Request, reply: _Reply, fault: Fault) -> None:
        body = reply.body
        if fault.flip is not None:
            body = _flipped(body, fault.flip)
        if fault.shorten is not None:
            body = body[: fault.shorten]
        self.send_response_only(reply.status)
        for name, value in reply.headers:
            if name.lower() not in _HOP and name.lower() != "content-length":
                self.send_header(name, value)
        length = str(len(body))
        if request.method == "HEAD":
            lengths = [value for name, value in reply.headers if name.lower() == "content-length"]
            length = lengths[0] if lengths else length
        if reply.status not in (204, 304):
            self.send_header("Content-Length", length)
        self.end_headers()
        if request.method == "HEAD" or reply.status in (204, 304):
            body = b""
        request.status = reply.status
        if fault.cut is not None:
            request.sent = self._write(body[: fault.cut])
            if fault.hold == "body" and self.server.proxy.hold():
                request.sent += self._write(body[fault.cut :])
            else:
                self.close_connection = True
        else:
            request.sent = self._write(body)

    def _write(self, data: bytes) -> int:
        self.wfile.write(data)
        return len(data)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DONT_LINGER)
        self.close_connection = True


def _flipped(body: bytes, at: int) -> bytes:
    changed = bytearray(body)
    changed[at] ^= 1
    return bytes(changed)


def _instead(fault: Fault) -> _Reply:
    """A web page, or an error as S3 words it."""
    assert fault.answer is not None
    status, code = fault.answer
    if fault.page:
        return _Reply(status, [("Content-Type", "text/html")], fault.page.encode())
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>The tests want it so.</Message>"
        "<RequestId>0</RequestId><HostId>tests</HostId></Error>"
    ).encode()
    return _Reply(status, [("Content-Type", "application/xml"), *fault.headers.items()], body)

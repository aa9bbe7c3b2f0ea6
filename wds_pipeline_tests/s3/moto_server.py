"""moto's server, and two things that S3 does and moto does not.

Writes are atomic: moto looks whether a key is there and then writes it, without a lock, so that of two
that write at once with `If-None-Match: *` both may be told that they did. And bodies are held against
the checksums that come with them.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import run_simple
from werkzeug.wrappers import Response

App = Callable[[dict[str, Any], Any], Iterable[bytes]]


class _Handler(MotoRequestHandler):
    def log_request(self, *_: Any) -> None:
        """Requests are not logged."""


def like_s3(app: App) -> App:
    """The application, with those two things."""
    lock = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return app(environ, start_response)
        # Read before the lock: a client that is slow to send its body keeps nobody waiting.
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length)
        code = "IncompleteBody" if len(body) < length else _mismatch(environ, body)
        if code:
            answer = f"<Error><Code>{code}</Code><Message>The body is another.</Message></Error>"
            return Response(answer, 400, mimetype="application/xml")(environ, start_response)
        environ["wsgi.input"] = io.BytesIO(body)
        with lock:
            return app(environ, start_response)

    return serve


def _mismatch(environ: dict[str, Any], body: bytes) -> str:
    """The error's code, if a checksum is of another body."""
    digest = hashlib.sha256(body)
    signed = environ.get("HTTP_X_AMZ_CONTENT_SHA256", "")
    if re.fullmatch("[0-9a-f]{64}", signed) and signed != digest.hexdigest():
        return "XAmzContentSHA256Mismatch"
    checksum = environ.get("HTTP_X_AMZ_CHECKSUM_SHA256")
    if (
        checksum
        and "partNumber" not in environ["QUERY_STRING"]
        and environ["REQUEST_METHOD"] == "POST"
    ):
        return ""  # of a whole upload
    if checksum and checksum != base64.b64encode(digest.digest()).decode():
        return "BadDigest"
    return ""


if __name__ == "__main__":
    server = like_s3(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", 0, server, threaded=True, request_handler=_Handler)

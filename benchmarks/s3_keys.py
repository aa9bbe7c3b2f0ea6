"""An S3 server of keys that do not exist: `python -m benchmarks.s3_keys COUNT`. Prints its port.

It answers ListObjectsV2 alone, from arithmetic, so that a listing of millions costs the client's time and
not a disk's. A thousand keys a folder: `00012/00012345.jpg`.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

_A_FOLDER = 1000
_LAST = "\U0010ffff"
_ROW = (
    "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    '<ETag>"{:032x}"</ETag><Size>{}</Size><StorageClass>STANDARD</StorageClass></Contents>'
)


def key(number: int) -> str:
    return f"{number // _A_FOLDER:05d}/{number:08d}.jpg"


def _folder(number: int) -> str:
    return f"{number:05d}/"


def page(count: int, asked: dict[str, list[str]]) -> str:
    """An answer for so many keys."""
    prefix, after = asked.get("prefix", [""])[0], asked.get("start-after", [""])[0]
    most = int(asked.get("max-keys", ["1000"])[0])
    grouped = bool(asked.get("delimiter")) and "/" not in prefix
    name, total = (_folder, -(-count // _A_FOLDER)) if grouped else (key, count)
    numbers = range(total)
    start = max(bisect_right(numbers, after, key=name), bisect_left(numbers, prefix, key=name))
    stop = bisect_left(numbers, prefix + _LAST, key=name)
    chosen = range(start, min(stop, start + most))
    if grouped:
        body = "".join(
            f"<CommonPrefixes><Prefix>{_folder(each)}</Prefix></CommonPrefixes>" for each in chosen
        )
    else:
        body = "".join(_ROW.format(key(each), each, 10_000 + each % 977) for each in chosen)
    more = str(chosen.stop < stop).lower()
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><EncodingType>url</EncodingType>'
        f"<IsTruncated>{more}</IsTruncated><KeyCount>{len(chosen)}</KeyCount>"
        f"<MaxKeys>{most}</MaxKeys>"
        + (
            f"<NextContinuationToken>{key(chosen.stop - 1)}</NextContinuationToken>"
            if more == "true"
            else ""
        )
        + f"{body}</ListBucketResult>"
    )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    count: ClassVar[int] = 0

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        if "continuation-token" in asked:  # as other clients go on
            asked["start-after"] = asked["continuation-token"]
        body = page(self.count, asked).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


if __name__ == "__main__":
    _Handler.count = int(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()

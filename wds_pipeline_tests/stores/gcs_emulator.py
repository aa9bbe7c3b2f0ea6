"""gcp-storage-emulator in a process of its own: `python -m wds_pipeline_tests.stores.gcs_emulator`.

It ignores `ifGenerationMatch` without a word. With the argument `--conditions` it heeds `0`, as Google
does: the one condition that we send.
"""

from __future__ import annotations

import sys
from http import HTTPStatus
from typing import Any

from gcp_storage_emulator.handlers import objects  # type: ignore[import-untyped]
from gcp_storage_emulator.server import create_server  # type: ignore[import-untyped]

BUCKET = "bucket"


def _heed(name: str) -> None:
    act = getattr(objects, name)

    def heeding(request: Any, response: Any, storage: Any) -> Any:
        if request.query.get("ifGenerationMatch") == ["0"]:
            key = request.query["name"][0] if "name" in request.query else None
            meta = request.data.get("meta", request.data) if isinstance(request.data, dict) else {}
            try:
                storage.get_file_obj(request.params["bucket_name"], key or meta["name"])
            except objects.NotFound:
                pass
            else:
                response.status = HTTPStatus.PRECONDITION_FAILED
                response.json({"error": {"code": 412, "message": "conditionNotMet"}})
                return None
        return act(request, response, storage)

    setattr(objects, name, heeding)


if __name__ == "__main__":
    if "--conditions" in sys.argv:
        _heed("_multipart_upload")
    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    server.start()
    print(f"Running on http://127.0.0.1:{server._api._httpd.server_port}", flush=True)
    server._api.is_running.wait()
    while server._api.is_alive():
        super(type(server._api), server._api).join(1)

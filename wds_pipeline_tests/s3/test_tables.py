"""A table in a bucket, with paths of objects and URLs; what is downloaded is kept in a bucket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset.build import build
from wds_pipeline.dataset.preview import preview
from wds_pipeline_tests.conftest import png
from wds_pipeline_tests.dataset.sources.web import serve
from wds_pipeline_tests.s3.project import PATIENT, S3Project
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server


def test_a_table_in_a_bucket(
    moto_server: S3Server, make_bucket: MakeBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = S3Project(moto_server, make_bucket(moto_server))
    put, bucket = project.client.put_object, project.bucket
    for n in range(4):
        put(Bucket=bucket, Key=f"lake/pics/{n}.png", Body=png(n))
    put(Bucket=bucket, Key="elsewhere/x.bin", Body=b"by its URL")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto_server.endpoint)  # of URLs in the table
    storage = {"endpoint_url": moto_server.endpoint, **PATIENT}
    with serve() as web:
        web.files["/7.txt"] = b"from the web"
        rows = [
            {"id": "a", "picture": "pics/0.png", "text": f"{web.url}/7.txt"},
            {"id": "b", "picture": f"s3://{bucket}/lake/pics/1.png", "text": f"s3://{bucket}/elsewhere/x.bin"},
            {"id": "c", "picture": "pics/gone.png", "text": f"s3://{bucket}/elsewhere/y.bin"},
            {"id": "d", "picture": "../elsewhere/x.bin", "text": None},
        ]  # fmt: skip
        body = "".join(json.dumps(row) + "\n" for row in rows).encode()
        put(Bucket=bucket, Key="lake/parts/0.jsonl", Body=body)
        table = {
            "url": f"s3://{bucket}/lake/parts/0.jsonl", "storage": storage, "key": "id",
            "fields": {
                "png": {"column": "picture", "holds": "path", "base": f"s3://{bucket}/lake"},
                "txt": {"column": "text", "holds": "url"},
            },
        }  # fmt: skip
        values: dict[str, Any] = {
            "name": "small",
            "source": {"table": table},
            "destination": {"url": f"s3://{bucket}/published/", "storage": storage},
            "samples": {"max_quarantined": 1},
            "compute": {"kind": "threads", "workers": 2},
        }
        config = DatasetConfig.model_validate(values)
        assert "3 URLs are not fetched yet" in preview(config).warnings[0]
        result = build(config)
        assert result.manifest.quarantined == {"download_failed": 1, "missing_file": 1}
        assert project.published() == {
            "a": {"png": png(0), "txt": b"from the web"},
            "b": {"png": png(1), "txt": b"by its URL"},
        }
        put(Bucket=bucket, Key="lake/pics/1.png", Body=png(99))  # by its etag
        assert build(config).status == "published"
        assert project.published()["b"]["png"] == png(99)
        table["url"] = f"s3://{bucket}/lake/parts"  # a folder
        assert build(DatasetConfig.model_validate(values)).status == "unchanged"
        assert web.asked.total() == 1
    kept = [
        name for name in project.objects("published/sources/downloads/") if name.endswith(".tar")
    ]
    assert len(kept) == 1

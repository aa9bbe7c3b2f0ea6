"""What the servers are used for: each is the faithful one in something, and these hold that."""

from __future__ import annotations

import base64
import hashlib
import threading
from typing import Any

import pytest
from botocore.exceptions import ClientError

from wds_pipeline_tests.s3 import servers
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server


def code(error: pytest.ExceptionInfo[ClientError]) -> str:
    return str(error.value.response["Error"]["Code"])


ODD = ["a b.txt", "ü/é.txt", "50%/x+y.txt", "q?x=1&y#z.txt", "日本/語.txt", "a/b/c/d.txt"]


def test_objects_and_odd_keys(server: S3Server, make_bucket: MakeBucket) -> None:
    client, bucket = server.client(), make_bucket(server)
    files = {key: key.encode() * 3 for key in ODD}
    servers.put_all(client, bucket, files)
    assert servers.get_all(client, bucket) == files
    part = client.get_object(Bucket=bucket, Key="a/b/c/d.txt", Range="bytes=2-5")
    assert part["Body"].read() == files["a/b/c/d.txt"][2:6]
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, PaginationConfig={"PageSize": 2}
    )
    assert sorted(each["Key"] for page in pages for each in page["Contents"]) == sorted(ODD)


def test_a_wrong_secret(server: S3Server, make_bucket: MakeBucket) -> None:
    bucket = make_bucket(server)
    wrong = servers.make_client(server.endpoint, secret="no")
    if server.signatures:
        with pytest.raises(ClientError) as error:
            wrong.list_objects_v2(Bucket=bucket)
        assert code(error) == "SignatureDoesNotMatch"
    else:
        wrong.list_objects_v2(Bucket=bucket)


def test_conditions(server: S3Server, make_bucket: MakeBucket) -> None:
    client, bucket = server.client(), make_bucket(server)
    client.put_object(Bucket=bucket, Key="k", Body=b"one", IfNoneMatch="*")
    if server.conditions:
        with pytest.raises(ClientError) as error:
            client.put_object(Bucket=bucket, Key="k", Body=b"two", IfNoneMatch="*")
        assert code(error) == "PreconditionFailed"
        with pytest.raises(ClientError) as error:
            client.get_object(Bucket=bucket, Key="k", IfMatch='"0"')
        assert code(error) == "PreconditionFailed"
        assert servers.get_all(client, bucket) == {"k": b"one"}
    else:
        client.put_object(Bucket=bucket, Key="k", Body=b"two", IfNoneMatch="*")
        assert servers.get_all(client, bucket) == {"k": b"two"}


def test_multipart_uploads(server: S3Server, make_bucket: MakeBucket) -> None:
    client, bucket = server.client(), make_bucket(server)
    part = bytes(5 * 1024 * 1024)
    where: dict[str, Any] = {"Bucket": bucket, "Key": "big"}
    where["UploadId"] = client.create_multipart_upload(**where)["UploadId"]
    tags = [
        client.upload_part(**where, PartNumber=number, Body=data)["ETag"]
        for number, data in ((1, part), (2, b"end"))
    ]
    under_way = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    assert len(under_way) == 1 or not server.uploads
    parts = [{"PartNumber": n, "ETag": tag} for n, tag in enumerate(tags, 1)]
    done = client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
    assert done["ETag"].strip('"').endswith("-2")
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    assert servers.get_all(client, bucket) == {"big": part + b"end"}


def test_of_two_that_create_at_once_one_does(
    moto_server: S3Server, make_bucket: MakeBucket
) -> None:
    """As on S3; moto alone would now and then tell both that they did."""
    bucket, clients = (
        make_bucket(moto_server),
        [servers.make_client(moto_server.endpoint) for _ in range(4)],
    )
    for turn in range(15):
        barrier = threading.Barrier(len(clients))
        won: list[int] = []

        def write(number: int, turn: int = turn, barrier: Any = barrier, won: Any = won) -> None:
            barrier.wait()
            try:
                key, body = f"k{turn}", str(number).encode()
                clients[number].put_object(Bucket=bucket, Key=key, Body=body, IfNoneMatch="*")
                won.append(number)
            except ClientError as error:
                assert error.response["Error"]["Code"] == "PreconditionFailed"

        threads = [threading.Thread(target=write, args=(n,)) for n in range(len(clients))]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert len(won) == 1
        found = clients[0].get_object(Bucket=bucket, Key=f"k{turn}")["Body"].read()
        assert found == str(won[0]).encode()
    for client in clients:
        client.close()


def test_a_body_that_is_not_what_was_signed(server: S3Server, make_bucket: MakeBucket) -> None:
    """As on S3; rclone does not look."""
    client, where = server.client(), {"Bucket": make_bucket(server), "Key": "k", "Body": b"other"}
    wrong = base64.b64encode(hashlib.sha256(b"one").digest()).decode()
    if server.checksums:
        with pytest.raises(ClientError) as error:
            client.put_object(**where, ChecksumSHA256=wrong)
        assert code(error) == "BadDigest"
    else:
        client.put_object(**where, ChecksumSHA256=wrong)

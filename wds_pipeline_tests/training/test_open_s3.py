"""A version in a bucket: opened by its URL, read here and in other processes."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from wds_pipeline.errors import VerificationError, VersionError
from wds_pipeline.training import Dataset, open_dataset
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.s3.conftest import aws, make_bucket, moto_server
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server, put_all
from wds_pipeline_tests.training.conftest import plain, stored

__all__ = ["aws", "make_bucket", "moto_server"]  # fixtures


@pytest.fixture
def dataset(
    published: Project,
    moto_server: S3Server,
    make_bucket: MakeBucket,
    monkeypatch: pytest.MonkeyPatch,
) -> Dataset:
    """The split `val`, in a bucket."""
    bucket, root = make_bucket(moto_server), published.destination
    manifest = published.latest()
    names = [each.name for each in manifest.of_split("val")]
    files = {
        f"sets/small/{path.relative_to(root)}": path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and (path.name.partition(".")[0] in names or "versions" in path.parts)
    }
    put_all(moto_server.client(), bucket, files)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_server.endpoint)
    return open_dataset(f"s3://{bucket}/sets/small/", split="val")


def test_it_is_read_as_from_a_folder(published: Project, dataset: Dataset) -> None:
    expected = stored(published, "val")
    assert [plain(each) for each in dataset] == expected
    assert plain(dataset[-1]) == expected[-1]
    assert plain(dataset.by_key(expected[5][0])) == expected[5]
    chosen = dataset.select("png.width >= 10", has="json")
    assert 0 < len(chosen) < len(expected)
    assert [each["__key__"] for each in chosen] == [
        key for key, each in expected if each in [plain(sample)[1] for sample in chosen]
    ]
    assert all(url.startswith("s3://") for url in dataset.urls)
    assert [plain(each) for each in dataset.webdataset()] == expected


def keys(dataset: Dataset) -> list[str]:
    return [each["__key__"] for each in dataset]


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_worker_processes(published: Project, dataset: Dataset, method: str) -> None:
    expected = keys(dataset)  # connections are open
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as workers:
        assert list(workers.map(keys, [dataset] * 2)) == [expected] * 2


def test_what_is_not_there(dataset: Dataset, moto_server: S3Server) -> None:
    url = dataset.catalog.storage.url
    with pytest.raises(VersionError, match="version 4 is not there; there are 1"):
        open_dataset(url, 4)
    with pytest.raises(VersionError, match="no version is published there"):
        open_dataset(f"{url}/nothing")
    bucket = url.removeprefix("s3://").partition("/")[0]
    shard = dataset.catalog.shards[0]
    client = moto_server.client()
    data = client.get_object(Bucket=bucket, Key=f"sets/small/{shard.path}")["Body"].read()
    client.put_object(Bucket=bucket, Key=f"sets/small/{shard.path}", Body=data[:-512])
    with pytest.raises(VerificationError, match=f"{shard.path}: .*expected"):
        dataset[0]
    client.delete_object(Bucket=bucket, Key=f"sets/small/{shard.path}")
    with pytest.raises(VerificationError, match=f"{shard.path}: the shard is gone"):
        open_dataset(url, split="val")[0]

"""A base and an overlay in a bucket: published and read there, the base from a cache too."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from wds_pipeline.training import Dataset, open_dataset
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.overlays import overlay_of, write_fields
from wds_pipeline_tests.s3.conftest import aws, make_bucket, moto_server
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server, put_all
from wds_pipeline_tests.training.conftest import plain, stored

__all__ = ["aws", "make_bucket", "moto_server"]  # fixtures


def texts(dataset: Dataset) -> list[bytes]:
    return [each["txt"] for each in dataset]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_in_a_bucket(
    published: Project,
    moto_server: S3Server,
    make_bucket: MakeBucket,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    bucket, root = make_bucket(moto_server), published.destination
    names = [each.name for each in published.latest().of_split("val")]
    files = {
        f"base/{path.relative_to(root)}": path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
        and (
            path.name.partition(".")[0] in names
            or {"versions"} & set(path.parts)
            or path.parent == root
        )
    }
    put_all(moto_server.client(), bucket, files)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_server.endpoint)
    base = f"s3://{bucket}/base"
    over = overlay_of(
        published,
        tmp_path / "over",
        overlay={"base": {"url": base}},
        destination={"url": f"s3://{bucket}/over"},
    )
    keys = [key for key, _ in stored(published, "val")]
    write_fields(over, keys[::2])
    result = over.build()
    assert result.manifest.overlay["url"] == base
    new = {key: {"txt": f"new caption of {key}".encode()} for key in keys[::2]}
    expected = [(key, {**each, **new.get(key, {})}) for key, each in stored(published, "val")]
    overlays = [f"s3://{bucket}/over"]
    dataset = open_dataset(base, split="val", overlays=overlays)
    assert [plain(each) for each in dataset] == expected
    assert plain(dataset[-1]) == expected[-1] and plain(dataset[0]) == expected[0]
    streamed = [plain(each) for each in dataset.stream(seed=2, ahead_bytes=20_000)]
    assert dict(streamed) == dict(expected) and len(streamed) == len(expected)
    for _ in range(2):
        cached = open_dataset(base, split="val", overlays=overlays, cache=tmp_path / "cache")
        assert [plain(each) for each in cached] == expected
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context) as workers:
        assert list(workers.map(texts, [dataset])) == [[each["txt"] for _, each in expected]]

"""Streaming all samples from a bucket: samples a second, and the time to the first one.

The server is `rclone serve s3` over the folder of the benchmarks, on this machine, where it takes its share
of the processors from everybody; and once more as if it were 20 ms away. Nothing is kept from one round to
the next.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import readers, s3_server
from benchmarks.measure import (
    Contender,
    Section,
    Settings,
    Stopwatch,
    Table,
    Took,
    best,
    cpu,
    median,
    take_turns,
)
from benchmarks.read import published
from benchmarks.readers import HUGGING_FACE, LITDATA, MOSAIC, STREAMING_WDS, WEBDATASET, sizes
from wds_pipeline.training import Dataset, open_dataset
from wds_pipeline_tests.s3 import servers

_OURS = "wds_pipeline: `stream()`"
_PIPE = f"{WEBDATASET}, `pipe:curl`"
_WORKERS = 2
_ROUNDS = 2

Samples = Callable[[], Iterable[Any]]
Ways = dict[str, tuple[Samples, Callable[[Iterable[Any]], int], int]]
"""By name: what opens and gives samples, what counts their bytes, and how many these have to be."""


def run(settings: Settings) -> Section:
    section = Section("Streaming from a bucket")
    with readers.quiet():
        for name in settings.corpora:
            # A tenth of the large ones: all of them go through a server on this machine, for everybody.
            smaller = replace(settings, quick=settings.quick or name == "typical")
            section.tables += _tables(smaller, name)
    peers = (WEBDATASET, MOSAIC, LITDATA, HUGGING_FACE, STREAMING_WDS)
    section.notes += [
        "From opening to the last sample, in a cold start: with the manifest, the indexes and a new "
        "connection. Every contender's bytes are counted and compared.",
        *readers.missing(peers),
    ]
    return section


def _tables(settings: Settings, name: str) -> list[Table]:
    here = published(settings, name)
    with open_dataset(str(here)) as dataset:
        for peer, write in ((MOSAIC, readers.write_mosaic), (LITDATA, readers.write_litdata)):
            if readers.here(peer):
                write(dataset, settings.folder)
        tables = []
        with servers.serve_rclone(settings.folder) as server:
            with s3_server.reached(server.endpoint):
                tables.append(_table(settings, name, dataset, here, "on this machine"))
            with (
                s3_server.farther_away(server.endpoint) as endpoint,
                s3_server.reached(endpoint),
            ):
                where = f"{s3_server.LATENCY} ms away"
                tables.append(_table(settings, name, dataset, here, where))
    return tables


def _table(settings: Settings, name: str, dataset: Dataset, here: Path, where: str) -> Table:
    scratch = settings.folder / "scratch"
    firsts: dict[str, list[float]] = {}
    ways = {**_ours(here), **_peers(settings, dataset, here, scratch)}

    def contender(who: str) -> Contender:
        samples, count, wanted = ways[who]

        def run() -> Took:
            with _fresh(scratch):
                watch, start = Stopwatch(), time.perf_counter()
                iterator = iter(samples())
                first = next(iterator)
                firsts.setdefault(who, []).append(time.perf_counter() - start)
                found = count([first]) + count(readers.rest(iterator))
                took = watch.took()
            if found != wanted:
                raise RuntimeError(f"{who}: {found:,} bytes were read, {wanted:,} there are")
            return took

        return Contender(who, run)

    seconds = take_turns([contender(who) for who in ways], min(settings.rounds, _ROUNDS))
    base = _PIPE if _PIPE in seconds else _OURS
    table = Table(
        f"{name}: {len(dataset):,} samples, {readers.wanted_bytes(dataset) / 1e6:,.0f} MB, {where}",
        ["what", "samples/s", "median samples/s", "CPU s", f"× {base}", "first sample, ms"],
    )
    for who, rounds in seconds.items():
        table.rows.append(
            [
                who,
                len(dataset) / best(rounds),
                len(dataset) / median(rounds),
                cpu(rounds),
                best(seconds[base]) / best(rounds),
                1000 * min(firsts[who]),
            ]
        )
    return table


@contextmanager
def _fresh(scratch: Path) -> Iterator[None]:
    """An empty folder for caches, which is the user's home too: streaming-wds has its own there."""
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / ".aws").mkdir(parents=True)
    (scratch / ".aws" / "credentials").write_text(
        f"[default]\naws_access_key_id = {servers.KEY}\naws_secret_access_key = {servers.SECRET}\n"
    )
    home = os.environ.get("HOME")
    os.environ["HOME"] = str(scratch)
    try:
        yield
    finally:
        os.environ.pop("HOME") if home is None else os.environ.update(HOME=home)
        shutil.rmtree(scratch, ignore_errors=True)


def _ours(here: Path) -> Ways:
    url = f"s3://{here.name}"
    wanted = readers.wanted_bytes(open_dataset(str(here)))

    def way(**options: Any) -> tuple[Samples, Callable[[Iterable[Any]], int], int]:
        return (lambda: open_dataset(url).stream(seed=0, **options), sizes, wanted)

    return {
        f"{_OURS}, window shuffle": way(),
        _OURS.replace("()", "(shuffle=False)"): way(shuffle=False),
    }


def _peers(settings: Settings, dataset: Dataset, here: Path, scratch: Path) -> Ways:
    wanted = readers.wanted_bytes(dataset)
    keys = [f"{here.name}/{shard.path}" for shard in dataset.catalog.shards]
    ways: Ways = {}
    if readers.here(WEBDATASET):
        ways[f"{WEBDATASET}, `s3fs` files"] = (lambda: _webdataset_s3fs(keys), sizes, wanted)
    if readers.here(WEBDATASET) and shutil.which("curl"):
        ways[_PIPE] = (lambda: readers.open_webdataset(_pipes(keys)), sizes, wanted)
        if readers.installed("torch"):
            name = f"{_PIPE}, DataLoader of {_WORKERS} workers, batches of 64"
            ways[name] = (lambda: _webdataset_loader(_pipes(keys)), _batch_sizes, wanted)
    if readers.here(MOSAIC):
        remote = f"s3://{readers.write_mosaic(dataset, settings.folder).name}"
        local = scratch / "mosaic"
        ways[MOSAIC] = (lambda: readers.open_mosaic(local, remote=remote), sizes, wanted)
    if readers.here(LITDATA):
        chunks = f"s3://{readers.write_litdata(dataset, settings.folder).name}"
        cache = str(scratch / "litdata")
        ways[LITDATA] = (lambda: readers.open_litdata(chunks, cache_dir=cache), sizes, wanted)
    if readers.here(HUGGING_FACE):
        count, but_json = readers.hugging_face_sizes, readers.wanted_bytes(dataset, ("jpg", "txt"))
        # Its webdataset reader and s3fs do not go together: a `block_size` too many.
        name = f"{HUGGING_FACE}, presigned URLs"
        ways[name] = (lambda: readers.open_hugging_face(_signed(keys)), count, but_json)
    if readers.here(STREAMING_WDS):
        remote_shards = f"s3://{here.name}/shards"
        ways[STREAMING_WDS] = (
            lambda: readers.open_streaming_wds(remote_shards),
            readers.streaming_wds_sizes,
            wanted,
        )
    return ways


def _pipes(keys: list[str]) -> list[str]:
    """Commands that write a shard to their output: what webdataset reads from stores with."""
    return [f"pipe:curl --silent --fail '{url}'" for url in _signed(keys)]


def _signed(keys: list[str]) -> list[str]:
    """URLs that anybody may read."""
    client = servers.make_client(os.environ["AWS_ENDPOINT_URL"], signature_version="s3v4")
    found = []
    for key in keys:
        bucket, _, name = key.partition("/")
        where = {"Bucket": bucket, "Key": name}
        found.append(client.generate_presigned_url("get_object", Params=where))
    return found


def _webdataset_s3fs(keys: list[str]) -> Any:
    import s3fs
    import webdataset
    from webdataset import tariterators

    store = s3fs.S3FileSystem(
        skip_instance_cache=True,
        config_kwargs={"response_checksum_validation": "when_required"},
    )
    files = ({"url": key, "stream": store.open(key, "rb")} for key in keys)
    return webdataset.DataPipeline(
        lambda: files,
        tariterators.tar_file_expander,
        tariterators.group_by_keys,
    )


def _webdataset_loader(urls: list[str]) -> Any:
    import webdataset

    pipeline = readers.open_webdataset(urls).batched(64, collation_fn=None)
    return webdataset.WebLoader(pipeline, batch_size=None, num_workers=_WORKERS)


def _batch_sizes(batches: Iterable[Any]) -> int:
    return sum(sizes(batch) for batch in batches)

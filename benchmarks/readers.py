"""The other readers of samples: how each writes its own best format of them, and opens it.

Imported when they are asked for: `installed` says which of them are here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.measure import log
from wds_pipeline.training import Dataset

FIELDS = ("jpg", "json", "txt")
WEBDATASET = "webdataset `WebDataset`"
WIDS = "wids `ShardListDataset`"
MOSAIC = "MosaicML streaming, its own format"
LITDATA = "litdata, its own format"
HUGGING_FACE = "Hugging Face `datasets`, webdataset, streaming"
STREAMING_WDS = "streaming-wds"

_CHUNK = 64_000_000  # what MosaicML (67 MB) and litdata take by default
_MODULES = {
    WEBDATASET: ("webdataset",),
    WIDS: ("wids", "torch"),
    MOSAIC: ("streaming",),
    LITDATA: ("litdata",),
    HUGGING_FACE: ("datasets",),
    STREAMING_WDS: ("streaming_wds",),
}


def installed(*modules: str) -> bool:
    """Whether all of these can be imported."""
    specs = map(importlib.util.find_spec, modules)
    # A folder such as our own `datasets/` has no origin.
    return all(spec is not None and spec.origin is not None for spec in specs)


def here(reader: str) -> bool:
    """Whether a reader is installed."""
    return installed(*_MODULES[reader])


def missing(readers: Iterable[str]) -> list[str]:
    """A note that says which readers are not installed; none if all are."""
    names = [reader.partition(",")[0] for reader in readers if not here(reader)]
    return [f"not installed, so not here: {', '.join(names)}"] if names else []


# webdataset, wids and datasets read the published shards as they are.


def open_webdataset(urls: list[str], shuffle: int = 0, **options: Any) -> Any:
    """What everybody does: raw samples; with `shuffle`, shards and a buffer of so many samples too."""
    import webdataset

    shards = len(urls) if shuffle else False
    made = webdataset.WebDataset(urls, shardshuffle=shards, seed=0, **options)
    return made.shuffle(shuffle, seed=0) if shuffle else made


def open_wids(dataset: Dataset) -> Any:
    """The shards as local files, every one kept open, nothing decoded."""
    import wids

    warnings.simplefilter("ignore", DeprecationWarning)
    shards = [
        {"url": shard.url, "nsamples": shard.samples, "filesize": shard.bytes}
        for shard in dataset.catalog.shards
    ]
    # It prints what it has got.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return wids.ShardListDataset(
            shards, localname=lambda url: url, keep=True, transformations=[], lru_size=1000
        )


def open_hugging_face(urls: list[str], shuffle: int = 0, **options: Any) -> Any:
    """The shards as a stream; images stay bytes, json it always parses."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    datasets: Any = import_module("datasets")
    datasets.disable_progress_bars()
    made = datasets.load_dataset(
        "webdataset", data_files=urls, split="train", streaming=True, **options
    )
    made = made.cast_column("jpg", datasets.Image(decode=False))
    return made.shuffle(seed=0, buffer_size=shuffle) if shuffle else made


# The others get their own format of the same samples.


def write_mosaic(dataset: Dataset, folder: Path) -> Path:
    """MosaicML's MDS, not compressed; made once, found again."""
    mend_torchvision()
    streaming: Any = import_module("streaming")

    def write(out: Path) -> None:
        columns = dict.fromkeys(FIELDS, "bytes")
        with streaming.MDSWriter(out=str(out), columns=columns, size_limit=_CHUNK) as writer:
            for sample in dataset:
                writer.write({name: sample[name] for name in FIELDS})

    return _made_once(folder / f"mds-{len(dataset)}-{_mean_bytes(dataset)}", write)


def open_mosaic(local: Path, *, shuffle: bool = False, **options: Any) -> Any:
    """The samples in their order, or as it shuffles them by default."""
    streaming: Any = import_module("streaming")
    import_module("streaming.base.util").clean_stale_shared_memory()
    before, tempfile.tempdir = tempfile.tempdir, str(local.parent)  # it leaves locks there
    try:
        return streaming.StreamingDataset(
            local=str(local), shuffle=shuffle, batch_size=64, **options
        )
    finally:
        tempfile.tempdir = before


def write_litdata(dataset: Dataset, folder: Path) -> Path:
    """litdata's chunks, not compressed; made once, found again. Raises RuntimeError."""
    mend_torchvision()
    library: Any = import_module("litdata.streaming.writer")

    def write(out: Path) -> None:
        writer = library.BinaryWriter(str(out), chunk_bytes=_CHUNK)
        for number, sample in enumerate(dataset):
            writer.add_item(number, {name: sample[name] for name in FIELDS})
        writer.done()
        writer.merge(1)
        if not json.loads((out / "index.json").read_text())["chunks"]:
            raise RuntimeError(f"{out}: litdata wrote nothing")

    return _made_once(folder / f"litdata-{len(dataset)}-{_mean_bytes(dataset)}", write)


def open_litdata(where: Path | str, *, shuffle: bool = False, **options: Any) -> Any:
    """The samples in their order, or as it shuffles them by default."""
    library: Any = import_module("litdata")
    logging.getLogger("litdata").setLevel(logging.ERROR)
    with contextlib.suppress(ImportError, AttributeError):  # it knows no servers without TLS
        downloader: Any = import_module("litdata.streaming.downloader")
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    return library.StreamingDataset(str(where), shuffle=shuffle, **options)


def open_streaming_wds(remote: str) -> Any:
    """The shards below a key of S3, which it downloads whole, to `~/.cache`."""
    library: Any = import_module("streaming_wds")
    logging.getLogger("streaming_wds").setLevel(logging.ERROR)
    return library.StreamingWebDataset(remote=remote)


def mend_torchvision() -> None:
    """Makes torchvision importable beside a torch for processors alone; nobody here uses an operator.

    PyPI has it for the CUDA build alone, whose libraries its operators are linked to.
    """
    try:
        import_module("torchvision")
    except RuntimeError:
        import torch

        for name in ("nms", "qnms"):
            text = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", text)
        for name in [each for each in sys.modules if each.partition(".")[0] == "torchvision"]:
            del sys.modules[name]


def _made_once(out: Path, write: Callable[[Path], None]) -> Path:
    if not out.exists():
        log(f"writing {out.name}")
        part = out.with_name(f"{out.name}-part")
        shutil.rmtree(part, ignore_errors=True)
        write(part)
        part.rename(out)
    return out


def _mean_bytes(dataset: Dataset) -> int:
    return wanted_bytes(dataset) // len(dataset)


# What they gave, in bytes.


def rest(iterator: Iterator[Any]) -> Iterator[Any]:
    """What is left of it. A `for` would ask litdata's for an iterator once more, which starts over."""
    with contextlib.suppress(StopIteration):
        while True:
            yield next(iterator)


def sizes(samples: Iterable[dict[str, Any]]) -> int:
    """The bytes of all fields."""
    found = 0
    for sample in samples:
        found += len(sample["jpg"]) + len(sample["json"]) + len(sample["txt"])
    return found


def wids_sizes(sample: dict[str, Any]) -> int:
    """The bytes of a sample's fields in wids: files in memory, with a dot in their names."""
    return sum(sample[f".{name}"].getbuffer().nbytes for name in FIELDS)


def hugging_face_sizes(samples: Iterable[dict[str, Any]]) -> int:
    """The bytes of all fields but json, which it parses."""
    found = 0
    for sample in samples:
        found += len(sample["jpg"]["bytes"]) + len(sample["txt"])
    return found


def streaming_wds_sizes(samples: Iterable[dict[str, Any]]) -> int:
    """The bytes of all fields, however it names them."""
    found = 0
    for sample in samples:
        found += sum(len(sample.get(name, sample.get(f".{name}", b""))) for name in FIELDS)
    return found


def wanted_bytes(dataset: Dataset, fields: Iterable[str] = FIELDS) -> int:
    """The bytes of these fields, as the member indexes have them."""
    found = 0
    for shard in range(len(dataset.catalog.shards)):
        members = dataset.catalog.members(shard)
        codes = [members.field_names.index(name) for name in fields]
        found += sum(int(members.sizes[members.fields == code].sum()) for code in codes)
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the readers warn of on the way: of themselves, mostly."""
    logging.getLogger("streaming").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

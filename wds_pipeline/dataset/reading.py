"""How a version's shards are read with plain webdataset, as lines of Python to show."""

from __future__ import annotations

from wds_pipeline.storage import Storage


def snippet(storage: Storage, urls: str | list[str]) -> list[str]:
    """A few lines that read these shards: a brace-able pattern, or a list."""
    lines = ["import webdataset"]
    scheme = storage.place.scheme
    if not storage.folders:  # webdataset opens such URLs by other programs, or not at all
        lines = [
            "import fsspec, webdataset",
            "from webdataset.gopen import gopen_schemes",
            f"gopen_schemes[{scheme!r}] = lambda url, *_: fsspec.open(url).open()",
        ]
        endpoint = storage.place.storage.endpoint_url
        if endpoint:
            lines.insert(0, f"# with AWS_ENDPOINT_URL={endpoint} in the environment")
    return [
        *lines,
        f"dataset = webdataset.WebDataset({urls!r}, shardshuffle=False)",
        "for sample in dataset: print(sample['__key__'], list(sample))",
    ]

"""Plain lists, for any reader: `train.txt` has a URL a line, `train.braces.txt` one pattern for all."""

from __future__ import annotations

from wds_pipeline.dataset.export.base import Export
from wds_pipeline.dataset.export.contents import Shard


def write(export: Export) -> None:
    """Writes them. The URLs are absolute, since readers take them from wherever they run.

    In S3, which webdataset cannot open itself, `train.pipe.txt` has the shards as pipes of the AWS
    command line. Raises DestinationError.
    """
    storage = export.contents.storage
    for split, shards in export.contents.splits.items():
        urls = [storage.locate(shard.path) for shard in shards]
        export.put(f"{split}.txt", "".join(f"{url}\n" for url in urls))
        views = [shard.view for shard in shards if shard.view is not None]
        if views:
            export.put(f"{split}.braces.txt", storage.locate(_braces(shards)) + "\n")
        if storage.place.scheme in ("s3", "s3a"):
            export.put(f"{split}.pipe.txt", "".join(f"pipe:aws s3 cp {url} -\n" for url in urls))


def _braces(shards: list[Shard]) -> str:
    """One pattern for the brace-able names of a split."""
    first, last = shards[0].view or "", shards[-1].view or ""
    if len(shards) == 1:
        return first
    head = first.removesuffix("000000.tar")
    return f"{head}{{000000..{last[len(head) : -len('.tar')]}}}.tar"

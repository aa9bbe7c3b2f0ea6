"""The index of streaming-wds, one folder a split: `train/index.wds`. That library reads from S3 only."""

from __future__ import annotations

import gzip
import json

from wds_pipeline.dataset.export.base import ANY, Export
from wds_pipeline.errors import ConfigError
from wds_pipeline.storage import Storage


def check(storage: Storage, dataset: str) -> None:
    """Raises ConfigError where the shards are not in S3: the index has their keys in the bucket."""
    if storage.place.scheme not in ("s3", "s3a"):
        raise ConfigError(
            f"{dataset}: export streaming_wds: found shards at {storage.url}; that library reads from "
            "s3:// only. Leave streaming_wds out, or publish to a bucket"
        )


def write(export: Export) -> None:
    """Writes it: `StreamingWebDataset(remote=<the export's folder>, split="train")`.

    Raises ConfigError, DestinationError.
    """
    check(export.contents.storage, export.contents.dataset)
    export.refuse_misread(ANY)
    for split, shards in export.contents.splits.items():
        located = [export.contents.storage.locate(shard.path) for shard in shards]
        index = {
            "num_shards": len(shards),
            "num_items": sum(shard.samples for shard in shards),
            "shards": [
                {"key": url.split("/", 3)[3], "num_samples": shard.samples}
                for url, shard in zip(located, shards, strict=True)
            ],
        }
        export.put(f"{split}/index.wds", gzip.compress(json.dumps(index).encode(), mtime=0))

"""The index of the `wids` package, one file a split: `train.json`."""

from __future__ import annotations

import json

from wds_pipeline.dataset.export.base import ANY, Export


def write(export: Export) -> None:
    """Writes it. Its URLs are relative to the file, which is how wids reads them.

    Raises DataError for names that wids misreads (over 100 bytes), DestinationError.
    """
    export.refuse_misread(ANY | {"long_name"})
    for split, shards in export.contents.splits.items():
        index = {
            "__kind__": "wids-shard-index-v1",
            "wids_version": 1,
            "name": f"{export.contents.dataset}-{split}",
            "shardlist": [
                {
                    "url": export.refer(shard.path),
                    "nsamples": shard.samples,
                    "filesize": shard.bytes,
                    "digest": shard.digest,
                }
                for shard in shards
            ],
        }
        export.put(f"{split}.json", json.dumps(index, indent=1) + "\n")

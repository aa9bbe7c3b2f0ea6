"""open_clip's `sizes.json`, which it looks for in the folder of the shards that it is given.

It has the shards' own names and, where there are brace-able names, those too; with these it is linked
into their folder, see `into_view` of the package.
"""

from __future__ import annotations

import json
import posixpath

from wds_pipeline.dataset.export.base import ANY, Export


def write(export: Export) -> None:
    """Writes it, and `__len__` where there is one split. Raises DataError, DestinationError."""
    export.refuse_misread(ANY)
    sizes: dict[str, int] = {}
    for shard in export.contents.shards:
        for path in filter(None, (shard.path, shard.view)):
            if sizes.setdefault(posixpath.basename(path), shard.samples) != shard.samples:
                export.refuse(shard, "two tars have this name, in different folders")
    text = json.dumps(sizes, indent=1) + "\n"
    export.put("sizes.json", text)
    if len(export.contents.splits) == 1:
        export.put("__len__", f"{export.contents.samples}\n")

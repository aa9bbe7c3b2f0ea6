"""DALI's index: a file `.idx` for each shard, and the two lists that its reader takes, `train.json`.

Of our own shards it stands next to the shard, and is made once. Of foreign tars it is in the export's folder.
"""

from __future__ import annotations

import json
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.dataset.export.base import ANY, Export, first_members
from wds_pipeline.dataset.export.contents import Shard


def write(export: Export) -> None:
    """Writes it. The paths in `train.json` are relative to that file.

    Raises DataError for a name with a space in it, which DALI's format cannot say; DestinationError.
    """
    export.refuse_misread(ANY)
    indexes = {}
    for shard, members in export.members():
        if not shard.samples:  # DALI takes no empty one
            continue
        data = _index(export, shard, members)
        if export.contents.in_place:
            indexes[shard.path] = shard.path.removesuffix(".tar") + ".idx"
            export.put(indexes[shard.path], data)
        else:
            indexes[shard.path] = export.refer(export.beside_shard(shard, ".idx", data))
    for split, shards in export.contents.splits.items():
        paths = [shard.path for shard in shards if shard.path in indexes]
        lists = {
            "paths": [export.refer(path) for path in paths],
            "index_paths": [indexes[path] for path in paths],
        }
        export.put(f"{split}.json", json.dumps(lists, indent=1) + "\n")


def _index(export: Export, shard: Shard, members: pa.Table) -> bytes:
    """`v1.2 <samples>`, then a line a sample: `extension offset size name`, repeated."""
    key, extension = members["key"], members["extension"]
    name = pc.binary_join_element_wise(key, extension, ".")
    numbers = (members[column].cast(pa.string()) for column in ("offset", "size"))
    parts = pc.binary_join_element_wise(extension, *numbers, name, " ").to_pylist()
    bounds = [*first_members(key), len(parts)]
    lines = (" ".join(parts[a:b]) for a, b in pairwise(bounds))
    data = "\n".join([f"v1.2 {len(bounds) - 1}", *lines, ""]).encode()
    if len(data.split()) != 2 + 4 * len(parts):
        spaced = pc.or_(pc.match_substring_regex(name, r"[\s\v]"), pc.equal(extension, ""))
        first = name.filter(spaced)[0].as_py()
        export.refuse(shard, f"the name {first!r} has a space in it, or no extension")
    return data

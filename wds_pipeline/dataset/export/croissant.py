"""Croissant 1.0 metadata, `croissant.json`, and the table of shards that it describes, `shards.parquet`.

Croissant wants a SHA-256 of every file: the table's is known, a shard's where `shards.digest` is sha256. So
the shards are always records of the table, and files of their own where that is so.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pyarrow as pa

from wds_pipeline.dataset import seal
from wds_pipeline.dataset.export.base import Export
from wds_pipeline.dataset.export.contents import Contents

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_COLUMNS = (
    ("path", "sc:Text", "Where the shard lies: relative to this file, or a URL"),
    ("split", "sc:Text", "The split that all samples of the shard belong to"),
    ("samples", "sc:Integer", "How many samples the shard has"),
    ("bytes", "sc:Integer", "The size of the shard in bytes"),
    ("digest", "sc:Text", "The digest of the shard, algorithm:hex"),
)


def write(export: Export) -> None:
    """Writes both. Raises DestinationError."""
    contents = export.contents
    rows = [
        {"path": export.refer(s.path), "split": s.split, "samples": s.samples}
        | {"bytes": s.bytes, "digest": s.digest}
        for s in contents.shards
    ]
    table = seal.parquet_bytes(pa.Table.from_pylist(rows))
    export.put("shards.parquet", table)
    described = json.dumps(_describe(export, table), indent=2, ensure_ascii=False)
    export.put("croissant.json", described + "\n")


def _describe(export: Export, table: bytes) -> dict[str, Any]:
    contents = export.contents
    tars = [
        {
            "@type": "cr:FileObject",
            "@id": shard.path,
            "name": shard.path,
            "contentUrl": export.refer(shard.path),
            "contentSize": f"{shard.bytes} B",
            "encodingFormat": "application/x-tar",
            "sha256": shard.digest.partition(":")[2],
        }
        for shard in contents.shards
        if shard.digest.startswith("sha256:")
    ]
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": contents.dataset,
        "description": contents.description or _about(contents),
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "version": f"{contents.version or 1}.0.0",
        "datePublished": contents.created,
        "url": contents.storage.url,
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": "shards.parquet",
                "name": "shards.parquet",
                "description": "The table of the shards",
                "contentUrl": "shards.parquet",
                "contentSize": f"{len(table)} B",
                "encodingFormat": "application/x-parquet",
                "sha256": hashlib.sha256(table).hexdigest(),
            },
            *tars,
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "shards",
                "name": "shards",
                "description": "The WebDataset shards",
                "key": {"@id": "shards/path"},
                "field": [_field(*column) for column in _COLUMNS],
            }
        ],
    }


def _field(name: str, kind: str, description: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"shards/{name}",
        "name": name,
        "description": description,
        "dataType": kind,
        "source": {"fileObject": {"@id": "shards.parquet"}, "extract": {"column": name}},
    }


def _about(contents: Contents) -> str:
    splits = ", ".join(
        f"{split} ({sum(each.samples for each in part):,} samples)"
        for split, part in contents.splits.items()
    )
    return f"WebDataset shards of {contents.dataset}: {splits}."

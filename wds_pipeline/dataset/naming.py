"""File names to keys and fields: WebDataset's rule, and what to do where it would lose data.

WebDataset (webdataset.tariterators.base_plus_ext) splits a name at the first dot after the last
slash. `v1.0/a.seg.png` is the field `seg.png` of the sample `v1.0/a`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.config import SamplesConfig

OK = "ok"
# Files that are not part of a sample: ignored and counted.
IGNORED = {
    "no_extension": "the name has no extension, so it is no field of a sample",
    "unselected": "the extension is not in samples.fields",
}
# Files whose sample cannot be stored so that every reader finds it again: quarantined, or an error.
PROBLEMS = {
    "dotted_name": (
        "the name has a dot before its extension, which WebDataset reads as a field of its own; "
        "list the field in samples.fields, or set samples.naming to webdataset, last_dot or escape"
    ),
    "key_collision": (
        "another file's name becomes the same key; rename one, or set samples.naming: escape"
    ),
    "bad_name": (
        "control characters, an empty key, and the folders . and .. would be misread in a tar; "
        "rename the file"
    ),
    "reserved_name": (
        "readers skip names that begin with __ (webdataset: a first folder __…__; "
        "Hugging Face datasets: a file __…), and keep fields such as __key__ for themselves; rename it"
    ),
    "name_not_utf8": "the name is not valid UTF-8; rename the file",
    "name_too_long": "a part of the name has more than 255 bytes, so it cannot be unpacked; rename",
}
_STATUS = [OK, *IGNORED, *PROBLEMS]
_CODE = {status: code for code, status in enumerate(_STATUS)}

# Never part of a name that every reader gets back as it was.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_RESERVED = re.compile(r"__[^/]*__(/|$)|(.*/)?__[^/]*$", re.DOTALL)
_RELATIVE = re.compile(r"(.*/)?\.\.?/", re.DOTALL)
_SUSPECT = re.compile(r"[\x00-\x1f\x7f]|(?:^|[/.])__|//|^/|(?:^|/)\.\.?/")
_COMPRESSED = frozenset({"gz", "bz2", "xz", "zst", "lz4"})
_BATCH = 131_072

# One row a file of the source. `key` and `field` are null for ignored files.
INVENTORY = pa.schema(
    [
        pa.field("path", pa.large_string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("fingerprint", pa.large_string(), nullable=False),
        pa.field("key", pa.large_string()),
        pa.field("field", pa.dictionary(pa.int32(), pa.string())),
        pa.field("status", pa.dictionary(pa.int8(), pa.string()), nullable=False),
    ]
)


class Namer:
    """Splits paths by a dataset's rules. Pure; one per scan, since it remembers extensions."""

    def __init__(self, config: SamplesConfig) -> None:
        self._rule = config.naming
        self._rewrite = config.key
        self._pattern = re.compile(config.key.pattern) if config.key else None
        self._alias: dict[str, str] | None = None
        if config.fields is not None:
            self._alias = {ext: name for name, exts in config.fields.items() for ext in exts}
            for name in config.fields:
                self._alias.setdefault(name, name) if not config.fields[name] else None
        self._compound = sorted((e for e in self._alias or () if "." in e), key=len, reverse=True)
        self._known: dict[str, tuple[str | None, str, int]] = {}

    def split(self, path: str) -> tuple[str | None, str | None, str]:
        """(key, field, status) of a source path; key and field are None for ignored files."""
        folder_end = path.rfind("/") + 1
        dot = path.find(".", folder_end)
        if dot < 0 or dot == len(path) - 1:
            return None, None, "no_extension"
        stem, extension = path[:dot], path[dot + 1 :]
        if self._rule in ("last_dot", "escape"):
            stem, extension = self._split_late(path, folder_end)
        extension = extension.lower()
        known = self._known.get(extension)
        if known is None:
            known = self._known[extension] = self._field(extension)
        field, status, dotted = known
        if field is None:
            return None, None, status
        if dotted:
            stem = path.rsplit(".", dotted)[0]
        if self._pattern is not None and self._rewrite is not None:
            stem = self._pattern.sub(self._rewrite.replace, stem)
            if "." in stem[stem.rfind("/") + 1 :] and status == OK:
                status = "dotted_name"
        if status == OK:
            status = _name_status(stem, field)
        return stem, field, status

    def spelling(self, path: str, key: str) -> str:
        """The key that a path would have if `last_dot` left its dots: another one is a collision."""
        folder_end = path.rfind("/") + 1
        stem = path[:folder_end] + self._late(path[folder_end:])[0]
        if self._pattern is not None and self._rewrite is not None:
            stem = self._pattern.sub(self._rewrite.replace, stem)
            if stem.replace(".", "_") != key.replace(".", "_"):
                return key  # the rewriting itself looks at the dots: what it merges is meant
        return stem

    def _split_late(self, path: str, folder_end: int) -> tuple[str, str]:
        stem, extension = self._late(path[folder_end:])
        if self._rule == "escape":
            stem = stem.replace("%", "%25").replace(".", "%2E")
        else:
            stem = stem.replace(".", "_")
        return path[:folder_end] + stem, extension

    def _late(self, name: str) -> tuple[str, str]:
        """A file's name, split at its last dot, or before a field that has dots itself."""
        lower = name.lower()
        for compound in self._compound:
            if lower.endswith("." + compound) and len(lower) > len(compound) + 1:
                return name.rsplit(".", compound.count(".") + 1)[0], compound
        stem, _, extension = name.rpartition(".")
        inner, _, before = stem.rpartition(".")
        if inner and before and self._alias is None and extension.lower() in _COMPRESSED:
            return inner, f"{before}.{extension}"
        return stem, extension

    def _field(self, extension: str) -> tuple[str | None, str, int]:
        """The field that an extension is, or None and why it is none.

        The number is how many parts of the extension are the field, if the others are the key's.
        """
        if not extension:
            return None, "no_extension", 0
        if self._alias is not None and extension in self._alias:
            return self._alias[extension], OK, 0
        dot = extension.find(".")
        if self._rule == "strict" and dot >= 0:
            first, _, last = extension.rpartition(".")
            if self._alias is None:
                if last in _COMPRESSED and first and "." not in first:
                    return extension, OK, 0
                return last, "dotted_name", 1
            while dot >= 0:
                field = self._alias.get(extension[dot + 1 :])
                if field is not None:
                    return field, "dotted_name", extension.count(".", dot)
                dot = extension.find(".", dot + 1)
        if self._alias is not None:
            return None, "unselected", 0
        return extension, OK, 0


def _name_status(key: str, field: str) -> str:
    name = f"{key}.{field}"
    if _SUSPECT.search(name):
        if _CONTROL.search(name) or "//" in name or name.startswith("/") or _RELATIVE.match(name):
            return "bad_name"
        if _RESERVED.match(name) or field.startswith("__"):
            return "reserved_name"
    if not key or key.endswith("/"):
        return "bad_name"
    if len(name) > 63 and any(len(part.encode()) > 255 for part in name.split("/")):
        return "name_too_long"
    return OK


def assign(files: pa.Table, config: SamplesConfig) -> pa.Table:
    """A listing's files (`path`, `size`, `fingerprint`, `problem`) with their keys and fields.

    Returns a table with the schema `INVENTORY`, in the same order.
    """
    namer = Namer(config)
    keys: list[pa.Array] = []
    fields: list[str | None] = []
    codes = np.empty(files.num_rows, np.int8)
    row = 0
    for batch in files.select(["path"]).to_batches(max_chunksize=_BATCH):
        batch_keys: list[str | None] = []
        for path in batch.column(0).to_pylist():
            key, field, status = namer.split(path)
            batch_keys.append(key)
            fields.append(field)
            codes[row] = _CODE[status]
            row += 1
        keys.append(pa.array(batch_keys, pa.large_string()))
    key_column = pa.chunked_array(keys, pa.large_string())
    for code, rows in _problems_of_scan(files):
        named = pc.is_valid(key_column).to_numpy()[rows]  # the others are ignored in any case
        codes[rows[named]] = code
    if config.naming == "last_dot":
        codes[_collisions(namer, files["path"], key_column, codes)] = _CODE["key_collision"]
    status = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(_STATUS))
    return pa.table(
        [
            files["path"],
            files["size"],
            files["fingerprint"],
            key_column,
            pa.array(fields, pa.string()).dictionary_encode(),
            status,
        ],
        schema=INVENTORY,
    )


def _problems_of_scan(files: pa.Table) -> Iterable[tuple[int, np.ndarray]]:
    """Files that the scan itself could not name, by status."""
    problem = files["problem"]
    if problem.null_count == len(problem):
        return
    values = np.asarray(problem.to_pylist(), dtype=object)
    for status in sorted({value for value in values if value is not None}):
        yield _CODE[status], np.flatnonzero(values == status)


def _collisions(
    namer: Namer, paths: pa.ChunkedArray, keys: pa.ChunkedArray, codes: np.ndarray
) -> list[int]:
    """Rows whose key is also made of another stem, which the rule `last_dot` can do."""
    stems: dict[str, set[str]] = {}
    members = [
        (row, path, key)
        for row, (path, key) in enumerate(zip(paths.to_pylist(), keys.to_pylist(), strict=True))
        if key is not None and codes[row] == _CODE[OK]
    ]
    for _, path, key in members:
        stems.setdefault(key, set()).add(namer.spelling(path, key))
    return [row for row, _, key in members if len(stems[key]) > 1]

"""File names to keys and fields: WebDataset's rule, and what to do where it would lose data.

WebDataset (webdataset.tariterators.base_plus_ext) splits a name at the first dot after the last
slash. `v1.0/a.seg.png` is the field `seg.png` of the sample `v1.0/a`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.config import SamplesConfig
from wds_pipeline.dataset.naming_columns import Plain, plain

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
        "rename the file, or rewrite its key by samples.key"
    ),
    "reserved_name": (
        "readers skip names that begin with __ (webdataset: a first folder __…__; "
        "Hugging Face datasets: a file __…), and keep fields such as __key__ for themselves; rename it"
    ),
    "name_not_utf8": "the name is not valid UTF-8; rename the file",
    "name_too_long": "a part of the name has more than 255 bytes, so it cannot be unpacked; rename",
    "key_not_adjacent": (
        "the sample's members are not next to each other in the tar, where readers see two partial "
        "samples; sort it (`wds-pipeline sort`, or tar --sort=name)"
    ),
    "key_in_two_tars": (
        "readers would see two samples of one key; leave one of the tars out, or give them labels "
        "(source.merge)"
    ),
    "sparse_member": (
        "a sparse member, whose holes are not stored; write the tar again without --sparse"
    ),
    "cut_off": (
        "the tar is cut or damaged behind this sample, which may lack members; fetch the tar again"
    ),
    "missing_file": (
        "the file that a table or list names is not there; add it, remove the row, or correct base"
    ),
    "download_failed": "the URL could not be downloaded; the next build tries again",
    "not_in_base": (
        "the overlay's base has no sample of this key; add it there, remove the file here, or name "
        "another dataset in overlay.base"
    ),
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
            status = name_status(stem, field)
        return stem, field, status

    def plain(self, paths: pa.LargeStringArray) -> Plain:
        """The names of a batch that none of the rules has a say in, beside their extension."""
        late = self._rule in ("last_dot", "escape")
        return plain(paths, dotted=not late, percent=self._rule != "escape")

    def plain_field(self, extension: str) -> tuple[str | None, str | None]:
        """(field, status) of plain names with this extension, as `split` gives them; the status is
        None where each is to be looked at by itself."""
        if self._pattern is not None:
            return None, None
        field, status, _ = self._field(extension.lower())
        if field is not None and (status != OK or _SUSPECT.search(f".{field}")):
            return None, None
        return field, status

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


def name_status(key: str, field: str) -> str:
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
    fields: dict[str, int] = {}
    keys: list[pa.Array] = []
    field_codes = np.empty(files.num_rows, np.int32)
    codes = np.empty(files.num_rows, np.int8)
    odd = np.empty(files.num_rows, bool)
    row = 0
    for batch in files.select(["path"]).to_batches(max_chunksize=_BATCH):
        here = slice(row, row + batch.num_rows)
        paths = batch.column(0)
        found, odd[here] = _plain_keys(namer, paths, fields, field_codes[here], codes[here])
        keys.append(
            _add_odd(namer, paths, fields, field_codes[here], codes[here], found, odd[here])
        )
        row += batch.num_rows
    # In one piece: what is taken from a column in pieces is put together first, each time.
    key_column = pa.chunked_array([pa.concat_arrays(keys)] if keys else [], pa.large_string())
    del keys
    for code, rows in _problems_of_scan(files):
        named = pc.is_valid(key_column).to_numpy()[rows]  # the others are ignored in any case
        codes[rows[named]] = code
    if config.naming == "last_dot":
        sound = pc.is_valid(key_column).to_numpy() & (codes == _CODE[OK])
        found = _collisions(namer, files["path"], key_column, sound, odd)
        codes[found] = _CODE["key_collision"]
    status = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(_STATUS))
    return pa.table(
        [
            files["path"],
            files["size"],
            files["fingerprint"],
            key_column,
            pa.DictionaryArray.from_arrays(
                pa.array(field_codes, mask=field_codes < 0), pa.array(list(fields), pa.string())
            ),
            status,
        ],
        schema=INVENTORY,
    )


def _plain_keys(
    namer: Namer,
    paths: pa.LargeStringArray,
    fields: dict[str, int],
    field_codes: np.ndarray,
    codes: np.ndarray,
) -> tuple[pa.Array, np.ndarray]:
    """The keys of the plain names of a batch, by column, and which of its rows are left.

    Sets the plain ones' status codes and those of their fields, -1 for none; `fields` are the fields
    met so far, each with its code.
    """
    found = namer.plain(paths)
    known = [namer.plain_field(extension) for extension in found.extensions]
    names = [name or "" for name, _ in known]
    usable = np.array([status is not None for _, status in known], bool)[found.extension]
    usable &= found.short(np.array([len(name.encode()) for name in names], np.int64))
    rows, extension = found.row[usable], found.extension[usable]
    number = np.full(len(known), -1, np.int32)
    for code in np.unique(extension).tolist():
        if names[code]:
            number[code] = fields.setdefault(names[code], len(fields))
    field_codes[rows] = number[extension]
    codes[rows] = np.array([_CODE[status or OK] for _, status in known], np.int8)[extension]
    odd = np.ones(len(paths), bool)
    odd[rows] = False
    return found.keys(usable & (number[found.extension] >= 0), len(paths)), odd


def _add_odd(
    namer: Namer,
    paths: pa.LargeStringArray,
    fields: dict[str, int],
    field_codes: np.ndarray,
    codes: np.ndarray,
    keys: pa.Array,
    odd: np.ndarray,
) -> pa.Array:
    """The keys of a batch with those of its odd rows, one by one; sets their codes."""
    rows = np.flatnonzero(odd)
    if not len(rows):
        return keys
    values: list[str | None] = []
    for row, path in zip(rows.tolist(), paths.take(pa.array(rows)).to_pylist(), strict=True):
        key, field, status = namer.split(path)
        values.append(key)
        field_codes[row] = -1 if field is None else fields.setdefault(field, len(fields))
        codes[row] = _CODE[status]
    return pc.replace_with_mask(keys, pa.array(odd), pa.array(values, pa.large_string()))


def _problems_of_scan(files: pa.Table) -> Iterable[tuple[int, np.ndarray]]:
    """Files that the scan itself could not name, by status."""
    problem = files["problem"]
    if problem.null_count == len(problem):
        return
    for status in sorted(pc.unique(problem.drop_null()).to_pylist()):
        rows = pc.fill_null(pc.equal(problem, status), False)
        yield _CODE[status], np.flatnonzero(rows.to_numpy())


def _collisions(
    namer: Namer, paths: pa.ChunkedArray, keys: pa.ChunkedArray, sound: np.ndarray, odd: np.ndarray
) -> np.ndarray:
    """Rows whose key is also made of another stem, which the rule `last_dot` can do.

    `sound` are rows with a key and no problem; `odd` those that are not plain: only of these can the
    key be another than the stem.
    """
    spelt = _spelling(namer, paths, keys, np.flatnonzero(sound & odd))
    merged = {key for _, key, stem in spelt if stem != key}
    if not merged:
        return np.empty(0, np.int64)
    here = pc.is_in(keys, value_set=pa.array(merged, pa.large_string())).to_numpy()
    stems: dict[str, set[str]] = {}
    members = list(_spelling(namer, paths, keys, np.flatnonzero(sound & here)))
    for _, key, stem in members:
        stems.setdefault(key, set()).add(stem)
    return np.array([row for row, key, _ in members if len(stems[key]) > 1], np.int64)


def _spelling(
    namer: Namer, paths: pa.ChunkedArray, keys: pa.ChunkedArray, rows: np.ndarray
) -> Iterator[tuple[int, str, str]]:
    """(row, key, stem) of rows."""
    for start in range(0, len(rows), _BATCH):
        some = rows[start : start + _BATCH]
        columns = (each.take(pa.array(some)).to_pylist() for each in (paths, keys))
        for row, path, key in zip(some.tolist(), *columns, strict=True):
            yield row, key, namer.spelling(path, key)

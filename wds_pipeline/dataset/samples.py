"""Inventory → samples: files that share a key, each sample's digest, size and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from wds_pipeline.config import Policy, SamplesConfig
from wds_pipeline.config_values import did_you_mean
from wds_pipeline.dataset import naming, tar
from wds_pipeline.errors import DataError

# What is wrong with a sample as its inventory shows it, beside `naming.PROBLEMS`.
SHAPE_PROBLEMS = {
    "duplicate_field": (
        "two files or rows are the same field of one sample; remove one, or tell them apart in "
        "samples.fields or samples.key"
    ),
    "missing_field": "a required field is missing; add the file, or shorten samples.required",
    "empty_file": "a file of zero bytes; write it again, or remove the sample",
    "no_split": ("neither a folder nor the list says its split; add it, or set split.default"),
}
# What only reading shows; found by verification, by `content.check`, or while packing.
CONTENT_PROBLEMS = {
    "broken_image": "the image does not decode",
    "wrong_format": "the image is of another format than its extension says",
    "too_many_pixels": "the image has more pixels than verify.max_pixels",
    "bad_text": "the text is not UTF-8",
    "bad_json": "the json does not parse",
    "bad_number": "not a whole number",
    "bad_array": "the array does not load",
    "bad_compression": "the compressed file does not decompress",
    "transform_failed": "a transform cannot use the sample; it is tried again when either changes",
    "unstable": "the file kept changing while it was packed; the next build tries again",
    "unreadable": "the file cannot be read; give this user the right to (the next build tries again)",
}
# Found while packing: they may pass, and no fingerprint tells when.
PASSING = frozenset({"unstable", "unreadable", "download_failed"})
# Of such a sample there is nothing that could be kept.
NOT_WHOLE = PASSING | {"transform_failed"}
# A column of an inventory beside those of its schema: the row of the listing that a file is of, where the
# listing says more of it (`origins`, `places`).
ROW = "row"
_BATCH = 131_072


def policy_for(reason: str, config: SamplesConfig) -> Policy:
    """What the dataset wants done with a sample that has this problem."""
    if reason == "missing_field":
        return config.on_missing
    if reason in ("missing_file", "download_failed"):
        return "error" if config.on_missing == "error" else "quarantine"
    if reason == "empty_file" or (reason in CONTENT_PROBLEMS and reason not in NOT_WHOLE):
        return config.on_invalid
    if reason in NOT_WHOLE:  # nothing whole is there to keep
        return "error" if config.on_invalid == "error" else "quarantine"
    if reason in ("no_split", "not_in_base"):
        return "quarantine"
    return config.on_bad_name


def advice(reason: str) -> str:
    """What a reason means and what to do about it."""
    for table in (naming.PROBLEMS, SHAPE_PROBLEMS, CONTENT_PROBLEMS, naming.IGNORED):
        if reason in table:
            return table[reason]
    return reason


@dataclass(frozen=True)
class Samples:
    """Samples as columns, in order of first appearance.

    `files` are the members (path, size, fingerprint, field, name), sorted by sample and field;
    sample i owns the rows `first[i]` to `first[i + 1]`, so `first` has one more entry than `keys`.
    `problem` holds a reason, or "".
    """

    files: pa.Table
    first: np.ndarray
    keys: pa.Array
    bytes: np.ndarray
    digests: np.ndarray
    problem: np.ndarray
    detail: dict[int, str]

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, samples: np.ndarray) -> np.ndarray:
        """The rows of `files` of these samples, in their order."""
        return ranges(self.first[samples], self.first[samples + 1])

    def paths(self, sample: int) -> list[str]:
        """A sample's source files."""
        start, stop = int(self.first[sample]), int(self.first[sample + 1])
        return list(self.files["path"][start:stop].to_pylist())


def ranges(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """`[*range(start[0], stop[0]), *range(start[1], stop[1]), …]`."""
    counts = stop - start
    ends = np.cumsum(counts)
    return np.arange(counts.sum()) + np.repeat(start - (ends - counts), counts)


def group(
    inventory: pa.Table,
    config: SamplesConfig,
    dataset: str = "",
    details: Mapping[str, str] | None = None,
) -> Samples:
    """Groups an inventory's files by key. Files that are ignored have no part in it. `details` says more of
    the problems of some files, by path.

    Raises DataError when no file forms a sample, or a required field is in no sample at all.
    """
    files = _not_ignored(inventory)
    if not files.num_rows:
        counts = ", ".join(
            f"{row['counts']:,} {row['values']}" for row in _counts(inventory["status"])
        )
        raise DataError(
            f"{dataset}: no file of the source belongs to a sample ({counts}); "
            "expected files such as a/0001.jpg; check samples.fields and source.include"
        )
    codes, keys = _encode(files["key"].combine_chunks())
    field_codes = _alphabetical(files["field"].combine_chunks())
    both = codes.astype(np.int64) * (int(field_codes.max()) + 1) + field_codes
    if (
        np.diff(both) < 0
    ).any():  # a source whose listing is sorted mostly is in this order already
        order = both.argsort(kind="stable")
        files = files.take(pa.array(order)).combine_chunks()
        codes, field_codes = codes[order], field_codes[order]
    del both
    first = np.append(np.flatnonzero(np.diff(codes, prepend=-1)), len(codes))
    names = _join(files["key"], files["field"].cast(pa.large_string()), separator=".")
    sizes = _member_sizes(names, files["size"].to_numpy())
    problem, detail = _problems(files, first, codes, field_codes, config, dataset, details or {})
    columns = ["path", "size", "fingerprint", "field"]
    columns += [ROW] if ROW in files.column_names else []
    return Samples(
        files=files.select(columns).append_column("name", names),
        first=first,
        keys=keys,
        bytes=np.add.reduceat(sizes, first[:-1]),
        digests=_digests(files, names, first),
        problem=problem,
        detail=detail,
    )


def _counts(column: pa.ChunkedArray) -> list[dict[str, object]]:
    return list(pc.value_counts(column.cast(pa.string())).to_pylist())


def _not_ignored(inventory: pa.Table) -> pa.Table:
    """The files that are part of a sample, each column in one piece."""
    status = inventory["status"].cast(pa.string())
    ignored = pc.is_in(status, value_set=pa.array(list(naming.IGNORED)))
    if pc.any(ignored).as_py():
        inventory = inventory.filter(pc.invert(ignored))
    return inventory.combine_chunks()


def _encode(keys: pa.LargeStringArray) -> tuple[np.ndarray, pa.LargeStringArray]:
    """Each row's number among the distinct keys, and these, in order of first appearance."""
    # Files of one sample mostly lie side by side: only the first of such a run is hashed.
    begins = np.ones(len(keys), bool)
    begins[1:] = pc.not_equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
    encoded = keys.filter(pa.array(begins)).dictionary_encode()
    return encoded.indices.to_numpy()[np.cumsum(begins) - 1], encoded.dictionary


def _alphabetical(field: pa.DictionaryArray) -> np.ndarray:
    """The rank of each row's field among all fields, by code point."""
    values = field.dictionary.to_pylist()
    rank = np.empty(len(values), np.int32)
    rank[sorted(range(len(values)), key=values.__getitem__)] = np.arange(len(values))
    return rank[field.indices.to_numpy()]


def _member_sizes(names: pa.Array, sizes: np.ndarray) -> np.ndarray:
    """How many bytes each member takes in a tar."""
    total = tar.BLOCK + -(-sizes // tar.BLOCK) * tar.BLOCK
    unusual = np.flatnonzero((pc.binary_length(names).to_numpy() > 100) | (sizes >= 8 * 1024**3))
    for row in unusual:
        total[row] = tar.member_size(names[int(row)].as_py(), int(sizes[row]))
    return total


def _digests(files: pa.Table, names: pa.Array, first: np.ndarray) -> np.ndarray:
    """xxh3-128 of each sample's members: name, source path, size and fingerprint."""
    digest = xxhash.xxh3_128_digest
    parts = []
    for start in range(0, len(first) - 1, _BATCH):  # or all lines would be there at once
        rows = first[start : start + _BATCH + 1]
        lines = _lines(files, names, int(rows[0]), int(rows[-1]))
        # A sample's lines lie one behind the other, so one slice of the column's bytes is hashed.
        offsets = np.frombuffer(lines.buffers()[1], np.int64)[lines.offset :]
        data = memoryview(lines.buffers()[2])
        bounds = offsets[rows - rows[0]].tolist()
        parts.append(b"".join([digest(data[start:stop]) for start, stop in pairwise(bounds)]))
    return np.frombuffer(b"".join(parts), "V16")


def _lines(files: pa.Table, names: pa.Array, start: int, stop: int) -> pa.LargeStringArray:
    """What is hashed of each member."""
    some = files.slice(start, stop - start)
    columns = (some["path"], some["size"].cast(pa.large_string()), some["fingerprint"])
    lines = _join(names[start:stop], *columns, separator="\0")
    return _join(lines, pa.scalar("", pa.large_string()), separator="\n")


def _join(*columns: pa.Array, separator: str) -> pa.Array:
    joined = pc.binary_join_element_wise(*columns, pa.scalar(separator, pa.large_string()))
    return pa.concat_arrays(joined.chunks) if isinstance(joined, pa.ChunkedArray) else joined


def _problems(
    files: pa.Table,
    first: np.ndarray,
    codes: np.ndarray,
    field_codes: np.ndarray,
    config: SamplesConfig,
    dataset: str,
    details: Mapping[str, str],
) -> tuple[np.ndarray, dict[int, str]]:
    """Each sample's worst problem, or "", and the detail of it. The later in here, the worse."""
    starts = first[:-1]
    problem = np.full(len(starts), "", object)
    detail: dict[int, str] = {}
    field = files["field"].combine_chunks()
    for required in config.required:
        present = _has(field, required, starts)
        if not present.any():
            found = field.dictionary.to_pylist()
            raise DataError(
                f"{dataset}: samples.required: no sample has the field {required!r}; fields found: "
                f"{', '.join(sorted(found))}{did_you_mean(required, found)}"
            )
        for sample in np.flatnonzero(~present).tolist():
            before = detail[sample] + ", " if problem[sample] == "missing_field" else "no "
            problem[sample], detail[sample] = "missing_field", before + required
    if config.on_missing == "keep":
        problem[:] = ""
        detail.clear()

    def mark(rows: np.ndarray, reason: str) -> None:
        for row in rows.tolist():
            path = files["path"][row].as_py()
            problem[codes[row]] = reason
            detail[int(codes[row])] = f"{path}: {details.get(path) or advice(reason)}"

    if config.on_invalid != "keep":
        mark(np.flatnonzero(files["size"].to_numpy() == 0), "empty_file")
    same = (codes[1:] == codes[:-1]) & (field_codes[1:] == field_codes[:-1])
    for row in np.flatnonzero(same).tolist():
        problem[codes[row]] = "duplicate_field"
        one, two = files["path"][row].as_py(), files["path"][row + 1].as_py()
        both = details.get(one) or f"{one} and {two}"
        detail[int(codes[row])] = f"{both}: {advice('duplicate_field')}"
    status, values = files["status"].combine_chunks(), naming.PROBLEMS
    kinds = np.asarray(status.dictionary.to_pylist(), object)[status.indices.to_numpy()]
    for reason in values:
        mark(np.flatnonzero(kinds == reason), reason)
    return problem, detail


def _has(field: pa.DictionaryArray, name: str, starts: np.ndarray) -> np.ndarray:
    values = field.dictionary.to_pylist()
    if name not in values:
        return np.zeros(len(starts), bool)
    matches = field.indices.to_numpy() == values.index(name)
    return np.logical_or.reduceat(matches, starts)

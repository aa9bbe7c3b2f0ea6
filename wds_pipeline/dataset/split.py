"""Which split a sample belongs to: by ratio of a hash, by its first folder, or by a list.

It never depends on the shard, so no sample ever moves between train and val.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import xxhash

from wds_pipeline.config import DatasetConfig, SplitConfig, check_split_name
from wds_pipeline.errors import ConfigError, DataError


def group_of(key: str, pattern: re.Pattern[str] | None) -> str:
    """What decides a key's split: the group that it belongs to, or the key itself."""
    if pattern is None:
        return key
    match = pattern.search(key)
    found = match.group(1) if match else None
    return key if found is None else found


def by_ratio(group: str, config: SplitConfig) -> str:
    """The split of a group: its hash, as a number from 0 to 1, on the line of the ratios."""
    place = xxhash.xxh3_64_intdigest(f"{config.salt}\0{group}".encode()) / 2**64
    total = 0.0
    chosen = ""
    for name, ratio in config.ratios.items():
        total += ratio
        if ratio:
            chosen = name
        if place < total:
            return chosen
    return chosen  # the ratios sum to a little less than 1


def choose(
    keys: Iterable[str],
    config: SplitConfig,
    listed: Mapping[str, str],
    settled: Mapping[str, str],
    dataset: str = "",
) -> list[str | None]:
    """The split of each key, or None where nothing decides it.

    `listed` is the list file's content; `settled` are groups that samples of earlier versions have
    bound to a split, which holds even when the ratios change: a group is never torn apart.

    Raises DataError for a folder's name that cannot name a split.
    """
    if config.by == "list":
        return [listed.get(key, config.default) for key in keys]
    if config.by == "directory":
        return [_by_directory(key, config, dataset) for key in keys]
    pattern = re.compile(config.group_by) if config.group_by else None
    groups = (group_of(key, pattern) for key in keys)
    return [settled.get(group) or by_ratio(group, config) for group in groups]


def _by_directory(key: str, config: SplitConfig, dataset: str) -> str | None:
    folder, slash, _ = key.partition("/")
    if not slash:
        return config.default
    split = config.names.get(folder, folder)
    try:
        check_split_name(split)
    except ValueError as error:
        raise DataError(
            f"{dataset}: split.by: directory: {key}: {error}; map it with "
            f"split.names: {{{folder!r}: train}}"
        ) from None
    return split


def read_list(config: DatasetConfig) -> tuple[dict[str, str], str]:
    """The list file (`split.file`) as key → split, and a digest of it.

    CSV or TSV with the columns key and split; a first line with these names is a heading.

    Raises ConfigError when it is missing or a line is not usable.
    """
    if config.split.file is None:
        return {}, ""
    path = Path(config.resolve(config.split.file))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config.name}: split.file: {path}: not readable: {error}") from error
    splits: dict[str, str] = {}
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    for number, row in _rows(text, delimiter, f"{config.name}: split.file: {path}"):
        if not row or (number == 1 and row == ["key", "split"]):
            continue
        if len(row) != 2:
            raise ConfigError(
                f"{config.name}: split.file: {path}:{number}: found {len(row)} columns; "
                "expected two, key and split"
            )
        key, split = row
        try:
            check_split_name(split)
        except ValueError as error:
            raise ConfigError(f"{config.name}: split.file: {path}:{number}: {error}") from None
        if splits.setdefault(key, split) != split:
            raise ConfigError(
                f"{config.name}: split.file: {path}:{number}: {key!r} is {split} here and "
                f"{splits[key]} before; a sample has one split"
            )
    return splits, xxhash.xxh3_128_hexdigest(text.encode())


def _rows(text: str, delimiter: str, where: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise ConfigError(f"{where}:{reader.line_num}: {error}") from error

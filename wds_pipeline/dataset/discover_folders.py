"""Parallel folders: `images/1.jpg` and `captions/1.txt`, whose files form samples across folders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_DEPTHS = (0, 1, 2, -1)  # which folder of the key; -1 is the last one
_MANY = 20  # folders at one depth: these are no roles
_PURE = 0.95  # of a role folder's files are of one class
_PAIRED = 0.5  # of the samples are found in several folders
_CLASHES = 0.01


@dataclass(frozen=True)
class ParallelFolders:
    """Folders that each hold one field of the same samples, and the rule that joins them."""

    folders: list[str]
    pattern: str
    replace: str
    example: str


def find_parallel_folders(named: Sequence[tuple[str, str]]) -> ParallelFolders | None:
    """The rule for keys, if the files form samples across folders; `named` are (key, class)."""
    classes: dict[str, set[str]] = {}
    for key, name in named:
        classes.setdefault(key, set()).add(name)
    if sum(len(each) > 1 for each in classes.values()) >= _PAIRED * len(classes):
        return None  # they form samples as they are
    best: tuple[float, ParallelFolders] | None = None
    for depth in _DEPTHS:
        found = _at_depth(named, depth)
        if found is not None and (best is None or found[0] > best[0]):
            best = found
    return best[1] if best else None


def _at_depth(named: Sequence[tuple[str, str]], depth: int) -> tuple[float, ParallelFolders] | None:
    """How many of the samples the folders at one depth would join, and the rule for it."""
    content: dict[str, Counter[str]] = {}
    rests: dict[str, dict[str, str]] = {}  # folder → key without it → class
    for key, name in named:
        parts = key.split("/")
        if len(parts) < 2 or (depth >= 0 and len(parts) < depth + 2):
            continue
        folder = parts.pop(depth if depth >= 0 else -2)
        content.setdefault(folder, Counter())[name] += 1
        rests.setdefault(folder, {})["/".join(parts)] = name
        if len(content) > _MANY:
            return None
    roles = {
        folder: counts.most_common(1)[0][0]
        for folder, counts in content.items()
        if counts.most_common(1)[0][1] >= _PURE * counts.total()
    }
    roles = {folder: name for folder, name in roles.items() if _has_partner(folder, roles, rests)}
    if len(set(roles.values())) < 2:
        return None
    joined: Counter[str] = Counter()
    members: Counter[tuple[str, str]] = Counter()
    for folder, name in roles.items():
        joined.update(rests[folder].keys())
        members.update((rest, name) for rest in rests[folder])
    paired = sum(count > 1 for count in joined.values()) / len(joined)
    clashes = sum(count > 1 for count in members.values()) / len(members)
    covered = sum(content[folder].total() for folder in roles) / len(named)
    if paired < _PAIRED or clashes > _CLASHES or covered < _PAIRED:
        return None
    return paired * covered, _rule(sorted(roles), depth, max(joined, key=joined.__getitem__))


def _has_partner(folder: str, roles: dict[str, str], rests: dict[str, dict[str, str]]) -> bool:
    """Whether half of the folder's stems are in a folder of another class, or the other way round."""
    mine = rests[folder].keys()
    return any(
        len(mine & rests[other].keys()) >= _PAIRED * min(len(mine), len(rests[other]))
        for other, name in roles.items()
        if name != roles[folder]
    )


def _rule(folders: list[str], depth: int, example: str) -> ParallelFolders:
    either = "|".join(map(re.escape, folders))
    if depth == 0:
        pattern, replace = f"^(?:{either})/", ""
    elif depth > 0:
        pattern, replace = f"^((?:[^/]+/){{{depth}}})(?:{either})/", r"\1"
    else:
        pattern, replace = f"(^|/)(?:{either})/([^/]*)$", r"\1\2"
    if depth == 1:
        pattern = f"^([^/]+/)(?:{either})/"
    return ParallelFolders(folders, pattern, replace, example)

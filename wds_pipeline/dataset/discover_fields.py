"""Which extensions of a folder are fields, and where names split into key and extension."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wds_pipeline.config import SamplesConfig
from wds_pipeline.dataset.naming import Namer

# Extensions that mean the same, the usual one first.
_ALIASES = (
    ("jpg", "jpeg", "jpe", "jfif"),
    ("tif", "tiff"),
    ("txt", "text"),
    ("json", "jsn"),
    ("yaml", "yml"),
    ("html", "htm"),
    ("mpg", "mpeg"),
    ("aiff", "aif"),
)
_CANONICAL = {each: group[0] for group in _ALIASES for each in group}
_IMAGES = frozenset({"jpg", "png", "webp", "gif", "bmp", "tif", "ppm", "jp2", "avif"})
_USABLE = re.compile(r"[^\s./_][^\s/]*")
_COMPRESSED = frozenset({"gz", "bz2", "xz", "zst", "lz4"})
_FEW = 0.05  # of the samples: an extension that fewer have is no field if it stands alone,
_RARE = 0.01  # and below this in any case
_OVERLAP = 0.01  # of the samples: more that have two image formats need two fields


@dataclass(frozen=True)
class FoundField:
    """A field: the extensions that it is made of, how many files have each, how many samples it."""

    name: str
    extensions: dict[str, int]
    samples: int

    @property
    def mixed(self) -> bool:
        """Whether files of several formats are one field."""
        return len({_CANONICAL.get(each, each) for each in self.extensions}) > 1


def class_of(extension: str) -> str:
    """What an extension is, for telling whether two files could be the same field."""
    canonical = _CANONICAL.get(extension, extension)
    return "image" if canonical in _IMAGES else canonical


def extensions(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """The extensions that may be fields; and the paths with a dot that is not an extension's.

    `seg.png` is one extension where several samples have it; in `photo.v2.jpg` the first dot
    belongs to the stem.
    """
    counts: Counter[str] = Counter()
    of_stem: dict[str, list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        stem, dot, extension = name.partition(".")
        if dot and extension:
            counts[extension.lower()] += 1
            of_stem.setdefault(f"{folder}/{stem}", []).append(extension.lower())
    known = {each for each in counts if "." not in each and _USABLE.fullmatch(each)}
    beside: Counter[str] = Counter()  # how often there is a plain file with the same stem
    for extensions in of_stem.values():
        if any("." not in each for each in extensions):
            beside.update(each for each in extensions if "." in each)
    most = max((n for each, n in counts.items() if "." not in each), default=0)
    for each, number in counts.items():
        first, dot, last = each.rpartition(".")
        if not dot or "." in first or not _USABLE.fullmatch(each):
            continue
        often = number >= max(2, _FEW * most) and not first[0].isdigit()
        if last in _COMPRESSED or (
            often and (beside[each] >= number / 2 or number >= len(of_stem) / 2)
        ):
            known.add(each)
    dotted = []
    for path in paths:
        extension = path.rpartition("/")[2].partition(".")[2].lower()
        last = extension.rpartition(".")[2]
        if "." in extension and extension not in known and _USABLE.fullmatch(last):
            dotted.append(path)
    known |= {path.rpartition(".")[2].lower() for path in dotted}
    return sorted(known), dotted


def naming_rule(paths: Sequence[str], known: Sequence[str], dotted: Sequence[str]) -> str:
    """`strict` while it costs next to nothing, else a rule that keeps dotted stems."""
    if len(dotted) <= 0.005 * len(paths):
        return "strict"
    late = {each: [each] for each in known}
    namer = Namer(SamplesConfig(naming="last_dot", fields=late))
    escaped = Namer(SamplesConfig(naming="escape", fields=late))
    keys: dict[str | None, set[str | None]] = {}
    for path in paths:
        keys.setdefault(namer.split(path)[0], set()).add(escaped.split(path)[0])
    return "last_dot" if all(len(each) == 1 for key, each in keys.items() if key) else "escape"


def named(paths: Sequence[str], known: Sequence[str], naming: Any) -> list[tuple[str, str]]:
    """Key and extension of each file that has both."""
    namer = Namer(SamplesConfig(naming=naming, fields={each: [each] for each in known}))
    found = (namer.split(path) for path in paths)
    return [(key, name) for key, name, status in found if key and name and status == "ok"]


def fields(named: Sequence[tuple[str, str]]) -> list[FoundField]:
    """The fields, images first, then by frequency; extensions that few samples have are none."""
    of_key: dict[str, list[str]] = {}
    for key, extension in named:
        of_key.setdefault(key, []).append(extension)
    counts = Counter(extension for _, extension in named)
    merged = _merged_images(of_key, counts)
    members: dict[str, dict[str, int]] = {}
    for extension, count in counts.most_common():
        name = merged.get(extension) or _CANONICAL.get(extension, extension)
        members.setdefault(name, {})[extension] = count
    name_of = {extension: name for name, group in members.items() for extension in group}
    having: Counter[str] = Counter()
    beside: Counter[str] = Counter()
    for extensions in of_key.values():
        names = {name_of[each] for each in extensions}
        having.update(names)
        beside.update(names if len(names) > 1 else ())
    largest = max(having.values())
    found = [
        FoundField(name, members[name], count)
        for name, count in having.items()
        if count >= _FEW * largest or (count >= _RARE * largest and beside[name] >= count / 2)
    ]
    return sorted(
        found, key=lambda each: (class_of(each.name) != "image", -each.samples, each.name)
    )


def _merged_images(of_key: dict[str, list[str]], counts: Counter[str]) -> dict[str, str]:
    """Image extension → the one field for all of them, unless samples have several formats."""
    formats = {each: _CANONICAL.get(each, each) for each in counts}
    images = {each for each in counts if formats[each] in _IMAGES}
    if len({formats[each] for each in images}) < 2:
        return {}
    with_image = [
        {formats[each] for each in extensions if each in images} for extensions in of_key.values()
    ]
    several = sum(len(each) > 1 for each in with_image)
    if several > _OVERLAP * sum(bool(each) for each in with_image):
        return {}
    of_format: Counter[str] = Counter()
    for each in images:
        of_format[formats[each]] += counts[each]
    most = min(of_format, key=lambda each: (-of_format[each], each))
    return dict.fromkeys(images, most)

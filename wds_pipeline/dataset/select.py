"""Which files of a source are taken, by their names; the others are counted, with their reason."""

from __future__ import annotations

import re
from collections.abc import Callable

from fsspec.utils import glob_translate

from wds_pipeline.dataset.listing import printable_path
from wds_pipeline.errors import SourceError

SKIPPED = {
    "hidden": "the name begins with a dot (a folder counts once)",
    "apple_double": "an AppleDouble file (._name), which macOS leaves on other filesystems",
    "system_file": "an index that a file manager leaves (Thumbs.db, desktop.ini)",
    "editor_file": "a backup, lock or swap file of an editor",
    "unfinished_file": "a download or copy under way (.part, .tmp, .crdownload)",
    "excluded": "not in source.include, or in source.exclude (a folder that is left out counts once)",
    "symlink": "a symbolic link; source.follow_symlinks is never",
    "symlink_outside": "a symbolic link that leaves the source; source.follow_symlinks: always follows",
    "symlink_broken": "a symbolic link to nothing",
    "symlink_loop": "a symbolic link to a folder that it lies in",
    "special_file": "a pipe, socket or device",
    "reserved": "a member of a tar with __…__ in its name, which webdataset skips",
    "no_key": "a member of a tar whose name has no key and extension, which webdataset skips",
    "no_file": "a member of a tar that is no file: a link, a folder, a device",
}
_EXAMPLES = 5
_SYSTEM = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
_EDITOR = re.compile(r".*~$|#.*#$|~\$.*|.*\.sw[op]$", re.DOTALL)
_UNFINISHED = re.compile(r".*\.(part|partial|tmp|crdownload)$", re.DOTALL)
# A quick test for names that `why_junk` has to look at.
JUNK_STARTS = ".~#"
JUNK_ENDS = (
    "~",
    ".swp",
    ".swo",
    ".part",
    ".partial",
    ".tmp",
    ".crdownload",
    ".db",
    ".ini",
    ".DB",
    ".INI",
)


class LeftOut:
    """What was left out so far: how many by reason, with examples."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, path: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(printable_path(path))

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.items())


def why_junk(name: str) -> str | None:
    lower = name.lower()
    if name.startswith("._"):
        return "apple_double"
    if lower in _SYSTEM:
        return "system_file"
    if _EDITOR.match(name):
        return "editor_file"
    if name.startswith("."):
        return "hidden"
    if _UNFINISHED.match(name):
        return "unfinished_file"
    return None


def glob_filter(include: list[str], exclude: list[str]) -> Callable[[str], bool] | None:
    """A path's test, or None when every path passes."""
    takes = [_glob(each) for pattern in include for each in _alternatives(pattern)]
    leaves = [_glob(each) for pattern in exclude for each in _alternatives(pattern)]
    if not leaves and any(each in ("**", "**/*") for each in include):
        return None
    return lambda path: (
        any(each.match(path) for each in takes) and not any(each.match(path) for each in leaves)
    )


def folder_filter(exclude: list[str]) -> Callable[[str], bool]:
    """A test for folders (`a/b/`) of which nothing is wanted: they need not even be readable."""
    whole = [each for pattern in exclude for each in _alternatives(pattern)]
    leaves = [_glob(each) for each in whole if each.endswith(("/", "**"))]
    return lambda folder: any(each.match(folder) for each in leaves)


def _alternatives(pattern: str) -> list[str]:
    """`*.{jpg,png}` → `*.jpg`, `*.png`."""
    braces = re.search(r"\{([^{}]*,[^{}]*)\}", pattern)
    if braces is None:
        return [pattern]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    parts = braces.group(1).split(",")
    return [each for part in parts for each in _alternatives(before + part + after)]


def _glob(pattern: str) -> re.Pattern[str]:
    pattern = pattern.removeprefix("./")
    if pattern.endswith("/"):
        pattern += "**"  # a folder means what is in it
    return re.compile(glob_translate(pattern))


def check_any(files: int, url: str, left_out: LeftOut, dataset: str) -> None:
    """Raises SourceError if there are no files at a listing's end."""
    if not files:
        raise SourceError(
            f"{dataset}: source.url: {url}: no file to take"
            f"{f' (left out: {left_out})' if left_out.counts else ''}; "
            "expected raw files there; check source.url, source.include and source.exclude"
        )

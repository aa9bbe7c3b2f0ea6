"""Source → listing: every file's path, size and fingerprint, in a stable order; nothing is read.

A folder that cannot be read is an error, never a shorter listing. What is left out (hidden files,
links that leave the source, editors' droppings) is counted, with examples.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from fsspec.utils import glob_translate

from wds_pipeline.config import SourceConfig
from wds_pipeline.errors import SourceError
from wds_pipeline.storage import CONTENT, LocalStorage

# `problem` is null but for files that have no usable name.
LISTING = pa.schema(
    [
        pa.field("path", pa.large_string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("fingerprint", pa.large_string(), nullable=False),
        pa.field("problem", pa.string()),
    ]
)
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
}
_EXAMPLES = 5
_SYSTEM = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
_EDITOR = re.compile(r".*~$|#.*#$|~\$.*|.*\.sw[op]$", re.DOTALL)
_UNFINISHED = re.compile(r".*\.(part|partial|tmp|crdownload)$", re.DOTALL)
# A quick test for names that `_why_junk` has to look at.
_JUNK_STARTS = ".~#"
_JUNK_ENDS = (
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
_CHUNK_ROWS = 500_000
_entry_name = attrgetter("name")
# Filesystems stamp files with the kernel's tick, at most 10 ms: a second write within it is not seen.
_TICK_NS = 20_000_000


@dataclass(frozen=True)
class Listing:
    """What a scan saw: `files` has the schema `LISTING`; `skipped` counts what was left out."""

    files: pa.Table
    skipped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """The files' sizes, summed."""
        return int(np.sum(self.files["size"].to_numpy()))

    @cached_property
    def digest(self) -> str:
        """The same for the same files, sizes and fingerprints."""
        state = xxhash.xxh3_128()
        with pa.ipc.new_stream(_HashSink(state), LISTING) as stream:
            stream.write_table(self.files, max_chunksize=1_000_000)
        return state.hexdigest()


class _HashSink:
    closed = False

    def __init__(self, state: xxhash.xxh3_128) -> None:
        self._state = state

    def write(self, data: bytes) -> int:
        self._state.update(data)
        return len(data)

    def flush(self) -> None: ...

    def close(self) -> None: ...


def scan(
    source: LocalStorage,
    config: SourceConfig,
    dataset: str = "",
    progress: Callable[[int], None] | None = None,
) -> Listing:
    """Lists the source's files, folder by folder, each sorted by name.

    `progress` is called with the number of files seen so far, a few times a second.

    Raises SourceError when the source is gone, empty, or has folders that cannot be read.
    """
    walk = _Walk(source, config, dataset, progress)
    files = walk.run()
    if not files.num_rows:
        left_out = ", ".join(f"{count} {reason}" for reason, count in walk.skipped.items())
        raise SourceError(
            f"{dataset}: source.url: {source.url}: no file to take"
            f"{f' (left out: {left_out})' if left_out else ''}; "
            "expected raw files there; check source.url, source.include and source.exclude"
        )
    if config.fingerprint == "content":
        files = _with_content(source, files, dataset)
    else:
        _wait_for_the_clock(walk.rows.newest_ns)
    return Listing(files, dict(sorted(walk.skipped.items())), walk.examples)


class _Rows:
    """The listing under way, column by column: a tuple for each file would cost more than its stat."""

    def __init__(self) -> None:
        self.chunks: list[pa.Table] = []
        self.newest_ns = 0
        self._clear()

    def _clear(self) -> None:
        self.paths: list[str] = []
        self.sizes: list[int] = []
        self.times: list[int] = []

    def close_chunk(self) -> None:
        """Turns what was collected since the last call into Arrow columns."""
        problems = pa.nulls(len(self.paths), pa.string())
        try:
            paths = pa.array(self.paths, pa.large_string())
        except UnicodeEncodeError:  # bytes that are not UTF-8 reach us as lone surrogates
            broken = [not _is_utf8(path) for path in self.paths]
            paths = pa.array(map(_printable, self.paths), pa.large_string())
            problems = pa.array(["name_not_utf8" if each else None for each in broken], pa.string())
        times = pa.array(self.times, pa.int64())
        self.newest_ns = max(self.newest_ns, pc.max(times).as_py() or 0)
        columns = [paths, pa.array(self.sizes, pa.int64()), times.cast(pa.large_string()), problems]
        self.chunks.append(pa.table(columns, schema=LISTING))
        self._clear()

    def table(self) -> pa.Table:
        self.close_chunk()
        return pa.concat_tables(self.chunks)


class _Walk:
    def __init__(
        self,
        source: LocalStorage,
        config: SourceConfig,
        dataset: str,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.root = os.path.join(source.locate(""), "")
        self.real_root = os.path.realpath(self.root)
        self.dataset = dataset
        self.follow = config.follow_symlinks
        self.wanted = _glob_filter(config.include, config.exclude)
        self.leaves = _folder_filter(config.exclude)
        self.progress = progress
        self.rows = _Rows()
        self.skipped: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}
        self.unreadable: list[str] = []

    def run(self) -> pa.Table:
        if not os.path.isdir(self.root):
            found = "a file" if os.path.exists(self.real_root) else "nothing"
            raise SourceError(
                f"{self.dataset}: source.url: {self.root}: found {found}; expected a folder with "
                "raw files; check the path, or mount it"
            )
        seen = 0
        last = time.monotonic()
        # With each folder, those that were entered through links: to notice a circle of them.
        stack: list[tuple[str, tuple[str, ...]]] = [("", (self.real_root,))]
        while stack:
            folder, through = stack.pop()
            stack.extend(reversed(self._folder(folder, through)))
            if len(self.rows.paths) >= _CHUNK_ROWS:
                seen += len(self.rows.paths)
                self.rows.close_chunk()
            if self.progress is not None and time.monotonic() - last > 0.2:
                last = time.monotonic()
                self.progress(seen + len(self.rows.paths))
        if self.unreadable:
            shown = "\n  ".join(self.unreadable[:20])
            more = len(self.unreadable) - 20
            raise SourceError(
                f"{self.dataset}: source.url: {len(self.unreadable)} folders or files cannot be "
                f"read:\n  {shown}{f'{chr(10)}  and {more} more' if more > 0 else ''}\n"
                "Give this user the right to read them, or leave them out with source.exclude"
            )
        return self.rows.table()

    def _folder(self, folder: str, through: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
        """Takes one folder's files, sorted; returns its folders, sorted."""
        folders: list[tuple[str, tuple[str, ...]]] = []
        wanted = self.wanted
        add_path, add_size = self.rows.paths.append, self.rows.sizes.append
        add_time = self.rows.times.append
        descriptor = None
        try:
            # Through a descriptor, each stat resolves one name and not the whole path.
            descriptor = os.open(self.root + folder, os.O_RDONLY | os.O_DIRECTORY)
            with os.scandir(descriptor) as entries:
                ordered = sorted(entries, key=_entry_name)
            for entry in ordered:
                name = entry.name
                path = folder + name
                if (name[0] in _JUNK_STARTS or name.endswith(_JUNK_ENDS)) and (
                    reason := _why_junk(name)
                ):
                    self._skip(reason, path)
                    continue
                chain = self._link(path, through) if entry.is_symlink() else through
                if chain is None:
                    continue
                if entry.is_dir():
                    if self.leaves(path + "/"):
                        self._skip("excluded", path)
                    else:
                        folders.append((path + "/", chain))
                elif wanted is not None and not wanted(path):
                    self._skip("excluded", path)
                else:
                    try:
                        found = entry.stat()
                    except FileNotFoundError:  # deleted since the folder was listed
                        continue
                    if stat.S_ISREG(found.st_mode):
                        add_path(path)
                        add_size(found.st_size)
                        add_time(found.st_mtime_ns)
                    else:
                        self._skip("special_file", path)
        except OSError as error:
            inner = error.filename if isinstance(error.filename, str) else ""
            where = os.path.join(self.root + folder, inner).rstrip("/")
            self.unreadable.append(f"{_printable(where)}: {error.strerror}")
        finally:
            if descriptor is not None:
                os.close(descriptor)
        return folders

    def _link(self, path: str, through: tuple[str, ...]) -> tuple[str, ...] | None:
        """The folders entered so far when a link is to be followed; None when it is left out."""
        target = os.path.realpath(self.root + path)
        parent = os.path.realpath(os.path.dirname(self.root + path))
        outside = not _within(target, self.real_root) and self.follow != "always"
        if self.follow == "never":
            self._skip("symlink", path)
        elif _is_broken(self.root + path):
            self._skip("symlink_broken", path)
        elif outside:
            self._skip("symlink_outside", path)
        elif not os.path.isdir(target):
            return through
        elif any(_within(each, target) for each in (*through, parent)):
            self._skip("symlink_loop", path)
        else:
            return (*through, parent, target)
        return None

    def _skip(self, reason: str, path: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(_printable(path))


def _is_broken(link: str) -> bool:
    """Whether a link leads to nothing. One whose end may not be seen is an error to come."""
    try:
        os.stat(link)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    return False


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def _why_junk(name: str) -> str | None:
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


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _glob_filter(include: list[str], exclude: list[str]) -> Callable[[str], bool] | None:
    """A path's test, or None when every path passes."""
    takes = [_glob(each) for pattern in include for each in _alternatives(pattern)]
    leaves = [_glob(each) for pattern in exclude for each in _alternatives(pattern)]
    if not leaves and any(each in ("**", "**/*") for each in include):
        return None
    return lambda path: (
        any(each.match(path) for each in takes) and not any(each.match(path) for each in leaves)
    )


def _folder_filter(exclude: list[str]) -> Callable[[str], bool]:
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


def _with_content(source: LocalStorage, files: pa.Table, dataset: str) -> pa.Table:
    """Replaces each file's time by a hash of its content."""

    def fingerprint(path: str, problem: str | None) -> str:
        if problem is not None:
            return ""
        state = xxhash.xxh3_128()
        try:
            with source.open(path) as file:
                while chunk := file.read(1024 * 1024):
                    state.update(chunk)
        except OSError as error:
            raise SourceError(
                f"{dataset}: {source.locate(path)}: cannot be read for its fingerprint: "
                f"{error.strerror}; give this user the right to read it, or set "
                "source.fingerprint: stat"
            ) from error
        return CONTENT + state.hexdigest()

    with ThreadPoolExecutor() as pool:
        values: Iterator[str] = pool.map(
            fingerprint, files["path"].to_pylist(), files["problem"].to_pylist()
        )
        column = pa.array(values, pa.large_string())
    return files.set_column(2, LISTING.field("fingerprint"), column)


def _wait_for_the_clock(newest_ns: int) -> None:
    """After this, an edit of any listed file gets another time than the one listed."""
    age = time.time_ns() - newest_ns
    if 0 <= age < _TICK_NS:
        time.sleep((_TICK_NS - age) / 1e9)

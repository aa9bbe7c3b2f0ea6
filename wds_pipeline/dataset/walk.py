"""The walk over a source's folders: which files are taken, in which order, and where it can go on.

Folder by folder: a folder's files sorted by name, then its folders, sorted by name. `scan` goes all
the way; `watch` goes a part of it at a time. What is left out (hidden files, links that leave the
source, editors' droppings) is counted, with examples.
"""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_right
from collections.abc import Callable
from operator import attrgetter
from typing import Literal, NamedTuple

from wds_pipeline.config import SourceConfig
from wds_pipeline.dataset.listing import Rows, printable_path
from wds_pipeline.dataset.select import (
    JUNK_ENDS,
    JUNK_STARTS,
    LeftOut,
    folder_filter,
    glob_filter,
    why_junk,
)
from wds_pipeline.errors import SourceError
from wds_pipeline.storage import LocalStorage

_entry_name = attrgetter("name")

Step = Literal["all", "files", "folders"]
_STRIDE = 128  # entries between two looks at the clock


class Position(NamedTuple):
    """Where a walk goes on: in this folder (`""`, `a/b/`), behind the name `after`. Left to do are its
    files, and then its folders; or only its folders; or all of it at once, as at its beginning."""

    folder: str
    step: Step = "all"
    after: str = ""


class _Visit(NamedTuple):
    """A position on the stack, with the folders that were entered through links: to notice a circle."""

    at: Position
    through: tuple[str, ...]


class Walk:
    """A walk over a source, step by step; what it takes is in `rows`.

    With `lenient`, a folder that vanished since its parent was listed is passed over. Without, it is
    an error as any folder that cannot be read: so an unmounted disk never looks like deleted files.
    """

    def __init__(
        self, source: LocalStorage, config: SourceConfig, dataset: str, *, lenient: bool = False
    ) -> None:
        self.url = source.url
        self.root = os.path.join(source.locate(""), "")
        self.real_root = os.path.realpath(self.root)
        self.dataset = dataset
        self.lenient = lenient
        self.follow = config.follow_symlinks
        self.wanted = glob_filter(config.include, config.exclude)
        self.leaves = folder_filter(config.exclude)
        self.rows = Rows()
        self.left_out = LeftOut()
        self.unreadable: list[str] = []
        self._stack = [_Visit(Position(""), (self.real_root,))]

    @property
    def position(self) -> Position | None:
        """Where the next step goes on; None at the end."""
        return self._stack[-1].at if self._stack else None

    def go_to(self, position: Position) -> None:
        """Goes on where another walk over the same source stopped. Where its folder, or one above,
        is gone, with what would have come after that."""
        self._stack = []
        folder = ""
        through: tuple[str, ...] = (self.real_root,)
        for name in position.folder.split("/")[:-1]:
            self._stack.append(_Visit(Position(folder, "folders", name), through))
            path = folder + name
            chain = self._link(path, through) if os.path.islink(self.root + path) else through
            if chain is None or not os.path.isdir(self.root + path):
                return
            folder, through = path + "/", chain
        self._stack.append(_Visit(position, through))

    def step(self, over: Callable[[], bool] | None = None) -> None:
        """Walks the next folder, or a piece of it: until `over` says so, but never so short that
        walks of such steps would not come to their end."""
        visit = self._stack.pop()
        at, through = visit.at, visit.through
        folders: list[_Visit] = []
        cut = self._folder(visit, folders, over)
        self.rows.end_folder()
        if at.step == "folders":
            if cut is not None:
                self._stack.append(_Visit(Position(at.folder, "folders", cut), through))
            self._stack.extend(reversed(folders))
        elif cut is not None:
            self._stack.append(_Visit(Position(at.folder, "files", cut), through))
        elif at.step == "files":
            self._stack.append(_Visit(Position(at.folder, "folders"), through))
        else:
            self._stack.extend(reversed(folders))

    def check(self) -> None:
        """Raises SourceError if folders or files could not be read so far."""
        if self.unreadable:
            shown = "\n  ".join(self.unreadable[:20])
            more = len(self.unreadable) - 20
            raise SourceError(
                f"{self.dataset}: source.url: {len(self.unreadable)} folders or files cannot be "
                f"read:\n  {shown}{f'{chr(10)}  and {more} more' if more > 0 else ''}\n"
                "Give this user the right to read them, or leave them out with source.exclude"
            )

    def check_root(self) -> os.stat_result:
        """The facts of the source's folder. Raises SourceError if it is none."""
        if not os.path.isdir(self.root):
            found = "a file" if os.path.exists(self.real_root) else "nothing"
            raise SourceError(
                f"{self.dataset}: source.url: {self.root}: found {found}; expected a folder with "
                "raw files; check the path, or mount it"
            )
        return os.stat(self.root)

    def _folder(
        self, visit: _Visit, folders: list[_Visit], over: Callable[[], bool] | None
    ) -> str | None:
        """Takes one folder's files, and its folders into `folders`, sorted; returns the name behind
        which to go on if it stopped before the end."""
        at = visit.at
        descriptor = None
        try:
            # Through a descriptor, each stat resolves one name and not the whole path.
            descriptor = os.open(self.root + at.folder, os.O_RDONLY | os.O_DIRECTORY)
            with os.scandir(descriptor) as found:
                ordered = sorted(found, key=_entry_name)
            if at.after:
                del ordered[: bisect_right(ordered, at.after, key=_entry_name)]
            # From the end, so that entries can go when they are done with: each holds its file's facts.
            ordered.reverse()
            last = ""
            while ordered:
                if last and over is not None and over():
                    if at.step == "folders":
                        return last
                    count = len(self.rows.paths)
                    if self.rows.drop_begun_part():
                        dropped = count - len(self.rows.paths)
                        return self.rows.paths[-1].rpartition("/")[2] if dropped else last
                entries = ordered[: -_STRIDE - 1 : -1]
                del ordered[-_STRIDE:]
                self._take(visit, entries, folders)
                last = entries[-1].name
        except OSError as error:
            gone = isinstance(error, FileNotFoundError | NotADirectoryError)
            if not (gone and self.lenient and descriptor is None and at.folder):
                inner = error.filename if isinstance(error.filename, str) else ""
                where = os.path.join(self.root + at.folder, inner).rstrip("/")
                self.unreadable.append(f"{printable_path(where)}: {error.strerror}")
        finally:
            if descriptor is not None:
                os.close(descriptor)
        return None

    def _take(self, visit: _Visit, entries: list[os.DirEntry[str]], folders: list[_Visit]) -> None:
        folder, through = visit.at.folder, visit.through
        files = visit.at.step != "folders"
        wanted = self.wanted
        add_path, add_size = self.rows.paths.append, self.rows.sizes.append
        add_time = self.rows.times.append
        for entry in entries:
            name = entry.name
            path = folder + name
            if (name[0] in JUNK_STARTS or name.endswith(JUNK_ENDS)) and (reason := why_junk(name)):
                self.left_out.add(reason, path)
                continue
            chain = self._link(path, through) if entry.is_symlink() else through
            if chain is None:
                continue
            if entry.is_dir():
                if self.leaves(path + "/"):
                    self.left_out.add("excluded", path)
                else:
                    folders.append(_Visit(Position(path + "/"), chain))
            elif not files:
                pass
            elif wanted is not None and not wanted(path):
                self.left_out.add("excluded", path)
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
                    self.left_out.add("special_file", path)

    def _link(self, path: str, through: tuple[str, ...]) -> tuple[str, ...] | None:
        """The folders entered so far when a link is to be followed; None when it is left out."""
        target = os.path.realpath(self.root + path)
        parent = os.path.realpath(os.path.dirname(self.root + path))
        outside = not _within(target, self.real_root) and self.follow != "always"
        if self.follow == "never":
            self.left_out.add("symlink", path)
        elif _is_broken(self.root + path):
            self.left_out.add("symlink_broken", path)
        elif outside:
            self.left_out.add("symlink_outside", path)
        elif not os.path.isdir(target):
            return through
        elif any(_within(each, target) for each in (*through, parent)):
            self.left_out.add("symlink_loop", path)
        else:
            return (*through, parent, target)
        return None


def _is_broken(link: str) -> bool:
    """Whether a link leads to nothing. One whose end may not be seen is an error to come."""
    try:
        os.stat(link)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    return False


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))

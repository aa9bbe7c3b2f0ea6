"""The samples of one tar, which is read once, front to back; it may be a pipe.

By the fast walk of `tar_scan`; the bytes that it has come past are kept until their members are whole.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from typing import BinaryIO

from wds_pipeline.dataset.tar_scan import Walk, Walked
from wds_pipeline.dataset.tars.account import Account
from wds_pipeline.dataset.tars.sample import LEFT_OUT, Data, Member, Sample, Stored, key_and_field
from wds_pipeline.errors import DataError

LARGE = 8 * 1024 * 1024  # bytes of a member, or of what a sample holds in memory
_WINDOW = 1024 * 1024
_HARMLESS = ("lone_zero_block",)
_WHOLE = ("concatenated", "trailing_data", "sparse")  # the samples before are complete
_ADVICE = {
    "not_a_tar": "expected a plain tar; decompress it, or leave it out",
    "no_end": "it was cut between two members, or what wrote it failed; write or fetch it again",
    "truncated": "write or fetch it again",
    "bad_header": "write or fetch it again",
    "concatenated": "readers stop at the first archive's end; name the tars one by one, do not join them",
    "trailing_data": "fetch it again",
    "sparse": "pack it again without --sparse",
}
Ranges = Callable[[int, int], Stored]


class Spool:
    """A temporary file that is gone when nobody holds it, whatever happens to the process."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="wds-pipeline-")  # noqa: SIM115
        self.size = 0

    def __del__(self) -> None:
        self._file.close()

    def write(self, data: bytes | memoryview) -> None:
        """Adds bytes. Raises DataError when the disk is full."""
        try:
            self._file.write(data)
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()}: no temporary file can be written there ({error.strerror}); free "
                "some space, or set TMPDIR to another folder"
            ) from error
        self.size += len(data)

    def flush(self) -> None:
        """What was written can be read."""
        self._file.flush()

    def part(self, offset: int, size: int) -> Stored:
        """Some of the bytes that were written."""
        self.flush()
        return Stored(lambda at, count: self.read(offset + at, count), size)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes that were written and flushed."""
        return os.pread(self._file.fileno(), size, offset)


class _Passing:
    """A file that the walk reads; what it has read is kept until it is taken."""

    def __init__(self, file: BinaryIO, copy: Spool | None) -> None:
        self._file = file
        self._copy = copy
        self._chunks: deque[tuple[int, memoryview]] = deque()
        self.end = 0

    def readinto(self, view: memoryview) -> int:
        got: int = self._file.readinto(view)  # type: ignore[attr-defined]
        if got:
            chunk = bytes(view[:got])
            if self._copy is not None:
                self._copy.write(chunk)
            self._chunks.append((self.end, memoryview(chunk)))
            self.end += got
        return got

    def let_go(self, offset: int) -> None:
        """Forgets what lies before a byte."""
        chunks = self._chunks
        while chunks and chunks[0][0] + len(chunks[0][1]) <= offset:
            chunks.popleft()

    def take(self, offset: int, size: int) -> bytes | memoryview:
        """Bytes that have been read; those before them are forgotten."""
        if not size:
            return b""
        self.let_go(offset)
        start, chunk = self._chunks[0]
        first = offset - start
        if first + size <= len(chunk):
            return chunk[first : first + size]
        return b"".join(self.pieces(offset, offset + size))

    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        """What has been read of a range."""
        for at, chunk in self._chunks:
            if at >= stop:
                return
            if at + len(chunk) > start:
                yield chunk[max(0, start - at) : stop - at]


class TarReader:
    """Reads one tar. `where` names it in messages; `ranges` gives a part of it again, later, where it can."""

    def __init__(
        self,
        file: BinaryIO,
        where: str,
        account: Account,
        *,
        ranges: Ranges | None = None,
        copy: Spool | None = None,
        keep_whole: bool = False,
    ) -> None:
        """All that is read goes to `copy` too. With `keep_whole`, damage ends the samples, and is noted; else
        it raises."""
        self._passing = _Passing(file, copy)
        self._where = where
        self._account = account
        self._ranges = copy.part if copy is not None else ranges
        self._keep_whole = keep_whole
        self._waiting: deque[tuple[bytes, int, int]] = deque()
        self._taken = 0  # members on the walk's lists that wait already
        self._held = 0  # bytes of the sample under way
        # Where its large members go, and where that of those which is under way begins in there.
        self._spool: Spool | None = None
        self._begin: int | None = None

    def samples(self) -> Iterator[Sample]:
        """The samples in order. A new one begins with another key, or with a field that there is already.

        Raises DataError for a damaged tar, and what reading raises.
        """
        key, members, fields = "", [], set()  # type: ignore[var-annotated]
        cut = False
        for found in Walk(self._passing, _WINDOW).steps():  # type: ignore[arg-type]
            self._await(found)
            while self._waiting and (ready := self._next(key)) is not None:
                new_key, member = ready
                if member is None:
                    continue
                name = member.field.lower()
                if new_key != key or name in fields:
                    if members:
                        yield Sample(key, members, self._where)
                    key, members, fields, self._held = new_key, [], set(), 0
                fields.add(name)
                self._held += 0 if isinstance(member.data, Stored) else len(member.data)
                members.append(member)
            if cut := self._damaged(found):
                break
        if members and not cut:
            yield Sample(key, members, self._where)
        elif members:
            self._account.note("left out, which may lack members", key)
        for kind, count in found.others.items():
            self._account.note(f"left out, no part of a sample: {kind}", count=count)

    def _await(self, found: Walked) -> None:
        """Takes from the walk's lists what is new; its last member stays there."""
        new = len(found.names)
        columns = (found.names, found.offsets, found.sizes)
        self._waiting.extend(zip(*(each[self._taken :] for each in columns), strict=True))
        for each in (*columns, found.starts):
            del each[: new - 1]
        self._taken = min(1, new)

    def _next(self, key: str) -> tuple[str, Member | None] | None:
        """The first member that waits, with its key; no member where it is in no sample. None until it is
        whole."""
        raw, offset, size = self._waiting[0]
        name = raw.decode("utf-8", "surrogateescape")
        found = key_and_field(name)
        wanted = not isinstance(found, str)
        held = self._held if found[0] == key else 0
        data: Data | None
        if wanted and size + held > LARGE and size:
            data = self._stored(offset, size, anew=found[0] != key)
        elif offset + size > self._passing.end:
            data = None
            if not wanted:
                self._passing.let_go(self._passing.end)
        else:
            data = self._passing.take(offset, size) if wanted else b""
        if data is None:
            return None
        self._waiting.popleft()
        if isinstance(found, str):
            self._account.note(f"left out, no part of a sample: {LEFT_OUT[found]}", name)
            return key, None
        return found[0], Member(found[1], data, offset)

    def _stored(self, offset: int, size: int, anew: bool) -> Data | None:
        """A large member, in its tar or in a temporary file, once all of it has been read; `anew` says that
        it begins a sample."""
        passing = self._passing
        if self._ranges is None:
            if self._begin is None:
                self._spool = Spool() if anew or self._spool is None else self._spool
                self._begin = self._spool.size
            assert self._spool is not None
            for piece in passing.pieces(offset + self._spool.size - self._begin, offset + size):
                self._spool.write(piece)
        passing.let_go(min(passing.end, offset + size))
        if passing.end < offset + size:
            return None
        if self._ranges is not None:
            return self._ranges(offset, size)
        assert self._spool is not None and self._begin is not None
        data, self._begin = self._spool.part(self._begin, size), None
        return data

    def _damaged(self, found: Walked) -> bool:
        """Whether what was found is not a whole tar, such that its last sample may lack members."""
        problems = [each for each in found.problems if each.code not in _HARMLESS]
        if not problems:
            return False
        for each in problems:
            place = "" if each.code == "not_a_tar" else f"at byte {each.offset:,}: "
            what = f"the sparse file {each.text!r}" if each.code == "sparse" else each.text
            message = f"{self._where}: {place}{what}; {_ADVICE[each.code]}"
            if not self._keep_whole:
                raise DataError(message)
            if message not in self._account.damaged:
                self._account.damaged.append(message)
        return any(each.code not in _WHOLE for each in problems)

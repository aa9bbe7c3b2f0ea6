"""An index of tars that others made, in place: where each sample lies, counts, digests, what is wrong.

    <tars>/.wds_pipeline/index.parquet               one row a tar; replaced as a whole
    <tars>/.wds_pipeline/members/<digest>.parquet    its member index, see `tar_members.TAR_MEMBERS`

A member index is named by the tar's digest: it is written once, a renamed tar keeps it, and who reads an
older `index.parquet` finds what belongs to that. No tar is ever written to.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from wds_pipeline.config_storage import Place
from wds_pipeline.dataset import seal
from wds_pipeline.dataset.seal import MEMBER_INDEX
from wds_pipeline.dataset.shard_report import Finding
from wds_pipeline.errors import VersionError
from wds_pipeline.storage import Storage, open_storage

FOLDER = ".wds_pipeline"
INDEX = "index.parquet"
MEMBERS = "members"
FORMAT_VERSION = 1
_METADATA = b"wds_pipeline.tar_index"

# `path` is relative to the tars' folder, `modified` in seconds, `end` where the walk over the members ended;
# `fields` (field → members), `findings` and `misread` are JSON.
TARS = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("modified", pa.float64(), nullable=False),
        pa.field("samples", pa.int64(), nullable=False),
        pa.field("members", pa.int64(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
        pa.field("fields", pa.string(), nullable=False),
        pa.field("findings", pa.string(), nullable=False),
        pa.field("misread", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class TarFacts:
    """One tar: `bytes` is its size, `digest` its digest (`algorithm:hex`), `fields` count its members.

    `misread` says, by code, why other readers would see other samples than the index.
    """

    path: str
    bytes: int
    modified: float
    samples: int
    members: int
    digest: str
    end: int
    fields: dict[str, int] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    misread: dict[str, str] = field(default_factory=dict)

    @property
    def errors(self) -> list[Finding]:
        """Because of which samples of it may be missing or cut."""
        return [each for each in self.findings if each.severity == "error"]

    @property
    def members_name(self) -> str:
        """The name of its member index, in the index's folder."""
        return f"{MEMBERS}/{self.digest.partition(':')[2]}.parquet"


@dataclass(frozen=True)
class IndexedTar:
    """One tar of an index, as a reader takes it; unpacks to (path, samples, bytes, digest, members)."""

    facts: TarFacts
    read: Callable[[], pa.Table]

    @property
    def path(self) -> str:
        """Relative to the tars' folder."""
        return self.facts.path

    @property
    def samples(self) -> int:
        return self.facts.samples

    @property
    def bytes(self) -> int:
        return self.facts.bytes

    @property
    def digest(self) -> str:
        return self.facts.digest

    @property
    def members(self) -> pa.Table:
        """The member index, with the columns of `seal.MEMBER_INDEX`; read each time it is asked for.

        Raises FileNotFoundError, VerificationError.
        """
        return self.read().select(MEMBER_INDEX.names)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.path, self.samples, self.bytes, self.digest, self.members))


@dataclass(frozen=True)
class TarIndex:
    """An index: `tars` is the storage of the tars, `storage` that of the index, below its `folder`."""

    tars: Storage
    storage: Storage
    folder: str
    rows: tuple[TarFacts, ...]

    @property
    def samples(self) -> int:
        """How many there are."""
        return sum(each.samples for each in self.rows)

    @property
    def digest(self) -> str:
        """The same for tars of the same names and bytes in the same order."""
        lines = "".join(f"{each.path} {each.digest}\n" for each in self.rows)
        return f"xxh3-128:{xxhash.xxh3_128_hexdigest(lines.encode())}"

    @property
    def place(self) -> str:
        """Where the index lies, for people."""
        return self.storage.locate(self.folder.rstrip("/")) if self.folder else self.storage.url

    def read_members(self, row: TarFacts) -> pa.Table:
        """A tar's member index, with the columns of `tar_members.TAR_MEMBERS`.

        Raises FileNotFoundError, VerificationError.
        """
        return seal.read_parquet(self.storage, self.folder + row.members_name)

    def indexed(self) -> list[IndexedTar]:
        """The tars, as a reader takes them."""

        def reader(row: TarFacts) -> Callable[[], pa.Table]:
            return lambda: self.read_members(row)

        return [IndexedTar(row, reader(row)) for row in self.rows]

    def select(self, paths: list[str]) -> TarIndex:
        """The index of these tars alone, in this order. Raises VersionError for one that is not in it."""
        known = {each.path: each for each in self.rows}
        missing = [each for each in paths if each not in known]
        if missing:
            raise VersionError(
                f"{self.place}: {len(missing):,} of {len(paths):,} tars are not in this index, such as "
                f"{missing[0]}; index them with `wds-pipeline index`"
            )
        return replace(self, rows=tuple(known[each] for each in paths))


def read_index(storage: Storage, where: str = FOLDER) -> list[IndexedTar]:
    """The tars of the index in a folder `where` below the tars' own, in their order.

    Raises VersionError when there is none, or it is of a newer format or not readable.
    """
    return load(storage, where).indexed()


def open_index(place: Place | str) -> TarIndex:
    """The index at a place: the index's own folder, or the folder of the tars beside which it lies.

    Raises VersionError when there is none, or it is of a newer format or not readable.
    """
    storage = open_storage(place)
    if storage.stat(INDEX) is not None:
        return load(storage, "")
    return load(storage, FOLDER)


def load(storage: Storage, where: str) -> TarIndex:
    """The index in a folder below a storage's root. Raises VersionError, as `open_index` does."""
    folder = f"{where.rstrip('/')}/" if where else ""
    path = folder + INDEX
    try:
        table = pq.read_table(pa.BufferReader(storage.read(path)), use_threads=False)
        values = json.loads(table.schema.metadata[_METADATA])
        if values["format_version"] > FORMAT_VERSION:
            raise VersionError(
                f"{storage.locate(path)}: format version {values['format_version']}; this release "
                f"reads up to {FORMAT_VERSION}. Update wds_pipeline"
            )
        rows = tuple(_facts(each) for each in table.to_pylist())
    except FileNotFoundError:
        raise VersionError(
            f"{storage.url}: found no {FOLDER}/{INDEX}; make one with `wds-pipeline index '*.tar'`"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise VersionError(
            f"{storage.locate(path)}: not a readable index ({str(error).splitlines()[0]}); remove it and "
            "run `wds-pipeline index` again"
        ) from error
    return TarIndex(_tars(storage, folder, values["tars"]), storage, folder, rows)


def _tars(storage: Storage, folder: str, url: str) -> Storage:
    """The tars' storage: that of the index, or its parent, or another."""
    if url:
        return open_storage(storage.place.model_copy(update={"url": url}))
    if folder:
        return storage
    parent = storage.url.rstrip("/").rpartition("/")[0]
    return open_storage(storage.place.model_copy(update={"url": parent or "/"}))


def _facts(row: dict[str, Any]) -> TarFacts:
    findings = tuple(Finding(**each) for each in json.loads(row.pop("findings")))
    fields, misread = json.loads(row.pop("fields")), json.loads(row.pop("misread"))
    return TarFacts(**row, fields=fields, findings=findings, misread=misread)


def save(index: TarIndex) -> None:
    """Replaces the index's table; its tars' member indexes are there. Raises DestinationError."""
    beside = index.tars.place.url == index.storage.place.url and bool(index.folder)
    values = {"format_version": FORMAT_VERSION, "tars": "" if beside else index.tars.url}
    rows = [
        {
            **{name: getattr(each, name) for name in TARS.names[:7]},
            "fields": json.dumps(each.fields),
            "findings": json.dumps([asdict(found) for found in each.findings]),
            "misread": json.dumps(each.misread),
        }
        for each in index.rows
    ]
    schema = TARS.with_metadata({_METADATA: json.dumps(values).encode()})
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    index.storage.put(index.folder + INDEX, sink.getvalue())

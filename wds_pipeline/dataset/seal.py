"""What lies beside a shard's tar: its seal, its member index, its report; their names and formats.

shards/train-000042-<recipe digest>.tar              the samples
shards/train-000042-<recipe digest>.members.parquet  the member index
shards/train-000042-<recipe digest>.seal.json        written last: the shard is whole
shards/train-000042-<recipe digest>.report.parquet   what verification found, see `verify`
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from wds_pipeline.errors import VerificationError, VersionError
from wds_pipeline.storage import Storage

FOLDER = "shards/"
TAR = ".tar"
MEMBERS = ".members.parquet"
SEAL = ".seal.json"
REPORT = ".report.parquet"
FORMAT_VERSION = 1

# One row a member, in the tar's order: `offset` is where the data start in the tar, both in bytes.
MEMBER_INDEX = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("field", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Seal:
    """The facts of a stored shard. `bytes` is the tar's size, `digest` its digest (`algorithm:hex`).

    Where transforms made the samples, `inputs` counts those that they were made of, and `left_out` by
    transform those of which nothing came.
    """

    name: str
    split: str
    slot: int
    recipe: str
    samples: int
    members: int
    bytes: int
    digest: str
    format_version: int = FORMAT_VERSION
    inputs: int | None = field(default=None, compare=False)
    left_out: dict[str, int] = field(default_factory=dict, compare=False)


def dump_seal(seal: Seal) -> bytes:
    """The seal as its file holds it."""
    values = asdict(seal)
    if seal.inputs is None:
        del values["inputs"], values["left_out"]
    return (json.dumps(values, indent=2) + "\n").encode()


def shard_name(split: str, slot: int, recipe: str) -> str:
    """`train-000042-<recipe digest>`: a shard's file name without an ending."""
    return f"{split}-{slot:06d}-{recipe}"


def partition_of(name: str) -> str:
    """The shard slot's name, the same in every version: `train-000042`."""
    return name.rpartition("-")[0]


def path(name: str, ending: str) -> str:
    """Where a shard's file lies, relative to the destination."""
    return f"{FOLDER}{name}{ending}"


def read_seal(storage: Storage, name: str) -> Seal | None:
    """The seal of a shard, or None if it is not sealed.

    Raises VerificationError for a seal that is not readable, VersionError for one of a newer format.
    """
    where = path(name, SEAL)
    try:
        values = json.loads(storage.read(where))
        if values["format_version"] > FORMAT_VERSION:
            raise VersionError(
                f"{storage.locate(where)}: format version {values['format_version']}; this release "
                f"reads up to {FORMAT_VERSION}. Update wds_pipeline"
            )
        return Seal(**values)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise VerificationError(
            f"{storage.locate(where)}: not a seal ({error}); remove it to have the shard packed again"
        ) from error


def read_seals(storage: Storage, names: Iterable[str]) -> dict[str, Seal | None]:
    """The seals of many shards by name; None for one that is not sealed.

    Raises VerificationError, VersionError.
    """
    wanted = list(names)
    found = storage.at_once(lambda name: read_seal(storage, name), wanted)
    return dict(zip(wanted, found, strict=True))


def whole(storage: Storage, name: str) -> Seal | None:
    """The seal of a shard that is there whole; None for one that is to be packed."""
    try:
        found = read_seal(storage, name)
    except VerificationError:
        return None
    if found is None or storage.stat(path(name, MEMBERS)) is None:
        return None
    tar = storage.stat(path(name, TAR))
    return found if tar is not None and tar.size == found.bytes else None


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file, the same for the same table and pyarrow."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def read_parquet(storage: Storage, where: str) -> pa.Table:
    """A whole Parquet file. Raises FileNotFoundError, or VerificationError if it is not readable."""
    return parse_parquet(storage.read(where), storage.locate(where))


def parse_parquet(data: bytes, where: str) -> pa.Table:
    """A Parquet file's bytes as a table. Raises VerificationError, naming `where` it was."""
    try:
        # In this thread: a process that ends while one of Arrow's lets go of a Python buffer aborts.
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        return file.read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        what = " ".join(str(error).split()).rstrip(".")
        raise VerificationError(
            f"{where}: damaged ({what}); restore the file from a backup, or `wds-pipeline restore` "
            "another version"
        ) from error


def read_member_index(storage: Storage, name: str) -> pa.Table:
    """A shard's member index, with the columns of `MEMBER_INDEX`.

    Raises FileNotFoundError or VerificationError.
    """
    return read_parquet(storage, path(name, MEMBERS))

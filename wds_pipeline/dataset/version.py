"""Published versions: their manifest, and reading them. A version is immutable.

    versions/00000007/manifest.json    exists: the version is published
    versions/00000007/shards.parquet   its shards, read when they are asked for
    versions/00000007/ledger.parquet   and inventory.parquet, quarantine.parquet, report.json, .html
    versions/00000007/exports/<name>/  what other tools read, see `export`

Between the commit and its tidying up, the files beside the manifest are still in the folder that
their build wrote them to, `build-<write id>/`; readers look there too.
"""

from __future__ import annotations

import json
from functools import partial

import pyarrow as pa
from pydantic import ValidationError

from wds_pipeline.dataset import seal, shard_table
from wds_pipeline.dataset.manifest import Manifest as Manifest
from wds_pipeline.dataset.manifest import NewShards as NewShards
from wds_pipeline.dataset.shard_table import ShardEntry as ShardEntry
from wds_pipeline.errors import DestinationError, VersionError
from wds_pipeline.storage import TEMPORARY, Storage

FOLDER = "versions"
VIEWS = "views"
MARKER = "wds_pipeline.json"  # says that a folder is a destination, and of which dataset
CHECKED = "checked.json"
_RESTORE = (
    "restore the file from a backup, or remove the version's folder to fall back on the one before "
    "(its number is not used again)"
)
FORMAT_VERSION = 1

SHARDS = "shards.parquet"
LEDGER = "ledger.parquet"
INVENTORY = "inventory.parquet"
QUARANTINE = "quarantine.parquet"
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"


def folder(version: int) -> str:
    """A version's folder, relative to the destination, with a slash at its end."""
    return f"{FOLDER}/{version:08d}/"


def view_folder(version: int) -> str:
    """The folder of a version's brace-able names, with a slash at its end."""
    return f"{VIEWS}/{version:08d}/"


def build_folder(version: int, write_id: str) -> str:
    """Where a build puts a version's files before it commits, with a slash at its end."""
    return f"{folder(version)}build-{write_id}/"


def check_marker(storage: Storage, dataset: str) -> bool:
    """Whether a destination is this dataset's already; False when it is empty.

    Raises DestinationError when it holds something else, or cannot be reached.
    """
    storage.contact()
    try:
        try:
            data = storage.read(MARKER)
        except FileNotFoundError:
            if storage.is_empty():
                return False
            data = storage.read(MARKER)  # unless another build has just made it
        marker = json.loads(data)
        found, format_version = marker["dataset"], marker["format_version"]
    except FileNotFoundError:
        raise DestinationError(
            f"{dataset}: destination.url: {storage.url}: found a folder with other files; expected "
            f"an empty folder, or one that wds_pipeline wrote (with {MARKER}). Choose another folder"
        ) from None
    except NotADirectoryError:
        raise DestinationError(
            f"{dataset}: destination.url: {storage.url}: found a file; expected a folder"
        ) from None
    except OSError as error:
        raise DestinationError(
            f"{dataset}: destination.url: {storage.locate(MARKER)}: not readable ({error.strerror}); "
            "expected a folder that this user may read and write"
        ) from error
    except (ValueError, KeyError, TypeError):
        raise DestinationError(
            f"{dataset}: destination.url: {storage.locate(MARKER)}: not readable as wds_pipeline's; "
            "restore the file, or choose another folder"
        ) from None
    _check_format(storage.locate(MARKER), format_version)
    if found != dataset:
        raise DestinationError(
            f"{dataset}: destination.url: {storage.url}: holds the dataset {found!r}; "
            "give each dataset a folder of its own"
        )
    return True


def write_marker(storage: Storage, dataset: str) -> None:
    """Makes an empty folder this dataset's destination. Raises DestinationError."""
    values = {"dataset": dataset, "format_version": FORMAT_VERSION}
    if not storage.put_if_absent(MARKER, (json.dumps(values) + "\n").encode()):
        check_marker(storage, dataset)  # another build was first


def read_checked(storage: Storage, number: int) -> str | None:
    """Other inputs than its own that are known to give this version too; None if there are none."""
    try:
        values = json.loads(storage.read(CHECKED))
        return str(values["inputs"]) if values["version"] == number else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write_checked(storage: Storage, number: int, inputs: str) -> None:
    """Remembers that these inputs give this version, so that the next build need not plan.

    Raises DestinationError.
    """
    storage.put(CHECKED, (json.dumps({"version": number, "inputs": inputs}) + "\n").encode())


def list_versions(storage: Storage) -> list[int]:
    """The published versions, oldest first."""
    numbers = (name for name in storage.list_folders(FOLDER) if name.isdigit())
    return [n for n in sorted(map(int, numbers)) if storage.stat(folder(n) + "manifest.json")]


def latest(storage: Storage) -> Manifest | None:
    """The newest version, or None. Raises VersionError when it cannot be read, or was lost."""
    numbers = (int(name) for name in storage.list_folders(FOLDER) if name.isdigit())
    for number in sorted(numbers, reverse=True):
        manifest = try_read(storage, number)
        if manifest is None and _was_published(storage, number):
            manifest = try_read(storage, number)  # unless that was just now
            if manifest is None:
                where = storage.locate(folder(number))
                raise VersionError(
                    f"{where}manifest.json: gone, though version {number} was published (other files "
                    f"of it are there); {_RESTORE}"
                )
        if manifest is not None:
            return manifest
    return None


def _was_published(storage: Storage, number: int) -> bool:
    """Whether a version has files under the plain names that they get after the commit."""
    return any(not name.startswith(TEMPORARY) for name in storage.list_names(folder(number)))


def next_number(storage: Storage, parent: int) -> int:
    """The number of the version after `parent`: the next that none ever had.

    A view without a manifest is what is left of a version that was lost. (It is made after the
    manifest, so another build's commit of this very moment is not taken for one.)
    """
    number = parent + 1
    while any(storage.list_names(view_folder(number))) and not storage.stat(
        folder(number) + "manifest.json"
    ):
        number += 1
    return number


def read(storage: Storage, version: int | None, dataset: str) -> Manifest:
    """A version, or the newest. Raises VersionError when there is none, or it cannot be read."""
    manifest = latest(storage) if version is None else try_read(storage, version)
    if manifest is None:
        have = list_versions(storage)
        what = "no version is" if version is None else f"version {version} is not"
        known = f"there are {', '.join(map(str, have[-10:]))}" if have else "build it first"
        raise VersionError(f"{dataset}: {storage.url}: {what} published; {known}")
    return manifest


def try_read(storage: Storage, version: int) -> Manifest | None:
    """A version's manifest, or None. Raises VersionError for a newer format or a damaged file."""
    path = folder(version) + "manifest.json"
    try:
        values = json.loads(storage.read(path))
        _check_format(storage.locate(path), values["format_version"])
        manifest = Manifest.model_validate(values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise VersionError(
            f"{storage.locate(path)}: not a readable manifest ({str(error).splitlines()[0]}); {_RESTORE}"
        ) from error
    manifest.read_table_by(partial(_read_shards, storage, manifest))
    return manifest


def _read_shards(storage: Storage, manifest: Manifest) -> bytes:
    data = read_file(storage, manifest, SHARDS)
    found, wanted = shard_table.digest_of(data), manifest.shard_table
    if found != wanted.digest:
        where = storage.locate(folder(manifest.version) + SHARDS)
        raise VersionError(
            f"{where}: damaged: found {len(data):,} bytes with the digest {found}; the manifest says "
            f"{wanted.bytes:,} bytes with {wanted.digest}. Restore the file from a backup, or "
            "`wds-pipeline restore` another version"
        )
    return data


def read_file(storage: Storage, manifest: Manifest, name: str) -> bytes:
    """A file beside the manifest. Raises VersionError when it is missing."""
    plain = folder(manifest.version) + name
    # Tidying up makes the plain name before it removes the other: looked at in this order, twice.
    for path in (plain, build_folder(manifest.version, manifest.write_id) + name, plain):
        try:
            return storage.read(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise VersionError(
                f"{storage.locate(path)}: not readable ({error.strerror}); expected a file that this "
                "user may read"
            ) from error
    raise VersionError(
        f"{storage.locate(plain)}: missing from version {manifest.version} of {manifest.dataset}; "
        "restore the file from a backup, or `wds-pipeline restore` another version"
    )


def read_table(storage: Storage, manifest: Manifest, name: str) -> pa.Table:
    """A Parquet file beside the manifest. Raises VersionError, VerificationError."""
    data = read_file(storage, manifest, name)
    return seal.parse_parquet(data, storage.locate(folder(manifest.version) + name))


def _check_format(where: str, found: object) -> None:
    if not isinstance(found, int) or found > FORMAT_VERSION:
        raise VersionError(
            f"{where}: found format version {found}; this release reads up to {FORMAT_VERSION}. "
            "Update wds_pipeline"
        )

"""What users write for a set of tars (braces, globs, folders, `::`) → one folder and paths below it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from wds_pipeline.config_storage import Place, StorageConfig, absolute, check_no_password, is_folder
from wds_pipeline.errors import ConfigError, SourceError
from wds_pipeline.storage import FileInfo, Storage, open_storage

_TAR = ".tar"
_GLOB = re.compile(r"[*?\[]")
_SHOWN = 5


class TarSet(NamedTuple):
    """Tars below one folder: `storage` is that folder's, `files` are in the order of their naming."""

    storage: Storage
    files: list[FileInfo]


def find_tars(names: Sequence[str], config: StorageConfig | None = None) -> TarSet:
    """The tars that these names stand for: paths or URLs, with `{0000..0575}`, `*`, `::`; folders, too.

    Raises ConfigError for names that lie in several stores, SourceError for tars that are not there.
    """
    config = config or StorageConfig()
    urls = [url for name in names for url in _expand(name)]
    if not urls:
        raise ConfigError("which tars? Give paths or URLs, such as 'cc3m-{0000..0575}.tar'")
    found: list[str] = []
    for url in urls:
        base = url.rstrip("/").rpartition("/")[2]
        if _GLOB.search(base) and is_folder(url) and os.path.exists(url):
            found.append(url)
        elif _GLOB.search(base):
            found += _matching(url, config)
        elif url.endswith("/") or (is_folder(url) and os.path.isdir(url)):
            found += _below(url, config)
        else:
            found.append(url)
    found = list(dict.fromkeys(found))
    root = _common_folder(found)
    storage = open_storage(Place(url=root, storage=config))
    paths = [url[len(root.rstrip("/")) + 1 :] for url in found]
    return TarSet(storage, _stat(storage, paths))


def _expand(name: str) -> list[str]:
    """The URLs or absolute paths of one argument."""
    from braceexpand import braceexpand

    parts = [part for part in name.split("::") if part]
    try:
        found = [url for part in parts for url in braceexpand(part)]
    except ValueError:
        raise ConfigError(
            f"{name}: a brace is not closed; expected such as {{0000..0575}}"
        ) from None
    urls = []
    for url in found:
        if url.startswith("pipe:") or url == "-":
            raise ConfigError(
                f"{url}: a pipe cannot be read by offsets; give the file that it reads"
            )
        try:
            check_no_password(url)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        url = url.removeprefix("file://") if url.startswith("file:///") else url
        url = url.removeprefix("file:") if url.startswith("file:/") else url
        slash = "/" if url.endswith("/") else ""
        urls.append(absolute(url, "") + ("" if "://" in url else slash))
    return urls


def _open(url: str, config: StorageConfig) -> Storage:
    return open_storage(Place(url=url, storage=config))


def _matching(url: str, config: StorageConfig) -> list[str]:
    folder, _, pattern = url.rpartition("/")
    if _GLOB.search(folder):
        raise ConfigError(
            f"{url}: found a wildcard in a folder's name; expected it in the file's only"
        )
    names = sorted(_open(folder or "/", config).list_names(""))
    found = [f"{folder}/{name}" for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise SourceError(f"{url}: no file has such a name; see what is in {folder or '/'}")
    return found


def _below(url: str, config: StorageConfig) -> list[str]:
    """The tars in a folder and those below it, sorted; hidden ones are left out."""
    root = url.rstrip("/") or "/"
    storage = _open(root, config)

    def look(folder: str) -> list[str]:
        names = sorted(storage.list_names(folder))
        found = [folder + name for name in names if name.endswith(_TAR) and name[0] != "."]
        for name in storage.list_folders(folder):
            if name[0] != ".":
                found += look(f"{folder}{name}/")
        return found

    found = look("")
    if not found:
        raise SourceError(
            f"{url}: found no file that ends with {_TAR}; expected some in this folder"
        )
    return [f"{root.rstrip('/')}/{path}" for path in found]


def _common_folder(urls: list[str]) -> str:
    """The deepest folder that all lie in. Raises ConfigError when there is none."""
    stores = {url.partition("://")[0] if "://" in url else "" for url in urls}
    parts = [url.rpartition("/")[0].split("/") for url in urls]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    least = 3 if next(iter(stores)) else 1  # scheme, empty, bucket or host
    if len(stores) > 1 or len(common) < least:
        raise ConfigError(
            f"{urls[0]} and {urls[-1]} lie in different stores; an index is of one: index them one by one"
        )
    return "/".join(common) or "/"


def _stat(storage: Storage, paths: list[str]) -> list[FileInfo]:
    """What is known of the files. Raises SourceError when some are not there."""
    found = storage.at_once(storage.stat, paths)
    missing = [path for path, info in zip(paths, found, strict=True) if info is None]
    if missing:
        shown = "\n  ".join(storage.locate(path) for path in missing[:_SHOWN])
        more = f"\n  … and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
        raise SourceError(
            f"{storage.url}: {len(missing):,} of {len(paths):,} tars are not there; fetch them, or name "
            f"the others only:\n  {shown}{more}"
        )
    return [info for info in found if info is not None]

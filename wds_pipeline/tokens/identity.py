"""What a token depends on beside the parameters: the content of files, and versions of libraries."""

from __future__ import annotations

import ast
import os
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import xxhash

from wds_pipeline.dataset.syntax import parsed
from wds_pipeline.errors import ConfigError

_CHUNK = 8 * 1024 * 1024


def file_digest(path: str, parameter: str) -> str:
    """`xxh3-128:<hex>` of a file, or of all files in a folder with their names.

    Raises ConfigError, naming the parameter, when there is none.
    """
    try:
        if not os.path.isdir(path):
            return _digest(*_state(path))
        digest = xxhash.xxh3_128()
        for each in sorted(p for p in Path(path).rglob("*") if p.is_file()):
            digest.update(f"{each.relative_to(path)}\0{_digest(*_state(str(each)))}\0".encode())
        return f"xxh3-128:{digest.hexdigest()}"
    except OSError as error:
        raise ConfigError(
            f"{parameter}: {os.path.abspath(path)}: not readable ({error.strerror}); expected a file"
        ) from error


def code_digest(path: str) -> str:
    """`xxh3-128:<hex>` of a module's code as Python reads it: a comment is none."""
    data = code = Path(path).read_bytes()
    if path.endswith(".py"):
        data = ast.dump(parsed(lambda: ast.parse(code))).encode()
    return f"xxh3-128:{xxhash.xxh3_128_hexdigest(data)}"


def _state(path: str) -> tuple[str, int, int, int]:
    found = os.stat(path)
    return path, found.st_size, found.st_mtime_ns, found.st_ino


@lru_cache(maxsize=1024)
def _digest(path: str, size: int, modified: int, inode: int) -> str:
    """Of a file in this state; a checkpoint is read once a process."""
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while data := file.read(_CHUNK):
            digest.update(data)
    return f"xxh3-128:{digest.hexdigest()}"


def library(name: str) -> str:
    """A library's version without what mends it: `torch 2.13`, whatever device it was made for.

    Results may change with a library's feature releases; a rebuild of all tokens for a security fix
    would be too dear.
    """
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} none"
    return f"{name} {'.'.join(version.partition('+')[0].split('.')[:2])}"

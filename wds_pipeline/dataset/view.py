"""Brace-able names for a version's shards: `views/00000007/train-{000000..000575}.tar`.

Hard links, so they cost no space; numbered without gaps, whatever the slots. An object store has none:
there they are copies that the server makes, and only on request.
"""

from __future__ import annotations

from wds_pipeline.dataset.version import Manifest, ShardEntry, view_folder
from wds_pipeline.storage import Storage


def view_names(manifest: Manifest) -> list[tuple[str, ShardEntry]]:
    """(path relative to the destination, shard) of every shard, split by split."""
    folder = view_folder(manifest.version)
    named = []
    for split in manifest.splits:
        for number, shard in enumerate(manifest.of_split(split)):
            named.append((f"{folder}{split}-{number:06d}.tar", shard))
    return named


def has_view(storage: Storage, manifest: Manifest) -> bool:
    """Whether the names are all there."""
    there = set(storage.list_names(view_folder(manifest.version)))
    return all(path.rpartition("/")[2] in there for path, _ in view_names(manifest))


def outdated(storage: Storage, manifest: Manifest) -> set[str]:
    """The shards that a name of this version does not lead to, but to the file before a repair."""
    return {
        shard.name
        for path, shard in view_names(manifest)
        if not storage.same_file(path, shard.path)
        and storage.stat(path) is not None
        and storage.stat(shard.path) is not None
    }


def make_view(storage: Storage, manifest: Manifest) -> None:
    """Gives the shards their brace-able names. Raises DestinationError."""
    storage.at_once(lambda each: storage.link(each[0], each[1].path), view_names(manifest))


def patterns(storage: Storage, manifest: Manifest) -> dict[str, str]:
    """Split → one pattern that names all its shards, as `webdataset.WebDataset` takes it."""
    found = {}
    for split in manifest.splits:
        count = len(manifest.of_split(split))
        numbers = f"{{000000..{count - 1:06d}}}" if count > 1 else "000000"
        found[split] = storage.locate(f"{view_folder(manifest.version)}{split}-{numbers}.tar")
    return found

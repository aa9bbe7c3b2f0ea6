"""What `retain` found, in words: on a terminal, in a run's log."""

from __future__ import annotations

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset.retain import Garbage
from wds_pipeline.dataset.wording import counted

_SHOWN = 20  # shards


def describe(garbage: Garbage, setting: str) -> list[str]:
    """What no kept version needs, and what was spared; `setting` is where the grace period is set."""
    lines = []
    if garbage.versions:
        lines.append(f"versions: {', '.join(map(str, garbage.versions))}")
    lines += [f"shard: {name}" for name in garbage.shards[:_SHOWN]]
    if len(garbage.shards) > _SHOWN:
        lines.append(f"… and {len(garbage.shards) - _SHOWN:,} more shards")
    unfinished = sum("/.tmp-" in file.path or "/build-" in file.path for file in garbage.files)
    unfinished += len(garbage.uploads)
    if unfinished:
        lines.append(f"unfinished writes: {unfinished:,}")
    if garbage.young:
        spared = counted(garbage.young, "shard")
        lines.append(f"spared, for it may be a build's that is under way: {spared} (see {setting})")
    return lines


def kept(config: DatasetConfig) -> str:
    """Which versions stay, and where that is set."""
    words = "kept: the newest version"
    if config.retention.versions > 1:
        words += f" and the {config.retention.versions - 1} before it"
    if config.retention.days:
        words += f", and those younger than {config.retention.days:g} days"
    return f"{words} (retention in {config.file or config.name})"

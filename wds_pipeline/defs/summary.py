"""What a run prints at its end, for those who started it in a terminal."""

from __future__ import annotations

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset.build import BuildResult
from wds_pipeline.dataset.summary import program, summary
from wds_pipeline.storage import Storage


def print_summary(config: DatasetConfig, storage: Storage, result: BuildResult) -> None:
    """Prints what a build did, and of a new version what it holds and how to read it."""
    number = result.manifest.version
    if result.status == "unchanged" and not result.packed:
        text = (
            f"{config.name}: nothing changed since version {number}: no shard was read or written\n"
            f"(`{program()} versions {config.name} --summary` shows what it holds)"
        )
    elif result.status == "published":
        text = "\n" + summary(config, storage, result.manifest)
    else:
        text = f"{config.name}: {result.packed:,} shards of version {number} were packed anew"
    print(text, flush=True)

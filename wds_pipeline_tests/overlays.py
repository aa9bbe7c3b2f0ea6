"""Projects that are overlays of others, for the tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from wds_pipeline.config import DatasetConfig
from wds_pipeline_tests.conftest import Project


class Overlay(Project):
    """A project whose shards are laid out as its base's."""

    def config(self, **more: Any) -> DatasetConfig:
        options = {**self.options, **more}
        kept = ("overlay", "source", "transforms")
        own = {name: options.pop(name) for name in kept if name in options}
        values = Project(self.folder, options).config().model_dump(exclude_unset=True)
        del values["shards"]
        return DatasetConfig.model_validate({**values, **own})


def overlay_of(base: Project, folder: Path, name: str = "captions2", **options: Any) -> Overlay:
    """An empty overlay of a project."""
    (folder / "raw").mkdir(parents=True)
    overlay = {"base": {"url": str(base.destination)}, **options.pop("overlay", {})}
    samples = {"required": [], "max_quarantined": 0.5, **options.pop("samples", {})}
    return Overlay(folder, {"name": name, "overlay": overlay, "samples": samples, **options})


def write_fields(
    project: Project, keys: Iterable[str], fields: Mapping[str, str] = {"txt": "new caption of "}
) -> None:
    """Gives these samples text fields, each with the key in it."""
    for key in keys:
        for name, text in fields.items():
            project.write(f"{key}.{name}", f"{text}{key}")


# Transforms, by their import paths.


def describe(sample: dict[str, Any]) -> dict[str, Any]:
    """A caption, made of the picture."""
    return {"__key__": sample["__key__"], "txt": f"{len(sample['png'])} bytes"}


def twice(sample: dict[str, Any]) -> list[dict[str, Any]]:
    """Two samples of one."""
    return [{**sample, "__key__": f"{sample['__key__']}-{n}"} for n in range(2)]


def only_even(sample: dict[str, Any]) -> dict[str, Any] | None:
    """Leaves out samples by their numbers."""
    return None if int(sample["__key__"][-1]) % 2 else sample


class Backwards:
    """The samples of a shard in another order."""

    def stream(self, samples: Iterator[dict[str, Any]], context: Any) -> Iterator[dict[str, Any]]:
        yield from reversed(list(samples))

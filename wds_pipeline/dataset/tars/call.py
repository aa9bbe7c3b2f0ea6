"""A transform, as datasets name them in `transforms:`, for each sample of a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from wds_pipeline.config_transforms import TransformConfig
from wds_pipeline.dataset.tars.map import Failed, Made
from wds_pipeline.dataset.tars.sample import Member, Sample, content
from wds_pipeline.errors import ConfigError, DataError
from wds_pipeline.transforms.chain import KEY, Chain
from wds_pipeline.transforms.registry import Step, load

_SHARD = "map"  # what a transform over a shard is told as its name
_chains: dict[str, Chain] = {}  # of this process


class Call:
    """A transform for one sample at a time; it is made once a process."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self, sample: Sample) -> list[Sample] | Failed:
        chain = _chains.get(self._step.digest)
        if chain is None:
            chain = _chains[self._step.digest] = Chain([self._step], _SHARD)
        found = list(chain.run([_as_dict(sample)]))
        reason = chain.rejected.pop(sample.key, None)
        return [_as_sample(each) for each in found] if reason is None else Failed(reason)


def load_call(name: str, parameters: dict[str, Any]) -> Step:
    """The transform of a name: a built-in's, or `package.module:function`. Raises ConfigError."""
    return load([TransformConfig(name=name, parameters=parameters)], "--call")[0]


def is_over_shard(step: Step) -> bool:
    """Whether a transform is one of all samples, in one process. Raises ConfigError."""
    return hasattr(step.make(), "stream")


def map_over(step: Step, on_error: str) -> Callable[[Iterator[Sample]], Iterator[Made]]:
    """Runs a transform of all samples over them.

    Raises ConfigError for `keep`: which samples fail shows when others are written.
    """
    if on_error == "keep":
        raise ConfigError(
            "--on-error keep: a transform of all samples says too late which of them fail; choose skip or "
            "stop"
        )

    def made(samples: Iterator[Sample]) -> Iterator[Made]:
        chain = Chain([step], _SHARD, of_dataset=False)
        where = [""]

        def given() -> Iterator[dict[str, Any]]:
            for sample in samples:
                where[0] = sample.where
                yield _as_dict(sample)

        for each in chain.run(given()):
            found = _as_sample(each)
            found.where = where[0]
            yield found, [found]
        for key, reason in chain.rejected.items():
            yield Sample(key, [], where[0]), Failed(reason)

    return made


def _as_dict(sample: Sample) -> dict[str, Any]:
    found: dict[str, Any] = {KEY: sample.key}
    for field, data, _ in sample.members:
        name = field.lower()
        if name == KEY:
            raise DataError(
                f"{sample.where}: {sample.key!r}: has a field {field!r}, which readers misread"
            )
        found[name] = content(data)
    return found


def _as_sample(given: dict[str, Any]) -> Sample:
    return Sample(given[KEY], [Member(name, data) for name, data in given.items() if name != KEY])

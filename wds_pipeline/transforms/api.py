"""What a transform is: the contract between a dataset's build and the functions that it names.

A sample is a dict as webdataset has them: `__key__`, and each field's content by its name. Contents come as
bytes. What a transform gives back may be bytes, or whatever webdataset's encoders take for the field's
extension (str for txt, an object for json, a picture for jpg, an array for npy).

A transform is either

- a function `f(sample, **parameters)`;
- a class whose parameters are those of its constructor and whose instances are called with a sample. One
  instance is made for each shard that is packed, so `__init__` is the place for a model or a tokenizer;
- a class with a method `stream(samples, context)` instead, which is given an iterator over the samples of a
  shard and yields others: for work in batches, and for many samples that become one.

The first two return None (the sample is left out, and counted), one sample, or an iterable of samples; the
sample that was given may be changed and returned. A key may stay, or be continued: `0001` may become
`0001-3` or `0001/a`, so that samples of one origin stay in one split. A sample whose transform raises goes to
the quarantine with the error as its reason; `Rejected` is an error without a type's name in front.

What comes out may depend on the sample and the parameters alone: no clock, no random numbers but those that
are seeded by the key. A class may say `VERSION = "2"` when its results change without its code's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

Sample = dict[str, Any]
Result = Sample | Iterable[Sample] | None


class Rejected(Exception):
    """Raised by a transform: this sample cannot be used, for the reason that the message says."""


@dataclass(frozen=True)
class Context:
    """What a stream is told: `shard` is the shard slot's name (`train-000042`), the same in each version,
    and no other shard's. `reject(key, reason)` sends an input sample to the quarantine."""

    shard: str
    reject: Callable[[str, str], None]


class PerSample(Protocol):
    """An instance that is called with one sample after the other."""

    def __call__(self, sample: Sample, /) -> Result: ...


class OverShard(Protocol):
    """An instance that goes over the samples of a shard."""

    def stream(self, samples: Iterator[Sample], context: Context, /) -> Iterator[Sample]:
        """Yields other samples. Their keys begin with `context.shard`, or with those of samples given."""
        ...

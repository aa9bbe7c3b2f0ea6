"""Runs the transforms of one shard: input samples → output samples, with an account of each input.

Transforms of single samples are run one input at a time, all of them: an input comes out whole, or it is
rejected. Between two transforms a sample's contents are bytes.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from wds_pipeline.compute.processes import note
from wds_pipeline.dataset.naming import OK, PROBLEMS, name_status
from wds_pipeline.dataset.wording import clip
from wds_pipeline.errors import DataError, Ended
from wds_pipeline.transforms.api import Context, Rejected, Sample
from wds_pipeline.transforms.registry import Step

KEY = "__key__"
_CONTINUES = ("/", "-", "_")
_LONGEST = 500  # characters of a reason


class Chain:
    """The transforms of one shard slot.

    When `run` is exhausted, `rejected` has the reason of each input that cannot be used, by its key;
    `left_out` counts, by transform, the samples for which it gave nothing.
    """

    def __init__(self, steps: Sequence[Step], shard: str, *, of_dataset: bool = True) -> None:
        """Makes the transforms. Of a dataset, the keys of what a stream yields are checked, for which those
        of all inputs are kept. Raises ConfigError."""
        self._shard = shard
        self._made: list[tuple[Step, Any]] = [(step, step.make()) for step in steps]
        self._keys: set[str] = set()  # of the inputs so far
        self._checked = of_dataset and any(hasattr(made, "stream") for _, made in self._made)
        self.inputs = 0
        self.rejected: dict[str, str] = {}
        self.left_out: Counter[str] = Counter()

    def run(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yields the output samples: `__key__`, and each field's bytes, by name.

        Raises DataError when a transform of a whole shard fails, or gives what cannot be stored.
        """
        stream = self._counted(samples)
        # Not a lambda over the instances: each group is used up before the next one begins.
        parts = [
            (whole, list(part))
            for whole, part in groupby(self._made, lambda each: hasattr(each[1], "stream"))
        ]
        for whole, part in parts:
            if whole:
                for step, made in part:
                    stream = self._over(step, made, stream)
            else:
                stream = self._each(part, stream)
        return stream

    def _counted(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        for sample in samples:
            self.inputs += 1
            if self._checked:
                self._keys.add(sample[KEY])
            yield sample

    def _each(
        self, made: Sequence[tuple[Step, Any]], samples: Iterable[Sample]
    ) -> Iterator[Sample]:
        for sample in samples:
            key = sample[KEY]
            left_out: Counter[str] = Counter()
            found = [sample]
            step = made[0][0]
            try:
                for step, call in made:
                    note(f"{self._shard}, {step.name}, sample {key!r}")
                    found = [
                        out for each in found for out in _apply(step, call, each, key, left_out)
                    ]
                _check_keys(found, key)
            except (KeyboardInterrupt, Ended):
                raise
            except BaseException as error:  # a panic in Rust and sys.exit() are no Exceptions
                self._reject(key, f"{step.name}: {told(error)}")
                continue
            self.left_out += left_out
            yield from found

    def _over(self, step: Step, made: Any, samples: Iterator[Sample]) -> Iterator[Sample]:
        def reject(key: str, reason: str) -> None:
            origin = self._origin(key)
            if origin is None:
                raise DataError(
                    f"{step.where}: {self._shard}: it rejected the key {key!r:.200}, which none of its "
                    "samples has; expected the `__key__` of one that it was given"
                )
            self._reject(origin, f"{step.name}: {reason}")

        def wanted() -> Iterator[Sample]:
            for sample in samples:
                if step.wants(sample[KEY]) and _has_any(sample, step.fields):
                    yield sample
                else:
                    self.left_out[f"{step.name} (not for it)"] += 1

        try:
            note(f"{self._shard}, {step.name}")
            for sample in made.stream(wanted(), Context(self._shard, reject)):
                found = encoded(sample, step)
                if self._origin(found[KEY]) is None and not _goes_on(found[KEY], self._shard):
                    raise Rejected(
                        f"made the key {found[KEY]!r}; expected one that goes on behind the shard's name or "
                        f"a given sample's key with {', '.join(map(repr, _CONTINUES))}"
                    )
                yield found
        except (DataError, KeyboardInterrupt, GeneratorExit, Ended):
            raise
        except BaseException as error:
            raise DataError(f"{step.where}: {self._shard}: {told(error)}") from error

    def check_used(self, key: str) -> None:
        """Raises DataError for the key of an output whose input was rejected: it is used whole or not."""
        origin = self._origin(key) if self.rejected and self._checked else None
        if origin in self.rejected:
            raise DataError(
                f"{self._shard}: the sample {origin!r} is rejected ({self.rejected[origin]}), and yet "
                f"{key!r} was made of it; reject a sample before anything is made of it"
            )

    def _origin(self, key: str) -> str | None:
        """The input that a key goes back to."""
        if key in self._keys or not self._checked:
            return key
        ends = (at for at in range(len(key) - 1, 0, -1) if key[at] in _CONTINUES)
        return next((key[:at] for at in ends if key[:at] in self._keys), None)

    def _reject(self, key: str, reason: str) -> None:
        self.rejected.setdefault(key, clip(reason, _LONGEST))


def _goes_on(key: str, origin: str) -> bool:
    return key.startswith(origin) and key[len(origin) :].startswith(_CONTINUES)


def _apply(
    step: Step, call: Any, sample: Sample, origin: str, left_out: Counter[str]
) -> list[Sample]:
    """What one transform makes of one sample."""
    if not step.wants(origin) or not _has_any(sample, step.fields):
        return [sample]
    result = call(dict(sample))
    if result is None:
        results = []
    elif isinstance(result, Mapping):
        results = [encoded(result, step)]
    elif isinstance(result, Iterable) and not isinstance(result, str | bytes):
        # As they come: a generator may fill the same dict again and again.
        results = [encoded(each, step) for each in result]
    else:
        raise Rejected(
            f"gave {type(result).__name__}; expected None, a sample (a dict), or several of them"
        )
    if not results:
        left_out[step.name] += 1
    return results


def _has_any(sample: Sample, fields: tuple[str, ...] | None) -> bool:
    return fields is None or any(name in sample for name in fields)


def encoded(sample: Any, step: Step) -> Sample:
    """A sample with each content as bytes, as webdataset's encoders make them of the field's extension.

    Raises Rejected for what is no sample, or what no reader would find again.
    """
    if not isinstance(sample, Mapping) or not isinstance(sample.get(KEY), str):
        raise Rejected(f"gave {sample!r:.80}; expected a dict with `__key__` and the fields")
    if "." in sample[KEY].rpartition("/")[2]:
        raise Rejected(
            f"made the key {sample[KEY]!r}: a dot in a key's last part begins a field's name"
        )
    found: Sample = {KEY: sample[KEY]}
    for name, value in sample.items():
        if isinstance(name, str) and name.startswith("__"):  # readers keep such for themselves
            continue
        status = name_status(sample[KEY], name) if isinstance(name, str) else "bad_name"
        if status != OK or name != name.lower() or "/" in name or not name:
            why = PROBLEMS.get(status, "a field is in lower case, not empty, and has no slash")
            raise Rejected(f"gave the name {sample[KEY]!r}.{name!r}: {why}")
        if isinstance(value, bytes | bytearray | memoryview):
            found[name] = value if isinstance(value, bytes) else bytes(value)
        elif value is not None:
            found[name] = _encode(name, value)
    if len(found) == 1:
        raise Rejected("gave a sample without a field; return None to leave a sample out")
    return found


def _encode(name: str, value: Any) -> bytes:
    if name.endswith(".gz"):  # webdataset's own has the time in it
        return gzip.compress(_encode(name.removesuffix(".gz"), value), mtime=0)
    if isinstance(value, str):
        return value.encode()
    from webdataset.writer import encode_based_on_extension1, make_handlers

    try:
        return bytes(encode_based_on_extension1(value, name, make_handlers()))
    except Exception as error:
        raise Rejected(
            f"gave {type(value).__name__} for the field {name!r}, which cannot be encoded as such "
            f"({told(error)}); give bytes"
        ) from error


def _check_keys(found: Sequence[Sample], origin: str) -> None:
    """Keys stay or go on, so that what was one sample stays in one split, and no two collide."""
    keys = list(map(itemgetter(KEY), found))
    for key in keys:
        if key != origin and not _goes_on(key, origin):
            raise Rejected(
                f"made the key {key!r} of {origin!r}; expected the same one, or one that goes on behind it "
                f"with {', '.join(map(repr, _CONTINUES))}"
            )
    if len(set(keys)) < len(keys):
        again = next(key for key in keys if keys.count(key) > 1)
        raise Rejected(f"made the key {again!r} twice")


def told(error: BaseException) -> str:
    """An error in one clause."""
    try:
        text = str(error)
    except Exception:  # its own mistake
        text = ""
    if isinstance(error, Rejected):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

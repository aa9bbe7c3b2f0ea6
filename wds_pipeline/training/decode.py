"""Decoding samples: each field by its own function, made once; what does not decode is named.

`decode_rules` says which function, `decode_fields`, `decode_image` and `decode_media` have them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from wds_pipeline.errors import ConfigError, DecodeError, WdsPipelineError
from wds_pipeline.training.decode_image import ImageSpec
from wds_pipeline.training.decode_rules import FieldSpec, Rules, Work, called

_START = 12  # bytes that messages show
_SAID = 300  # characters of what a library says
_OBJECT = re.compile(r" <_io\.\w+ object at 0x[0-9a-f]+>")  # the file that Pillow was given

Sample = dict[str, Any]


@dataclass(frozen=True)
class Decoder:
    """How to decode, with what must be permitted explicitly.

    `spec` is what `open_dataset(decode=…)` takes. `allow_pickle` loads pickles (`pyd`, `pickle`,
    `pkl`, arrays of objects, any `pth`): they run code that is in the data.
    """

    spec: str | ImageSpec | Mapping[str, FieldSpec]
    allow_pickle: bool = False


DecodeSpec = str | ImageSpec | Mapping[str, FieldSpec] | Callable[[Sample], Any] | Decoder | None


def make_decoder(
    spec: DecodeSpec,
    named: str = "samples",
    fields: Iterable[str] = (),
    known: Iterable[str] | None = None,
) -> Callable[[Sample], Any] | None:
    """What decodes samples; None where they stay as they are. For threads, and picklable as far as the
    user's own functions are.

    `named` is how messages call the dataset, `fields` are those that are read, `known` all that samples
    have: what is wrong with them is said here, not in the middle of an epoch.

    Raises ConfigError for a spec that is wrong or needs a package that is not installed, DecodeError for
    pickles that are not permitted.
    """
    if spec is None:
        return None
    if isinstance(spec, FieldsDecoder | SampleDecoder):
        return spec
    if not isinstance(spec, Decoder):
        if callable(spec):
            return SampleDecoder(spec, named)
        spec = Decoder(spec)
    if not isinstance(spec.spec, str | ImageSpec | Mapping):
        raise ConfigError(
            f"{named}: decode={spec.spec!r}: expected an image spec such as 'pil' or 'rgb8', 'auto', a "
            "mapping from fields, or a function of a sample"
        )
    made = FieldsDecoder(spec, named)
    fields = list(fields)
    made.prepare(fields, list(known) if known is not None else fields)
    return made


class SampleDecoder:
    """A function of the user's, to which each sample goes whole. Its errors are wrapped."""

    def __init__(self, function: Callable[[Sample], Any], named: str) -> None:
        self.function = function
        self._named = named

    def __call__(self, sample: Sample) -> Any:
        """Raises DecodeError, with the function's error as its cause."""
        try:
            return self.function(sample)
        except Exception as error:
            if isinstance(error, WdsPipelineError) and not _is_bare(error):
                raise  # a shard is damaged, say
            found = ", ".join(name for name in sample if not name.startswith("__"))
            what = (
                f"{called(self.function)} raised {_raised(error)}; the sample has {found or 'none'}"
            )
            raise _error(self._named, sample, None, what) from error


class FieldsDecoder:
    """Decodes each field by a function that is looked up by its name, and made at its first sight."""

    def __init__(self, spec: Decoder, named: str) -> None:
        self.spec = spec
        self._named = named
        self._start()

    def _start(self) -> None:
        assert isinstance(self.spec.spec, str | ImageSpec | Mapping)
        self._rules = Rules(self.spec.spec, self.spec.allow_pickle, self._named)
        # What is not of the files stays as it is.
        self._works: dict[str, Work | None] = dict.fromkeys(("__key__", "__url__", "__index__"))

    def __getstate__(self) -> dict[str, Any]:
        return {"spec": self.spec, "_named": self._named}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def prepare(self, fields: list[str], known: list[str]) -> None:
        """Makes the functions for these fields. Raises as `make_decoder` says."""
        if known:
            self._rules.check_names(known)
        for field in fields:
            work = self._work(field)
            if work is not None and work.refused:
                raise DecodeError(
                    f"{self._named}: the field {field!r} is a pickle, which runs code when it is loaded; "
                    f"{_permit(field)}",
                    dataset=self._named,
                    field=field,
                )

    def _work(self, field: str) -> Work | None:
        work = None if field.startswith("__") else self._rules.work(field)
        self._works[field] = work
        return work

    def __call__(self, sample: Sample) -> Sample:
        """The sample with its fields decoded; the one that was given is not changed.

        Raises DecodeError, with the cause.
        """
        works = self._works
        found = {}
        for field, data in sample.items():
            try:
                work = works[field]
            except KeyError:
                work = self._work(field)
            if work is None:
                found[field] = data
                continue
            try:
                found[field] = work.load(data)
            except Exception as error:
                if isinstance(error, WdsPipelineError) and not _is_bare(error):
                    raise
                raise self._error(sample, field, work, error) from error
        return found

    def _error(self, sample: Sample, field: str, work: Work, error: Exception) -> DecodeError:
        data = sample[field]
        size = f"found {len(data):,} bytes that start with {bytes(data[:_START])!r}"
        if work.own:
            what = f"{called(work.load)} raised {_raised(error)}; {size}"
            return _error(self._named, sample, field, what)
        what = (
            f"{_said(error)}; {size if len(data) else 'found no bytes'}; expected {work.expected}"
        )
        permit = _permit(field) if work.refused or "needs pickle" in str(error) else ""
        return _error(self._named, sample, field, what, permit)


def _is_bare(error: WdsPipelineError) -> bool:
    """Whether it is a DecodeError of the user's making, which names no sample yet."""
    return isinstance(error, DecodeError) and error.key is None


def _error(
    named: str, sample: Sample, field: str | None, what: str, advice: str = ""
) -> DecodeError:
    key, url = sample.get("__key__"), sample.get("__url__")
    where = f"{named}: {url}: sample {key!r}" + (f", field {field}" if field is not None else "")
    advice = advice or 'mend it, or leave such samples out: on_error="skip"'
    return DecodeError(f"{where}: {what}; {advice}", dataset=named, url=url, key=key, field=field)


def _permit(field: str) -> str:
    return (
        "Decoder(…, allow_pickle=True) permits it, for data that you trust; "
        f"decode={{{field!r}: None, …}} leaves its bytes as they are"
    )


def _said(error: Exception) -> str:
    """What a library says; its kind where the text alone says too little."""
    text = _OBJECT.sub("", " ".join(str(error).split()))[:_SAID]
    if not text:
        return type(error).__name__
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def _raised(error: Exception) -> str:
    text = " ".join(str(error).split())[:_SAID]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

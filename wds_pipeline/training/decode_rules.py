"""Which function decodes a field: by its name's end, as the user or webdataset's table says."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from wds_pipeline.config_values import did_you_mean
from wds_pipeline.errors import ConfigError
from wds_pipeline.training.decode_fields import KINDS, Kind, gunzip, refused
from wds_pipeline.training.decode_image import (
    IMAGE_SPECS,
    ImageDecoder,
    ImageSpec,
    candidates,
)
from wds_pipeline.training.decode_media import MEDIA

AUTO = "auto"
OTHERS = "*"
FieldSpec = str | ImageSpec | Callable[[bytes], Any] | None
_GZIP = ".gz"


class Work(NamedTuple):
    """What decodes one field, and how messages call what it expects; `own` is whether the function is
    the user's, `refused` whether it is a pickle that nobody permitted."""

    load: Callable[[bytes], Any]
    expected: str
    own: bool = False
    refused: bool = False


class Rules:
    """From a spec to each field's function. Raises ConfigError for what cannot be."""

    def __init__(
        self, spec: str | ImageSpec | Mapping[str, FieldSpec], allow_pickle: bool, named: str
    ) -> None:
        self._named = named
        self._allow_pickle = allow_pickle
        self.by_field: Mapping[str, FieldSpec]
        if isinstance(spec, Mapping):
            self.by_field = {str(name).lower().lstrip("."): each for name, each in spec.items()}
            self._images: ImageSpec | None = None
        else:
            self.by_field = {OTHERS: AUTO}
            self._images = self._top(spec)
        for name, each in self.by_field.items():
            self._check(name, each)

    def _top(self, spec: str | ImageSpec) -> ImageSpec | None:
        if isinstance(spec, ImageSpec):
            return spec
        if spec == AUTO:
            return None
        if spec not in IMAGE_SPECS:
            raise ConfigError(
                f"{self._named}: decode={spec!r}: expected {AUTO!r} or an image spec "
                f"({', '.join(IMAGE_SPECS)}) for all fields by their extensions, or a mapping such as "
                f"{{'jpg': 'rgb8', 'txt': 'txt'}}{did_you_mean(spec, IMAGE_SPECS)}"
            )
        return ImageSpec(spec)

    def _check(self, name: str, spec: FieldSpec) -> None:
        if spec is None or isinstance(spec, ImageSpec) or callable(spec):
            return
        known = [AUTO, *IMAGE_SPECS, *KINDS, *MEDIA]
        if not isinstance(spec, str) or spec.removesuffix(_GZIP) not in known:
            raise ConfigError(
                f"{self._named}: decode={{{name!r}: {spec!r}}}: expected {AUTO!r}, an image spec "
                f"({', '.join(IMAGE_SPECS)}), the name of a format ({', '.join([*KINDS, *MEDIA])}), a "
                f"function that gets bytes, or None{did_you_mean(str(spec), known)}"
            )

    def check_names(self, known: list[str]) -> None:
        """Raises ConfigError for a rule that is for none of the dataset's fields."""
        for name in self.by_field:
            if name != OTHERS and not any(_ends(each, name) for each in known):
                raise ConfigError(
                    f"{self._named}: decode: no field is, or ends with, {name!r}; there are "
                    f"{', '.join(known)}{did_you_mean(name, known)}"
                )

    def work(self, field: str) -> Work | None:
        """What decodes a field; None: it stays as it is. Raises ConfigError where a package is missing."""
        name = field.lower()
        spec = self._spec_of(name)
        if spec is None:
            return None
        if callable(spec) and not isinstance(spec, ImageSpec):
            return Work(spec, f"what {called(spec)} decodes", own=True)
        inner = _unzipped(name)
        work = self._of(field, inner.rpartition(".")[2], spec)
        if inner == name:
            return work
        if work is None:
            return Work(gunzip, "gzip")
        unpacked = _Unpacked(work.load)
        return work._replace(load=unpacked, expected=f"{work.expected}, compressed by gzip")

    def _spec_of(self, name: str) -> FieldSpec:
        """The rule with the longest name that the field's ends with."""
        found = [rule for rule in self.by_field if rule != OTHERS and _ends(name, rule)]
        return self.by_field.get(max(found, key=len) if found else OTHERS)

    def _of(self, field: str, extension: str, spec: str | ImageSpec) -> Work | None:
        if isinstance(spec, str):
            spec = spec.removesuffix(_GZIP)
        if spec == AUTO:
            if extension in KINDS:
                return self._kind(field, KINDS[extension])
            if self._images is None or not candidates(extension):
                return None
            spec = self._images
        elif isinstance(spec, str):
            if spec in KINDS:
                return self._kind(field, KINDS[spec])
            if spec in MEDIA:
                return self._kind(field, MEDIA[spec])
            spec = ImageSpec(spec)
        if spec.form.kind == "torch":
            self._check_package(field, ("torch", "torch"))
        return Work(ImageDecoder(spec, extension), "a whole picture")

    def _kind(self, field: str, kind: Kind) -> Work:
        if kind.package is not None:
            self._check_package(field, kind.package)
        load = kind.pickled if self._allow_pickle and kind.pickled is not None else kind.load
        return Work(load, kind.expected, refused=load is refused)

    def _check_package(self, field: str, package: tuple[str, str]) -> None:
        module, name = package
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"{self._named}: decode: the field {field!r} needs the package {name}, which is not "
                f"installed: `pip install {name}`; or leave its bytes as they are: "
                f"decode={{{field!r}: None, …}}"
            )


class _Unpacked:
    """What decodes a compressed field."""

    def __init__(self, load: Callable[[bytes], Any]) -> None:
        self._load = load

    def __call__(self, data: bytes) -> Any:
        return self._load(gunzip(data))


def _ends(field: str, rule: str) -> bool:
    """Whether a rule is for a field: `png` for `png`, `seg.png` and `png.gz`, not for `apng`."""
    name = field.lower()
    return any(each == rule or each.endswith(f".{rule}") for each in (name, _unzipped(name)))


def _unzipped(name: str) -> str:
    """The field that a compressed one holds: `txt` of `txt.gz`, nothing of `gz`."""
    return f".{name}".removesuffix(_GZIP)[1:]


def called(function: Any) -> str:
    """How messages name a function."""
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)

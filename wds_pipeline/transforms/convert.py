"""`convert`: pictures to another format or colour mode."""

from __future__ import annotations

from typing import Any

from wds_pipeline.transforms.api import Rejected, Sample
from wds_pipeline.transforms.colours import HELD
from wds_pipeline.transforms.parameters import field_names, one_of, wrong
from wds_pipeline.transforms.picture_options import FORMATS, PictureOptions, extension_of

_MODES = ("RGB", "RGBA", "L", "LA", "CMYK")
_ALSO = {"jpeg": "jpg", "tiff": "tif"}


class Convert:
    """Pictures to `format` (jpg, png, webp, …; None: as the field says) and `mode` (Pillow's; None: as it is,
    or the nearest that the format holds).

    A field's last extension becomes the format's: seg.png → seg.webp. `options` are those of
    `PictureOptions`.
    """

    VERSION = "1"
    NARROWED_BY = "fields"

    def __init__(
        self,
        fields: list[str],
        format: str | None = None,
        mode: str | None = None,
        **options: Any,
    ) -> None:
        """Raises ValueError or ConfigError for what is not possible."""
        if format is not None:
            format = one_of("format", _ALSO.get(format, format), FORMATS)
        self._names = {each: _named(each, format) for each in field_names("fields", fields)}
        extensions = [extension_of(each) for each in self._names.values()]
        self._options = PictureOptions.of(options, extensions, type(self))
        self._mode = None if mode is None else one_of("mode", mode, _MODES)
        for each in extensions if mode is not None else ():
            if mode not in HELD[FORMATS[each]]:
                held = ", ".join(found for found in HELD[FORMATS[each]] if found in _MODES)
                raise wrong("mode", mode, f"for {each} one of {held}")

    def __call__(self, sample: Sample) -> Sample:
        """Raises Rejected for what is no picture, and where the new name is another field's."""
        found: Sample = {}
        for name, value in sample.items():
            new = self._names.get(name)
            if new is None:
                found[name] = value
                continue
            if new in found or (new != name and new in sample):
                raise Rejected(
                    f"{name} would become {new}, which the sample has already; drop one first"
                )
            picture = self._options.open(value, name)
            found[new] = self._options.write(picture.pixels(), picture.profile, new, self._mode)
        return found


def _named(field: str, format: str | None) -> str:
    if format is None or extension_of(field) == format:
        return field
    before, dot, _ = field.rpartition(".")
    return f"{before}{dot}{format}"

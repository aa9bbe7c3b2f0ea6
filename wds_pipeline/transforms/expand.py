"""`expand`: an archive into the samples that are in it."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from wds_pipeline.dataset.naming import OK, PROBLEMS, name_status
from wds_pipeline.transforms.api import Rejected, Sample
from wds_pipeline.transforms.archive import Limits, members
from wds_pipeline.transforms.kept_fields import check_keep, kept
from wds_pipeline.transforms.parameters import field_names, whole, wrong

_KINDS = ("zip", "tar", "tar.gz", "tgz")
_IGNORED = (
    "__MACOSX/*",
    "*/__MACOSX/*",
    ".*",
    "*/.*",
    "Thumbs.db",
    "*/Thumbs.db",
    "desktop.ini",
    "*/desktop.ini",
)


class Expand:
    """The members of an archive as samples `<key>/<member's name>`, those that share a name as fields of one:
    `a/1.jpg` and `a/1.txt` in the zip of `0001` become the sample `0001/a/1`. Sorted by name.

    The archive is the first of `fields` that a sample has: a zip, a tar or a tar.gz by its content. `keep`
    says which other fields each sample gets: all, none, or a list. `ignore` are globs of members that are
    no data; all else must have a name that readers find again. More than `max_members`, more than
    `max_bytes` in all, or more than `max_ratio` times the archive's size are rejected, as are links, devices,
    absolute paths, `..`, and members that come twice.
    """

    VERSION = "1"
    NARROWED_BY = "fields"

    def __init__(
        self,
        fields: list[str],
        keep: str | list[str] = "all",
        ignore: list[str] | None = None,
        max_members: int = 100_000,
        max_bytes: int = 256_000_000,
        max_ratio: int = 200,
    ) -> None:
        """Raises ValueError for what is not possible."""
        self._fields = field_names("fields", fields)
        for each in self._fields:
            if not any(each == kind or each.endswith(f".{kind}") for kind in _KINDS):
                raise wrong("fields", each, f"archives, whose names end with {', '.join(_KINDS)}")
        self._keep = check_keep(keep)
        self._ignore = _globs(ignore)
        self._limits = Limits(
            whole("max_members", max_members, 1),
            whole("max_bytes", max_bytes, 1),
            whole("max_ratio", max_ratio, 1),
        )

    def __call__(self, sample: Sample) -> Iterator[Sample]:
        """Raises Rejected for what is no archive, is damaged, or is not safe."""
        field = next((each for each in self._fields if each in sample), None)
        if field is None:
            yield sample
            return
        shared = kept(sample, self._keep, without=self._fields)
        try:
            found = self._samples(sample[field], sample["__key__"])
        except Rejected as error:
            raise Rejected(f"{field}: {error}") from error
        if not found:
            raise Rejected(f"{field}: the archive holds no file")
        for key, made in found.items():
            for name in made:
                if name in shared:
                    raise Rejected(
                        f"{field}: its member {key}.{name} and the field {name} beside the archive have "
                        f"the same name; leave one out (keep)"
                    )
            yield {"__key__": key, **shared, **made}

    def _samples(self, data: bytes, origin: str) -> dict[str, dict[str, bytes]]:
        """Fields by key, sorted."""
        found: dict[str, dict[str, bytes]] = {}
        for path, content in members(data, self._limits, self._ignored):
            folder, slash, last = path.rpartition("/")
            stem, _, field = last.partition(".")
            field = field.lower()
            key = f"{origin}/{folder}{slash}{stem}"
            status = name_status(key, field)
            if not stem or not field or status != OK:
                why = PROBLEMS.get(status) or "expected a name and an extension"
                raise Rejected(f"the member {path!r}: {why}; ignore leaves such out")
            if field in found.setdefault(key, {}):
                raise Rejected(f"the member {path!r}: the field {field} of {key} comes twice")
            found[key][field] = content
        return dict(sorted(found.items()))

    def _ignored(self, path: str) -> bool:
        return any(fnmatchcase(path, glob) for glob in self._ignore)


def _globs(found: Any) -> tuple[str, ...]:
    if found is None:
        return _IGNORED
    if not isinstance(found, list | tuple) or not all(isinstance(each, str) for each in found):
        raise wrong("ignore", found, "a list of globs, such as ['*.db']")
    return tuple(found)

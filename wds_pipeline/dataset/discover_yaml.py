"""A discovery as a dataset's YAML file, with its reasons in comments."""

from __future__ import annotations

import json
import re
import textwrap
from typing import Any

import yaml

from wds_pipeline.dataset.discover import Discovery
from wds_pipeline.dataset.discover_fields import FoundField
from wds_pipeline.dataset.wording import counted, human_bytes, printable

_WIDTH = 96  # of comments
_PLAIN = re.compile(r"[A-Za-z0-9_./-]*[A-Za-z][A-Za-z0-9_./-]*")


def render(found: Discovery) -> str:
    """The file's text."""
    values = found.values
    files, size = found.listing.files.num_rows, human_bytes(found.listing.bytes)
    lines = [
        f"# Proposed by `wds-pipeline init` for what it found: {counted(files, 'file')}, {size}.",
        "# Every key: docs/config.md. Relative URLs start at this file.",
        f"name: {_scalar(values['name'])}",
        f"source: {{url: {_scalar(values['source']['url'])}}}",
        f"destination: {{url: {_scalar(values['destination']['url'])}}}",
        *_samples(found),
        *_split(found),
        *_shards(found),
        "verify: {level: decode}  # read everything back before it is published",
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _scalar(value: Any) -> str:
    """A value in YAML that also stands inside of braces."""
    text = str(value)
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(text) and isinstance(yaml.safe_load(text), str)
        return text if plain else json.dumps(text, ensure_ascii=False)
    return text


def _list(values: list[str]) -> str:
    return f"[{', '.join(map(_scalar, values))}]"


def _samples(found: Discovery) -> list[str]:
    values = found.values["samples"]
    lines = ["samples:", *_naming(found)]
    if found.folders is not None:
        key = values["key"]
        shown = printable(found.folders.example)
        lines += [
            f"  # {' and '.join(found.folders.folders)} hold parts of the same samples:",
            f"  # without the folder's name they share a key, such as {shown}.",
            f"  key: {{pattern: {_single(key['pattern'])}, replace: {_single(key['replace'])}}}",
        ]
    lines.append("  fields:")
    rows = [(each, f"    {_scalar(each.name)}: {_list(values['fields'][each.name])}")
            for each in found.fields]  # fmt: skip
    width = max(len(row) for _, row in rows)
    for each, row in rows:
        if each.mixed:
            lines.append(
                "    # Several formats, one a sample: one field, for decoders look at the content."
            )
        lines.append(f"{row.ljust(width)}  # {_share(each, found)}")
    if found.ignored:
        names = ", ".join(f"{printable(k)} ({n:,})" for k, n in list(found.ignored.items())[:8])
        lines.append(f"    # Left out, for they stand alone or are rare: {names}")
    required = f"  required: {_list(values['required'])}"
    if values["required"]:
        lines.append(f"{required}  # samples without one go to the quarantine")
    else:
        lines.append(f"{required}  # no field is in (nearly) all samples")
    if "max_quarantined" in values:
        why = ", ".join(f"{each.count:,} {each.reason}" for each in found.quarantined)
        unusable = counted(found.plan.quarantine.num_rows, "sample")
        text = f"{unusable} of {found.samples:,} cannot be used as they are: {why}."
        lines += [f"  # {line}" for line in textwrap.wrap(text, _WIDTH)]
        lines.append(
            f"  max_quarantined: {values['max_quarantined']}  # lower it once they are mended"
        )
    return lines


def _naming(found: Discovery) -> list[str]:
    if not found.dotted_count:
        return []
    example = printable(found.dotted[0].rpartition("/")[2])
    many = f"{counted(found.dotted_count, 'file')} with a dot in the stem, such as {example}"
    rule = found.values["samples"].get("naming")
    if rule is None:
        return [
            f"  # {many}, will be in the quarantine, for WebDataset",
            "  # splits at the first dot. To take them, with other dots as _:",
            "  # naming: last_dot",
        ]
    how = "_" if rule == "last_dot" else "%2E"
    why = "" if rule == "last_dot" else " (as _ they would be other samples' keys)"
    return [
        f"  # {many}: WebDataset would split at the first dot.",
        f"  naming: {rule}  # splits at the last dot; other dots become {how}{why}",
    ]


def _single(text: str) -> str:
    """In single quotes, where a regular expression's backslashes stay as they are."""
    return "'" + text.replace("'", "''") + "'"


def _share(each: FoundField, found: Discovery) -> str:
    line = f"{each.samples:,} of {counted(found.samples, 'sample')}"
    if len(each.extensions) > 1:
        line += ": " + ", ".join(f"{count:,} {name}" for name, count in each.extensions.items())
    return line


def _split(found: Discovery) -> list[str]:
    values = found.values["split"]
    if found.split_folders:
        names = ", ".join(found.split_folders)
        default = f", default: {_scalar(values['default'])}" if "default" in values else ""
        return [f"split: {{by: directory{default}}}  # the first folders are {printable(names)}"]
    ratios = ", ".join(f"{name}: {share:g}" for name, share in values.items())
    lines = [f"split: {{{ratios}}}  # by a hash of the key: a sample never changes its split"]
    if found.groups > 1:
        lines += [
            f"# If each of the {found.groups:,} first folders holds what belongs together (a video's",
            "# frames, a person's pictures), keep it in one split:",
            f"# split: {{{ratios}, group_by: '^([^/]+)/'}}",
        ]
    return lines


def _shards(found: Discovery) -> list[str]:
    size = found.values["shards"]["max_bytes"]
    count = len(found.plan.shards)
    return [
        f"# {counted(count, 'shard')}: up to 64, for parallel readers, but none below 16 or above 256 MB",
        f"shards: {{max_bytes: {size}}}",
    ]

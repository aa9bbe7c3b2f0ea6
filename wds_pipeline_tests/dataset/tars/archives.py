"""Tars of generated samples, and what the standard library reads in them, as the model."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st

from wds_pipeline_tests.dataset.foreign_tars import make

Content = tuple[tuple[str, bytes], ...]  # (field, data), in order
Found = list[tuple[str, Content]]  # (key, its content), in order

_FORMATS = (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
_LETTERS = st.text(st.sampled_from("abZ09_-é ü日"), min_size=1, max_size=4)
_FOLDERS = st.sampled_from(["", "a/", "v1.0/b/", "x" * 90 + "/" + "y" * 80 + "/", "./"])
_STEMS = _LETTERS.filter(lambda text: "__" not in text)
_FIELDS = st.sampled_from(["jpg", "JPG", "txt", "seg.png", "json", "tar.gz", "n"])
_DATA = st.binary(max_size=40) | st.sampled_from([b"", b"x" * 512, b"y" * 1500])
_OTHERS = st.sampled_from(["README", "d/__meta__/x.txt", "._a.jpg", ".hidden"])


class Archive(NamedTuple):
    """A tar to be: names and data, in one of tarfile's formats."""

    members: tuple[tuple[str, bytes], ...]
    format: int = tarfile.PAX_FORMAT

    def build(self) -> bytes:
        long = any(len(each.encode()) > 100 for each, _ in self.members)
        plain = self.format == tarfile.USTAR_FORMAT
        return make(self.members, tarfile.PAX_FORMAT if long and plain else self.format)


def name(key: str, field: str) -> str:
    return f"{key}.{field}"


@st.composite
def _members(draw: st.DrawFn) -> list[tuple[str, bytes]]:
    members: list[tuple[str, bytes]] = []
    for _ in range(draw(st.integers(0, 5))):
        key = draw(_FOLDERS) + draw(_STEMS)
        fields = draw(st.lists(_FIELDS, min_size=1, max_size=3))
        members += [(name(key, field), draw(_DATA)) for field in fields]
        if draw(st.integers(0, 5)) == 0:
            members.append((draw(_OTHERS), b"?"))
    return members


@st.composite
def archives(draw: st.DrawFn) -> list[Archive]:
    """Some tars of some formats, with names and samples that come twice among them."""
    parts = [draw(_members()) for _ in range(draw(st.integers(1, 3)))]
    if draw(st.booleans()):
        parts.append(parts[0])
    return [Archive(tuple(part), draw(st.sampled_from(_FORMATS))) for part in parts]


def write(folder: Path, tars: Iterable[Archive]) -> list[str]:
    """Puts tars into a folder; returns their paths."""
    paths = []
    for number, each in enumerate(tars):
        path = folder / f"in-{number}.tar"
        path.write_bytes(each.build())
        paths.append(str(path))
    return paths


def samples(*tars: Archive | Path) -> Found:
    """What is in tars, by tarfile and by webdataset's rule; a field that comes twice begins another."""
    found: Found = []
    for each in tars:
        data = each.build() if isinstance(each, Archive) else each.read_bytes()
        last: str | None = None
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                match = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", member.name, re.DOTALL)
                hidden = re.search(r"__[^/]*__($|/)", member.name) or "/._" in f"/{member.name}"
                if not member.isreg() or match is None or hidden:
                    continue
                file = tar.extractfile(member)
                assert file is not None
                key, field = match[1], match[2]
                content = (field, file.read())
                if key == last and field.lower() not in [name.lower() for name, _ in found[-1][1]]:
                    found[-1] = key, (*found[-1][1], content)
                else:
                    found.append((key, (content,)))
                last = key
    return found


def renamed(found: Found) -> Found:
    """What is to come of keys that come twice: numbers behind them."""
    seen: set[str] = set()
    result = []
    for key, content in found:
        new, number = key, 2
        while new in seen:
            new, number = f"{key}-{number}", number + 1
        seen.add(new)
        result.append((new, content))
    return result


def keys(found: Iterable[tuple[str, Content]]) -> list[str]:
    return [key for key, _ in found]

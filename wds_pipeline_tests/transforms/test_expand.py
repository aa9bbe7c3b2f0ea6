"""`expand`: nothing is lost, and nothing that is not safe comes out."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wds_pipeline.errors import ConfigError
from wds_pipeline.transforms.api import Rejected, Sample
from wds_pipeline.transforms.expand import Expand
from wds_pipeline_tests.transforms.media import sample

FILES = {
    "b/2.jpg": b"two",
    "b/2.txt": b"of two",
    "1.jpg": b"one",
    "b/10.seg.png": b"",
    "v1.0/a.JPG": b"a",
}
SAMPLES = {
    "k/1": {"jpg": b"one"},
    "k/b/10": {"seg.png": b""},
    "k/b/2": {"jpg": b"two", "txt": b"of two"},
    "k/v1.0/a": {"jpg": b"a"},
}


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return sink.getvalue()


def tarred(
    files: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] | None = None
) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if change is not None:
                change(info)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def targz(files: dict[str, bytes]) -> bytes:
    return gzip.compress(tarred(files))


KINDS = [zipped, tarred, targz]


def expanded(data: bytes, field: str = "zip", **parameters: Any) -> list[Sample]:
    return list(Expand([field], **parameters)({"__key__": "k", field: data, "json": b"{}"}))


def by_key(found: list[Sample]) -> dict[str, dict[str, bytes]]:
    return {each.pop("__key__"): each for each in found}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", ["zip", "frames.tar.gz"])
def test_members_become_samples_by_their_content(kind: Callable[..., bytes], field: str) -> None:
    found = by_key(expanded(kind(FILES), field, keep="none"))
    assert found == SAMPLES
    assert list(found) == sorted(SAMPLES)
    turned = dict(reversed(FILES.items()))
    assert by_key(expanded(kind(turned), field, keep="none")) == SAMPLES


def test_other_fields_go_along() -> None:
    found = by_key(expanded(zipped(FILES)))
    assert found == {key: {"json": b"{}", **fields} for key, fields in SAMPLES.items()}
    with pytest.raises(Rejected, match=r"member k/a\.json and the field json beside the archive"):
        expanded(zipped({"a.json": b""}))
    assert list(Expand(["zip"])(sample(txt=b"x"))) == [sample(txt=b"x")]


_PART = st.text("ab1-é ", min_size=1, max_size=3).filter(lambda part: part.strip() == part)
_PATH = st.builds(
    lambda folders, stem, field: "/".join([*folders, f"{stem}.{field}"]),
    st.lists(_PART, max_size=2),
    _PART,
    st.sampled_from(["jpg", "txt", "seg.png"]),
)


@given(
    files=st.dictionaries(_PATH, st.binary(max_size=20), min_size=1, max_size=8),
    kind=st.sampled_from(KINDS),
)
def test_nothing_is_lost_and_nothing_is_added(
    files: dict[str, bytes], kind: Callable[..., bytes]
) -> None:
    found = by_key(expanded(kind(files), keep="none"))
    again = {
        f"{key}.{name}": data for key, fields in found.items() for name, data in fields.items()
    }
    assert again == {f"k/{path}": data for path, data in files.items()}


def test_what_is_no_data_is_passed_over() -> None:
    files = {
        "__MACOSX/._a.jpg": b"",
        "a/.DS_Store": b"",
        "Thumbs.db": b"",
        "a/": b"",
        "a.jpg": b"x",
    }
    assert list(by_key(expanded(zipped(files)))) == ["k/a"]
    with pytest.raises(Rejected, match=r"member 'a/\.DS_Store'"):
        expanded(zipped({"a/.DS_Store": b""}), ignore=[])
    readme = {"README": b"", "a.jpg": b"x"}
    with pytest.raises(
        Rejected, match="the member 'README': expected a name and an extension; ignore"
    ):
        expanded(zipped(readme))
    assert list(by_key(expanded(zipped(readme), ignore=["README"]))) == ["k/a"]


@pytest.mark.parametrize("kind", [zipped, tarred])
@pytest.mark.parametrize(
    "path", ["/etc/a.jpg", "../a.jpg", "a/../../b.jpg", "a\\..\\b.jpg", "C:/a.jpg"]
)
def test_a_path_that_leads_out_is_rejected(kind: Callable[..., bytes], path: str) -> None:
    with pytest.raises(Rejected, match=r"zip: the member .* leads out of the archive"):
        expanded(kind({"a.jpg": b"", path: b""}))


@pytest.mark.parametrize(
    "type_", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_rejected(type_: bytes) -> None:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = type_, "/etc/passwd"

    with pytest.raises(Rejected, match=r"member 'a\.jpg' is a link, a device or sparse"):
        expanded(tarred({"a.jpg": b""}, change))


def test_a_link_in_a_zip_is_rejected() -> None:
    info = zipfile.ZipInfo("a.jpg")
    info.external_attr = 0o120777 << 16
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(Rejected, match=r"member 'a\.jpg' is a link or a device"):
        expanded(sink.getvalue())


@pytest.mark.parametrize("kind", [zipped, targz])
def test_bombs_are_rejected_before_they_are_held(kind: Callable[..., bytes]) -> None:
    bomb = kind({"a.bin": bytes(40_000_000)})
    assert len(bomb) < 50_000
    with pytest.raises(Rejected, match="max_bytes and max_ratio allow more"):
        expanded(bomb)
    found = expanded(bomb, max_ratio=2_000)
    assert len(found[0]["bin"]) == 40_000_000
    with pytest.raises(Rejected, match="max_bytes"):
        expanded(bomb, max_ratio=2_000, max_bytes=1_000_000)


def test_a_size_that_lies_is_no_way_around() -> None:
    bomb = zipped({"a.bin": bytes(1_000_000)})
    lie = bomb.replace(struct.pack("<I", 1_000_000), struct.pack("<I", 10))
    with pytest.raises(Rejected, match="CRC"):
        expanded(lie)


def test_methods_that_unpack_without_a_bound_are_rejected() -> None:
    with pytest.raises(Rejected, match="neither stored nor deflated"):
        expanded(zipped(FILES, zipfile.ZIP_LZMA))


def test_too_many_members() -> None:
    with pytest.raises(Rejected, match="more than 4 members"):
        expanded(zipped(FILES), max_members=4)
    assert len(expanded(zipped(FILES), max_members=5)) == 4


@pytest.mark.parametrize("kind", [zipped, targz])
def test_a_damaged_archive_is_rejected(kind: Callable[..., bytes]) -> None:
    whole = kind({"a.txt": b"some text " * 50, "b.txt": b"x"})
    for end in range(0, len(whole), 7):
        with pytest.raises(Rejected):
            expanded(whole[:end])


def test_a_tar_that_ends_early_is_rejected() -> None:
    whole = tarred({"a.txt": bytes(5_000), "b.txt": bytes(5_000)})
    for end in (100, 600, 5_000, 7_000, 9_000):
        with pytest.raises(Rejected):
            expanded(whole[:end])


def test_twice_the_same() -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w") as archive:
            archive.writestr("a.jpg", "1")
            archive.writestr("a.jpg", "2")
    with pytest.raises(Rejected, match=r"member 'a\.jpg' comes twice"):
        expanded(sink.getvalue())
    with pytest.raises(Rejected, match="the field jpg of k/a comes twice"):
        expanded(zipped({"a.jpg": b"", "a.JPG": b""}))


def test_an_empty_archive_is_rejected() -> None:
    for data in (zipped({}), zipped({"a/": b""}), tarred({})):
        with pytest.raises(Rejected, match="zip: the archive holds no file"):
            expanded(data)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"fields": ["rar"]},
            "fields: found 'rar'; expected archives, whose names end with zip, tar",
        ),
        ({"keep": 3}, "keep: found 3"),
        ({"ignore": "*.db"}, "ignore: found '\\*.db'; expected a list of globs"),
        ({"max_bytes": 0}, "max_bytes: found 0"),
        ({"max_members": 1.5}, "max_members: found 1.5"),
        ({"max_ratio": "1"}, "max_ratio: found '1'"),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=message):
        Expand(**{"fields": ["zip"], **parameters})

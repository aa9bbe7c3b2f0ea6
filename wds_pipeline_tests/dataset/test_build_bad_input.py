"""What bad input gets: an error that says what, where and what to do, or the quarantine with a reason.

One test for each line of the table in the project's first issue; a YAML's typos are in `test_config`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from wds_pipeline.compute import open_pool
from wds_pipeline.dataset import version
from wds_pipeline.dataset.build import Build
from wds_pipeline.errors import (
    ConfigError,
    DataError,
    DestinationError,
    SourceError,
    VersionError,
    WdsPipelineError,
)
from wds_pipeline.storage import LocalStorage
from wds_pipeline_tests.conftest import Project, png


@pytest.fixture
def ten(project: Project) -> Project:
    """Ten good samples, to which a test adds a bad one."""
    project.add(0, 10)
    return project


def refused(project: Project, kind: type[WdsPipelineError], *says: str, **options: Any) -> None:
    """The build fails with a message that says all this; nothing is published."""
    before = version.list_versions(project.storage) if project.destination.is_dir() else []
    with pytest.raises(kind) as caught:
        project.build(**options)
    message = str(caught.value)
    for each in ("small", *says):
        assert each in message, message
    if project.destination.is_dir():
        assert version.list_versions(project.storage) == before
        assert project.stray() == []


def quarantined(project: Project, key: str, reason: str, *says: str, **options: Any) -> None:
    """The build publishes all but one sample, whose reason and detail are kept; nothing is lost."""
    manifest = project.build(**options).manifest
    table = version.read_table(project.storage, manifest, version.QUARANTINE).to_pylist()
    (row,) = table
    assert (row["key"], row["reason"]) == (key, reason)
    for each in says:
        assert each in row["detail"], row["detail"]
    assert row["files"]
    assert all((project.source / path).exists() for path in row["files"])
    published = project.published()
    assert key not in published
    assert len(published) == 10
    summary = manifest.verification
    assert summary["samples_in"] == 11
    assert summary["samples_in"] == summary["published"] + summary["quarantined"]
    on_disk = sum(1 for path in project.source.rglob("*") if path.is_file())
    assert sum(manifest.files.values()) == on_disk, "no file is dropped without a word"
    report = json.loads(version.read_file(project.storage, manifest, version.REPORT_JSON))
    assert reason in json.dumps(report)
    assert project.build(**options).status == "unchanged"


# ------------------------------------------------------------------------------------ the source


def test_an_empty_source(project: Project) -> None:
    refused(
        project,
        SourceError,
        "source.url",
        str(project.source),
        "no file to take",
        "check source.url",
    )


def test_a_source_of_folders_alone(project: Project) -> None:
    (project.source / "a/b").mkdir(parents=True)
    refused(project, SourceError, "no file to take")


def test_a_source_of_skipped_files_alone(project: Project) -> None:
    project.write("a/.hidden.jpg", b"x")
    refused(project, SourceError, "no file to take", "left out: 1 hidden")


def test_a_source_that_is_gone(project: Project) -> None:
    project.source.rmdir()
    refused(
        project, SourceError, str(project.source), "found nothing; expected a folder", "mount it"
    )


def test_a_source_that_vanishes_between_two_builds(ten: Project) -> None:
    """An unmounted disk is an error; it is never taken for deletions."""
    ten.build()
    ten.source.rename(ten.folder / "elsewhere")
    refused(ten, SourceError, "found nothing")
    ten.source.mkdir()
    refused(ten, SourceError, "no file to take")
    assert len(ten.published()) == 10


def test_a_source_that_is_a_file(project: Project) -> None:
    project.source.rmdir()
    project.source.write_bytes(b"")
    refused(project, SourceError, "found a file; expected a folder")


def reachable(folder: Path) -> None:
    """Lets others come as far as this folder."""
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o711)


def test_a_folder_without_permission(
    ten: Project, unprivileged: Callable[[Callable[[], Any]], str]
) -> None:
    ten.write("secret/1.png", png(1))
    ten.destination.mkdir()
    ten.destination.chmod(0o777)
    reachable(ten.folder)
    (ten.source / "secret").chmod(0)
    text = unprivileged(ten.build)
    (ten.source / "secret").chmod(0o755)
    assert text.startswith("SourceError: small: source.url: 1 folders or files cannot be read")
    assert f"{ten.source}/secret: Permission denied" in text
    assert "source.exclude" in text
    assert version.latest(ten.storage) is None


def test_files_without_permission(
    ten: Project, unprivileged: Callable[[Callable[[], Any]], str]
) -> None:
    """Their samples go to the quarantine in one round; mended rights bring them back."""
    for key in ("0003", "0004", "0005"):
        (ten.source / f"a/{key}.txt").chmod(0)
    ten.destination.mkdir()
    ten.destination.chmod(0o777)
    reachable(ten.folder)
    assert unprivileged(ten.build) == ""
    manifest = ten.latest()
    assert manifest.quarantined == {"unreadable": 3}
    details = version.read_table(ten.storage, manifest, version.QUARANTINE)["detail"].to_pylist()
    assert details[0] == "a/0003.txt: cannot be read: Permission denied"
    for key in ("0003", "0004", "0005"):
        (ten.source / f"a/{key}.txt").chmod(0o644)
    assert ten.build().status == "published"
    assert ten.published() == ten.raw()


# ------------------------------------------------------------------------------------ the destination


def test_a_destination_that_is_not_writable(
    ten: Project, unprivileged: Callable[[Callable[[], Any]], str]
) -> None:
    reachable(ten.folder)
    text = unprivileged(ten.build)
    assert text.startswith(f"DestinationError: {ten.destination}")
    assert "not writable (Permission denied)" in text
    assert "change its permissions or destination.url" in text
    assert not ten.destination.exists()


def test_a_destination_that_is_not_writable_any_more(
    ten: Project, unprivileged: Callable[[Callable[[], Any]], str]
) -> None:
    ten.build()
    ten.add(10, 2)
    reachable(ten.folder)
    text = unprivileged(ten.build)
    assert text.startswith(f"DestinationError: {ten.destination}")
    assert "not writable (Permission denied)" in text
    assert ten.latest().version == 1


@pytest.mark.parametrize("what", ["", "wds_pipeline.json", "versions", "shards"])
def test_a_destination_that_is_not_readable(
    ten: Project, unprivileged: Callable[[Callable[[], Any]], str], what: str
) -> None:
    ten.build()
    reachable(ten.folder)
    (ten.destination / what).chmod(0)
    text = unprivileged(ten.build)
    (ten.destination / what).chmod(0o755)
    assert text.startswith(("DestinationError", "VersionError")), text
    assert "Permission denied" in text


def test_a_destination_without_room(ten: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStorage, "free_bytes", lambda self: 12_345)
    refused(ten, DestinationError, "12,345 bytes are free", "are needed", "wds-pipeline gc small")
    assert not list(ten.destination.rglob("*.tar"))


@pytest.fixture
def small_disk(ten: Project) -> Any:
    ten.destination.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=140k", "tmpfs", str(ten.destination)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small filesystem")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(ten.destination)], check=True)


def test_a_disk_that_fills_up(
    ten: Project, small_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ten.add(10, 40)
    monkeypatch.setattr(LocalStorage, "free_bytes", lambda self: None)  # others write too
    with pytest.raises(DestinationError, match=r"the disk is full.*free some space.*build again"):
        ten.build()
    assert ten.stray() == []
    seals = [path.name.partition(".")[0] for path in ten.destination.glob("shards/*.seal.json")]
    kept = {name: (ten.destination / f"shards/{name}.tar").stat().st_ino for name in seals}
    assert len(kept) >= 3
    subprocess.run(["mount", "-o", "remount,size=9m", str(ten.destination)], check=True)
    assert ten.build().status == "published"
    assert all(
        (ten.destination / f"shards/{name}.tar").stat().st_ino == inode
        for name, inode in kept.items()
    )
    assert ten.published() == ten.raw()


def test_a_destination_that_holds_something_else(ten: Project) -> None:
    ten.destination.mkdir()
    (ten.destination / "thesis.tex").write_text("mine")
    refused(ten, DestinationError, "destination.url", "a folder with other files", "Choose another")
    assert os.listdir(ten.destination) == ["thesis.tex"]


def test_a_destination_that_holds_another_dataset(ten: Project) -> None:
    ten.build()
    with pytest.raises(
        DestinationError, match=r"other: destination.url: .*holds the dataset 'small'; give each"
    ):
        ten.build(name="other")
    assert ten.latest().version == 1


def test_a_destination_that_is_a_file(ten: Project) -> None:
    ten.destination.write_bytes(b"")
    with pytest.raises(DestinationError, match=r"small: .*found a file; expected a folder"):
        ten.build()
    assert ten.destination.read_bytes() == b""


def test_a_destination_below_a_file(ten: Project) -> None:
    (ten.folder / "file").write_bytes(b"")
    with pytest.raises(DestinationError, match="a file"):
        ten.build(destination={"url": str(ten.folder / "file/published")})


@pytest.mark.parametrize(
    ("source", "destination"),
    [("raw", "raw/out"), ("raw", "raw"), ("raw/a", "raw"), ("raw", "raw/../raw/x/"), ("raw", "link/out"),
     ("link", "raw/out"), ("file://{}/raw", "raw/out")],
)  # fmt: skip
def test_a_destination_inside_the_source(ten: Project, source: str, destination: str) -> None:
    (ten.folder / "link").symlink_to(ten.source)
    where = source.format(ten.folder) if "://" in source else str(ten.folder / source)
    options = {"source": {"url": where}, "destination": {"url": str(ten.folder / destination)}}
    with pytest.raises(
        ConfigError, match=r"small: destination.url.*one lies in the other.*outside"
    ):
        ten.build(**options)
    assert not (ten.source / "out").exists()
    assert ten.config(destination={"url": str(ten.folder / "raw2")})
    Build(ten.config(destination={"url": str(ten.folder / "raw2")}))  # a like name is no nesting


# ------------------------------------------------------------------------------------ what is there already


def test_a_manifest_of_a_newer_format(ten: Project) -> None:
    ten.build()
    path = ten.destination / "versions/00000001/manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2', 1))
    ten.add(10, 2)
    before = sorted(ten.shard_files())
    with pytest.raises(
        VersionError, match=r"manifest.json: found format version 2.*reads up to 1. Update"
    ):
        ten.build()
    assert sorted(ten.shard_files()) == before


def test_a_damaged_manifest(ten: Project) -> None:
    ten.build()
    (ten.destination / "versions/00000001/manifest.json").write_bytes(b'{"half')
    with pytest.raises(
        VersionError, match=r"manifest.json: not a readable manifest.*restore the file"
    ):
        ten.build()


@pytest.mark.parametrize("offset", [4, 300, -300, -4])
def test_a_damaged_ledger(ten: Project, offset: int) -> None:
    """A flipped bit must not become another ledger."""
    ten.build()
    path = ten.destination / "versions/00000001/ledger.parquet"
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)
    ten.add(10, 2)
    with pytest.raises(WdsPipelineError, match=r"ledger.parquet: .*(restore|backup)"):
        ten.build()


# ------------------------------------------------------------------------------------ the samples


def test_a_required_field_that_no_sample_has(ten: Project) -> None:
    refused(ten, DataError, "no sample has the field 'cls'", "fields found: json, png, txt",
            samples={"required": ["png", "cls"]})  # fmt: skip


def test_no_file_of_a_wanted_field(ten: Project) -> None:
    refused(ten, DataError, "no file of the source belongs to a sample", "30 unselected",
            samples={"required": [], "fields": {"jpg": ["jpg"]}})  # fmt: skip


def test_every_sample_is_unusable(project: Project) -> None:
    for number in range(3):
        project.write(f"a/{number}.png", b"broken")
        project.write(f"a/{number}.txt", "x")
    refused(project, DataError, "3 samples are unusable", "a/0.png")


def test_a_missing_field(ten: Project) -> None:
    ten.write("a/new.png", png(99))
    quarantined(ten, "a/new", "missing_field", "no txt")
    refused(
        ten, DataError, "missing_field: 1", "a/new", "samples.on_", samples={"on_missing": "error"}
    )


def jpeg_named_png(path: Path) -> None:
    Image.new("RGB", (9, 9)).save(path, "JPEG")


def half(path: Path) -> None:
    data = png(99)
    path.write_bytes(data[: len(data) // 2])


def bomb(path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path, "PNG")


BAD_CONTENT: dict[str, tuple[str, Callable[[Path], Any], str, str]] = {
    "a broken image": ("png", lambda p: p.write_bytes(b"no image"), "broken_image", "a/new.png"),
    "half an image": ("png", half, "broken_image", "a/new.png"),
    "a lying image": ("png", jpeg_named_png, "wrong_format", "JPEG"),
    "a decompression bomb": ("png", bomb, "too_many_pixels", "pixels"),
    "a zero-byte image": ("png", lambda p: p.write_bytes(b""), "empty_file", "zero bytes"),
    "a zero-byte text": ("txt", lambda p: p.write_bytes(b""), "empty_file", "zero bytes"),
    "text not UTF-8": ("txt", lambda p: p.write_bytes(b"caf\xe9"), "bad_text", "0xe9 at offset 3"),
    "bad json": ("json", lambda p: p.write_bytes(b'{"a": '), "bad_json", "does not parse"),
}


@pytest.mark.parametrize("case", BAD_CONTENT)
def test_bad_content(ten: Project, case: str) -> None:
    field, spoil, reason, says = BAD_CONTENT[case]
    (key,) = ten.add(99, 1)
    for path in ten.source.glob(f"{key}.*"):
        path.rename(path.with_name(f"new{path.suffix}"))
    spoil(ten.source / f"a/new.{field}")
    quarantined(ten, "a/new", reason, says, verify={"max_pixels": 1_000_000})
    elsewhere = {
        "destination": {"url": str(ten.folder / "strict")},
        "verify": {"max_pixels": 1_000_000},
    }
    with pytest.raises(DataError, match=rf"(?s)small: .*{reason}: 1.*a/new.*Nothing was published"):
        ten.build(samples={"on_invalid": "error"}, **elsewhere)
    with pytest.raises(DataError, match=r"1 of 11 samples \(9.1%\).*max_quarantined allows 1.0%"):
        ten.build(samples={"max_quarantined": "1%"}, **elsewhere)
    kept = ten.build(samples={"on_invalid": "keep"}, **elsewhere).manifest
    assert kept.total_samples == 11


def test_two_folders_that_collide_after_mapping(ten: Project) -> None:
    """images/… and backup/… become one key: neither may silently win."""
    for folder in ("images", "backup"):
        ten.write(f"{folder}/new.png", png(len(folder)))
    ten.write("captions/new.txt", "one caption")
    rule = {"pattern": "^(images|captions|backup)/", "replace": "all/"}
    quarantined(ten, "all/new", "duplicate_field", "backup/new.png", "images/new.png",
                samples={"key": rule})  # fmt: skip
    refused(ten, DataError, "duplicate_field: 1", "all/new",
            samples={"key": rule, "on_bad_name": "error"})  # fmt: skip


def test_a_field_twice_in_one_sample(ten: Project) -> None:
    ten.write("a/new.jpg", png(1))
    ten.write("a/new.JPEG", png(1))
    ten.write("a/new.txt", "text")
    fields = {"png": ["png", "jpg", "jpeg"], "txt": ["txt"], "json": ["json"]}
    quarantined(
        ten, "a/new", "duplicate_field", "a/new.jpg", "a/new.JPEG", samples={"fields": fields}
    )


@pytest.mark.parametrize(
    ("stem", "key", "reason"),
    [
        ("a/two\nlines", "a/two\nlines", "bad_name"),
        ("a/__cover", "a/__cover", "reserved_name"),
        ("a/photo.v2", "a/photo.v2", "dotted_name"),
    ],
)
def test_names_that_would_be_misread(ten: Project, stem: str, key: str, reason: str) -> None:
    for field, data in (("png", png(99)), ("txt", b"text")):
        ten.write(f"{stem}.{field}", data)
    quarantined(ten, key, reason)
    refused(ten, DataError, f"{reason}: 1", samples={"on_bad_name": "error"})


def test_a_300_byte_name(ten: Project) -> None:
    """A base name of 255 bytes is all that a filesystem holds; a path may be much longer."""
    long = "/".join(["d" * 100, "é" * 50, "n" * 245])
    for field, data in (("png", png(99)), ("txt", b"text")):
        ten.write(f"{long}.{field}", data)
    ten.build()
    assert ten.published() == ten.raw()
    assert long in ten.published()


def test_a_300_byte_base_name_after_mapping(ten: Project) -> None:
    for field, data in (("png", png(99)), ("txt", b"text")):
        ten.write(f"b/{'n' * 240}.{field}", data)
    rule = {"pattern": "^b/", "replace": "b/" + "long-" * 12}
    name = f"b/{'long-' * 12}{'n' * 240}"
    quarantined(ten, name, "name_too_long", "255 bytes", samples={"key": rule})


def test_a_file_that_grows_while_it_is_packed(ten: Project) -> None:
    """It is scanned anew, and if it never rests its sample is left out; the others are published."""
    stop = threading.Event()
    (key,) = ten.add(99, 1)
    log = ten.source / f"{key}.txt"

    def grow() -> None:
        with log.open("ab", buffering=0) as file:
            while not stop.wait(0.0005):
                file.write(b"more ")

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        manifest = ten.build().manifest
    finally:
        stop.set()
        thread.join()
    assert manifest.quarantined == {"unstable": 1}
    (row,) = version.read_table(ten.storage, manifest, version.QUARANTINE).to_pylist()
    assert row["key"] == key
    assert row["detail"].startswith(f"{key}.txt: ")
    raw = ten.raw()
    del raw[key]
    assert ten.published() == raw
    time.sleep(0.03)
    assert ten.build().status == "published", "now it rests"
    assert ten.published() == ten.raw()


def test_a_file_that_grew_once_is_in_the_next_scan(
    ten: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, struck = Build.pack, list[bool]()

    def pack(self: Build, *arguments: Any) -> Any:
        if not struck:
            struck.append(True)
            time.sleep(0.02)
            ten.write("a/0004.txt", "grown since the scan")
            (ten.source / "a/0005.txt").unlink()
            (ten.source / "a/0005.png").unlink()
            (ten.source / "a/0005.json").unlink()
            ten.add(50, 2)
        return real(self, *arguments)

    monkeypatch.setattr(Build, "pack", pack)
    assert ten.build().manifest.quarantined == {}
    assert ten.published() == ten.raw()


def test_a_source_that_vanishes_while_it_is_packed(
    ten: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Build.pack

    def pack(self: Build, *arguments: Any) -> Any:
        if ten.source.exists():
            shutil.move(ten.source, ten.folder / "elsewhere")
        return real(self, *arguments)

    monkeypatch.setattr(Build, "pack", pack)
    refused(ten, SourceError, "found nothing; expected a folder")
    work = Build(ten.config())
    shutil.move(ten.folder / "elsewhere", ten.source)
    with open_pool(ten.config().compute) as pool:
        monkeypatch.undo()
        assert work.finish(work.plan(work.scan()), pool).status == "published"
    assert ten.published() == ten.raw()

"""The demo's raw files: the same every time, whole, and awkward exactly as the table says."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from wds_pipeline import demo

SAMPLES = 45
IMAGES = {"jpg", "jpeg", "png", "webp"}
# Cases that a filesystem may refuse.
OPTIONAL = {"name_not_utf8", "control_characters", "special_file"}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "raw"
    demo.generate(folder, SAMPLES)
    return folder


def tree(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file's mode, time and content."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*files, *folders):
            path = Path(parent, name)
            status = path.lstat()
            if path.is_symlink():
                content = os.fsencode(os.readlink(path))
            elif stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            elif stat.S_ISDIR(status.st_mode):
                continue
            else:
                # A pipe's time cannot be promised.
                found[str(path.relative_to(folder))] = (status.st_mode, 0, b"")
                continue
            found[str(path.relative_to(folder))] = (status.st_mode, status.st_mtime_ns, content)
    return found


def test_the_same_seed_gives_the_same_tree(raw: Path, tmp_path: Path) -> None:
    demo.generate(tmp_path / "again", SAMPLES)
    assert tree(tmp_path / "again") == tree(raw)


def test_writing_anew_changes_nothing(tmp_path: Path) -> None:
    demo.generate(tmp_path / "raw", 9)
    before = tree(tmp_path / "raw")
    (tmp_path / "raw/README").write_text("edited")
    (tmp_path / "raw/mine.txt").write_text("stays")
    demo.generate(tmp_path / "raw", 9)
    after = tree(tmp_path / "raw")
    assert after.pop("mine.txt")
    assert after == before


def test_fewer_samples_are_a_part_of_more(raw: Path, tmp_path: Path) -> None:
    demo.generate(tmp_path / "few", 9)
    assert tree(tmp_path / "few").items() <= tree(raw).items()


def test_another_seed_is_seen_as_an_edit(raw: Path, tmp_path: Path) -> None:
    demo.generate(tmp_path / "other", 9, seed=1)
    other, first = tree(tmp_path / "other"), tree(raw)
    same = [p for p in other.keys() & first.keys() if other[p][2] != first[p][2]]
    assert same
    assert all(other[p][1] != first[p][1] for p in same)


def test_counts(tmp_path: Path) -> None:
    counts = demo.generate(tmp_path / "raw", 18)
    assert counts["files"] == len(tree(tmp_path / "raw"))
    expected = Counter({demo.OK: 18})
    for case in demo.AWKWARD:
        if all(os.path.lexists(tmp_path / "raw" / path) for path in case.paths):
            expected[case.outcome] += case.count
    measures = {"files", "bytes", "unsupported"}
    assert {k: n for k, n in counts.items() if k not in measures} == dict(expected)


@pytest.mark.parametrize("case", demo.AWKWARD, ids=lambda case: case.name)
def test_every_awkward_case_is_there(raw: Path, case: demo.Case) -> None:
    present = [os.path.lexists(raw / path) for path in case.paths]
    if case.name in OPTIONAL and not any(present):
        pytest.skip("this filesystem refuses it")
    assert all(present)
    assert case.outcome in {demo.OK} | demo.SKIPPED | demo.NOT_A_SAMPLE | demo.QUARANTINED


def test_the_table_covers_every_outcome_once_named() -> None:
    outcomes = {case.outcome for case in demo.AWKWARD}
    assert outcomes == {demo.OK} | demo.SKIPPED | demo.NOT_A_SAMPLE | demo.QUARANTINED
    names = [case.name for case in demo.AWKWARD]
    paths = [path for case in demo.AWKWARD for path in case.paths]
    assert len(set(names)) == len(names)
    assert len(set(paths)) == len(paths)


def test_the_awkward_names_are_what_they_claim() -> None:
    cases = {case.name: case for case in demo.AWKWARD}
    assert all(len(Path(p).name.encode()) > 100 for p in cases["long_name"].paths)
    assert all(100 < len(p.encode()) <= 256 for p in cases["long_path"].paths)
    assert all(len(p.encode()) > 256 for p in cases["very_long_path"].paths)
    assert all(
        len(os.fsencode(part)) <= 255
        for c in cases.values()
        for p in c.paths
        for part in p.split("/")
    )
    with pytest.raises(UnicodeEncodeError):
        cases["name_not_utf8"].paths[0].encode()


def test_nothing_else_is_there_and_samples_are_whole(raw: Path) -> None:
    awkward = {path for case in demo.AWKWARD for path in case.paths}
    fields: dict[str, set[str]] = {}
    for path in tree(raw).keys() - awkward:
        match = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", path)
        assert match, path
        fields.setdefault(match[1], set()).add(match[2].lower())
    assert len(fields) == SAMPLES
    for key, found in fields.items():
        assert len(found) == 3, key
        assert {"txt", "json"} < found, key
        assert found & IMAGES, key


def test_kept_samples_decode(raw: Path) -> None:
    awkward = {path for case in demo.AWKWARD for path in case.paths if case.outcome != demo.OK}
    formats, sizes, images = set(), set(), 0
    for path in tree(raw).keys() - awkward:
        extension = path.rpartition(".")[2].lower()
        if extension in IMAGES:
            with Image.open(raw / path) as image:
                image.load()
                formats.add(image.format)
                sizes.add(image.size)
                assert (image.format or "").lower() == extension.replace("jpg", "jpeg")
            images += 1
        elif extension == "json":
            record = json.loads((raw / path).read_bytes())
            assert record["width"] > 0
        else:
            assert (raw / path).read_text("utf-8").strip()
    kept = sum(case.count for case in demo.AWKWARD if case.outcome == demo.OK)
    assert images == SAMPLES + kept
    assert formats == {"JPEG", "PNG", "WEBP"}
    assert any(w > h for w, h in sizes)
    assert any(w < h for w, h in sizes)
    assert any(w == h for w, h in sizes)


def test_broken_contents_are_broken(raw: Path) -> None:
    with pytest.raises(OSError, match="truncated"), Image.open(raw / "coast/half.jpg") as image:
        image.load()
    for name, form in (("moving", "GIF"), ("plain", "BMP")):
        with Image.open(raw / f"coast/{name}.jpg") as image:
            assert image.format == form
    with pytest.raises(UnicodeDecodeError):
        (raw / "coast/accent.txt").read_text("utf-8")
    with pytest.raises(json.JSONDecodeError):
        json.loads((raw / "coast/cut.json").read_bytes())
    assert (raw / "coast/blank.jpg").stat().st_size == 0
    assert (raw / "coast/silent.txt").stat().st_size == 0
    originals = sorted((raw / "firsts").glob("*.jpg"))
    assert originals
    for path in originals:
        assert path.read_bytes() == (raw / "copies" / path.name).read_bytes()
    # Each of them twice, and no third time.
    assert len({path.read_bytes() for path in originals}) == len(originals)


def test_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wds_pipeline.demo", str(tmp_path / "raw"), "--samples", "2"]

    def run(*more: str) -> str:
        done = subprocess.run(
            [*command, *more], check=True, capture_output=True, text=True, encoding="utf-8"
        )
        assert done.stderr == ""
        assert done.stdout.count("\n") == 1
        return done.stdout

    assert "2 samples" in run()
    assert "there already" in run()
    assert "2 samples" in run("--force")


def test_an_interrupted_generation_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "_write", full)
    assert demo.main([str(tmp_path / "raw")]) == 1
    assert not list(tmp_path.iterdir())

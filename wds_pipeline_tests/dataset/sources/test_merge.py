"""Several sources as one: labels keep them apart, splits stay, a change of one rebuilds its shards only."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.dataset import version
from wds_pipeline.dataset.build import Build
from wds_pipeline.errors import ConfigError, DataError, SourceError
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.dataset.foreign_tars import make
from wds_pipeline_tests.dataset.sources.derived import (
    Derived,
    of_source,
    places,
    rebuild,
    upstream,
)


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Project, Path, Path]:
    """A dataset, a tar and a table."""
    other = upstream(tmp_path / "a", 20)
    members = [(f"b/{number}.txt", f"text {number}".encode()) for number in range(8)]
    (tmp_path / "x.tar").write_bytes(make(members))
    rows = [json.dumps({"id": str(number), "caption": f"row {number}"}) for number in range(5)]
    (tmp_path / "x.jsonl").write_text("\n".join(rows) + "\n")
    return other, tmp_path / "x.tar", tmp_path / "x.jsonl"


def merged(folder: Path, parts: tuple[Project, Path, Path], **more: Any) -> Derived:
    other, tar, table = parts
    listed = [
        {"label": "pictures", "dataset": {"url": str(other.destination)}},
        {"label": "texts", "shards": str(tar)},
        {"label": "rows", "table": {"url": str(table), "key": "id", "fields": {"txt": "caption"}}},
    ]
    options = {key: more.pop(key) for key in list(more) if key in ("split", "samples", "shards")}
    return of_source(folder / "out", {"merge": {"parts": listed, **more}}, **options)


def expected(parts: tuple[Project, Path, Path]) -> dict[str, dict[str, bytes]]:
    found = {f"pictures/{key}": fields for key, fields in parts[0].published().items()}
    found |= {f"texts/b/{n}": {"txt": f"text {n}".encode()} for n in range(8)}
    return found | {f"rows/{n}": {"txt": f"row {n}".encode()} for n in range(5)}


def test_parts_leave_each_others_downloads_alone(tmp_path: Path) -> None:
    """What one part does not know of is another's: it stays, however old it is."""
    log = tmp_path / "log"
    listed = []
    for label in "ab":
        path = tmp_path / f"{label}.txt"
        path.write_text(f"x.txt pipe:echo {label} | tee -a {log}\n")
        listed.append({"label": label, "recipe": {"url": str(path), "allow_pipe": True}})
        tar = tmp_path / f"{label}.tar"
        tar.write_bytes(make([(f"{label}.txt", label.encode())]))
        listed.append({"label": f"tar{label}", "shards": str(tar)})
    project = of_source(tmp_path / "out", {"merge": {"parts": listed}}, retention={"days": 0})
    project.build()
    kept = sorted(project.destination.glob("sources/*/*"))
    assert {path.parent.name for path in kept} == {"pipes", "tars"} and len(kept) == 6
    for path in kept:
        os.utime(path, (0, 0))
    (tmp_path / "a.tar").write_bytes(make([("a.txt", b"edited")]))
    project.build()
    assert set(kept) <= set(project.destination.glob("sources/*/*"))
    assert sorted(log.read_text().split()) == ["a", "b"]
    assert project.published()["b/x"] == {"txt": b"b\n"}


def test_all_parts_below_their_labels(parts: tuple[Project, Path, Path], tmp_path: Path) -> None:
    project = merged(tmp_path, parts)
    manifest = project.build().manifest
    assert project.published() == expected(parts)
    assert project.build().status == "unchanged"
    theirs = {f"pictures/{key}": place[0] for key, place in places(parts[0]).items()}
    ours = {key: place[0] for key, place in places(project).items()}
    assert {key: split for key, split in ours.items() if key in theirs} == theirs
    assert {split for key, split in ours.items() if key not in theirs} == {"train"}
    assert manifest.made_of == {
        "pictures": {
            "dataset": "small", "url": str(parts[0].destination), "version": 1,
            "digest": parts[0].latest().digest,
        }
    }  # fmt: skip


def test_a_field_with_the_label(parts: tuple[Project, Path, Path], tmp_path: Path) -> None:
    project = merged(tmp_path, parts, label_field="from.txt")
    project.build()
    wanted = {
        key: {**fields, "from.txt": key.partition("/")[0].encode()}
        for key, fields in expected(parts).items()
    }
    assert project.published() == wanted
    theirs = {f"pictures/{key}": place[0] for key, place in places(parts[0]).items()}
    ours = {key: place[0] for key, place in places(project).items()}
    assert theirs.items() <= ours.items()


def test_a_field_with_the_label_and_other_keys(
    parts: tuple[Project, Path, Path], tmp_path: Path
) -> None:
    samples = {"key": {"pattern": "^(\\w+)/", "replace": "\\1-"}}
    project = merged(tmp_path, parts, label_field="from", samples=samples)
    project.build()
    found = project.published()
    assert found["texts-b/3"] == {"txt": b"text 3", "from": b"texts"}
    assert len(found) == 33 and all("from" in fields for fields in found.values())


@pytest.mark.parametrize(
    ("field", "fields", "message"),
    [
        ("From", None, "found 'From'; expected a field"),
        ("a/b", None, "expected a field"),
        ("from", {"txt": ["txt"]}, r"'from' is not in samples.fields \(txt\)"),
    ],
)
def test_a_label_field_that_cannot_be(
    parts: tuple[Project, Path, Path],
    tmp_path: Path,
    field: str,
    fields: dict[str, list[str]] | None,
    message: str,
) -> None:
    project = merged(tmp_path, parts, label_field=field, samples={"fields": fields})
    with pytest.raises(ConfigError, match=message):
        Build(project.config())


def test_a_field_that_is_there_already_is_no_label(
    parts: tuple[Project, Path, Path], tmp_path: Path
) -> None:
    project = merged(tmp_path, parts, label_field="json")
    with pytest.raises(
        DataError, match=r"pictures/a/0001.json: two files or rows are the same field"
    ):
        project.build()


def test_a_change_of_one_part(parts: tuple[Project, Path, Path], tmp_path: Path) -> None:
    other, tar, table = parts
    project = merged(tmp_path, parts, label_field="from")
    project.build()
    look = Build(project.config()).source.look(1.0)
    assert look.digest == Build(project.config()).scan().digest
    other.write("a/0003.txt", "edited")
    other.build()
    assert Build(project.config()).source.look(1.0).digest != look.digest
    assert len(rebuild(project)) == 1
    members = [(f"b/{n}.txt", b"edited" if n == 4 else f"text {n}".encode()) for n in range(8)]
    tar.write_bytes(make(members))
    assert len(rebuild(project)) == 1
    table.write_text(table.read_text().replace("row 2", "edited"))
    assert len(rebuild(project)) == 1
    found = project.published()
    assert found["pictures/a/0003"]["txt"] == found["texts/b/4"]["txt"] == b"edited"
    assert found["rows/2"]["txt"] == b"edited"


def test_the_same_twice(tmp_path: Path) -> None:
    other = upstream(tmp_path / "a", 6)
    url = {"url": str(other.destination)}
    listed = [
        {"label": "one", "dataset": url},
        {"label": "two", "dataset": {**url, "fields": ["txt"]}},
    ]
    project = of_source(tmp_path / "out", {"merge": listed})
    manifest = project.build().manifest
    assert manifest.total_samples == 12 and set(manifest.made_of) == {"one", "two"}
    assert project.published()["two/a/0001"] == {"txt": b"caption of a/0001"}


def test_problems_and_their_details(parts: tuple[Project, Path, Path], tmp_path: Path) -> None:
    members = [("b/1.txt", b"1"), ("b/2.txt", b"2"), ("b/1.json", b"{}"), ("README", b"")]
    parts[1].write_bytes(make(members))
    project = merged(tmp_path, parts)
    manifest = project.build().manifest
    assert manifest.quarantined == {"key_not_adjacent": 1}
    row = version.read_table(project.storage, manifest, version.QUARANTINE).to_pylist()[0]
    assert row["key"] == "texts/b/1"
    assert f"in {parts[1]}: the sample's members are not next to each other" in row["detail"]
    report = json.loads(version.read_file(project.storage, manifest, version.REPORT_JSON))
    assert report["files"]["went"]["skipped: no_key"] == 1


def test_errors_name_the_part(parts: tuple[Project, Path, Path], tmp_path: Path) -> None:
    project = merged(tmp_path, parts)
    data = parts[1].read_bytes()
    parts[1].write_bytes(data[:5000])
    with pytest.raises(
        DataError, match=r"(?s)derived: source.merge: the part 'texts': .*truncated"
    ):
        project.build()
    parts[1].write_bytes(data)
    shutil.rmtree(parts[0].destination / "versions")
    with pytest.raises(SourceError, match=r"the part 'pictures': .*no version is published"):
        Build(project.config()).source.check()

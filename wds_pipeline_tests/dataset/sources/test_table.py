"""Tables of every format become samples; what is wrong with one is said with its row, column or file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import time
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wds_pipeline.dataset.build import Build
from wds_pipeline.dataset.sources import declared, open_source
from wds_pipeline.errors import ConfigError, DataError, SourceError, WdsPipelineError
from wds_pipeline_tests.conftest import png
from wds_pipeline_tests.dataset.sources.table_project import TableProject

ROWS: list[dict[str, Any]] = [
    {"id": "a/1", "caption": "one, two", "label": 1, "more": {"x": [1, 2.5, None]}},
    {"id": "a/2", "caption": 'say "hé"\nagain', "label": None, "more": {"x": []}},
    {"id": "b/v1.0", "caption": None, "label": 3, "more": {"x": [0]}},
    {"id": "c", "caption": "", "label": -7, "more": None},
]
FIELDS = {"txt": "caption", "cls": "label", "json": "more"}
SAMPLES = {
    "a/1": {"txt": b"one, two", "cls": b"1", "json": b'{"x": [1, 2.5, null]}'},
    "a/2": {"txt": 'say "hé"\nagain'.encode(), "json": b'{"x": []}'},
    "b/v1%2E0": {"cls": b"3", "json": b'{"x": [0]}'},
    "c": {"txt": b"", "cls": b"-7"},
}
KEEP = {"samples": {"max_quarantined": 1, "on_invalid": "keep"}}


@pytest.fixture
def project(tmp_path: Path) -> TableProject:
    return TableProject(tmp_path)


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.writer(
        text,
        delimiter=delimiter,
        quoting=csv.QUOTE_NOTNULL if hasattr(csv, "QUOTE_NOTNULL") else csv.QUOTE_MINIMAL,
    )
    writer.writerow(rows[0])
    for row in rows:
        cells = [json.dumps(v) if isinstance(v, dict) else v for v in row.values()]
        writer.writerow(cells)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]] | pa.Table) -> bytes:
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=2)
    return file.getvalue()


def test_jsonl_csv_and_parquet_are_the_same_samples(project: TableProject) -> None:
    quoted = as_csv(ROWS).replace(b"\nc,,", b'\nc,"",')  # "" is an empty text, nothing is none
    given = {
        "t.jsonl": b"\xef\xbb\xbf" + as_jsonl(ROWS),
        "t.csv": b"\xef\xbb\xbf" + quoted,
        "t.parquet": as_parquet([{**r, "more": r["more"] and {"x": r["more"]["x"]}} for r in ROWS]),
        "t.ndjson.gz": gzip.compress(as_jsonl(ROWS).replace(b"\n", b"\r\n\n")),
        "t.tsv": quoted.replace(b",", b"\t").replace(b"one\t two", b"one, two")
        .replace(b"[1\t 2.5\t null]", b"[1, 2.5, null]"),
    }  # fmt: skip
    for name, data in given.items():
        expected = {key: dict(sample) for key, sample in SAMPLES.items()}
        if name == "t.parquet":  # a column has one type: these are floats
            expected["a/1"]["json"] = b'{"x": [1.0, 2.5, null]}'
            expected["b/v1%2E0"]["json"] = b'{"x": [0.0]}'
        project.table(name, data, key="id", fields=FIELDS).build(**KEEP)
        assert project.published() == expected, name
        assert project.latest().quarantined == {}


def test_one_cell_changed_packs_one_shard(project: TableProject) -> None:
    rows = [{"id": f"{n:04d}", "caption": "word " * 20 + str(n)} for n in range(200)]
    first = project.table("t.jsonl", as_jsonl(rows), key="id", fields={"txt": "caption"}).build()
    assert first.packed > 10
    assert project.build().status == "unchanged"
    before = project.shard_files()
    rows[77]["caption"] += "!"
    second = project.table("t.jsonl", as_jsonl(rows), key="id", fields={"txt": "caption"}).build()
    assert (second.status, second.packed) == ("published", 1)
    assert project.published()["0077"]["txt"].endswith(b"!")
    assert {name: before[name] for name in before} == {
        name: facts for name, facts in project.shard_files().items() if name in before
    }
    # Another order, another format, another file: the same samples.
    text = as_parquet(rows[::-1])
    third = project.table("u.parquet", text, key="id", fields={"txt": "caption"}).build()
    assert third.status == "unchanged"


def test_rows_without_key_column_are_numbered(project: TableProject) -> None:
    project.table("t.csv", "caption\none\ntwo\n", fields={"txt": "caption"}).build()
    assert project.published() == {"000000000": {"txt": b"one"}, "000000001": {"txt": b"two"}}


def test_a_folder_of_files(project: TableProject) -> None:
    for n in range(3):
        (project.folder / "t" / "part").mkdir(parents=True, exist_ok=True)
        rows = [{"id": f"{n}{m}", "caption": f"{n} {m}"} for m in range(5)]
        (project.folder / "t" / "part" / f"{n}.parquet").write_bytes(as_parquet(rows))
    (project.folder / "t" / "_SUCCESS").write_bytes(b"")
    (project.folder / "t" / "_metadata.parquet").write_bytes(b"not for us")
    for url in ("t", "t/"):
        table = {"url": f"{project.folder}/{url}", "key": "id", "fields": {"txt": "caption"}}
        project.options["source"] = {"table": table}
        listing = open_source(project.config()).scan()
        assert (listing.files.num_rows, listing.skipped) == (15, {"other_format": 2})
    project.build()
    assert project.published()["24"] == {"txt": b"2 4"}
    (project.folder / "t" / "x.csv").write_text("id,caption\n1,2\n")
    with pytest.raises(ConfigError, match=r"of several formats.*csv.*parquet"):
        project.build()
    project.options["source"] = {"table": {**table, "format": "csv"}}
    assert open_source(project.config()).scan().files.num_rows == 1


def test_columns_of_every_type(project: TableProject) -> None:
    pictures = [{"bytes": png(1), "path": None}, {"bytes": None, "path": "p/2.png"}, None]
    (project.folder / "p").mkdir()
    (project.folder / "p" / "2.png").write_bytes(png(2))
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        "png": pa.array(pictures, picture),
        "raw.bin": pa.array([b"\0\xff", b"", b"x"], pa.large_binary()),
        "cls": pa.array([1.0, 2.0, 1.5], pa.float64()),
        "id": pa.array([True, False, None]),
        "kind.txt": pa.array(["x", "y", "x"]).dictionary_encode(),
        "json": pa.array([[1, 2], [], None], pa.list_(pa.int8())),
        "day.txt": pa.array([date(2020, 1, 2)] * 3, pa.date32()),
        "txt": pa.nulls(3),
        "size.txt": pa.array([b"abc", b"def", b"ghi"], pa.binary(3)),
        "big.txt": pa.array(["a", "b", "c"], pa.large_string()),
        "float.json": pa.array([0.5, None, 1e300], pa.float64()),
        "flag.json": pa.array([True, False, None]),
        "when.json": pa.array([{"at": date(2020, 1, 2)}] * 3),
    }
    names = dict(zip([f"c{n}" for n in range(len(columns))], columns, strict=True))
    table = pa.table({name: columns[field] for name, field in names.items()})
    fields = {field: name for name, field in names.items()}
    project.table("t.parquet", as_parquet(table), fields=fields).build(**KEEP)
    first, second, third = (project.published()[f"00000000{n}"] for n in range(3))
    assert first == {
        "png": png(1), "raw.bin": b"\0\xff", "cls": b"1", "id": b"1", "kind.txt": b"x",
        "json": b"[1, 2]", "day.txt": b"2020-01-02", "size.txt": b"abc", "big.txt": b"a",
        "float.json": b"0.5", "flag.json": b"true", "when.json": b'{"at": "2020-01-02"}',
    }  # fmt: skip
    assert second == {
        "png": png(2), "raw.bin": b"", "cls": b"2", "id": b"0", "kind.txt": b"y", "json": b"[]",
        "day.txt": b"2020-01-02", "size.txt": b"def", "big.txt": b"b", "flag.json": b"false",
        "when.json": b'{"at": "2020-01-02"}',
    }  # fmt: skip
    assert "png" not in third
    assert (third["cls"], third["float.json"]) == (b"1.5", b"1e+300")


def test_bytes_within_lists_are_refused(project: TableProject) -> None:
    table = pa.table({"id": ["a"], "x": pa.array([[b"\xff"]], pa.list_(pa.binary()))})
    project.table("t.parquet", as_parquet(table), key="id", fields={"json": "x"})
    with pytest.raises(DataError, match=r"t.parquet: column 'x' of type list.*bytes within a list"):
        project.build()


def test_paths_of_files(project: TableProject) -> None:
    for n in range(6):
        path = project.folder / "pics" / f"{n}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(n))
    (project.folder / "outside.png").write_bytes(png(9))
    (project.folder / "pics" / "folder.png").mkdir()
    rows = {
        "0": "0.png", "1": "./1.png", "2": f"{project.folder}/pics/2.png", "gone": "gone.png",
        "out": "../outside.png", "abs": f"{project.folder}/outside.png", "dir": "folder.png",
        "nul": "a\0b.png",
    }  # fmt: skip
    text = as_jsonl([{"id": key, "path": path} for key, path in rows.items()])
    column = {"column": "path", "holds": "path", "base": str(project.folder / "pics")}
    project.table("t.jsonl", text, key="id", fields={"png": column}).build()
    assert project.published() == {str(n): {"png": png(n)} for n in range(3)}
    found = project.quarantine()
    assert {key: reason for key, (reason, _) in found.items()} == dict.fromkeys(
        ("gone", "out", "abs", "dir", "nul"), "missing_file"
    )
    assert "gone.png is not there" in found["gone"][1]
    assert "'../outside.png' is not below" in found["out"][1]
    assert "is no file" in found["dir"][1]
    assert project.build().status == "unchanged"
    (project.folder / "pics" / "1.png").write_bytes(png(77))  # an edit is noticed
    assert project.build().packed == 1
    assert project.published()["1"] == {"png": png(77)}
    (project.folder / "pics" / "gone.png").write_bytes(png(5))
    assert project.build().manifest.quarantined == {"missing_file": 4}
    anywhere = {**column, "base": "/"}
    absolute = as_jsonl([{"id": "abs", "path": f"{project.folder}/outside.png"}])
    project.table("t.jsonl", absolute, key="id", fields={"png": anywhere}).build()
    assert project.published() == {"abs": {"png": png(9)}}


def test_missing_files_can_be_errors(project: TableProject) -> None:
    column = {"column": "path", "holds": "path"}
    project.table(
        "t.csv",
        "id,path,c\na,x.png,1\nb,y.png,2\nc,,3\n",
        key="id",
        fields={"png": column, "txt": "c"},
    )
    with pytest.raises(DataError, match=r"missing_file: 2"):
        project.build(samples={"on_missing": "error"})


@pytest.mark.parametrize(
    ("name", "text", "more", "message"),
    [
        ("t.csv", "id,captoin\n1,2\n", {},
         r"fields.txt: .*t.csv: no column 'caption'; its columns: 'id', 'captoin'; did you mean 'captoin'"),
        ("t.jsonl", '{"Id": 1, "caption": "x"}\n', {}, r"table.key: .*no column 'id'"),
        ("t.parquet", as_parquet([{"id": 1}]), {}, r"no column 'caption'; its columns: 'id'"),
        ("t.csv", "id,caption,caption\n1,2,3\n", {}, r"two columns are called 'caption'"),
        ("t.csv", "id,caption\n1,2,3\n4,5\n6\n", {},
         r"t.csv: row 2 has 3 cells, the header 2; row 4 has 1 cells"),
        ("t.csv", "", {}, r"it is empty; expected a header"),
        ("t.jsonl", '{"id": 1, "caption": "x"}\n{"id": 2,\n', {}, r"t.jsonl: line 2: no json"),
        ("t.jsonl", '{"id": 1, "caption": "x"}\n[1]\n', {}, r"line 2: found \[1\]; expected an object"),
        ("t.jsonl", b'{"id": 1, "caption": "x"}\n{"id": "\xff"}\n', {},
         r"line 2: not UTF-8: byte 0xff at column 9"),
        ("t.parquet", b"PAR1 but no more", {}, r"t.parquet: no parquet"),
        ("t.jsonl.gz", b"no gzip", {}, r"t.jsonl.gz: not readable"),
        ("t.data", "x", {}, r"its name says no format"),
        ("t.txt", "http://x/y\n", {"key": "hash"},
         r"no column 'caption'; its columns: 'url', 'hash', 'stem'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_said(
    project: TableProject, name: str, text: str | bytes, more: dict[str, Any], message: str
) -> None:
    project.table(name, text, **{"key": "id", "fields": {"txt": "caption"}, **more})
    with pytest.raises((ConfigError, DataError, SourceError), match=message) as caught:
        project.build()
    assert "small: " in str(caught.value)


def test_no_table_at_all(project: TableProject) -> None:
    project.table("t.csv", "id\n", fields={"txt": "id"})
    (project.folder / "t.csv").unlink()
    for call in (open_source(project.config()).check, project.build):
        with pytest.raises(SourceError, match=r"t\.csv: no such table"):
            call()
    with pytest.raises(ConfigError, match=r"fields: 'a/b': expected an extension"):
        open_source(project.table("t.csv", "id\n", fields={"a/b": "id"}).config())


def test_rows_with_the_same_key_are_both_named(project: TableProject) -> None:
    text = as_jsonl(
        [{"id": key, "caption": str(n)} for n, key in enumerate(["a", "b", "a", None, ""])]
    )
    project.table("t.jsonl", text, key="id", fields={"txt": "caption"}).build()
    assert project.published() == {"b": {"txt": b"1"}}
    found = project.quarantine()
    reason, detail = found["a"]
    assert reason == "duplicate_field"
    assert "t.jsonl, line 1 and " in detail
    assert "t.jsonl, line 3:" in detail
    for row, line in ((3, 4), (4, 5)):
        reason, detail = found[f"__no_key__/{row:09d}"]
        assert reason == "bad_name"
        assert f"t.jsonl, line {line} has no key in the column 'id'" in detail


def test_large_cells_are_put_away_and_not_twice(
    project: TableProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declared, "_HELD_BYTES", 5000)
    rows = [{"id": f"{n:03d}", "data": bytes([n]) * 2000, "t": "x"} for n in range(40)]
    rows += [{"id": "twice", "data": bytes([3]) * 2000, "t": "x"}]
    monkeypatch.setattr("wds_pipeline.dataset.sources.read_table._BYTES", 20_000)
    project.table("t.parquet", as_parquet(rows), key="id", fields={"bin": "data", "txt": "t"})
    digest = open_source(project.config()).scan().digest  # before anything may be written
    assert not project.destination.exists()
    assert Build(project.config()).plan(open_source(project.config()).scan()).plan.changed
    project.build()
    expected = {row["id"]: {"bin": row["data"], "txt": b"x"} for row in rows}
    assert project.published() == expected
    folder = project.destination / "sources" / "cells"
    kept = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert kept
    assert project.build().status == "unchanged"
    rows[7]["data"] = b"y" * 2000
    project.table("t.parquet", as_parquet(rows), key="id", fields={"bin": "data", "txt": "t"})
    assert project.build().packed == 1
    new = set(folder.iterdir()) - kept.keys()
    assert sum(path.stat().st_size for path in new if path.suffix == ".tar") == 10_240
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert open_source(project.config()).scan().digest != digest


def test_a_look_reads_a_table_only_once(project: TableProject) -> None:
    text = as_jsonl([{"id": "a", "caption": "x"}, {"id": "b", "caption": "y"}])
    project.table("t.jsonl", text, key="id", fields={"txt": "caption"})
    source = open_source(project.config())
    first = source.look(10)
    assert (first.digest, first.files, first.bytes) == (source.scan().digest, 2, 2)
    read: list[int] = []
    again = open_source(project.config())
    again.declare = lambda progress=None: read.append(1)  # type: ignore[attr-defined]
    assert again.look(10).digest == first.digest
    assert not read
    time.sleep(0.02)
    project.table("t.jsonl", text.replace(b"y", b"z"), key="id", fields={"txt": "caption"})
    changed = open_source(project.config()).look(10)
    assert changed.digest == open_source(project.config()).scan().digest != first.digest


keys = st.one_of(
    st.none(),
    st.text(max_size=12),
    st.text(alphabet="ab./%_\\ é\n\0{}", max_size=8),
    st.integers(0, 20),
    st.sampled_from(["../x", "/abs", "a//b", "a/", "__x__/y", "a.b.c", "%2E", "a/.b", "x" * 300]),
)
values = st.one_of(
    st.none(),
    st.text(max_size=20),
    st.integers(),
    st.booleans(),
    st.lists(st.integers(), max_size=3),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(keys, values), min_size=1, max_size=8),
    st.sampled_from(["webdataset", "escape"]),
)
def test_every_row_is_published_or_in_the_quarantine(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, Any]], naming: str
) -> None:
    project = TableProject(tmp_path_factory.mktemp("any"))
    text = as_jsonl([{"id": key, "value": value, "row": n} for n, (key, value) in enumerate(rows)])
    fields = {"txt": "value", "index": "row"}
    project.table("t.jsonl", text, key="id", fields=fields)
    samples = {"naming": naming, "max_quarantined": 1, "on_invalid": "keep"}
    try:
        project.build(samples=samples, verify={"level": "samples"})
    except WdsPipelineError as error:
        assert "all " in str(error)  # samples are unusable: nothing to publish
        return
    found = project.published()
    out = project.quarantine()
    seen = []
    for key, sample in found.items():
        row = int(sample["index"])
        seen.append(row)
        wanted, value = rows[row]
        folder, slash, name = str(wanted).rpartition("/")
        assert key == folder + slash + name.replace("%", "%25").replace(".", "%2E")
        if value is None:
            assert "txt" not in sample
        elif isinstance(value, str):
            assert sample["txt"].decode("utf-8", "surrogatepass") == value
        else:
            assert json.loads(sample["txt"]) == value
    assert len(set(seen)) == len(seen)
    left = "\n".join(detail for _, detail in out.values())
    lost = set(range(len(rows))) - set(seen)
    assert len(out) <= len(lost)
    assert bool(lost) == bool(out), left

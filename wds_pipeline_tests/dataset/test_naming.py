"""File names to keys and fields, against webdataset's and Hugging Face's own readers."""

from __future__ import annotations

import io
import os
import re
import tarfile
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

from wds_pipeline.config import SamplesConfig
from wds_pipeline.dataset import tar
from wds_pipeline.dataset.listing import LISTING
from wds_pipeline.dataset.naming import IGNORED, INVENTORY, OK, PROBLEMS, Namer, assign
from wds_pipeline_tests.dataset.inventories import listing

RULES = ("strict", "webdataset", "last_dot", "escape")

# Names with what trips readers up: dots, dunders, spaces, controls, case, composed and decomposed
# letters, letters whose lower case is longer, names longer than a USTAR field or a directory entry.
PART = st.one_of(
    st.text("aBé日 -_~", min_size=1, max_size=5),
    st.text("ab.", min_size=1, max_size=5).filter(lambda part: part.strip(".")),
    st.text(st.sampled_from(list("ab.._ %é\u0301İΣß-~\\:\n\x7f日😀")), min_size=1, max_size=7),
    st.sampled_from(
        [
            *("a", "__a__", "__a", "a__", "..", ".", "__key__", "x.__key__", "v1.0", "a..b"),
            *("photo.v2", "n" * 90, "n" * 101, "é" * 130, "a.tar", "%2E", "a%2Eb"),
        ]
    ),
)
EXTENSION = st.sampled_from([".jpg", ".txt", ".PNG", ".gz"]) | st.sampled_from(
    [
        *("", ".jpg", ".JPG", ".jpeg", ".txt", ".seg.png", ".json.gz", ".gz", "..jpg", ".", ".İ"),
        *(".Σ", ".__key__", ".__url__", ".x y", ".é", ".npy"),
    ]
)
PATHS = st.builds(
    lambda parts, extension: "/".join(parts) + extension,
    st.lists(PART, min_size=1, max_size=3),
    EXTENSION,
).filter(lambda path: "\0" not in path)
FIELDS = st.none() | st.sampled_from(
    [
        {"jpg": ["jpg", "jpeg"], "txt": ["txt"]},
        {"seg.png": [], "jpg": ["jpg", "jpeg"], "json": ["json.gz", "json"]},
        {"i\u0307": ["İ"], "npy": [], "b.jpg": ["b.jpg"]},
    ]
)


def split(path: str, **config: Any) -> tuple[str | None, str | None, str]:
    return Namer(SamplesConfig.model_validate(config)).split(path)


def read_by_webdataset(names: list[str]) -> list[dict[str, Any]]:
    """The samples that webdataset finds in a tar of the standard library."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name.encode())
            archive.addfile(info, io.BytesIO(name.encode()))
    return samples_in(data.getvalue())


def samples_in(data: bytes) -> list[dict[str, Any]]:
    files = tar_file_expander([{"url": "x", "stream": io.BytesIO(data)}])
    found = list(group_by_keys(files))
    return [{k: v for k, v in sample.items() if k != "__url__"} for sample in found]


def skipped_by_readers(name: str) -> bool:
    """webdataset's tar_file_iterator, and Hugging Face's iter_archive."""
    base = os.path.basename(name)
    return bool(re.match(r"__[^/]*__($|/)", name)) or base.startswith((".", "__"))


@settings(max_examples=300)
@given(path=PATHS, rule=st.sampled_from(RULES), fields=FIELDS)
def test_what_is_ok_is_read_back_as_it_was(path: str, rule: str, fields: Any) -> None:
    key, field, status = split(path, naming=rule, fields=fields)
    assert status in {OK, *IGNORED, *PROBLEMS}
    assert (key is None) == (field is None) == (status in IGNORED)
    event(status)
    if status != OK:
        return
    name = f"{key}.{field}"
    assert not skipped_by_readers(name)
    assert base_plus_ext(name) == (key, field)
    assert read_by_webdataset([name]) == [{"__key__": key, field: name.encode()}]
    ours = tar.header(name, 0) + tar.end(len(tar.header(name, 0)))
    assert samples_in(ours) == [{"__key__": key, field: b""}]
    with tarfile.open(fileobj=io.BytesIO(ours)) as archive:
        assert archive.getnames() == [name]
        if hasattr(tarfile, "data_filter"):  # not in the first releases of Python 3.10 and 3.11
            assert tarfile.data_filter(archive.getmembers()[0], "/tmp/x").name == name


@settings(max_examples=200)
@given(path=PATHS)
def test_the_rule_webdataset_is_webdataset_s(path: str) -> None:
    key, field, status = split(path, naming="webdataset")
    theirs = base_plus_ext(path)
    lower = (theirs[0], theirs[1].lower()) if theirs[0] else None
    if status == OK:
        assert (key, field) == lower
    elif status == "no_extension":
        assert lower is None or lower[1] == ""
    else:
        found = read_by_webdataset([path]) if lower and not str(field).startswith("__") else []
        unwelcome = (
            not found
            or skipped_by_readers(path)
            or re.search(r"[\x00-\x1f\x7f]|(^|/)\.\.?/|//|^/", path)
            or found[0]["__key__"].endswith("/")
            or any(len(part.encode()) > 255 for part in path.split("/"))
        )
        assert unwelcome, "left out without a need"


@settings(max_examples=200)
@given(path=PATHS)
def test_the_rule_strict_is_webdataset_s_or_a_problem(path: str) -> None:
    strict, loose = split(path), split(path, naming="webdataset")
    if strict[2] == OK:
        assert strict == loose
        extension = str(strict[1])
        assert "." not in extension or re.fullmatch(r"[^.]+\.(gz|bz2|xz|zst|lz4)", extension)
    elif strict[2] in IGNORED:
        assert loose[2] in IGNORED
    elif loose[2] == OK:
        assert strict[2] == "dotted_name"
        assert path.rpartition(".")[2].casefold() == str(strict[1]).casefold()
        assert path[: len(str(strict[0]))] == strict[0], "the key keeps its dots in the messages"


@settings(max_examples=300)
@given(
    stems=st.lists(st.text("a.%2E5", min_size=1, max_size=6), min_size=2, unique=True),
    fields=st.sampled_from([None, {"jpg": []}]),
)
def test_escape_is_injective(stems: list[str], fields: Any) -> None:
    namer = Namer(SamplesConfig.model_validate({"naming": "escape", "fields": fields}))
    found = [namer.split(f"d.1/{stem}.jpg") for stem in stems]
    assert {status for _, _, status in found} == {OK}
    assert len({key for key, _, _ in found}) == len(stems)


@pytest.mark.parametrize(
    ("path", "escaped"),
    [
        ("a.b.jpg", "a%2Eb"),
        ("a%2Eb.jpg", "a%252Eb"),
        ("a%252Eb.jpg", "a%25252Eb"),
        ("v1.0/a.jpg", "v1.0/a"),
    ],
)
def test_escape_can_be_undone(path: str, escaped: str) -> None:
    assert split(path, naming="escape") == (escaped, "jpg", OK)


@pytest.mark.parametrize(
    ("path", "strict", "webdataset", "last_dot"),
    [
        ("a.jpg", ("a", "jpg", OK), ("a", "jpg", OK), ("a", "jpg", OK)),
        ("a.JPG", ("a", "jpg", OK), ("a", "jpg", OK), ("a", "jpg", OK)),
        ("v1.0/a.jpg", ("v1.0/a", "jpg", OK), ("v1.0/a", "jpg", OK), ("v1.0/a", "jpg", OK)),
        ("p.v2.jpg", ("p.v2", "jpg", "dotted_name"), ("p", "v2.jpg", OK), ("p_v2", "jpg", OK)),
        ("a.json.gz", ("a", "json.gz", OK), ("a", "json.gz", OK), ("a", "json.gz", OK)),
        ("p.v.json.gz", ("p.v.json", "gz", "dotted_name"), ("p", "v.json.gz", OK), ("p_v", "json.gz", OK)),
        ("a..jpg", ("a.", "jpg", "dotted_name"), ("a", ".jpg", OK), ("a_", "jpg", OK)),
        ("a..gz", ("a.", "gz", "dotted_name"), ("a", ".gz", OK), ("a_", "gz", OK)),
        ("a.jpg.", ("a.jpg", "", "dotted_name"), ("a", "jpg.", OK), (None, None, "no_extension")),
        ("a.",) + ((None, None, "no_extension"),) * 3,
        ("README",) + ((None, None, "no_extension"),) * 3,
        ("v1.0/README",) + ((None, None, "no_extension"),) * 3,
        ("...", ("..", "", "dotted_name"), ("", "..", "bad_name"), (None, None, "no_extension")),
        ("a b/c d.x y", ("a b/c d", "x y", OK), ("a b/c d", "x y", OK), ("a b/c d", "x y", OK)),
        ("a/.jpg",) + (("a/", "jpg", "bad_name"),) * 3,
        ("a\nb.jpg",) + (("a\nb", "jpg", "bad_name"),) * 3,
        ("a\x7f.jpg",) + (("a\x7f", "jpg", "bad_name"),) * 3,
        ("__a.jpg",) + (("__a", "jpg", "reserved_name"),) * 3,
        ("x/__a.jpg",) + (("x/__a", "jpg", "reserved_name"),) * 3,
        ("__meta__/a.jpg",) + (("__meta__/a", "jpg", "reserved_name"),) * 3,
        ("x/__meta__/a.jpg",) + (("x/__meta__/a", "jpg", OK),) * 3,
        ("a__.jpg",) + (("a__", "jpg", OK),) * 3,
        ("a.__key__",) + (("a", "__key__", "reserved_name"),) * 3,
        ("a.__url__",) + (("a", "__url__", "reserved_name"),) * 3,
        ("n" * 251 + ".jpg",) + (("n" * 251, "jpg", OK),) * 3,
        ("n" * 252 + ".jpg",) + (("n" * 252, "jpg", "name_too_long"),) * 3,
        ("é" * 126 + ".jpg",) + (("é" * 126, "jpg", "name_too_long"),) * 3,
        ("d" * 200 + "/" + "d" * 200 + "/a.jpg",) + (("d" * 200 + "/" + "d" * 200 + "/a", "jpg", OK),) * 3,
    ],
)  # fmt: skip
def test_names_under_each_rule(path: str, strict: Any, webdataset: Any, last_dot: Any) -> None:
    assert split(path) == strict
    assert split(path, naming="webdataset") == webdataset
    assert split(path, naming="last_dot") == last_dot


def test_composed_and_decomposed_letters_are_two_keys() -> None:
    composed, decomposed = split("é.jpg")[0], split("e\u0301.jpg")[0]
    assert composed != decomposed
    names = ["é.jpg", "é.txt", "e\u0301.jpg"]
    assert [s["__key__"] for s in read_by_webdataset(names)] == [composed, decomposed]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a.jpeg", ("a", "jpg", OK)),
        ("a.JPEG", ("a", "jpg", OK)),
        ("a.seg.png", ("a", "seg.png", OK)),
        ("a.SEG.png", ("a", "seg.png", OK)),
        ("a.gif", (None, None, "unselected")),
        ("a.v2.gif", (None, None, "unselected")),
        ("a.v2.jpeg", ("a.v2", "jpg", "dotted_name")),
        # The rest of a dotted name may be a field with dots of its own: not lost, but a problem.
        ("a.v2.seg.png", ("a.v2", "seg.png", "dotted_name")),
        ("a.v2.json.gz", ("a.v2", "json.gz", "dotted_name")),
        ("a.b.c.d.seg.png", ("a.b.c.d", "seg.png", "dotted_name")),
        ("İ.İ.jpeg", ("İ.İ", "jpg", "dotted_name")),
    ],
)
def test_selected_fields(path: str, found: Any) -> None:
    fields = {"jpg": ["jpg", "jpeg"], "seg.png": [], "json.gz": ["json.gz"]}
    assert split(path, fields=fields) == found


def test_compound_fields_under_the_last_dot() -> None:
    fields = {"jpg": [], "seg.png": ["seg.png", "mask.seg.png"]}
    assert split("p.v2.seg.png", naming="last_dot", fields=fields) == ("p_v2", "seg.png", OK)
    assert split("p.mask.seg.png", naming="escape", fields=fields) == ("p", "seg.png", OK)
    assert split("p.png", naming="last_dot", fields=fields) == (None, None, "unselected")


# --- keys that are rewritten ---------------------------------------------------------------------


def test_keys_are_rewritten() -> None:
    key = {"pattern": "^(images|captions)/", "replace": ""}
    assert split("images/a/1.jpg", key=key) == ("a/1", "jpg", OK)
    assert split("captions/a/1.txt", key=key) == ("a/1", "txt", OK)
    assert split("other/1.txt", key=key) == ("other/1", "txt", OK)


@pytest.mark.parametrize(
    ("replace", "status"),
    [
        ("", "bad_name"),
        ("../up", "bad_name"),
        ("x/../y", "bad_name"),
        ("./y", "bad_name"),
        ("/y", "bad_name"),
        ("x//y", "bad_name"),
        ("x/", "bad_name"),
        ("x\ty", "bad_name"),
        ("x.y", "dotted_name"),
        ("..", "dotted_name"),
        ("__y", "reserved_name"),
        ("__m__/y", "reserved_name"),
        ("a..b/y", OK),
        ("d./y", OK),
    ],
)
def test_a_rewritten_key_must_be_readable_too(replace: str, status: str) -> None:
    key = {"pattern": "^.*$", "replace": replace}
    assert split("a.jpg", naming="webdataset", key=key) == (replace, "jpg", status)


# --- the inventory -------------------------------------------------------------------------------


def statuses(*paths: str, **config: Any) -> dict[str, str]:
    table = assign(listing(dict.fromkeys(paths, (1, "1"))), SamplesConfig.model_validate(config))
    assert table.schema.equals(INVENTORY)
    return dict(zip(table["path"].to_pylist(), table["status"].to_pylist(), strict=True))


@settings(max_examples=300)
@given(
    paths=st.lists(PATHS | st.sampled_from(["a/b.jpg", "a/c.jpg", "b", ".jpg", ""]), max_size=12),
    skip=st.integers(0, 3),
    rule=st.sampled_from(RULES),
    fields=FIELDS,
    key=st.none() | st.just({"pattern": "[ab]", "replace": "%"}),
)
def test_names_by_column_are_those_one_by_one(
    paths: list[str], skip: int, rule: str, fields: Any, key: Any
) -> None:
    config = SamplesConfig.model_validate({"naming": rule, "fields": fields, "key": key})
    files = pa.table(
        [
            pa.array(paths, pa.large_string()),
            pa.array([1] * len(paths), pa.int64()),
            pa.array(["1"] * len(paths), pa.large_string()),
            pa.nulls(len(paths), pa.string()),
        ],
        schema=LISTING,
    ).slice(skip)
    table = assign(files, config)
    found = zip(*(table[name].to_pylist() for name in ("key", "field", "status")), strict=True)
    for path, (name, field, status) in zip(paths[skip:], found, strict=True):
        wanted = Namer(config).split(path)
        assert (name, field, OK if status == "key_collision" else status) == wanted, path


def test_the_last_dot_s_collisions_are_found() -> None:
    found = statuses("a.v2.jpg", "a_v2.jpg", "a_v2.txt", "b.1.jpg", "b.1.txt", naming="last_dot")
    assert found == {
        "a.v2.jpg": "key_collision",
        "a_v2.jpg": "key_collision",
        "a_v2.txt": "key_collision",
        "b.1.jpg": OK,
        "b.1.txt": OK,
    }


def test_a_rewritten_key_is_no_collision() -> None:
    key = {"pattern": "^(images|captions)/", "replace": ""}
    paths = ("images/1.jpg", "captions/1.txt", "images/a.b.jpg", "captions/a.b.txt")
    assert set(statuses(*paths, naming="last_dot", key=key).values()) == {OK}
    found = statuses("images/a.b.jpg", "captions/a_b.txt", naming="last_dot", key=key)
    assert set(found.values()) == {"key_collision"}
    versions = {"pattern": r"_v\d+$"}
    found = statuses("a.v1.jpg", "a.txt", "b_v1.jpg", naming="last_dot", key=versions)
    assert set(found.values()) == {OK}


@settings(max_examples=100)
@given(paths=st.lists(PATHS, max_size=6, unique=True))
def test_no_two_stems_become_one_sample(paths: list[str]) -> None:
    table = assign(listing(dict.fromkeys(paths, (1, "1"))), SamplesConfig(naming="last_dot"))
    stems: dict[str, set[str]] = {}
    for row in table.to_pylist():
        if row["status"] == OK:
            stem = row["path"][: len(row["key"])]
            assert stem.replace(".", "_") == row["key"].replace(".", "_")
            stems.setdefault(row["key"], set()).add(stem)
    assert all(len(each) == 1 for each in stems.values())


def test_names_that_are_not_utf8_are_a_problem_only_where_they_are_a_sample_s() -> None:
    paths = ["\\xff", "\\xff.jpg", "a.jpg"]
    table = listing(dict.fromkeys(paths, (1, "1")), paths)
    table = table.set_column(3, "problem", [["name_not_utf8", "name_not_utf8", None]])
    found = assign(table, SamplesConfig()).to_pylist()
    assert [row["status"] for row in found] == ["no_extension", "name_not_utf8", OK]
    assert [row["key"] for row in found] == [None, "\\xff", "a"]


def test_an_inventory_keeps_the_listing_s_order_and_facts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wds_pipeline.dataset.naming._BATCH", 100)
    files = {f"{n:06d}.jpg": (n, str(n)) for n in range(350)}  # more than one batch
    table = assign(listing(files), SamplesConfig())
    assert table["path"].to_pylist() == list(files)
    assert table["key"].to_pylist() == [path[:6] for path in files]
    assert table["size"].to_pylist() == list(range(350))

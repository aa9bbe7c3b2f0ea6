"""`rename`, `select`, `drop`, `repeat`, `set`, `extract`, `to_json`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wds_pipeline.errors import ConfigError
from wds_pipeline.transforms.api import Rejected, Sample
from wds_pipeline.transforms.facts import Extract, Set, ToJson
from wds_pipeline.transforms.fields import Drop, Rename, Repeat, Select
from wds_pipeline_tests.transforms.media import sample

FACTS = {
    "author": {"name": "Ünal", "age": 3},
    "tags": ["a", {"b": 2.5}],
    "url": "http://x/y.z",
    "no": None,
    "a.b": 1,
}
SAMPLE = sample("cats/1", txt=b"a cat", cls=b"7", json=json.dumps(FACTS).encode())


def test_rename() -> None:
    found = Rename({"txt": "caption.txt", "png": "jpg"})(dict(SAMPLE))
    assert list(found) == ["__key__", "caption.txt", "cls", "json"]
    assert found["caption.txt"] == b"a cat"


def test_rename_lets_two_change_places() -> None:
    found = Rename({"txt": "cls", "cls": "txt"})(dict(SAMPLE))
    assert (found["cls"], found["txt"]) == (b"a cat", b"7")


def test_rename_replaces_nothing() -> None:
    with pytest.raises(Rejected, match="txt would become cls, which the sample has already"):
        Rename({"txt": "cls"})(dict(SAMPLE))


def test_select() -> None:
    assert list(Select(["txt", "cls"])(dict(SAMPLE))) == ["__key__", "txt", "cls"]
    with pytest.raises(Rejected, match="it lacks jpg; it has txt, cls, json"):
        Select(["txt", "jpg"])(dict(SAMPLE))
    assert list(Select(["txt", "jpg"], missing="ignore")(dict(SAMPLE))) == ["__key__", "txt"]
    with pytest.raises(Rejected, match="it lacks jpg, png"):
        Select(["jpg", "png"], missing="ignore")(dict(SAMPLE))


def test_drop() -> None:
    assert list(Drop(["txt", "jpg"])(dict(SAMPLE))) == ["__key__", "cls", "json"]
    with pytest.raises(Rejected, match="no field is left without txt, cls, json"):
        Drop(["txt", "cls", "json"])(dict(SAMPLE))


def test_repeat() -> None:
    found = list(Repeat(11)(dict(SAMPLE)))
    assert [each["__key__"] for each in found] == [f"cats/1-{number:02d}" for number in range(11)]
    assert all({**each, "__key__": "cats/1"} == SAMPLE for each in found)


@pytest.mark.parametrize(
    ("value", "content"),
    [
        ("web", "web"),
        (7, "7"),
        (True, "true"),
        ("{key}: {txt} ({cls})", "cats/1: a cat (7)"),
        ("{json:author.name} is {json:author.age}", "Ünal is 3"),
        ("{json:tags.0}{json:tags.1.b}", "a2.5"),
        ("{json:author}", '{"name": "Ünal", "age": 3}'),
        ("{{key}}", "{key}"),
    ],
)
def test_set(value: Any, content: str) -> None:
    found = Set({"info.txt": value})(dict(SAMPLE))
    assert found == {**SAMPLE, "info.txt": content.encode()}


def test_set_json() -> None:
    value = {"who": "{json:author.name}", "all": ["{txt}", 3, {"x": None}]}
    found = json.loads(Set({"json": value})(dict(SAMPLE))["json"])
    assert found == {"who": "Ünal", "all": ["a cat", 3, {"x": None}]}


def test_set_takes_the_sample_as_it_came() -> None:
    found = Set({"txt": "{cls}", "cls": "{txt}"})(dict(SAMPLE))
    assert (found["txt"], found["cls"]) == (b"7", b"a cat")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("{jpg}", "it lacks jpg"),
        ("{json:author.x}", r"json: nothing at author\.x; there is name, age"),
        ("{txt:author}", "txt: no json"),
    ],
)
def test_set_rejects_what_is_not_there(value: str, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        Set({"info.txt": value})(dict(SAMPLE))


@pytest.mark.parametrize(
    ("path", "to", "content"),
    [
        ("author.name", "txt", "Ünal"),
        ("author.age", "cls", "3"),
        ("tags.1", "x.json", '{"b": 2.5}'),
        ("url", "x.json", '"http://x/y.z"'),
        (["a.b"], "cls", "1"),
        (["tags", 0], "txt", "a"),
    ],
)
def test_extract(path: Any, to: str, content: str) -> None:
    assert Extract({to: path})(dict(SAMPLE)) == {**SAMPLE, to: content.encode()}


@pytest.mark.parametrize("path", ["author.x", "tags.2", "tags.x", "url.0", "no", "no.x"])
def test_extract_where_there_is_nothing(path: str) -> None:
    with pytest.raises(Rejected, match=r"json: (nothing|null) at .*missing: ignore"):
        Extract({"x.txt": path})(dict(SAMPLE))
    assert Extract({"x.txt": path}, missing="ignore")(dict(SAMPLE)) == SAMPLE


def test_extract_of_another_field() -> None:
    extract = Extract({"txt": "a"}, fields=["meta.json", "json"])
    assert extract({"__key__": "k", "meta.json": b'{"a": "b"}'})["txt"] == b"b"
    assert extract(sample(cls=b"1")) == sample(cls=b"1")
    with pytest.raises(Rejected, match="json: no json"):
        extract(sample(json=b"{"))
    with pytest.raises(Rejected, match="json: no json"):
        extract(sample(json=b"[" * 200_000))


def test_to_json() -> None:
    found = ToJson(["txt", "cls", "jpg"], to="info.json")(dict(SAMPLE))
    assert list(found) == ["__key__", "json", "info.json"]
    assert json.loads(found["info.json"]) == {"txt": "a cat", "cls": 7}
    kept = ToJson(["txt", "cls"], keep=True)(dict(SAMPLE))
    assert json.loads(kept["json"]) == {**FACTS, "txt": "a cat", "cls": 7}
    assert kept["txt"] == b"a cat"
    with pytest.raises(Rejected, match="cls: found 'x'; expected a whole number"):
        ToJson(["cls"])(sample(cls=b"x"))
    with pytest.raises(Rejected, match="json: found list; expected an object"):
        ToJson(["txt"])(sample(json=b"[]", txt=b"x"))


_NAMES = st.text("abc.", min_size=1, max_size=4)
_VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=6,
)


@given(facts=st.dictionaries(_NAMES, _VALUES, min_size=1, max_size=3))
def test_what_is_extracted_into_json_is_what_was_there(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        made = Extract({"x.json": [name]}, missing="ignore")(
            sample(json=json.dumps(facts).encode())
        )
        assert json.loads(made.get("x.json", b"null")) == value


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rename({}), "fields: found {}; expected old and new names"),
        (lambda: Rename({"a": "c", "b": "c"}), "each new name once"),
        (lambda: Rename({"a": "JPG"}), "found 'JPG'; expected a field's name.*in lower case"),
        (lambda: Select("jpg"), "fields: found 'jpg'; expected a list of fields"),  # type: ignore[arg-type]
        (lambda: Select([]), "one field or more"),
        (lambda: Select(["a", "a"]), "each once"),
        (lambda: Select(["a"], missing="x"), "missing: found 'x'; expected one of reject, ignore"),
        (lambda: Drop([".jpg"]), "found '.jpg'; expected a field's name"),
        (lambda: Drop(["__key__"]), "without / and leading __"),
        (lambda: Repeat(0), "copies: found 0; expected a whole number, 1 to"),
        (lambda: Repeat(True), "copies: found True"),
        (lambda: Set({"a": "{"}), "fields: found '{': .*stands for a brace"),
        (lambda: Set({"a": "{}"}), "expected in braces key, a field"),
        (lambda: Set({"a": "{txt!r}"}), "expected in braces key, a field"),
        (lambda: Set({"a": "{json:a..b}"}), "expected a path such as author.name"),
        (lambda: Extract({}), "paths: found {}; expected new fields and paths"),
        (lambda: Extract({"txt": ""}), "paths: found ''; expected a path"),
        (lambda: ToJson(["txt"], to="txt"), "to: found 'txt'; expected a json field beside fields"),
        (lambda: ToJson(["txt"], keep="no"), "keep: found 'no'; expected true or false"),  # type: ignore[arg-type]
    ],
)
def test_wrong_parameters(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=message):
        make()


def test_no_attribute_of_anything_is_reached() -> None:
    hostile: list[Sample] = [sample(json=b'{"a": "{key}"}')]
    assert Set({"x.txt": "{json:a}"})(hostile[0])["x.txt"] == b"{key}"
    with pytest.raises(Rejected, match=r"it lacks key\.__class__"):
        Set({"x.txt": "{key.__class__}"})(hostile[0])

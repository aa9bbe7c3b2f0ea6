"""The report across a version: its numbers, what no single shard can show, and its page."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wds_pipeline.dataset.distributions import distribution
from wds_pipeline.dataset.report import Report, ShardRow, make_report
from wds_pipeline.dataset.report_findings import Limits
from wds_pipeline.dataset.report_html import render
from wds_pipeline.dataset.shard_report import (
    MEMBERS,
    Finding,
    Rules,
    ShardReport,
    Thumbnail,
)
from wds_pipeline.dataset.wording import human_bytes

RULES = Rules("decode", 1.0, 10**8, {"jpg": ["jpg", "jpeg", "png"]})
# key, field, content, and what differs from a sound file
Row = tuple[str, str, str] | tuple[str, str, str, dict[str, Any]]


def shard(name: str, rows: Sequence[Row], **changes: Any) -> ShardReport:
    """A report as `verify_shard` gives it: an image is 40 x 30, a text as long as its content."""
    members = []
    for key, field, content, *more in rows:
        row: dict[str, Any] = dict.fromkeys(MEMBERS.names)
        row |= {"key": key, "field": field, "size": len(content), "decoded": True}
        row["digest"] = xxhash.xxh3_128_digest(content.encode())
        if field == "jpg":
            row |= {"width": 40, "height": 30, "format": "JPEG"}
        if field == "txt":
            row |= {"chars": len(content), "format": "text"}
        members.append(row | (more[0] if more else {}))
    split, slot, _ = name.split("-")
    values: dict[str, Any] = {
        "name": name, "split": split, "slot": int(slot), "rules": RULES, "digest": "xxh3-128:0",
        "samples": len({each["key"] for each in members}),
        "bytes": 512 * len(members),
        "members": pa.Table.from_pylist(members, MEMBERS),
    }  # fmt: skip
    return ShardReport(**values | changes)


def quarantine(*rows: tuple[str, str]) -> pa.Table:
    return pa.table(
        {
            "key": [key for key, _ in rows],
            "reason": [reason for _, reason in rows],
            "detail": [f"why {key}" for key, _ in rows],
            "files": pa.array([[f"{key}.jpg"] for key, _ in rows], pa.list_(pa.string())),
            "bytes": pa.array([100] * len(rows), pa.int64()),
        }
    )  # fmt: skip


def report(*shards: ShardReport, **changes: Any) -> Report:
    left_out = changes.get("quarantine", quarantine())
    values: dict[str, Any] = {
        "dataset": "captions", "level": "decode", "reports": iter(shards), "quarantine": left_out,
        "samples_in": sum(each.samples for each in shards) + left_out.num_rows,
        "files": {"seen": 12, "packed": 10, "skipped: hidden": 2}, "required": [],
        "shards": [
            ShardRow(each.name, each.split, each.slot, each.samples, each.bytes, "new")
            for each in shards
        ],
        "on_leak": "warn",
    }  # fmt: skip
    return make_report(**values | changes)


def pair(key: str, picture: str = "", text: str = "") -> list[Row]:
    return [(key, "jpg", picture or f"image of {key}"), (key, "txt", text or f"text of {key}")]


def test_a_sound_version_passes() -> None:
    made = report(
        shard("train-000000-a", pair("a") + pair("b")),
        shard("val-000000-a", pair("c")),
        quarantine=quarantine(("d", "bad_text"), ("e", "broken_image"), ("f", "bad_text")),
    )
    assert made.passed and not made.findings and not made.warnings
    assert made.samples == {
        "in": 6, "published": 3, "quarantined": 3, "balanced": True,
        "quarantined_by_reason": {"bad_text": 2, "broken_image": 1}, "quarantined_bytes": 300,
    }  # fmt: skip
    assert [(each["split"], each["samples"]) for each in made.splits] == [("train", 2), ("val", 1)]
    jpg = made.fields[0]
    assert (jpg["field"], jpg["count"], jpg["missing"], jpg["formats"]) == (
        "jpg",
        3,
        0,
        {"JPEG": 3},
    )
    assert made.summary()["samples_in"] == 6


def test_an_empty_version_has_a_report() -> None:
    made = report()
    assert made.passed and made.samples["published"] == 0
    assert "Passed" in render(made) and json.loads(made.to_json())["shards"] == []


def test_numbers_that_do_not_add_up_are_errors() -> None:
    one = shard("train-000000-a", pair("a"))
    lost = report(one, samples_in=3, quarantine=quarantine(("b", "bad_text")))
    assert not lost.passed and not lost.samples["balanced"]
    assert "3 samples went in; 1 published + 1 quarantined = 2" in lost.findings[0].message
    files = report(one, files={"seen": 9, "packed": 2, "skipped: hidden": 3})
    assert "9 files were seen; 2 packed + 3 skipped: hidden = 5" in files.findings[0].message
    short = report(one, shards=[("train-000000-a", "train", 0, 2, 512, "")], samples_in=1)
    assert "1 samples were read back; the version says 2" in short.findings[0].message


def test_a_shard_that_was_not_verified_is_an_error() -> None:
    made = report(shards=[("train-000000-a", "train", 0, 0, 0, "")])
    assert made.counts == {("error", "unverified"): 1}


def test_damage_of_shards_is_kept_and_counted() -> None:
    finding = Finding("error", "missing_member", "train-000000-a", "", "", "and 70 more", 70)
    made = report(shard("train-000000-a", pair("a"), findings=[finding, finding]))
    assert made.counts == {("error", "missing_member"): 140} and not made.passed


def test_a_key_in_two_places_is_an_error() -> None:
    made = report(
        shard("train-000000-a", pair("a") + pair("b")), shard("train-000001-b", pair("b", "x", "y"))
    )
    (finding,) = made.findings
    assert (finding.severity, finding.code, finding.key) == ("error", "duplicate_key", "b")
    assert "train-000000-a" in finding.message and "train-000001-b" in finding.message


def test_the_same_image_in_two_splits_is_a_leak() -> None:
    shards = (
        shard("train-000000-a", pair("a", "same") + pair("b") + pair("c", "same")),
        shard("val-000000-a", pair("d", "same")),
    )
    made = report(*shards)
    assert made.passed and made.counts == {("warning", "leak"): 1}
    (group,) = made.groups
    assert group.count == 3 and [each.key for each in group.places] == ["a", "c", "d"]
    assert group.digest == "xxh3-128:" + xxhash.xxh3_128_hexdigest(b"same")
    strict = report(*shards, on_leak="error")
    assert not strict.passed and strict.counts == {("error", "leak"): 1}


def test_a_long_group_shows_each_of_its_splits() -> None:
    rows = [row for number in range(50) for row in pair(f"t{number}", "same")]
    made = report(shard("train-000000-a", rows), shard("val-000000-a", pair("v", "same")))
    (group,) = made.groups
    assert group.count == 51 and len(group.places) == Limits().members
    assert {each.split for each in group.places} == {"train", "val"}


def test_duplicates_are_of_media_and_of_text_only_without_them() -> None:
    rows = pair("a", "1", "same") + pair("b", "2", "same")
    assert not report(shard("train-000000-a", rows)).groups
    assert report(shard("train-000000-a", rows), duplicate_fields=["txt"]).groups
    texts: list[Row] = [("a", "txt", "same"), ("b", "txt", "same"), ("c", "txt", "")]
    texts += [("d", "txt", ""), ("e", "json", "same")]
    made = report(shard("train-000000-a", texts))
    assert made.counts == {("warning", "duplicate"): 1}
    assert [each.key for each in made.groups[0].places] == ["a", "b"]


def test_the_same_content_in_two_fields_of_a_sample_is_no_duplicate() -> None:
    rows: list[Row] = [("a", "jpg", "same"), ("a", "png", "same")]
    assert not report(shard("train-000000-a", rows)).groups


@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(["train", "val"])), max_size=25)
)
def test_groups_are_those_that_a_dictionary_finds(drawn: list[tuple[str, str]]) -> None:
    rows: dict[str, list[Row]] = {"train": [], "val": []}
    expected: dict[str, list[tuple[str, str]]] = {}
    for number, (content, split) in enumerate(drawn):
        rows[split] += [(f"{number:03d}", "jpg", content), (f"{number:03d}", "txt", "t")]
    for split in ("train", "val"):
        for key, field, content, *_ in rows[split]:
            if field == "jpg":
                expected.setdefault(content, []).append((split, key))
    made = report(*(shard(f"{split}-000000-a", rows[split]) for split in rows))
    found = {tuple((each.split, each.key) for each in group.places) for group in made.groups
             if group.count <= 8}  # fmt: skip
    assert found == {tuple(each) for each in expected.values() if 2 <= len(each) <= 8}
    for group in made.groups:
        splits = {each.split for each in group.places}
        assert group.code == ("leak" if len(splits) > 1 else "duplicate")


def test_content_problems_and_missing_fields_are_warnings() -> None:
    rows: list[Row] = [*pair("a"), ("b", "jpg", "x", {"problem": "broken_image", "detail": "cut"})]
    made = report(shard("train-000000-a", rows), required=["jpg", "txt", "json"])
    assert made.passed
    assert made.counts == {("warning", "broken_image"): 1, ("warning", "missing_field"): 3}
    assert made.findings[0].message.startswith("b.jpg: cut")
    missing = {(each.key, each.field) for each in made.findings if each.code == "missing_field"}
    assert missing == {("b", "txt"), ("a", "json"), ("b", "json")}


def test_fields_that_are_not_required_are_just_counted() -> None:
    made = report(shard("train-000000-a", [*pair("a"), ("b", "jpg", "x")]))
    assert not made.findings
    assert {each["field"]: each["missing"] for each in made.fields} == {"jpg": 0, "txt": 1}


def test_what_was_too_large_to_decode_is_counted() -> None:
    big = {"detail": "not decoded: too large (9 bytes)", "decoded": False, "format": None}
    made = report(shard("train-000000-a", [("a", "txt", "x", big), ("b", "txt", "y")]))
    assert (made.fields[0]["decoded"], made.fields[0]["too_large"]) == (1, 1)
    assert "1 too large" in render(made)


def test_lists_are_bounded_and_counts_are_not() -> None:
    bad = {"problem": "bad_text", "detail": "not UTF-8"}
    rows: list[Row] = [(f"{n:03d}", "txt", f"{n // 2}", bad) for n in range(300)]
    made = report(
        shard("train-000000-a", rows),
        required=["jpg"],
        quarantine=quarantine(*((f"q{n}", "bad_text") for n in range(300))),
        limits=Limits(findings=7),
    )
    counts = {code: count for (_, code), count in made.counts.items()}
    assert counts == {"bad_text": 300, "duplicate": 150, "missing_field": 300}
    assert len(made.findings) == 21 and len(made.groups) == 7 and len(made.quarantine) == 200
    page = render(made)
    assert "293 more are not listed" in page and "143 more are not listed" in page
    assert "100 more are not listed here" in page


def test_the_json_is_stable_and_complete() -> None:
    shards = [shard("train-000000-a", pair("ä", "same")), shard("val-000000-a", pair("b", "same"))]
    first, second = report(*shards), report(*shards)
    assert first.to_json() == second.to_json() and render(first) == render(second)
    values = json.loads(first.to_json())
    assert list(values)[:4] == ["format_version", "dataset", "about", "passed"]
    assert values["same_content"][0]["places"][0]["key"] == "ä"
    assert values["findings"]["counts"] == [{"severity": "warning", "code": "leak", "count": 1}]


def test_the_sheet_is_even_over_the_shards() -> None:
    def shown(number: int) -> list[Thumbnail]:
        return [Thumbnail(f"{number}-{each}", "jpg", b"x", "") for each in range(8)]

    few = [shard(f"train-{n:06d}-a", pair(f"{n}"), thumbnails=shown(n)) for n in range(3)]
    assert len(report(*few).sheet) == 24
    some = [shard(f"train-{n:06d}-a", pair(f"{n}"), thumbnails=shown(n)) for n in range(14)]
    sheet = report(*some).sheet
    per_shard = [sum(card.place.shard == each.name for card in sheet) for each in some]
    assert len(sheet) == 60 and set(per_shard) == {4, 5}
    many = [shard(f"train-{n:06d}-a", pair(f"{n}"), thumbnails=shown(n)) for n in range(200)]
    sheet = report(*many).sheet
    assert len(sheet) == len({card.place.shard for card in sheet}) == 60
    assert sheet[-1].place.shard > "train-000190"


class _Page(HTMLParser):
    """Collects ids, links, and checks that tags are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: set[str] = set()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given_attrs = dict(attrs)
        self.ids += [str(given_attrs["id"])] if "id" in given_attrs else []
        self.links |= {str(given_attrs["href"])} if "href" in given_attrs else set()
        self.sources += [str(given_attrs["src"])] if "src" in given_attrs else []
        if tag not in ("meta", "img", "br", "rect", "path", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "path"):
            assert self.open.pop() == tag


def full_page() -> str:
    out = io.BytesIO()
    Image.new("RGB", (128, 90), "teal").save(out, "JPEG")
    shown = Thumbnail("a", "jpg", out.getvalue(), '<b>"a" caption</b>', 640, 480)
    bad = {"problem": "bad_text", "detail": "<script>alert(1)</script>"}
    shards = [
        shard(
            "train-000000-a", [*pair("a", "same"), ("<i>k", "txt", "x", bad)], thumbnails=[shown]
        ),
        shard("val-000000-a", pair("c", "same")),
    ]
    asked = []

    def picture(name: str, key: str) -> Thumbnail | None:
        asked.append((name, key))
        return Thumbnail(key, "jpg", out.getvalue(), "of a finding", 64, 48)

    made = report(
        *shards, quarantine=quarantine(("<u>q", "bad_text")), picture=picture, required=["jpg"]
    )
    assert asked == [("val-000000-a", "c"), ("train-000000-a", "<i>k")]
    return render(made)


def test_the_page_is_one_well_formed_self_contained_file() -> None:
    text = full_page()
    page = _Page(text)
    assert not page.open and len(page.ids) == len(set(page.ids))
    assert all(each.startswith("#") and each[1:] in page.ids for each in page.links)
    assert page.sources and all(each.startswith("data:image/jpeg") for each in page.sources)
    assert not re.search(r"https?://|@import|url\(|<script|<link", text)
    assert (
        "&lt;script&gt;" in text and "<b>" not in text.split("<main>")[1].split("Findings")[1][:50]
    )
    assert "&lt;b&gt;" in text and "&lt;i&gt;k" in text and "&lt;u&gt;q" in text


def test_the_page_says_what_matters() -> None:
    text = full_page()
    for expected in ("samples in", "published", "quarantined", "In several splits", "640 × 480",
                     "Text that is not UTF-8", "train-000000-a"):  # fmt: skip
        assert expected in text


@given(st.lists(st.one_of(st.integers(0, 10**9), st.floats(1e-6, 1e9)), min_size=1, max_size=60))
def test_every_value_is_in_a_bin(drawn: list[float]) -> None:
    values = np.array(drawn, dtype=np.float64)
    shown = distribution("x", "y", values)
    assert shown is not None and sum(shown.counts) == len(drawn) == shown.count
    assert 1 <= len(shown.counts) == len(shown.edges) - 1 <= 80
    assert shown.edges == sorted(set(shown.edges))


def test_bins_are_round_and_the_scale_fits() -> None:
    sizes = distribution("width", "pixels", np.array([200, 640, 1024]))
    assert sizes is not None and sizes.scale == "linear" and sizes.edges[:2] == [200, 250]
    wide = distribution("bytes", "bytes", np.array([150, 10_000, 2_000_000]))
    assert wide is not None and wide.scale == "log" and wide.edges[0] == 100
    assert distribution("x", "y", np.array([], dtype=np.int64)) is None


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1234, "1.2 kB"), (999_950, "1.0 MB"), (256_000_000, "256 MB"),
     (5e15, "5000 TB")],
)  # fmt: skip
def test_bytes_for_people(size: float, text: str) -> None:
    assert human_bytes(size) == text


def test_a_million_members_take_seconds() -> None:
    count, shards = 333_000, 100
    each = count // shards * 3
    digests = np.random.default_rng(1).bytes(16 * each)
    reports = []
    for number in range(shards):
        samples = np.repeat(np.arange(each // 3) + number * each, 3)
        nulls = {name: pa.nulls(each, MEMBERS.field(name).type) for name in MEMBERS.names[4:10]}
        members = pa.table(
            {
                "key": pa.array(samples).cast(pa.string()),
                "field": pa.array(["jpg", "json", "txt"] * (each // 3)),
                "size": pa.array(np.full(each, 1000)),
                "digest": pa.FixedSizeBinaryArray.from_buffers(
                    pa.binary(16), each,
                    [None, pa.py_buffer((number % 99).to_bytes(8, "little") + digests[8:])],
                ),
                **nulls,
                "decoded": pa.array([True] * each),
            },
            MEMBERS,
        )  # fmt: skip
        reports.append(shard(f"train-{number:06d}-a", [], members=members, samples=each // 3))
    start = time.process_time()
    made = report(*reports, limits=Limits(findings=5))
    assert made.samples["published"] == count
    assert made.counts[("warning", "duplicate")] == each // 3
    assert time.process_time() - start < 20  # about three; machines differ

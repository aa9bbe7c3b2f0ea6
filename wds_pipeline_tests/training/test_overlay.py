"""Versions joined with overlays: what is read is what merging their samples by key gives."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wds_pipeline.errors import ConfigError, VersionError
from wds_pipeline.training import Dataset, open_dataset
from wds_pipeline_tests.conftest import Project, png
from wds_pipeline_tests.overlays import Overlay, overlay_of, write_fields
from wds_pipeline_tests.training.conftest import plain, stored


@pytest.fixture(scope="module")
def captions(published: Project, tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    """New captions for two of three samples, and a new field for some of these. Not to be changed."""
    made = overlay_of(published, tmp_path_factory.mktemp("overlay") / "captions")
    keys = sorted(published.raw())
    write_fields(made, [key for n, key in enumerate(keys) if n % 3])
    write_fields(made, [key for n, key in enumerate(keys) if n % 3 and n % 4], {"feat": "f "})
    assert made.build().status == "published"
    return made


@pytest.fixture(scope="module")
def scores(published: Project, tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    """A score for each sample, and captions for a few. Not to be changed."""
    made = overlay_of(published, tmp_path_factory.mktemp("overlay") / "scores", "scores")
    keys = sorted(published.raw())
    write_fields(made, keys, {"score": "1 "})
    write_fields(made, keys[::5], {"txt": "scored "})
    assert made.build().status == "published"
    return made


def merged(base: Project, *overlays: Project, split: str | None = None) -> list[Any]:
    """(key, fields) in stored order: what merging dicts gives."""
    others = [each.published() for each in overlays]
    found = []
    for key, fields in stored(base, split):
        for other in others:
            fields = {**fields, **other.get(key, {})}
        found.append((key, fields))
    return found


def joined(base: Project, *overlays: Project, **options: Any) -> Dataset:
    urls = [str(each.destination) for each in overlays]
    return open_dataset(str(base.destination), overlays=urls, **options)


@pytest.mark.parametrize("split", [None, "train", "val"])
@pytest.mark.parametrize("names", [["captions"], ["captions", "scores"], ["scores", "captions"]])
def test_join_is_merging_by_key(
    published: Project, request: pytest.FixtureRequest, names: list[str], split: str | None
) -> None:
    overlays = [request.getfixturevalue(name) for name in names]
    dataset = joined(published, *overlays, split=split)
    expected = merged(published, *overlays, split=split)
    assert len(dataset) == len(expected)
    assert [plain(each) for each in dataset] == expected
    assert [plain(dataset[number]) for number in range(len(dataset))] == expected
    backwards = list(range(len(dataset)))[::-1]
    assert [plain(each) for each in dataset.__getitems__(backwards)] == expected[::-1]
    assert plain(dataset.by_key(expected[7][0])) == expected[7]
    assert [plain(each) for each in dataset.webdataset()] == expected
    base = open_dataset(str(published.destination), split=split)
    for one, other in zip(dataset, base, strict=True):
        assert [one[name] for name in ("__url__", "__index__")] == [
            other[name] for name in ("__url__", "__index__")
        ]


_FIELDS = st.sampled_from(["png", "txt", "a.b", "json"])
_SAMPLES = st.dictionaries(st.integers(0, 39), st.sets(_FIELDS, min_size=1), min_size=1)
_ANYTHING: dict[str, Any] = {
    "samples": {"required": [], "on_invalid": "keep", "naming": "webdataset", "max_quarantined": 1},
    "verify": {"level": "samples"},
}


def write_all(project: Project, samples: dict[int, set[str]], what: str) -> None:
    for number, names in samples.items():
        for name in names:
            project.write(f"k/{number:02d}.{name}", f"{what} {number} {name}")


@settings(max_examples=12)
@given(
    base=_SAMPLES,
    over=_SAMPLES,
    order=st.randoms(),
    fields=st.none() | st.sets(_FIELDS, min_size=1),
)
def test_join_is_merging_by_key_whatever_there_is(
    tmp_path_factory: pytest.TempPathFactory,
    base: dict[int, set[str]],
    over: dict[int, set[str]],
    order: Any,
    fields: set[str] | None,
) -> None:
    folder = tmp_path_factory.mktemp("law")
    common = over.keys() & base.keys()
    assume(common)  # else there is nothing to publish
    one = Project(folder / "base", {**_ANYTHING, "shards": {"max_samples": 7}})
    two = overlay_of(one, folder / "over", **_ANYTHING)
    write_all(one, base, "base")
    write_all(two, over, "over")
    one.build()
    assert two.build().manifest.overlay["missing"] == len(base.keys() - common)
    known = set(joined(one, two).catalog.field_names())
    wanted = None if fields is None else fields & known or None
    dataset = joined(one, two, fields=wanted)
    expected = merged(one, two)
    if wanted is not None:
        expected = [(k, {n: v for n, v in f.items() if n in wanted}) for k, f in expected]
    assert [plain(each) for each in dataset] == expected
    numbers = [order.randrange(len(dataset)) for _ in range(50)]
    found = [plain(each) for each in dataset.__getitems__(numbers)]
    assert found == [expected[number] for number in numbers]


def test_fields_of_an_overlay_and_of_both(published: Project, captions: Overlay) -> None:
    url = str(captions.destination)
    dataset = open_dataset(str(published.destination), overlays=[{"url": url, "fields": ["feat"]}])
    only = {
        key: {"feat": each["feat"]} for key, each in captions.published().items() if "feat" in each
    }
    expected = [(key, {**each, **only.get(key, {})}) for key, each in stored(published)]
    assert [plain(each) for each in dataset] == expected
    both = joined(published, captions, fields=["txt", "feat"])
    expected = [
        (key, {name: each[name] for name in ("txt", "feat") if name in each})
        for key, each in merged(published, captions)
    ]
    assert [plain(each) for each in both] == expected
    assert [plain(each) for each in joined(published, captions, fields="png")] == [
        (key, {"png": each["png"]}) for key, each in stored(published)
    ]
    with pytest.raises(VersionError, match=r"no sample has a field 'feet'.*did you mean 'feat'"):
        joined(published, captions, fields=["feet"])
    with pytest.raises(VersionError, match=r"captions2: version 1.* 'feet'; there are feat, txt"):
        open_dataset(str(published.destination), overlays={"url": url, "fields": ["feet"]})


def test_samples_that_an_overlay_lacks(published: Project, captions: Overlay) -> None:
    url = str(captions.destination)
    base = str(published.destination)
    there = captions.published().keys()
    skip = open_dataset(base, split="train", overlays=[{"url": url, "missing": "skip"}])
    expected = [each for each in merged(published, captions, split="train") if each[0] in there]
    assert [plain(each) for each in skip] == expected and len(skip) == len(expected)
    lacking = len(stored(published, "train")) - len(expected)
    with pytest.raises(
        VersionError,
        match=f"{lacking} of the .* samples of small: version 1, split train have nothing in captions2: "
        "version 1, split train, such as ",
    ):
        open_dataset(base, split="train", overlays=[{"url": url, "missing": "error"}])


def test_two_overlays_leave_out_what_either_lacks(
    published: Project, captions: Overlay, tmp_path: Path
) -> None:
    other = overlay_of(published, tmp_path / "other", "other")
    write_fields(other, sorted(published.raw())[::2], {"mark": "m "})
    other.build()
    overlays = [{"url": each.destination, "missing": "skip"} for each in (captions, other)]
    dataset = open_dataset(str(published.destination), overlays=overlays)
    both = captions.published().keys() & other.published().keys()
    expected = [each for each in merged(published, captions, other) if each[0] in both]
    assert [plain(each) for each in dataset] == expected


def test_selecting_by_what_the_overlays_are(published: Project, captions: Overlay) -> None:
    dataset = joined(published, captions)
    samples = dict(merged(published, captions))
    feat = dataset.select("feat.size > 10", has="json")
    assert [each["__key__"] for each in feat] == [
        key for key, each in samples.items() if len(each.get("feat", b"")) > 10 and "json" in each
    ]
    assert {each["__key__"] for each in dataset.select(lacks="feat")} == {
        key for key, each in samples.items() if "feat" not in each
    }
    chars = dataset.select("txt.chars >= 23 and png.width >= 9")
    assert [plain(each) for each in chars] == [
        (key, each)
        for key, each in samples.items()
        if len(each["txt"]) >= 23 and int.from_bytes(each["png"][16:20], "big") >= 9
    ]
    assert 0 < len(chars) < len(dataset)


def test_decoding_goes_by_the_joined_fields(published: Project, captions: Overlay) -> None:
    dataset = joined(
        published, captions, decode={"txt": str.upper, "png": "pil"} if False else "pil"
    )
    texts = {each["__key__"]: each["txt"] for each in dataset}
    assert texts == {key: each["txt"].decode() for key, each in merged(published, captions)}


def keys_and_texts(dataset: Dataset) -> list[tuple[str, bytes]]:
    return [(each["__key__"], each["txt"]) for each in dataset]


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_worker_processes(published: Project, captions: Overlay, method: str) -> None:
    dataset = joined(published, captions, split="val")
    expected = keys_and_texts(dataset)
    assert len(pickle.dumps(dataset)) < 4000
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as workers:
        assert list(workers.map(keys_and_texts, [dataset] * 2)) == [expected] * 2


def test_what_an_overlay_takes_the_place_of_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Project(tmp_path, {"samples": {"required": []}, "verify": {"level": "samples"}})
    for number in range(6):
        base.write(f"{number}.bin", os.urandom(100_000))
        base.write(f"{number}.txt", f"{number}")
    base.build()
    over = overlay_of(base, tmp_path / "over", verify={"level": "samples"})
    write_fields(over, ["0", "1", "2", "3"], {"bin": "small "})
    over.build()
    read = []
    pread = os.pread

    def counted(fd: int, size: int, at: int) -> bytes:
        read.append(size)
        return pread(fd, size, at)

    monkeypatch.setattr(os, "pread", counted)
    found = [plain(each) for each in joined(base, over)]
    assert found == merged(base, over)
    assert 200_000 <= sum(read) < 250_000


def test_streams_are_exactly_once_on_any_ranks(
    published: Project, captions: Overlay, scores: Overlay
) -> None:
    dataset = joined(published, captions, scores)
    expected = dict(merged(published, captions, scores))
    whole = [plain(each) for each in dataset.stream(seed=3)]
    assert len(whole) == len(expected) and dict(whole) == expected
    for ranks in (2, 3):
        parts = [
            list(map(plain, dataset.stream(seed=3, rank=rank, world_size=ranks, last="short")))
            for rank in range(ranks)
        ]
        assert [parts[n % ranks][n // ranks] for n in range(len(whole))] == whole


def test_a_stream_goes_on_where_it_was(published: Project, captions: Overlay) -> None:
    dataset = joined(published, captions)
    stream = dataset.stream(seed=1, batch_size=8)
    coming = iter(stream)
    for _ in range(4):
        next(coming)
    state = stream.state_dict()
    rest = [[plain(each) for each in batch] for batch in coming]
    again = joined(published, captions).stream(seed=1, batch_size=8)
    again.load_state_dict(state)
    assert [[plain(each) for each in batch] for batch in again] == rest
    base = open_dataset(str(published.destination)).stream(seed=1, batch_size=8)
    with pytest.raises(ConfigError, match="the state is of another order: digest"):
        base.load_state_dict(state)


def test_a_loader_with_workers(published: Project, captions: Overlay) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    stream = joined(published, captions).stream(batch_size=8, last="short")
    found = [plain(each) for batch in stream.loader(num_workers=2) for each in batch]
    assert dict(found) == dict(merged(published, captions)) and len(found) == 120


def test_it_says_what_it_is(published: Project, captions: Overlay) -> None:
    dataset = joined(published, captions, split="train")
    base = open_dataset(str(published.destination), split="train")
    assert "small: version 1 with captions2: version 1, split train" in repr(dataset)
    assert dataset.digest != base.digest
    assert dataset.digest == joined(published, captions, split="train").digest
    assert dataset.catalog.field_names() == ["feat", "json", "png", "seg.png", "txt"]
    assert dataset.catalog.bytes > base.catalog.bytes
    assert dataset.urls == base.urls


# What is no overlay of it.


def test_an_overlay_of_another_dataset(
    published: Project, captions: Overlay, tmp_path: Path
) -> None:
    other = Project(tmp_path, {"name": "other"})
    other.add(0, 5)
    other.build()
    with pytest.raises(
        VersionError,
        match="other: version 1: overlays: captions2: version 1 is an overlay of another dataset: found "
        "small, version 1; expected other",
    ):
        joined(other, captions)
    with pytest.raises(
        VersionError, match=r"small: version 1: overlays: other: version 1 is none: .*base: small"
    ):
        joined(published, other)


def test_fields_that_the_base_has_too(
    published: Project, captions: Overlay, caplog: pytest.LogCaptureFixture
) -> None:
    url = str(captions.destination)
    with pytest.raises(
        VersionError, match="captions2: version 1 has fields that the base has too: txt"
    ):
        open_dataset(str(published.destination), overlays=[{"url": url, "existing": "error"}])
    only = {"url": url, "existing": "error", "fields": ["feat"]}
    assert len(open_dataset(str(published.destination), overlays=[only])) == 120
    with caplog.at_level("INFO", "wds_pipeline.training"):
        joined(published, captions)
    assert "captions2: version 1 takes the place of its txt" in caplog.text


@pytest.mark.parametrize(
    ("overlays", "message"),
    [
        ([], "overlays: found none; expected some, or None"),
        ([{"url": "x", "field": ["txt"]}], "overlays: field: .*did you mean 'fields'"),
        ([{"url": "x", "missing": "drop"}], "overlays: missing: .*'keep', 'skip' or 'error'"),
        ([7], "overlays: found 7"),
        ([{}], "overlays: url: field required"),
    ],
)
def test_what_is_no_description(published: Project, overlays: Any, message: str) -> None:
    with pytest.raises((ConfigError, VersionError), match=message):
        open_dataset(str(published.destination), overlays=overlays)


# Of another version of the base.


def changing(tmp_path: Path) -> tuple[Project, Overlay]:
    """A base of 30 samples in several shards, and an overlay that has all of them."""
    base = Project(tmp_path, {"split": {"train": 0.7, "val": 0.3}})
    (tmp_path / "raw").mkdir()
    keys = base.add(0, 30)
    base.build()
    over = overlay_of(base, tmp_path / "over")
    write_fields(over, keys)
    assert over.build().manifest.overlay["missing"] == 0
    return base, over


@pytest.mark.filterwarnings("error")
def test_an_overlay_of_the_same_samples_joins_without_a_word(tmp_path: Path) -> None:
    base, over = changing(tmp_path)
    base.write("a/0003.png", png(77))
    base.build()
    assert base.latest().version == 2
    assert [plain(each) for each in joined(base, over)] == merged(base, over)
    base.build(repack=True, shards={"max_bytes": 30_000})
    assert [plain(each) for each in joined(base, over)] == merged(base, over)
    assert [plain(each) for each in joined(base, over, split="val")] == merged(
        base, over, split="val"
    )


def test_samples_that_are_new_in_the_base(tmp_path: Path) -> None:
    base, over = changing(tmp_path)
    base.add(30, 4)
    for name in ("png", "txt", "json"):
        (base.source / f"a/0004.{name}").unlink()
    base.build()
    with pytest.warns(
        UserWarning,
        match="4 of the 33 samples of small: version 2 have nothing in captions2: version 1, and are given "
        "without its fields: it is an overlay of version 1; build captions2 again",
    ):
        dataset = joined(base, over)
    assert [plain(each) for each in dataset] == merged(base, over)
    state = pickle.dumps(dataset)
    assert [plain(each) for each in pickle.loads(state)] == merged(base, over)
    url = {"url": str(over.destination), "missing": "skip"}
    with pytest.warns(UserWarning, match="4 of the 33 .* are left out"):
        assert len(open_dataset(str(base.destination), overlays=[url])) == 29
    old = open_dataset(str(base.destination), 1, overlays=[over.destination])
    assert len(old) == 30 and old[0]["txt"].startswith(b"new")
    over.build()
    with pytest.raises(VersionError, match=r"4 of the 33 .*missing: keep or skip"):
        open_dataset(str(base.destination), overlays=[{**url, "missing": "error"}])


def test_nothing_in_common(tmp_path: Path) -> None:
    base, over = changing(tmp_path)
    for path in base.source.rglob("*.*"):
        path.unlink()
    base.add(0, 5, "b")
    base.build()
    with pytest.raises(
        VersionError, match="captions2: version 1 has nothing for any of its 5 samples"
    ):
        joined(base, over)


def test_a_split_that_the_overlay_has_nothing_of(tmp_path: Path) -> None:
    base, _ = changing(tmp_path)
    over = overlay_of(base, tmp_path / "train", "only_train")
    write_fields(over, [key for key, _ in stored(base, "train")])
    over.build()
    assert len(joined(base, over, split="train")) == len(stored(base, "train"))
    with pytest.raises(VersionError, match="only_train: version 1 has nothing for any of its"):
        joined(base, over, split="val")

"""Laws: laying out anew, splitting, taking a part and merging lose and repeat nothing; chains of datasets."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from wds_pipeline.dataset import version
from wds_pipeline.dataset.sources import open_source
from wds_pipeline.errors import SourceChanged
from wds_pipeline.storage import LocalStorage
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.dataset.foreign_tars import make
from wds_pipeline_tests.dataset.sources.derived import (
    SPLIT,
    Derived,
    derived,
    keys_of,
    members,
    of_source,
    places,
    rebuild,
    upstream,
)

Contents = dict[str, dict[str, bytes]]
_PHASES = (Phase.explicit, Phase.generate)  # builds take too long to look for smaller ones
SAMPLES = st.dictionaries(
    st.from_regex(r"[a-c]{1,2}(/[a-z0-9]{1,3})?", fullmatch=True),
    st.dictionaries(
        st.sampled_from(["dat", "bin", "seg.bin"]), st.binary(min_size=1, max_size=3000),
        min_size=1,
    ),
    min_size=1,
    max_size=12,
)  # fmt: skip


def _folder() -> Iterator[Path]:
    """A folder for each example."""
    found = Path(tempfile.mkdtemp(prefix="wds_pipeline-"))
    yield found
    shutil.rmtree(found)


def raw(folder: Path, contents: Contents, **options: Any) -> Project:
    """A dataset of these samples."""
    project = upstream(folder, 0, samples={"required": [], "naming": "webdataset"}, **options)
    for key, fields in contents.items():
        for field, data in fields.items():
            project.write(f"{key}.{field}", data)
    project.build(verify={"level": "samples"})
    return project


@settings(max_examples=8, phases=_PHASES)
@given(SAMPLES, st.integers(1, 6), st.integers(1, 6), st.integers(0, 3))
def test_laying_out_anew_keeps_everything(
    contents: Contents, before: int, after: int, seed: int
) -> None:
    for folder in _folder():
        first = raw(folder / "a", contents, shards={"max_samples": before})
        second = derived(
            first, folder / "b", shards={"max_samples": after, "seed": seed, "max_bytes": 10**6}
        )
        second.build()
        assert members(second.published()) == members(contents)
        split = {key: place[0] for key, place in places(first).items()}
        assert {key: place[0] for key, place in places(second).items()} == split
        assert all(shard.samples <= after for shard in second.latest().shards)
        third = derived(second, folder / "c", shards={"layout": "source"})
        third.build()
        assert members(third.published()) == members(contents)
        theirs = {each.partition: keys_of(second, each.path) for each in second.latest().shards}
        ours = {each.partition: keys_of(third, each.path) for each in third.latest().shards}
        assert ours == theirs


@settings(max_examples=6, phases=_PHASES)
@given(SAMPLES, st.integers(1, 3000))
def test_two_parts_are_the_whole(contents: Contents, limit: int) -> None:
    """A query and its opposite; the splits; tars; and all of them merged."""
    assume(any("dat" in fields for fields in contents.values()))  # else the query asks for nothing
    for folder in _folder():
        whole = raw(folder / "a", contents)
        pieces = [
            wanted
            for name, query in (("x", f"dat.size < {limit}"), ("y", f"not (dat.size < {limit})"),
                                ("z", 'not has("dat")'))
            if (wanted := piece(whole, folder / name, query)) is not None
        ]  # fmt: skip
        found: Counter[Any] = Counter()
        for each in pieces:
            found += members(each.published())
        assert found == members(contents)
        parts = [
            {"label": f"p{number}", "dataset": {"url": str(each.destination)}}
            for number, each in enumerate(pieces)
        ]
        merged = of_source(folder / "merged", {"merge": parts})
        merged.build()
        bare = {key.partition("/")[2]: fields for key, fields in merged.published().items()}
        assert members(bare) == members(contents)
        tars = of_source(folder / "tars", {"shards": str(merged.destination / "shards")})
        tars.build()
        assert members(tars.published()) == members(merged.published())


def piece(whole: Project, folder: Path, query: str) -> Derived | None:
    """The samples that answer a query; None if none does, or it asks for what there is not."""
    from wds_pipeline.errors import ConfigError

    project = derived(whole, folder, {"where": query})
    try:
        project.build()
    except ConfigError as error:
        if "no sample" not in str(error):
            raise
        return None
    return project


def test_another_seed_is_another_shuffle(tmp_path: Path) -> None:
    first = upstream(tmp_path / "a", 30)
    orders: list[list[list[str]]] = []
    for seed in (0, 0, 1):
        project = derived(first, tmp_path / f"b{len(orders)}", shards={"seed": seed})
        project.build()
        shards = project.latest().shards
        orders.append([keys_of(project, each.path) for each in shards])
        assert project.published() == first.published()
    assert orders[0] == orders[1] != orders[2]
    first_order = [keys_of(first, each.path) for each in first.latest().shards]
    assert orders[0] == first_order  # the default lays out as it always did


def test_a_seed_that_changes_moves_nothing_until_repack(tmp_path: Path) -> None:
    first = upstream(tmp_path / "a", 30)
    before = places(first)
    first.options["shards"] = {"seed": 7}
    assert first.build().packed == 0
    first.build(repack=True)
    assert {k: v[0] for k, v in places(first).items()} == {k: v[0] for k, v in before.items()}
    assert places(first) != before


def test_one_raw_edit_is_one_shard_at_each_stage(tmp_path: Path) -> None:
    a = upstream(tmp_path / "a", 40)
    b = derived(a, tmp_path / "b", {"where": "png.width > 8"}, shards={"max_samples": 3})
    c = derived(b, tmp_path / "c", shards={"max_bytes": 40_000})
    d = derived(c, tmp_path / "d", shards={"layout": "source"})
    for project in (b, c, d):
        project.build()
    a.write("a/0003.txt", "edited")
    assert [len(rebuild(project)) for project in (a, b, c, d)] == [1, 1, 1, 1]
    wanted = {k: v for k, v in a.published().items() if 8 + int(k[2:]) % 5 > 8}
    for project in (b, c, d):
        assert project.published() == wanted
    assert wanted["a/0003"]["txt"] == b"edited"
    assert [rebuild(project) for project in (a, b, c, d)] == [[], [], [], []]
    a.write("a/0005.txt", "edited")  # not in the subset
    assert [len(rebuild(project)) for project in (a, b, c, d)] == [1, 0, 0, 0]
    for file in a.source.glob("a/0003.*"):
        file.unlink()
    assert [len(rebuild(project)) for project in (a, b, c, d)] == [1, 1, 1, 1]


def shout(sample: dict[str, Any]) -> dict[str, Any]:
    """A transform."""
    return {**sample, "txt": sample["txt"].upper()}


def test_one_to_one_with_a_transform(tmp_path: Path) -> None:
    a = upstream(tmp_path / "a", 20)
    transforms = [f"{__name__}:shout"]
    b = derived(a, tmp_path / "b", shards={"layout": "source"}, transforms=transforms)
    c = derived(b, tmp_path / "c", shards={"layout": "source"})
    for project in (b, c):
        project.build()
        theirs = {each.partition: keys_of(a, each.path) for each in a.latest().shards}
        ours = {each.partition: keys_of(project, each.path) for each in project.latest().shards}
        assert ours == theirs
        assert project.published()["a/0001"]["txt"] == b"CAPTION OF A/0001"
    a.write("a/0001.txt", "edited")
    changed = rebuild(a)
    assert len(changed) == 1 and rebuild(b) == changed and rebuild(c) == changed
    assert c.published()["a/0001"]["txt"] == b"EDITED"


def test_members_larger_than_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStorage, "window_bytes", 4096)
    monkeypatch.setattr("wds_pipeline.dataset.origins.BLOCK", 1500)
    contents = {
        f"a/{n}": {"bin": bytes([n]) * size} for n, size in enumerate((1, 3000, 9000, 4096))
    }
    first = raw(tmp_path / "a", contents)
    second = derived(first, tmp_path / "b", shards={"max_samples": 1})
    second.build()
    assert second.published() == contents


def test_a_member_that_changed_in_its_tar(tmp_path: Path) -> None:
    """Of a large member, too, the bytes are held against what was scanned."""
    (tmp_path / "x.tar").write_bytes(make([("a/1.bin", b"x" * 20_000_000), ("a/2.txt", b"two")]))
    project = of_source(tmp_path / "out", {"shards": str(tmp_path / "x.tar")})
    source = open_source(project.config())
    listing = source.scan()
    assert listing.files.num_rows == 2 and listing.origins is not None
    from wds_pipeline.dataset.origins import OriginReader

    table = listing.files.select(["path"])
    for name in listing.origins.table.column_names:
        table = table.append_column(name, listing.origins.table[name])
    reader = OriginReader(listing.origins.stores, table)
    _, print_, _ = (listing.files[name][0].as_py() for name in ("path", "fingerprint", "size"))
    assert sum(map(len, reader.read_chunks("a/1.bin", 20_000_000, print_))) == 20_000_000
    data = bytearray((tmp_path / "x.tar").read_bytes())
    data[19_000_000] ^= 1
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(SourceChanged, match="its content is not what was scanned"):
        for _ in reader.read_chunks("a/1.bin", 20_000_000, print_):
            pass


def test_splits_stay_in_long_chains(tmp_path: Path) -> None:
    """Whatever is laid out anew, no sample of val ever comes to train."""
    a = upstream(tmp_path / "a", 30)
    b = derived(a, tmp_path / "b", shards={"max_samples": 2})
    b.build()
    c = of_source(
        tmp_path / "c", {"merge": [{"label": "x", "dataset": {"url": str(b.destination)}}]}
    )
    c.build()
    split = {f"x/{key}": place[0] for key, place in places(a).items()}
    assert {key: place[0] for key, place in places(c).items()} == split
    a.add(30, 20)
    a.options["split"] = {"train": 0.5, "val": 0.5}
    for project in (a, b, c):
        project.build()
    split = {f"x/{key}": place[0] for key, place in places(a).items()}
    assert {key: place[0] for key, place in places(c).items()} == split
    assert a.options["split"] != SPLIT
    assert version.latest(c.storage) is not None

"""Builds end to end: what is published is what the source holds, and only what changed is built."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from wds_pipeline import demo
from wds_pipeline.compute import open_pool
from wds_pipeline.dataset import drafts, publish, seal, settle, version
from wds_pipeline.dataset.build import Build, BuildResult
from wds_pipeline.dataset.plan import Plan
from wds_pipeline.errors import DataError, DestinationError, SourceChanged, VerificationError
from wds_pipeline.storage import LocalStorage
from wds_pipeline_tests.conftest import Project, png


@pytest.fixture
def built(project: Project) -> Project:
    project.add(0, 30)
    project.build()
    return project


def tars(project: Project) -> dict[str, str]:
    """Partition → shard, of the newest version."""
    return {shard.partition: shard.name for shard in project.latest().shards}


def planned(project: Project, **options: Any) -> Plan:
    work = Build(project.config(**options))
    return work.plan(work.scan()).plan


def rebuilt(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """The partitions whose tar was written."""
    changed = {name for name in after if name.endswith(".tar") and before.get(name) != after[name]}
    return {seal.partition_of(name.partition(".")[0]) for name in changed}


def test_what_is_published_is_what_the_source_holds(built: Project) -> None:
    manifest = built.latest()
    assert (manifest.version, manifest.parent) == (1, 0)
    assert len(manifest.shards) > 5
    assert built.published() == built.raw()
    assert manifest.total_samples == 30
    assert manifest.total_bytes == sum(
        (built.destination / s.path).stat().st_size for s in manifest.shards
    )
    assert not built.stray()
    assert {path.name for path in (built.destination / "versions/00000001").iterdir()} == {
        "manifest.json", "ledger.parquet", "inventory.parquet", "quarantine.parquet",
        "report.json", "report.html", "shards.parquet",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_two_places_give_identical_shards(built: Project, tmp_path: Path, kind: str) -> None:
    other = built.copy(tmp_path / "elsewhere")
    other.build(compute={"kind": kind, "workers": 2})
    ours, theirs = built.latest(), other.latest()
    assert [(s.name, s.digest) for s in ours.shards] == [(s.name, s.digest) for s in theirs.shards]
    assert ours.inputs != "" and ours.write_id != theirs.write_id
    assert other.published() == built.published()


def everything(project: Project) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(project.destination)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in project.destination.rglob("*")
        if path.is_file()
    }


def test_a_second_build_touches_nothing_and_reads_no_shard(
    built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(built)
    opened: list[str] = []
    for name in ("open", "read"):
        real = getattr(LocalStorage, name)

        def noted(self: LocalStorage, path: str, real: Any = real) -> Any:
            opened.append(path)
            return real(self, path)

        monkeypatch.setattr(LocalStorage, name, noted)
    result = built.build()
    assert (result.status, result.packed) == ("unchanged", 0)
    assert result.manifest.version == 1
    assert everything(built) == before
    assert not [path for path in opened if path.startswith(seal.FOLDER)]


def edit_one(project: Project) -> None:
    project.write("a/0007.txt", "another caption")


def add_ten(project: Project) -> None:
    project.add(100, 10)


def delete_one(project: Project) -> None:
    for path in project.source.glob("a/0011.*"):
        path.unlink()


def rename_one(project: Project) -> None:
    for path in project.source.glob("a/0013.*"):
        path.rename(path.with_name(f"moved{path.suffix}"))


def add_a_field(project: Project) -> None:
    project.write("a/0003.cls", "7")


@pytest.mark.parametrize(
    ("change", "cause", "at_most"),
    [
        (edit_one, "1 edited", 1),
        (add_ten, "new", 6),
        (delete_one, "1 deleted", 1),
        (rename_one, "", 3),
        (add_a_field, "1 edited", 1),
    ],
)
def test_exactly_what_the_plan_said_is_rebuilt(
    built: Project, change: Callable[[Project], None], cause: str, at_most: int
) -> None:
    before, files = tars(built), built.shard_files()
    time.sleep(0.02)
    change(built)
    plan = planned(built)
    assert everything(built) == everything(built)
    said = {shard.partition: shard.cause for shard in plan.stale}
    assert 1 <= len(said) <= at_most
    assert all(cause in each for each in said.values())
    result = built.build()
    assert result.status == "published"
    assert result.causes == said
    assert rebuilt(files, built.shard_files()) == set(said)
    after = tars(built)
    assert {p for p in before | after if before.get(p) != after.get(p)} == set(said) | set(
        plan.gone
    )
    assert built.published() == built.raw()
    assert built.published(version.read(built.storage, 1, "small"))  # the old one is still whole
    assert built.build().status == "unchanged"


def test_planning_writes_nothing(project: Project) -> None:
    project.add(0, 5)
    work = Build(project.config())
    assert work.plan(work.scan()).plan.changed
    assert not project.destination.exists()


def test_a_random_life(project: Project) -> None:
    """Many small changes, one after the other: always the source, never an unplanned rewrite."""
    import random

    rng = random.Random(5)
    project.add(0, 12)
    project.build()
    number = 1000
    for _ in range(15):
        for _ in range(rng.randint(1, 3)):
            keys = sorted({path.stem for path in project.source.glob("a/*.png")})
            act = rng.choice(("add", "add", "edit", "delete", "break", "mend"))
            key = rng.choice(keys)
            if act == "add":
                number += 3
                project.add(number, rng.randint(1, 3))
            elif act == "edit":
                project.write(f"a/{key}.txt", f"caption {rng.random()}")
            elif act == "break":
                project.write(f"a/{key}.png", b"no picture")
            elif act == "mend":
                for broken in keys:
                    project.write(f"a/{broken}.png", png(int(broken)))
            elif len(keys) > 4:
                for path in project.source.glob(f"a/{key}.*"):
                    path.unlink()
        files, said = project.shard_files(), {s.partition for s in planned(project).stale}
        result = project.build()
        good = {k: v for k, v in project.raw().items() if v["png"].startswith(b"\x89PNG")}
        assert project.published() == good
        manifest = project.latest()
        assert manifest.total_samples + sum(manifest.quarantined.values()) == len(project.raw())
        # What verification finds broken takes its own shard a second time, and no other.
        assert rebuilt(files, project.shard_files()) <= said | set(result.causes)
        assert result.status != "unchanged" or not said
    numbers = version.list_versions(project.storage)
    assert numbers == list(range(1, numbers[-1] + 1))


# ------------------------------------------------------------------------------------ repairs


def delete_tar(path: Path) -> None:
    path.unlink()


def truncate_tar(path: Path) -> None:
    os.truncate(path, 1000)


def extend_tar(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(512))


def delete_beside(ending: str) -> Callable[[Path], None]:
    return lambda path: path.with_name(path.name.removesuffix(seal.TAR) + ending).unlink()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "tar deleted": delete_tar,
    "tar truncated": truncate_tar,
    "tar extended": extend_tar,
    "index deleted": delete_beside(seal.MEMBERS),
    "seal deleted": delete_beside(seal.SEAL),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_repaired_without_a_new_version(built: Project, damage: str) -> None:
    add_ten(built)
    built.build()  # so that the shard is in two versions
    shard = built.latest().shards[1]
    path = built.destination / shard.path
    data, others = path.read_bytes(), built.shard_files()
    DAMAGE[damage](path)
    result = built.build()
    assert (result.status, result.packed) == ("repaired", 1)
    assert result.manifest.version == built.latest().version == 2
    assert path.read_bytes() == data
    after = built.shard_files()
    assert {n for n in others if others[n] != after[n]} <= {n for n in after if shard.name in n}
    for number in (1, 2):  # the brace-able names of all versions lead to the repaired file
        assert os.path.samefile(path, built.destination / f"views/{number:08d}/train-000001.tar")
    assert built.published() == built.raw()
    assert built.build().status == "unchanged"


def test_a_repaired_shard_is_read_back(built: Project) -> None:
    shard = built.latest().shards[0]
    report = built.destination / seal.path(shard.name, seal.REPORT)
    before = report.stat().st_mtime_ns
    (built.destination / shard.path).unlink()
    built.build()
    assert report.stat().st_mtime_ns > before


def test_a_repair_and_a_change_at_once(built: Project) -> None:
    (built.destination / built.latest().shards[1].path).unlink()
    add_ten(built)
    assert built.build().status == "published"
    assert built.published() == built.raw()


@pytest.mark.parametrize("also", [lambda p: None, add_ten])
def test_content_that_changed_behind_its_time_is_caught_on_repair(
    built: Project, also: Callable[[Project], None]
) -> None:
    raw = built.source / "a/0005.txt"
    times = raw.stat()
    raw.write_text("CAPTION of a/0005")
    os.utime(raw, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert raw.stat().st_size == times.st_size
    key = b"CAPTION"
    shard = next(
        s for s in built.latest().shards
        if b"a/0005.txt" in (built.destination / s.path).read_bytes()
    )  # fmt: skip
    (built.destination / shard.path).unlink()
    also(built)
    for _ in range(2):  # and it stays so: no wrong bytes are ever stored under the old name
        with pytest.raises(VerificationError, match=r"published with.*touch it and build, or set"):
            built.build()
        assert not (built.destination / shard.path).exists()
        assert version.list_versions(built.storage) == [1]
    os.utime(raw)
    assert built.build().status == "published"
    assert built.published() == built.raw()
    assert any(key in data["txt"] for data in built.published().values())


def test_a_repair_when_the_digest_was_changed_meanwhile(built: Project) -> None:
    shard = built.latest().shards[0]
    (built.destination / shard.path).unlink()
    assert built.build(shards={"digest": "sha256"}).status == "repaired"
    assert built.published() == built.raw()


# ------------------------------------------------------------------------------------ quarantine


def test_a_broken_image_leaves_and_returns(project: Project) -> None:
    project.add(0, 30)
    project.write("a/0004.png", b"\x89PNG broken")
    result = project.build()
    raw = project.raw()
    broken = raw.pop("a/0004")
    assert broken
    assert project.published() == raw
    assert result.manifest.quarantined == {"broken_image": 1}
    table = pq.read_table(project.destination / "versions/00000001/quarantine.parquet")
    (row,) = table.to_pylist()
    assert row["key"] == "a/0004"
    assert row["files"] == ["a/0004.json", "a/0004.png", "a/0004.txt"]
    assert "a/0004.png" in row["detail"]
    assert project.build().status == "unchanged"
    # Nothing that was packed with it stays.
    names = {shard.name for shard in result.manifest.shards}
    assert {name.partition(".")[0] for name in project.shard_files()} == names
    files, slot = project.shard_files(), row["slot"]
    project.write("a/0004.png", png(4))
    result = project.build()
    assert rebuilt(files, project.shard_files()) == {f"train-{slot:06d}"}
    assert project.published() == project.raw()
    assert result.manifest.quarantined == {}
    ledger = pq.read_table(project.destination / "versions/00000002/ledger.parquet").to_pylist()
    assert [r["slot"] for r in ledger if r["key"] == "a/0004"] == [slot]


def test_an_image_that_breaks_later_takes_only_its_own_shard(built: Project) -> None:
    files = built.shard_files()
    time.sleep(0.02)
    built.write("a/0009.png", b"broken")
    result = built.build()
    assert len(rebuilt(files, built.shard_files())) == 1
    raw = built.raw()
    del raw["a/0009"]
    assert built.published() == raw
    assert list(result.causes.values()) == ["1 deleted"]


def test_keep_publishes_what_is_broken(project: Project) -> None:
    project.add(0, 6)
    project.write("a/0004.png", b"broken")
    project.write("a/0005.txt", b"")
    project.build(samples={"on_invalid": "keep"})
    assert project.published() == project.raw()
    assert project.latest().quarantined == {}
    assert project.build(samples={"on_invalid": "keep"}).status == "unchanged"
    assert project.build().status == "published"
    assert len(project.published()) == 4


def test_error_names_what_is_broken(project: Project) -> None:
    project.add(0, 6)
    project.write("a/0004.png", b"broken")
    for _ in range(2):
        with pytest.raises(DataError, match=r"(?s)broken_image: 1.*a/0004.*Nothing was published"):
            project.build(samples={"on_invalid": "error"})
    assert version.latest(project.storage) is None
    project.write("a/0004.png", png(4))
    assert project.build(samples={"on_invalid": "error"}).status == "published"


def test_the_budget(project: Project) -> None:
    project.add(0, 20)
    project.write("a/0004.png", b"broken")
    project.write("a/0005.png", b"broken")
    with pytest.raises(DataError, match=r"2 of 20 samples \(10.0%\).*max_quarantined allows 5.0%"):
        project.build(samples={"max_quarantined": "5%"})
    assert version.latest(project.storage) is None
    assert project.build(samples={"max_quarantined": "10%"}).status == "published"
    assert len(project.published()) == 18


def test_a_file_that_was_unreadable_is_tried_again(
    built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rights change no time of modification: the source looks the same before and after."""
    time.sleep(0.02)
    built.write("a/0008.txt", "not yet readable")
    built.write("a/0009.txt", "not yet readable")
    real = os.open

    def refuse(path: Any, *more: Any, **named: Any) -> int:
        if str(path).endswith(("/0008.txt", "/0009.txt")):
            raise PermissionError(13, "Permission denied")
        return real(path, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    manifest = built.build().manifest
    assert manifest.quarantined == {"unreadable": 2}
    assert len(built.published()) == 28
    assert built.build().status == "unchanged"
    monkeypatch.undo()
    assert built.build().status == "published"
    assert built.published() == built.raw()


def test_samples_in_are_published_or_quarantined(project: Project) -> None:
    """The demo's awkward cases, all of them, at full size."""
    counts = demo.generate(project.source, 120)
    project.build(
        samples={
            "required": ["jpg", "txt", "json"],
            "fields": {"jpg": ["jpg", "jpeg", "png", "webp"], "txt": ["txt"], "json": ["json"]},
        },
        shards={"max_bytes": "1MB"},
        split={"train": 0.9, "val": 0.1},
    )
    manifest = project.latest()
    assert manifest.total_samples == counts["ok"]
    wanted = {reason: counts[reason] for reason in demo.QUARANTINED if counts.get(reason)}
    assert manifest.quarantined == wanted
    assert len(project.published()) == counts["ok"]
    summary = manifest.verification
    assert summary["samples_in"] == summary["published"] + summary["quarantined"]
    skipped = sum(counts.get(reason, 0) for reason in demo.SKIPPED)
    assert sum(manifest.files.values()) + skipped == counts["files"]


# ------------------------------------------------------------------------------------ layout


def test_repack(built: Project) -> None:
    for path in sorted(built.source.glob("a/00[01]*")):
        path.unlink()
    built.build()
    thin = len(built.latest().shards)
    result = built.build(repack=True)
    assert result.status == "published"
    assert len(result.manifest.shards) < thin
    assert built.published() == built.raw()
    assert built.build().status == "unchanged"
    assert built.build(repack=True).status == "unchanged"


def test_restore_then_build(built: Project) -> None:
    first = built.published()
    add_ten(built)
    built.build()
    second, files = built.published(), built.shard_files()
    restored = publish.restore(built.storage, 1, "small")
    assert (restored.version, restored.parent, restored.restored_from) == (3, 2, 1)
    assert built.published() == first
    result = built.build()
    assert (result.manifest.version, result.packed) == (4, 0), "the sealed shards are taken up"
    assert built.published() == second
    after = built.shard_files()
    tar_files = [name for name in files if not name.endswith(seal.SEAL)]
    assert all(files[name] == after[name] for name in tar_files)


# ------------------------------------------------------------------------------------ the commit


def with_another_build(
    project: Project, monkeypatch: pytest.MonkeyPatch, change: Callable[[], None], **options: Any
) -> BuildResult:
    """Builds, while another build commits a change between this one's plan and its commit."""
    real, struck = Build.publish, list[bool]()

    def publish_late(self: Build, *arguments: Any) -> Any:
        if not struck:
            struck.append(True)
            change()
            time.sleep(0.02)
            project.build()
        return real(self, *arguments)

    monkeypatch.setattr(Build, "publish", publish_late)
    result = project.build(**options)
    monkeypatch.undo()
    assert struck
    return result


def check_history(project: Project) -> None:
    numbers = version.list_versions(project.storage)
    assert numbers == list(range(1, len(numbers) + 1))
    for number in numbers:
        manifest = version.read(project.storage, number, "small")
        assert manifest.parent == number - 1
        assert project.published(manifest)


def test_a_conflict_is_rebased(built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_one(built)
    result = with_another_build(built, monkeypatch, lambda: add_ten(built))
    assert (result.status, result.manifest.version) == ("unchanged", 2)
    assert built.published() == built.raw()
    check_history(built)


def test_a_conflict_with_a_newer_source_loses_nothing(
    built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other build saw files that this one's scan did not: they must not vanish again."""
    add_ten(built)

    def change() -> None:
        built.add(200, 5)
        built.write("a/0001.png", b"broken by now")

    with_another_build(built, monkeypatch, change)
    raw = built.raw()
    assert raw.pop("a/0001")
    assert built.published() == raw
    check_history(built)


def test_a_first_build_in_conflict(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.add(0, 10)
    result = with_another_build(project, monkeypatch, lambda: add_ten(project))
    assert result.manifest.version == 1
    assert project.published() == project.raw()
    check_history(project)


def test_a_repack_in_conflict_is_still_a_repack(
    built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in sorted(built.source.glob("a/000*")):
        path.unlink()
    built.build()
    before = len(built.latest().shards)

    def change() -> None:
        edit_one(built)
        built.add(7, 1)

    result = with_another_build(built, monkeypatch, change, repack=True)
    assert result.status == "published"
    assert len(result.manifest.shards) < before
    assert built.published() == built.raw()
    check_history(built)


def test_a_number_that_gc_freed_is_not_committed(
    built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number after the parent is free again, but later versions know nothing of ours."""
    edit_one(built)

    def change() -> None:
        add_ten(built)
        built.build()
        built.add(300, 2)
        built.build()
        for path in (built.destination / "versions/00000002").iterdir():
            path.unlink()

    with_another_build(built, monkeypatch, change)
    assert version.list_versions(built.storage)[:2] == [1, 3]
    assert built.published() == built.raw()


def lose_the_reply(monkeypatch: pytest.MonkeyPatch, committed: bool) -> None:
    real = LocalStorage.put_if_absent

    def put_if_absent(self: LocalStorage, path: str, data: bytes) -> bool:
        if not path.endswith("manifest.json"):
            return real(self, path, data)
        if committed:
            real(self, path, data)
        raise DestinationError(f"{path}: the connection was lost")

    monkeypatch.setattr(LocalStorage, "put_if_absent", put_if_absent)


def test_an_unknown_outcome_that_was_a_commit(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.add(0, 10)
    lose_the_reply(monkeypatch, committed=True)
    result = project.build()
    assert (result.status, result.manifest.version) == ("published", 1)
    assert project.published() == project.raw()


def test_an_unknown_outcome_that_was_none(built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    add_ten(built)
    files = everything(built)
    lose_the_reply(monkeypatch, committed=False)
    with pytest.raises(
        DestinationError, match=r"version 2.*connection was lost.*nothing was removed"
    ):
        built.build()
    monkeypatch.undo()
    assert files.items() <= everything(built).items()
    staged = list(built.destination.glob("versions/00000002/build-*/*"))
    assert len(staged) == 6, "nothing is cleaned up on an unknown outcome"
    assert built.latest().version == 1
    result = built.build()
    assert (result.status, result.packed) == ("published", 0), "the sealed shards were taken up"
    assert built.published() == built.raw()


def test_an_unknown_outcome_that_another_build_won(
    built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_ten(built)
    real, struck = LocalStorage.put_if_absent, list[bool]()

    def put_if_absent(self: LocalStorage, path: str, data: bytes) -> bool:
        if path.endswith("00000002/manifest.json") and not struck:
            struck.append(True)
            built.build()
            raise DestinationError(f"{path}: the connection was lost")
        return real(self, path, data)

    monkeypatch.setattr(LocalStorage, "put_if_absent", put_if_absent)
    result = built.build()
    assert result.manifest.version == 2
    assert built.published() == built.raw()
    check_history(built)


def test_the_steps_one_by_one(project: Project) -> None:
    """As Dagster calls them: each in a fresh `Build`, over what is stored."""
    project.add(0, 20)
    project.write("a/0002.png", b"broken")
    config = project.config()
    Build(config).open_destination()
    listing = Build(config).scan()
    draft = Build(config).plan(listing)
    with open_pool(config.compute) as pool:
        for shard in Build(config).unsealed(draft.plan):
            assert Build(config).pack(draft.plan, [shard], pool)[0].seal
        assert Build(config).unsealed(draft.plan) == []
        for shard in draft.plan.shards:
            Build(config).verify(draft.plan, [shard], pool)
        work = Build(config)
        reports = settle.load_reports(work.destination, draft.plan.shards)
        assert drafts.unverified(work, draft.plan, reports) == []
        result = Build(config).finish(draft, pool)
    assert result.status == "published"
    raw = project.raw()
    del raw["a/0002"]
    assert project.published() == raw
    assert Counter(result.manifest.quarantined) == {"broken_image": 1}


def test_two_rounds_of_quarantine_keep_every_place(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sample is unreadable when it is packed, another is found broken by verification."""
    project.add(0, 30)
    whole = project.copy(project.folder / "whole")
    whole.build()
    slots = {
        row["key"]: (row["split"], row["slot"])
        for row in version.read_table(whole.storage, whole.latest(), version.LEDGER).to_pylist()
    }
    project.write("a/0004.png", b"broken")
    project.write("a/0020.json", b"{broken")
    real = LocalStorage.read_into

    def read_into(self: LocalStorage, path: str, *more: Any) -> None:
        if path == "a/0011.txt":
            raise SourceChanged(path, "it was modified after the scan")
        real(self, path, *more)

    monkeypatch.setattr(LocalStorage, "read_into", read_into)
    manifest = project.build().manifest
    assert manifest.quarantined == {"broken_image": 1, "bad_json": 1, "unstable": 1}
    rows = version.read_table(project.storage, manifest, version.QUARANTINE).to_pylist()
    assert {row["key"]: (row["split"], row["slot"]) for row in rows} == {
        key: slots[key] for key in ("a/0004", "a/0011", "a/0020")
    }


def test_a_change_that_is_part_of_no_sample_is_planned_once(project: Project) -> None:
    project.add(0, 3)
    project.build()
    (project.source / "README").write_text("no sample's")
    assert project.build().status == "unchanged"
    work = Build(project.config())
    newest = work.newest_if_current(work.scan())
    assert newest is not None and newest.version == 1
    (project.source / "README").write_text("no sample's, either")
    assert work.newest_if_current(work.scan()) is None

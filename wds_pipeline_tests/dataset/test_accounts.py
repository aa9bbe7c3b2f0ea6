"""Samples counted anew: every way in which one can be lost shows."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest

from wds_pipeline.dataset import version
from wds_pipeline.dataset.accounts import recount
from wds_pipeline_tests.conftest import Project

Tables = dict[str, pa.Table]


@pytest.fixture
def tables(project: Project) -> Tables:
    """The tables of a version with 12 samples published and 2 in the quarantine."""
    project.options["split"] = {"train": 0.7, "val": 0.3}
    project.add(0, 12)
    project.write("b/0000.txt", "lonely")
    project.write("b/0001.txt", "lonely")
    project.write("README", "no sample's file")
    project.build()
    manifest = project.latest()
    names = (version.INVENTORY, version.LEDGER, version.QUARANTINE)
    found = {
        name.partition(".")[0]: version.read_table(project.storage, manifest, name)
        for name in names
    }
    return found


def splits(tables: Tables) -> dict[str, int]:
    found = tables["ledger"]["split"].to_pylist()
    return {name: found.count(name) for name in set(found)}


def test_all_there(tables: Tables) -> None:
    found = recount(**tables, splits=splits(tables))
    assert (found.samples_in, found.published, found.quarantined) == (14, 12, 2)
    assert found.splits == splits(tables)
    assert found.problems == []


def without_first(table: pa.Table) -> pa.Table:
    return table.slice(1)


def first_twice(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 1), table])


@pytest.mark.parametrize(
    ("name", "damage", "problem"),
    [
        ("ledger", without_first, "1 samples are in the source, but neither published nor in"),
        ("quarantine", without_first, "1 samples are in the source, but neither published nor in"),
        ("inventory", lambda table: table.slice(4), "but not in the source, such as a/0000"),
        ("ledger", first_twice, "1 samples are in the ledger more than once, such as a/00"),
        ("quarantine", first_twice, "1 samples are in the quarantine more than once, such as b/00"),
    ],
)
def test_each_loss_shows(
    tables: Tables, name: str, damage: Callable[[pa.Table], pa.Table], problem: str
) -> None:
    before = splits(tables)
    found = recount(**tables | {name: damage(tables[name])}, splits=before)
    assert any(problem in each for each in found.problems), found.problems


def test_in_both(tables: Tables) -> None:
    moved = tables["quarantine"].slice(0, 1)
    keys = pa.array([tables["ledger"]["key"][0].as_py()], pa.large_string())
    both = pa.concat_tables([tables["quarantine"], moved.set_column(0, moved.field(0), keys)])
    found = recount(**tables | {"quarantine": both}, splits=splits(tables))
    assert any("both published and in the quarantine" in each for each in found.problems)


def test_another_split(tables: Tables) -> None:
    wrong = splits(tables) | {"test": 3}
    (problem,) = recount(**tables, splits=wrong).problems
    assert problem == "the ledger has 0 samples of test, its shards 3"

"""The ledger's columns."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wds_pipeline.dataset import ledger
from wds_pipeline_tests.dataset.inventories import dataset, plan_of, published, samples


def test_digests_there_and_back() -> None:
    values = [bytes([number] * 16) for number in range(5)]
    column = pa.chunked_array(
        [pa.array(values[:2], pa.binary(16)), pa.array(values[2:], pa.binary(16))]
    )
    found = ledger.digests(column)
    assert [each.tobytes() for each in found] == values
    assert ledger.digest_column(found).to_pylist() == values
    assert ledger.digest_column(found[::-2]).to_pylist() == values[::-2]
    assert [each.tobytes() for each in ledger.digests(column.slice(1, 3))] == values[1:4]
    assert len(ledger.digests(column.slice(0, 0))) == 0
    assert len(ledger.digests(ledger.empty(ledger.LEDGER)["digest"])) == 0


def test_names_are_sorted_however_they_are_stored() -> None:
    one = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.int32()), pa.array(["val", "a"]))
    two = pa.DictionaryArray.from_arrays(pa.array([1, 0], pa.int32()), pa.array(["test", "val"]))
    codes, names = ledger.names(pa.chunked_array([one, two]))
    assert names == ["a", "test", "val"]
    assert [names[code] for code in codes] == ["val", "a", "val", "val", "test"]
    codes, names = ledger.names(ledger.empty(ledger.LEDGER)["split"])
    assert len(codes) == 0
    assert names == []


def test_a_parent_that_was_stored_is_the_parent_that_was_planned() -> None:
    config = dataset()
    files = {**samples(0, 20), "b/1.jpg": (5, "1")}
    plan = plan_of(files, config)

    def stored(table: pa.Table) -> pa.Table:
        file = io.BytesIO()
        pq.write_table(table, file)
        return pq.read_table(io.BytesIO(file.getvalue()))

    memory = published(plan)
    disk = type(memory)(
        memory.version,
        stored(memory.ledger),
        stored(memory.quarantine),
        memory.recipes,
        lambda: stored(plan.inventory),
    )
    files = {**files, **samples(20, 5), "a/0003.jpg": (1, "2"), "b/1.txt": (5, "1")}
    one, two = plan_of(files, config, memory), plan_of(files, config, disk)
    assert one.shards == two.shards
    assert one.ledger.to_pylist() == two.ledger.to_pylist()
    assert one.ledger.schema.equals(ledger.LEDGER)
    assert one.quarantine.schema.equals(ledger.QUARANTINE)
    assert not plan_of(files, config, published(two)).changed
    assert np.array_equal(
        ledger.digests(stored(plan.ledger)["digest"]), ledger.digests(plan.ledger["digest"])
    )

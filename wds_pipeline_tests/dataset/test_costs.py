"""A price table's sums, and its mistakes; what is asked of folders costs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from wds_pipeline.dataset.costs import Costs, PriceTable, read_prices
from wds_pipeline.dataset.preview import preview
from wds_pipeline.errors import ConfigError
from wds_pipeline.storage import Usage
from wds_pipeline_tests.conftest import Project

TABLE = """
currency: EUR
source: {list: 0.005, get: 0.0004, gb_read: 0.09}
destination: {put: 0.005, copy: 0.01, head: 0.0004, gb_written: 0.5, gb_month: 0.02}
"""


def test_prices(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text(TABLE)
    table = read_prices(tmp_path / "prices.yaml")
    source = Usage(list=2_000, get=1_000_000, bytes_read=3_000_000_000)
    destination = Usage(put=1_000, copy=100, head=10_000, bytes_written=2_000_000_000, delete=5)
    found = table.price(Costs(source, destination))
    assert found["source"] == pytest.approx(2 * 0.005 + 1000 * 0.0004 + 3 * 0.09)
    assert found["destination"] == pytest.approx(0.005 + 0.1 * 0.01 + 10 * 0.0004 + 2 * 0.5)
    assert found["total"] == pytest.approx(found["source"] + found["destination"])
    assert found["a_month"] == pytest.approx(2 * 0.02)
    assert found["currency"] == "EUR"


def test_an_empty_table_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("")
    assert read_prices(tmp_path / "prices.yaml") == PriceTable()
    assert PriceTable().price(Costs(Usage(get=10), Usage(put=10)))["total"] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source: {gets: 1}", r"prices.yaml: the price table: source.gets: .*expected currency"),
        ("source: {get: -1}", "source.get: .*greater than or equal to 0"),
        ("source: {get: much}", "source.get: .*valid number"),
        ("- 1", "expected currency"),
        ("a: [", "is not YAML"),
        (None, "cannot be read"),
    ],
)
def test_mistakes_in_a_table(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "prices.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_prices(tmp_path / "prices.yaml")


def test_in_words() -> None:
    costs = Costs(Usage(list=3, get=5000, bytes_read=51_000_000), Usage(put=4, retries=2))
    assert str(costs) == (
        "source: 3 LIST, 5,000 GET, 51.0 MB read; destination: 4 PUT, 2 tried again"
    )
    assert str(Costs(Usage(), Usage())) == ""


def test_folders_are_asked_nothing(project: Project) -> None:
    project.add(0, 12)
    assert preview(project.config()).costs == Costs(Usage(), Usage())
    assert str(project.build().costs) == ""


def test_usage_adds_up() -> None:
    usage = Usage(get=1)
    usage.add(Usage(get=2, bytes_read=5, retries=1))
    usage.count("put", written=7)
    assert usage == Usage(get=3, put=1, bytes_read=5, bytes_written=7, retries=1)
    assert usage.requests == 4

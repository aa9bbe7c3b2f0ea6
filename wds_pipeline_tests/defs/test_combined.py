"""`combined`: the last stage of a chain, as a job and as an asset."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from wds_pipeline.config import DatasetConfig
from wds_pipeline.defs import keys
from wds_pipeline_tests.cli.conftest import Cli
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.defs.chain import FOLLOWING, Chain
from wds_pipeline_tests.defs.conftest import failure_of


@pytest.fixture
def tokens(chain: Chain, tmp_path: Path) -> Chain:
    """`raw` → `tokens`, built."""
    tiny = pytest.importorskip("wds_pipeline_tests.tokens.tiny")
    tiny.train_tokenizer(tmp_path / "tokenizer.json")
    text = {"tokenizer": str(tmp_path / "tokenizer.json"), "block_size": 12}
    tokenize = {"tokenize": {"layout": "one_modality", "text": text}}
    del chain.datasets["made"]
    (chain.folder / "datasets" / "made.yaml").unlink()
    chain.add(
        "tokens",
        {"dataset": "raw"},
        transforms=[tokenize],
        combine={"url": str(tmp_path / "memory")},
        **FOLLOWING,
    )
    chain.build()
    return chain


def combine(chain: Chain) -> None:
    job = chain.defs.resolve_job_def("tokens_combine")
    assert job.tags[keys.DATASET_TAG] == "tokens"
    assert job.execute_in_process(instance=chain.instance, raise_on_error=False).success


def test_the_job_copies_what_changed(tokens: Chain) -> None:
    memory = tokens.folder / "memory"
    graph = tokens.defs.resolve_asset_graph()
    node = graph.get(keys.asset_key("tokens", keys.COMBINED))
    assert node.parent_keys == {keys.asset_key("tokens", keys.PUBLISHED_VERSION)}
    assert keys.asset_key("raw", keys.COMBINED) not in graph.get_all_asset_keys()
    combine(tokens)
    shown = tokens.shown("tokens", keys.COMBINED)
    assert (shown["version"], shown["rows"], shown["missing"]) == (1, 8, 0)
    assert shown["copied"] == tokens.latest("tokens").total_shards
    columns = {each.name: each.type for each in shown["dagster/column_schema"].columns}
    assert columns == {
        "idx": "int32",
        "input_ids": "int16",
        "modality": "int16",
        "write_flag": "bool",
    }
    assert "load_memmap" in shown["how to read it"]
    assert tokens.badges() == {}
    ids = {path.parent.name: path.read_bytes() for path in memory.glob("*/input_ids.memmap")}
    assert ids.keys() == {"train", "val"}

    tokens.raw.write("a/0003.txt", "a boat")
    tokens.build()
    assert tokens.badges().keys() == {"tokens/combined"}
    combine(tokens)
    assert tokens.shown("tokens", keys.COMBINED)["copied"] == 1
    assert tokens.badges() == {}
    found = {path.parent.name: path.read_bytes() for path in memory.glob("*/input_ids.memmap")}
    changed = [split for split in found if found[split] != ids[split]]
    assert len(changed) == 1

    tokens.add(**{**tokens.datasets["tokens"], "combine": {"splits": ["val"]}})
    tokens.materialize("tokens", keys.COMBINED)
    assert (tokens.folder / "tokens/combined/00000002/val/combined.json").exists()
    assert not (tokens.folder / "tokens/combined/00000002/train").exists()

    tokens.add(**{**tokens.datasets["tokens"], "combine": {"splits": ["test"]}})
    message = failure_of(tokens.materialize("tokens", keys.COMBINED, fails=True))
    assert "'test'" in message


def test_each_new_version_by_itself(tokens: Chain) -> None:
    names = {sensor.name for sensor in tokens.defs.sensors or []}
    assert keys.combine_sensor_name("tokens") not in names, "only where it is wanted"
    options = tokens.datasets["tokens"]
    tokens.add(**{**options, "combine": {**options["combine"], "automatic": True}})
    sensor = tokens.defs.resolve_sensor_def(keys.combine_sensor_name("tokens"))
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    cursor = None

    def tick() -> bool:
        nonlocal cursor
        with dg.build_sensor_context(tokens.instance, cursor=cursor) as context:
            answer = sensor.evaluate_tick(context)
        cursor = answer.cursor
        for request in answer.run_requests or ():
            job = tokens.defs.resolve_job_def(str(sensor.job_name))
            assert request.run_key and job.execute_in_process(instance=tokens.instance).success
        return bool(answer.run_requests)

    assert [tick(), tick()] == [True, False]
    assert tokens.shown("tokens", keys.COMBINED)["version"] == 1
    tokens.build()
    assert not tick(), "nothing changed"
    tokens.raw.write("a/0003.txt", "a boat")
    tokens.build()
    assert [tick(), tick()] == [True, False]
    assert tokens.shown("tokens", keys.COMBINED)["copied"] == 1
    assert tokens.badges() == {}


def test_the_command_line_goes_by_the_file(tokens: Chain) -> None:
    cli = Cli(Project(tokens.folder))
    cli("combine", "tokens", "--split", "val")
    assert (tokens.folder / "memory/val/combined.json").exists()


@pytest.mark.parametrize("url", ["s3://bucket/tokens", "https://here/tokens"])
def test_a_store_is_refused(url: str) -> None:
    values = {"name": "a", "source": {"url": "b"}, "destination": {"url": "c"}}
    with pytest.raises(ValueError, match="memory maps need a folder of this machine"):
        DatasetConfig.model_validate({**values, "combine": {"url": url}})
    config = DatasetConfig.model_validate({**values, "combine": {}})
    assert config.combine_folder is None
    plain = DatasetConfig.model_validate(values)
    assert config.digest() == plain.digest(), "it decides nothing about what is published"

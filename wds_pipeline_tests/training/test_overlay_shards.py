"""Tars that webdataset itself reads, joined with overlays by a stage of its pipeline."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds

from wds_pipeline.errors import ConfigError, VersionError
from wds_pipeline.training import Dataset, join_shards, open_dataset
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.overlays import Overlay, overlay_of, write_fields
from wds_pipeline_tests.training.conftest import plain, stored


@pytest.fixture(scope="module")
def captions(published: Project, tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    """New captions for two of three samples. Not to be changed."""
    made = overlay_of(published, tmp_path_factory.mktemp("overlay") / "captions")
    write_fields(made, [key for n, key in enumerate(sorted(published.raw())) if n % 3])
    assert made.build().status == "published"
    return made


@pytest.fixture
def dataset(published: Project, captions: Overlay) -> Dataset:
    return open_dataset(
        str(published.destination), split="train", overlays=[str(captions.destination)]
    )


def expected(published: Project, captions: Overlay) -> list[Any]:
    new = captions.published()
    return [(key, {**each, **new.get(key, {})}) for key, each in stored(published, "train")]


def fields_of(sample: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """As `plain`; webdataset adds a name of its own."""
    return plain({name: value for name, value in sample.items() if name != "__local_path__"})


def test_it_adds_what_the_overlay_has(
    published: Project, captions: Overlay, dataset: Dataset
) -> None:
    pipeline = wds.WebDataset(dataset.urls, shardshuffle=False).compose(join_shards(dataset))
    assert [fields_of(each) for each in pipeline] == expected(published, captions)


def test_the_names_of_a_view_will_do(
    published: Project, captions: Overlay, dataset: Dataset
) -> None:
    braces = dataset.braces
    assert "{" in braces and "views" in braces
    pipeline = wds.WebDataset(braces, shardshuffle=False).compose(join_shards(dataset))
    assert [fields_of(each) for each in pipeline] == expected(published, captions)


def test_a_command_with_the_name_in_it(
    published: Project, captions: Overlay, dataset: Dataset
) -> None:
    urls = [f"pipe:cat {url} " for url in dataset.urls]
    pipeline = wds.WebDataset(urls, shardshuffle=False).compose(join_shards(dataset))
    assert [fields_of(each) for each in pipeline] == expected(published, captions)


@pytest.mark.parametrize(("nodes", "workers"), [(1, 1), (1, 3), (2, 2)])
def test_nodes_and_workers_get_each_sample_once(
    published: Project,
    captions: Overlay,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    nodes: int,
    workers: int,
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    found = []
    for rank in range(nodes):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(nodes))
        pipeline = wds.WebDataset(
            dataset.urls, shardshuffle=100, nodesplitter=wds.split_by_node, seed=1
        ).compose(join_shards(dataset))
        loader = wds.WebLoader(pipeline, batch_size=None, num_workers=workers)
        found += [fields_of(each) for each in loader]
    assert sorted(found, key=lambda each: each[0]) == sorted(
        expected(published, captions), key=lambda each: each[0]
    )


def test_a_stage_that_was_sent_to_another_process(
    published: Project, captions: Overlay, dataset: Dataset
) -> None:
    stage = join_shards(dataset)
    samples = list(wds.WebDataset(dataset.urls, shardshuffle=False))
    once = [fields_of(each) for each in stage(samples)]
    sent = pickle.dumps(stage)
    assert len(sent) < 4000
    assert [fields_of(each) for each in pickle.loads(sent)(samples)] == once
    assert once == expected(published, captions)


def test_samples_out_of_order_and_some_of_them(
    published: Project, captions: Overlay, dataset: Dataset
) -> None:
    samples = list(wds.WebDataset(dataset.urls, shardshuffle=False))[::-3]
    found = [fields_of(each) for each in join_shards(dataset)(samples)]
    assert found == expected(published, captions)[::-3]
    pipeline = (
        wds.WebDataset(dataset.urls, shardshuffle=False).shuffle(20).compose(join_shards(dataset))
    )
    assert dict(map(fields_of, pipeline)) == dict(expected(published, captions))


def test_samples_that_the_overlay_lacks(
    published: Project, captions: Overlay, dataset: Dataset
) -> None:
    def read(missing: Any) -> list[Any]:
        pipeline = wds.WebDataset(dataset.urls, shardshuffle=False)
        return [fields_of(each) for each in pipeline.compose(join_shards(dataset, missing))]

    there = captions.published().keys()
    assert read("skip") == [each for each in expected(published, captions) if each[0] in there]
    with pytest.raises(
        VersionError,
        match=r"captions2: version 1, split train has nothing for '.*', a sample of small",
    ):
        read("error")
    with pytest.raises(
        ConfigError, match="join_shards: missing: found 'drop'; expected keep, skip"
    ):
        join_shards(dataset, "drop")  # type: ignore[arg-type]


def test_only_some_fields(published: Project, captions: Overlay) -> None:
    dataset = open_dataset(
        str(published.destination), overlays=[captions.destination], fields=["png"]
    )
    pipeline = wds.WebDataset(dataset.urls, shardshuffle=False).compose(join_shards(dataset))
    assert [fields_of(each) for each in pipeline] == stored(published)


def test_what_is_not_of_these_shards(
    published: Project, captions: Overlay, dataset: Dataset, tmp_path: Path
) -> None:
    val = open_dataset(str(published.destination), split="val")
    with pytest.raises(
        VersionError,
        match=r"join_shards: found a sample of .*val-000.*expected one of its shards, such as",
    ):
        next(iter(wds.WebDataset(val.urls, shardshuffle=False).compose(join_shards(dataset))))
    renamed = ({**each, "__key__": "other"} for each in wds.WebDataset(dataset.urls))
    with pytest.raises(VersionError, match="found a sample 'other' that its member index lacks"):
        next(join_shards(dataset)(renamed))
    with pytest.raises(ConfigError, match="it has no overlays; open it with overlays="):
        join_shards(val)
    with pytest.raises(ConfigError, match="it is a selection; expected the whole dataset"):
        join_shards(dataset.select(has="json"))

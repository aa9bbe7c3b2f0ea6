"""Tokens in a bucket, combined on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import version
from wds_pipeline.dataset.build import build
from wds_pipeline.errors import ConfigError, VerificationError
from wds_pipeline.storage import open_storage
from wds_pipeline_tests.s3.project import S3Project
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server
from wds_pipeline_tests.s3.test_derived import derived

tensordict = pytest.importorskip("tensordict", reason="tensordict is not installed")


def texts_of(folder: Path) -> list[bytes]:
    """The texts of all rows, by a tokenizer whose ids are bytes plus 3; b"-" of one that is not written."""
    data = tensordict.TensorDict.load_memmap(str(folder))
    ids = np.asarray(data["input_ids"])
    written = np.asarray(data["write_flag"]).reshape(-1)
    return [
        bytes(int(each) - 3 for each in row if each >= 3) if good else b"-"
        for row, good in zip(ids, written, strict=True)
    ]


def test_from_a_bucket(moto_server: S3Server, make_bucket: MakeBucket, tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    from wds_pipeline.tokens.combine import TokenVersion, combine, default_destination

    ByT5Tokenizer().save_pretrained(tmp_path / "bytes")
    text = {"tokenizer": str(tmp_path / "bytes"), "block_size": 200}
    project = S3Project(moto_server, make_bucket(moto_server))
    project.add(0, 12)
    project.build()
    config: DatasetConfig = derived(
        project,
        "tokens",
        {"dataset": {"url": project.config().destination_url}},
        transforms=[{"tokenize": {"layout": "one_modality", "text": text}}],
        shards={"layout": "source"},
    )

    def newest() -> TokenVersion:
        build(config)
        storage = open_storage(config.destination_place)
        return TokenVersion(storage, version.read(storage, None, "tokens"), "train")

    wanted = {n: f"caption of raw/a/{n:04d}".encode() for n in range(12)}
    one = newest()
    with pytest.raises(ConfigError, match="memory maps need a folder of this machine"):
        default_destination(one)
    memory = tmp_path / "memory"
    result: Any = combine([one], memory)
    assert result.copied == one.manifest.total_shards > 1
    assert sorted(texts_of(memory)) == sorted(wanted.values())
    assert combine([one], memory).copied == 0
    wanted[3] = b"another text"
    project.client.put_object(Bucket=project.bucket, Key="raw/a/0003.txt", Body=wanted[3])
    project.build()
    two = newest()
    assert combine([two], memory).copied == 1
    assert sorted(texts_of(memory)) == sorted(wanted.values())

    lost = two.manifest.shards[0]
    project.client.delete_object(Bucket=project.bucket, Key=f"tokens/{lost.path}")
    with pytest.raises(VerificationError, match="--repair"):
        combine([two], tmp_path / "other")
    result = combine([two], tmp_path / "other", allow_missing=True)
    assert len(result.combined.missing) == 1
    found = texts_of(tmp_path / "other")
    assert 0 < found.count(b"-") < 12 == len(found)
    assert {each for each in found if each != b"-"} < set(wanted.values())

"""`verify --repair` where a shard cannot be had again."""

from __future__ import annotations

from wds_pipeline.dataset import seal
from wds_pipeline_tests.cli.conftest import Cli


def test_what_cannot_be_repaired_is_said(built: Cli) -> None:
    lost, other = built.project.latest().shards[:2]
    for shard in (lost, other):
        path = built.project.destination / shard.path
        data = path.read_bytes()
        path.write_bytes(data[:700] + bytes([data[700] ^ 1]) + data[701:])
    key = seal.read_member_index(built.project.storage, lost.name)["key"].to_pylist()[0]
    built.project.write(f"{key}.txt", "edited since")
    done = built("verify", "small", "--repair", code=1)
    assert "1 damaged shard packed anew: version 1 repaired" in done.stderr
    assert f"{lost.partition}: its source file {key}.txt is not what it was" in done.stderr
    assert "or run `wds-pipeline build small`" in done.stderr
    assert "verification failed" in done.stdout
    assert built.project.latest().version == 1
    built("build", "small")
    built("verify", "small")

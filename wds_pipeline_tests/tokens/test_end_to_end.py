"""raw → shards → resized → tokens → combined, by the command line: one edit is one shard of each."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tensordict import TensorDict

from wds_pipeline.dataset import seal, version
from wds_pipeline.tokens import combined
from wds_pipeline.tokens.tokenize import Tokenize
from wds_pipeline_tests.cli.conftest import Cli
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.tokens.conftest import parameters
from wds_pipeline_tests.tokens.results import save
from wds_pipeline_tests.tokens.tiny import HERE, picture

SAMPLES = 60
pytestmark = pytest.mark.usefixtures("no_fsync")


def brightness(number: int) -> int:
    return number * 4


@pytest.fixture
def chain(project: Project, files: Path) -> Cli:
    """Three data sets, each of the one before."""
    for number in range(SAMPLES):
        project.write(f"a/{number:03d}.png", picture(brightness(number), (64, 48)))
        project.write(f"a/{number:03d}.txt", f"boat {number}")
    found = Cli(project)
    tokens = parameters(
        files,
        "pairs",
        rows=3,
        image={"encoder": f"{HERE}:Brightness", "checkpoint": None, "fit": "squash"},
        vocabulary={"image": 256},
    )
    _write(
        found,
        "images",
        {"url": str(project.source)},
        split={"train": 0.8, "val": 0.2},
        shards={"max_bytes": 14_000},
    )
    _write(found, "small", {"dataset": "images"}, [{"resize": {"fields": ["png"], "size": 32}}])
    _write(found, "tokens", {"dataset": "small"}, [{"tokenize": tokens}])
    return found


def _write(cli: Cli, name: str, source: Any, transforms: Any = (), **more: Any) -> None:
    cli.datasets.mkdir(exist_ok=True)
    values = {
        "name": name,
        "source": source,
        "destination": {"url": str(cli.project.folder / name)},
        "samples": {"max_quarantined": "10%"},
        "compute": {"kind": "threads", "workers": 1},
        **({"transforms": list(transforms), "shards": {"layout": "source"}} if transforms else {}),
        **more,
    }
    (cli.datasets / f"{name}.yaml").write_text(yaml.safe_dump(values))


def _build(cli: Cli) -> list[int]:
    """Builds all; how many shards each packed."""
    return [len(cli.json("build", name)["causes"]) for name in ("images", "small", "tokens")]


def _keys(cli: Cli, split: str) -> list[str]:
    """The keys of all rows, in the shards' order."""
    from wds_pipeline.storage import open_storage

    storage = open_storage(str(cli.project.folder / "tokens"))
    manifest = version.latest(storage)
    assert manifest is not None
    keys: list[str] = []
    for shard in manifest.of_split(split):
        for each in seal.read_member_index(storage, shard.name).to_pylist():
            if each["field"] == "keys.json":
                data, _ = storage.read_range(shard.path, each["offset"], each["size"])
                keys += json.loads(bytes(data))
    return keys


def test_one_edit_goes_through_one_shard_of_each(chain: Cli) -> None:
    first = _build(chain)
    assert first[0] == first[1] == first[2] > 4
    out = chain.project.folder / "out"
    done = chain.json("combine", "tokens", out, "--split", "train", "--check")
    assert (done["rows"], done["about"]["layout"]) == (len(_keys(chain, "train")), "pairs")
    assert done["copied"] == sum(
        1 for path in (chain.project.folder / "tokens" / "shards").glob("train*.tar")
    )
    _check(out, _keys(chain, "train"), {})
    assert not [
        each for each in chain.json("verify", "tokens")["findings"] if each["severity"] != "info"
    ]

    edited = _keys(chain, "train")[5]
    chain.project.write(f"{edited}.png", picture(255, (64, 48)))
    assert _build(chain) == [1, 1, 1]
    again = chain.json("combine", "tokens", out, "--split", "train")
    assert again["copied"] == 1
    _check(out, _keys(chain, "train"), {edited: 255})
    assert _build(chain) == [0, 0, 0]
    assert chain.json("combine", "tokens", out, "--split", "train")["copied"] == 0


def _check(out: Path, keys: list[str], edited: dict[str, int]) -> None:
    found = TensorDict.load_memmap(out)
    wanted = [edited.get(key, brightness(int(key.rpartition("/")[2]))) for key in keys]
    assert found["img_input_ids"].tolist() == [[each] * 4 for each in wanted]
    assert found["idx"].ravel().tolist() == list(range(len(keys)))
    assert combined.read(out) is not None


def test_killed_in_the_middle_of_tokens(chain: Cli) -> None:
    chain("build", "images")
    chain("build", "small")
    tar_files = chain.project.folder / "tokens" / "shards"
    child = os.fork()
    if child == 0:
        try:
            _die_in_the_third_shard()
            chain("build", "tokens")
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    before = {path.name: path.stat().st_mtime_ns for path in tar_files.glob("[tv]*.tar")}
    assert len(before) == 2
    done = chain.json("build", "tokens")
    assert done["packed"] == len(done["causes"]) - 2
    after = {path.name: path.stat().st_mtime_ns for path in tar_files.glob("[tv]*.tar")}
    resumed = {path.name: path.read_bytes() for path in tar_files.glob("[tv]*.tar")}
    assert before.items() <= after.items()
    shutil.rmtree(tar_files.parent)
    chain("build", "tokens")
    assert {path.name: path.read_bytes() for path in tar_files.glob("[tv]*.tar")} == resumed


def _die_in_the_third_shard() -> None:
    real, seen = Tokenize.stream, set[str]()

    def stream(self: Tokenize, samples: Any, context: Any) -> Any:
        seen.add(context.shard)
        for block in real(self, samples, context):
            yield block
            if len(seen) == 3:
                os.kill(os.getpid(), signal.SIGKILL)

    Tokenize.stream = stream  # type: ignore[method-assign]


def test_a_broken_image_is_one_sample_of_the_quarantine(chain: Cli) -> None:
    chain.project.write("a/007.png", picture(7)[:45])
    _write(
        chain,
        "images",
        {"url": str(chain.project.source)},
        split={"train": 1.0},
        verify={"level": "digest"},
    )
    values = yaml.safe_load((chain.datasets / "tokens.yaml").read_text())
    _write(chain, "tokens", {"dataset": "images"}, values["transforms"])
    chain("build", "images")
    chain("build", "tokens")
    result = chain("combine", "tokens")
    assert (
        f"{SAMPLES - 1} rows in {chain.project.folder}/tokens/combined/00000001/train"
        in result.stdout
    )
    assert _keys(chain, "train").count("a/007") == 0
    assert np.unique(_keys(chain, "train")).size == SAMPLES - 1


def test_what_the_command_refuses(chain: Cli, tmp_path: Path) -> None:
    _build(chain)
    assert (
        "has the splits train, val; say which: --split" in chain("combine", "tokens", code=2).stderr
    )
    assert "no split 'test'" in chain("combine", "tokens", "--split", "test", code=1).stderr
    assert (
        "found the fields png, txt" in chain("combine", "images", "--split", "val", code=1).stderr
    )
    assert "did you mean 'tokens'" in chain("combine", "token", code=2).stderr
    assert "go with --from" in chain("combine", "tokens", "--move", code=2).stderr
    assert "takes one DESTINATION" in chain("combine", "a", "b", "--from", tmp_path, code=2).stderr
    tar = next((chain.project.folder / "tokens" / "shards").glob("val-000000*.tar"))
    tar.unlink()
    found = chain("combine", "tokens", "--split", "val", code=1).stderr
    assert tar.name in found and "--allow-missing" in found
    allowed = chain("combine", "tokens", "--split", "val", "--allow-missing")
    assert "missing or damaged; its rows are not written" in allowed.stderr


def test_results_of_others(chain: Cli, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a", range(4))
    save(tmp_path / "in" / "tmp_b", range(4, 6))
    done = chain("combine", tmp_path / "out", "--from", tmp_path / "in", "--check")
    assert "4 rows" in done.stdout and "tmp_b: its worker did not end" in done.stdout
    moved = chain.json(
        "combine", tmp_path / "out2", "--from", tmp_path / "in", "--partial", "--move"
    )
    assert (moved["rows"], moved["deleted"]) == (6, 2)
    assert not list((tmp_path / "in").iterdir())

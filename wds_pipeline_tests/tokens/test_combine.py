"""Combined: every row once, in its place; what is missing is refused; what changed is copied, no more."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch.utils.data import DataLoader

from wds_pipeline.dataset import seal
from wds_pipeline.errors import DataError, DestinationError, VerificationError
from wds_pipeline.tokens import combined
from wds_pipeline.tokens.blocks import npy_bytes
from wds_pipeline.tokens.combine import TokenVersion, combine
from wds_pipeline_tests.tokens.handmade import block, keys_of, plain, row, tree, version

pytestmark = pytest.mark.usefixtures("no_fsync")


def check_rows(folder: Path, keys: list[str]) -> None:
    """The folder has these rows, in this order, and all of it is as sealed."""
    found = TensorDict.load_memmap(folder)
    assert found["input_ids"].tolist() == [row(key).tolist() for key in keys]
    assert found["idx"].ravel().tolist() == list(range(len(keys)))
    assert found["write_flag"].all()
    assert combined.check(folder).rows == len(keys)


@given(
    keys=st.lists(
        st.lists(st.lists(st.integers(0, 40), max_size=9), max_size=3), min_size=1, max_size=4
    ),
    other=st.lists(st.lists(st.lists(st.integers(20, 60), max_size=9), max_size=3), max_size=3),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_key_has_one_row_whatever_the_shards_and_duplicates(
    tmp_path_factory: pytest.TempPathFactory, keys: Any, other: Any
) -> None:
    folder = tmp_path_factory.mktemp("laws")
    sources = []
    for name, shards in (("one", keys), ("other", other)):
        made = [[block(list(map(str, some))) for some in blocks] for blocks in shards]
        sources.append((made, version(folder / name, made, name=name)))
    wanted = list(dict.fromkeys(key for made, _ in sources for key in keys_of(made)))
    versions = [each for made, each in sources if made]
    if not wanted:
        with pytest.raises((DataError, VerificationError)):
            combine(versions, folder / "out")
        return
    result = combine(versions, folder / "out", workers=2)
    check_rows(folder / "out", wanted)
    rows = sum(len(keys_of(made)) for made, _ in sources)
    assert result.combined.duplicates == rows - len(wanted)


def test_the_folder_is_read_by_a_loader(tmp_path: Path) -> None:
    shards = plain()
    combine([version(tmp_path / "in", shards)], tmp_path / "out")
    found = TensorDict.load_memmap(tmp_path / "out")
    loader: Any = DataLoader(
        found, batch_size=16, shuffle=True, num_workers=1, collate_fn=lambda each: each
    )
    seen = {}
    for batch in loader:
        for idx, ids in zip(
            batch["idx"].ravel().tolist(), batch["input_ids"].tolist(), strict=True
        ):
            assert idx not in seen
            seen[idx] = ids
    assert [seen[at] for at in range(len(seen))] == [row(key).tolist() for key in keys_of(shards)]


def test_the_seal_says_what_is_there(tmp_path: Path) -> None:
    shards = plain(3)
    result = combine([version(tmp_path / "in", shards, number=4)], tmp_path / "out")
    values = json.loads((tmp_path / "out" / "combined.json").read_text())
    assert result.combined == combined.read(tmp_path / "out")
    assert values["complete"] and values["rows"] == 42
    assert values["about"] == {"layout": "one_modality", "shift": 0}
    assert [(each["offset"], each["rows"]) for each in values["pieces"]] == [
        (0, 14),
        (14, 14),
        (28, 14),
    ]
    assert values["sources"][0]["dataset"] == "tokens" and values["sources"][0]["version"] == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("combined.json", "idx.memmap", "input_ids.memmap", "meta.json", "modality.memmap"),
        "write_flag.memmap",
    ]


def test_rows_that_were_never_written_are_left_out(tmp_path: Path) -> None:
    flag = np.array([[True], [False], [True], [True]])
    idx = np.array([[0], [1], [2], [-1]], "<i4")
    more = {"write_flag.npy": npy_bytes(flag), "idx.npy": npy_bytes(idx)}
    result = combine(
        [version(tmp_path / "in", [[block(list("abcd"), more=more)]])], tmp_path / "out"
    )
    check_rows(tmp_path / "out", ["a", "c"])
    assert result.combined.unwritten == 2


def test_blocks_without_keys_are_known_by_idx(tmp_path: Path) -> None:
    shards = [[block(list("abc")), block(list("xd"), first=2)], [block(list("ef"))]]
    for each in (each for blocks in shards for each in blocks):
        del each["keys.json"]
    result = combine([version(tmp_path / "in", shards)], tmp_path / "out")
    check_rows(tmp_path / "out", list("abcdef"))
    assert result.combined.duplicates == 1


def test_duplicates_may_be_refused(tmp_path: Path) -> None:
    one = version(tmp_path / "one", plain(1))
    other = version(tmp_path / "other", plain(2), name="other")
    with pytest.raises(DataError, match="14 rows have the key of another one"):
        combine([one, other], tmp_path / "out", duplicates="refuse")
    assert not (tmp_path / "out").exists()


# What is missing or damaged.


def harm(found: TokenVersion, how: str, at: int = 2) -> str:
    entry = found.manifest.shards[at]
    root = Path(found.storage.url)
    tar = root / entry.path
    if how == "missing":
        tar.unlink()
    elif how == "unsealed":
        (root / seal.path(entry.name, seal.SEAL)).unlink()
    elif how == "truncated":
        os.truncate(tar, entry.bytes - 1024)
    else:
        data = bytearray(tar.read_bytes())
        data[-3000 if how == "flipped at the end" else 5000] ^= 1
        tar.write_bytes(data)
    return entry.name


HARMS = ["missing", "unsealed", "truncated", "flipped", "flipped at the end"]


@pytest.mark.parametrize("how", HARMS)
def test_a_harmed_shard_is_refused_and_may_be_filled_in_later(tmp_path: Path, how: str) -> None:
    shards = plain()
    combine([version(tmp_path / "sound", shards)], tmp_path / "wanted")
    found = version(tmp_path / "in", shards)
    name = harm(found, how)
    with pytest.raises(VerificationError) as caught:
        combine([found], tmp_path / "out")
    assert name in str(caught.value) and "1 of 5 shards are missing or damaged" in str(caught.value)
    assert not (tmp_path / "out" / "combined.json").exists()
    assert not (tmp_path / "out" / "meta.json").exists()

    result = combine([found], tmp_path / "out", allow_missing=True)
    assert [name in each for each in result.combined.missing] == [True]
    assert json.loads((tmp_path / "out" / "combined.json").read_text())["complete"] is False
    read = TensorDict.load_memmap(tmp_path / "out")
    there = [at for at in range(70) if not 28 <= at < 42]
    assert read["idx"].ravel().tolist() == [at if at in there else -1 for at in range(70)]
    assert read["write_flag"].ravel().nonzero().ravel().tolist() == there
    assert (read["modality"][28:42] == -1).all()
    wanted = [row(key).tolist() for key in keys_of(shards)]
    assert [read["input_ids"][at].tolist() for at in there] == [wanted[at] for at in there]
    combined.check(tmp_path / "out")

    again = combine([version(tmp_path / "in", shards)], tmp_path / "out")
    assert again.copied == 1
    old, new = tree(tmp_path / "wanted"), tree(tmp_path / "out")
    assert {n: d for n, d in old.items() if n != "combined.json"} == {
        n: d for n, d in new.items() if n != "combined.json"
    }


def test_of_a_shard_without_a_member_index_there_are_no_rows(tmp_path: Path) -> None:
    shards = plain(3)
    found = version(tmp_path / "in", shards)
    name = found.manifest.shards[1].name
    os.unlink(tmp_path / "in" / seal.path(name, seal.MEMBERS))
    combine([found], tmp_path / "out", allow_missing=True)
    check_rows(tmp_path / "out", keys_of([shards[0], shards[2]]))


def test_all_harmed_shards_are_named_and_the_others_are_done(tmp_path: Path) -> None:
    found = version(tmp_path / "in", plain())
    names = [harm(found, "flipped", at) for at in (1, 3)]
    with pytest.raises(VerificationError) as caught:
        combine([found], tmp_path / "out")
    assert all(name in str(caught.value) for name in names)
    assert combine([version(tmp_path / "in", plain())], tmp_path / "out").copied == 2


# Again, after a change.


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("*.memmap")}


@pytest.mark.parametrize(
    ("change", "copied"),
    [("nothing", 0), ("edited", 1), ("appended", 2), ("longer", 3), ("shorter", 3), ("fewer", 0)],
)
def test_only_what_changed_is_copied(tmp_path: Path, change: str, copied: int) -> None:
    shards = plain()
    combine([version(tmp_path / "in", shards)], tmp_path / "out")
    before = inodes(tmp_path / "out")
    changed = [list(blocks) for blocks in shards]
    if change == "edited":
        changed[1][1] = block([f"edited{n}" for n in range(7)], first=7)
    elif change == "appended":
        changed += plain(2, name="more")
    elif change == "longer":
        changed[2].append(block(["one more"], first=14))
    elif change == "shorter":
        changed[2] = changed[2][:1]
    elif change == "fewer":
        changed = changed[:3]
    result = combine([version(tmp_path / "in", changed, number=2)], tmp_path / "out")
    assert result.copied == copied
    check_rows(tmp_path / "out", keys_of(changed))
    assert inodes(tmp_path / "out") == before
    combine([version(tmp_path / "in", changed, number=2)], tmp_path / "fresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_nothing_is_written_when_nothing_changed(tmp_path: Path) -> None:
    found = version(tmp_path / "in", plain())
    combine([found], tmp_path / "out")
    before = (tmp_path / "out" / "combined.json").stat().st_ino
    assert combine([found], tmp_path / "out").copied == 0
    assert (tmp_path / "out" / "combined.json").stat().st_ino == before


def test_another_layout_is_combined_anew(tmp_path: Path) -> None:
    combine([version(tmp_path / "in", plain())], tmp_path / "out")
    other = plain()
    for blocks in other:
        for each in blocks:
            each["other.npy"] = each.pop("modality.npy")
    assert combine([version(tmp_path / "in", other, number=2)], tmp_path / "out").copied == 5
    check_rows(tmp_path / "out", keys_of(other))
    assert not (tmp_path / "out" / "modality.memmap").exists()


def test_a_file_that_was_harmed_is_found_and_made_again(tmp_path: Path) -> None:
    found = version(tmp_path / "in", plain())
    combine([found], tmp_path / "out")
    path = tmp_path / "out" / "input_ids.memmap"
    data = bytearray(path.read_bytes())
    data[200] ^= 4
    path.write_bytes(data)
    with pytest.raises(
        VerificationError, match=r"input_ids.memmap: the rows of tokens: version 1: train-000001"
    ):
        combined.check(tmp_path / "out")
    path.unlink()
    assert combine([found], tmp_path / "out").copied == 5
    check_rows(tmp_path / "out", keys_of(plain()))


# What is refused.


def test_what_is_no_token_data_set(tmp_path: Path) -> None:
    found = version(tmp_path / "in", [[{"jpg": b"x", "txt": b"y"}]])
    with pytest.raises(
        DataError, match=r"found the fields jpg, txt; expected blocks of tokens with idx.npy"
    ):
        combine([found], tmp_path / "out")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tokens.json": b'{"layout": "one_modality", "shift": 9}'}, "found shift: 9; .* has 0"),
        ({"modality.npy": npy_bytes(np.zeros((2, 1), "<i4"))}, "found modality: Column.*int32"),
        ({"extra.npy": npy_bytes(np.zeros((2, 1), "<i4"))}, "found extra: "),
        ({"input_ids.npy": npy_bytes(np.array(["ab", "cd"]))}, "expected rows of numbers or bools"),
    ],
)
def test_tokens_of_another_kind(tmp_path: Path, more: dict[str, bytes], message: str) -> None:
    found = version(tmp_path / "in", [[block(["a", "b"])], [block(["c", "d"], more=more)]])
    with pytest.raises(DataError, match=message):
        combine([found], tmp_path / "out")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"input_ids.npy": npy_bytes(np.zeros((3, 6), "<i2"))},
            "more rows of input_ids than of idx",
        ),
        ({"input_ids.npy": npy_bytes(np.zeros((1, 6), "<i2"))}, "different numbers of rows"),
        ({"modality.npy": npy_bytes(np.zeros((2, 1), "<i2")) + b"x"}, "not the size"),
        ({"keys.json": b'["a"]'}, "has 2 rows and 1 keys"),
    ],
)
def test_a_block_that_does_not_fit_together(
    tmp_path: Path, more: dict[str, bytes], message: str
) -> None:
    found = version(tmp_path / "in", [[block(["x"]), block(["a", "b"], first=1, more=more)]])
    with pytest.raises(VerificationError, match=f"damaged: .*{message}"):
        combine([found], tmp_path / "out")


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(DestinationError, match=r"found a folder with other files \(thesis.txt\)"):
        combine([version(tmp_path / "in", plain())], tmp_path / "out")
    assert tree(tmp_path / "out") == {"thesis.txt": b"mine"}


def test_another_data_sets_folder_is_left_alone(tmp_path: Path) -> None:
    combine([version(tmp_path / "in", plain())], tmp_path / "out")
    with pytest.raises(DestinationError, match="was combined from tokens"):
        combine([version(tmp_path / "other", plain(), name="other")], tmp_path / "out")
    combined.check(tmp_path / "out")


def test_two_at_once(tmp_path: Path) -> None:
    (tmp_path / "out" / ".combining").mkdir(parents=True)
    with open(tmp_path / "out" / ".combining" / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DestinationError, match="another process is combining into it"):
            combine([version(tmp_path / "in", plain())], tmp_path / "out")
    combine([version(tmp_path / "in", plain())], tmp_path / "out")


def test_too_little_space_is_noticed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 100))
    with pytest.raises(DestinationError, match=r"100 bytes are free, 1,330 more are needed"):
        combine([version(tmp_path / "in", plain())], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.memmap"))

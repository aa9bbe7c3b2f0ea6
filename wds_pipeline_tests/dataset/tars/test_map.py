"""Commands and transforms for each sample."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.compute import open_pool
from wds_pipeline.config_compute import ComputeConfig
from wds_pipeline.dataset.tars import command, read
from wds_pipeline.dataset.tars.account import Account
from wds_pipeline.dataset.tars.call import Call, is_over_shard, load_call, map_over
from wds_pipeline.dataset.tars.command import Command
from wds_pipeline.dataset.tars.map import map_each, map_tars
from wds_pipeline.dataset.tars.sample import Sample
from wds_pipeline.errors import ConfigError, DataError, WorkerError
from wds_pipeline_tests.dataset.foreign_tars import make
from wds_pipeline_tests.dataset.tars import archives
from wds_pipeline_tests.dataset.tars.archives import keys, samples

COUNT = 8
MEMBERS = [
    (f"{n}.{field}", f"{field} {n}".encode()) for n in range(COUNT) for field in ("txt", "jpg")
]


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    path = tmp_path / "in.tar"
    path.write_bytes(make(MEMBERS))
    return path


def run(tar: Path, shell: str, workers: int = 3, **more: Any) -> Account:
    work = Command(shell)
    with ThreadPoolExecutor(workers) as pool:
        try:
            return map_tars([str(tar)], str(tar.parent / "out.tar"), map_each(work, pool), **more)
        finally:
            work.stop()


def called(
    tar: Path, name: str, workers: int = 2, on_error: str = "stop", **parameters: Any
) -> Account:
    step = load_call(f"wds_pipeline_tests.dataset.tars.calls:{name}", parameters)
    arguments = [str(tar)], str(tar.parent / "out.tar")
    if is_over_shard(step):
        return map_tars(*arguments, map_over(step, on_error), on_error=on_error, force=True)
    with open_pool(ComputeConfig(kind="processes", workers=workers)) as pool:
        return map_tars(*arguments, map_each(Call(step), pool), on_error=on_error, force=True)


def out(tar: Path) -> archives.Found:
    return samples(tar.parent / "out.tar")


def test_a_command_changes_fields(tar: Path) -> None:
    shell = 'tr a-z A-Z < sample.txt > sample.up; rm sample.jpg; echo "$WDS_KEY" > sample.a; '
    shell += "sleep 0.0$((7 - WDS_KEY))"
    account = run(tar, shell)
    # In the order of the input, whichever is done first; old fields before new ones.
    assert out(tar) == [
        (
            str(n),
            (("txt", b"txt %d" % n), ("a", b"%d\n" % n), ("up", b"TXT %d" % n)),
        )
        for n in range(COUNT)
    ]
    assert (account.read, account.written) == (COUNT, COUNT)
    first = (tar.parent / "out.tar").read_bytes()
    run(tar, shell, workers=1, force=True)
    assert (tar.parent / "out.tar").read_bytes() == first


def test_a_command_leaves_samples_out(tar: Path) -> None:
    account = run(tar, "test $WDS_KEY -lt 3 || rm sample.*")
    assert keys(out(tar)) == ["0", "1", "2"]
    assert "5 left out, of which nothing was made, such as 3" in "\n".join(account.lines())


def test_a_command_that_fails_says_all(tar: Path) -> None:
    shell = 'if [ $WDS_KEY = 3 ]; then echo "no such thing" >&2; exit 7; fi'
    with pytest.raises(DataError) as raised:
        run(tar, shell)
    said = str(raised.value)
    for part in ("in.tar: '3': the command exited with 7", shell, "no such thing"):
        assert part in said
    assert not (tar.parent / "out.tar").exists()
    account = run(tar, shell, on_error="skip")
    assert keys(out(tar)) == ["0", "1", "2", "4", "5", "6", "7"]
    assert "1 failed, and are left out, such as '3': the command exited with 7" in "\n".join(
        account.lines()
    )
    run(tar, f"rm sample.txt; {shell}", on_error="keep", force=True)
    assert dict(out(tar))["3"] == (("txt", b"txt 3"), ("jpg", b"jpg 3"))
    assert dict(out(tar))["4"] == (("jpg", b"jpg 4"),)
    with pytest.raises(DataError, match="all samples failed"):
        run(tar, "exit 1", on_error="skip", force=True)


@pytest.mark.parametrize(
    ("shell", "said"),
    [
        ("kill -9 $$", "ended by SIGKILL"),
        ("touch other.txt", "left 'other.txt'"),
        ("mkdir sample.d", "left 'sample.d'"),
        ("yes no | head -c 9000; exit 3", "…"),
    ],
)
def test_what_else_goes_wrong(tar: Path, shell: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        run(tar, shell)


def test_temporary_files_have_their_place_and_go(
    tar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tar.parent / "tmp"))
    (tar.parent / "tmp").mkdir()
    run(tar, 'echo x > "$TMPDIR/x"; cat > "$TMPDIR/stdin"; test ! -s "$TMPDIR/stdin"')
    assert len(out(tar)) == COUNT
    with pytest.raises(DataError):
        run(tar, 'echo x > "$TMPDIR/x"; exit 1', force=True)
    assert list((tar.parent / "tmp").iterdir()) == []


def test_large_results_are_not_held(tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (command, read):
        monkeypatch.setattr(module, "LARGE", 1000)
    run(tar, "head -c 5000 /dev/zero > sample.bin; rm sample.jpg")
    assert out(tar)[0] == ("0", (("txt", b"txt 0"), ("bin", bytes(5000))))


def test_commands_end_when_another_failed(tar: Path) -> None:
    """And what they started; the pool does not wait for them."""
    pids = tar.parent / "pids"
    pids.mkdir()
    shell = f"test $WDS_KEY = 0 || {{ sleep 300 & echo > {pids}/$!; wait; }}; sleep 0.5; exit 1"
    before = time.monotonic()
    with pytest.raises(DataError, match="'0'"):
        run(tar, shell)
    assert time.monotonic() - before < 100
    for each in pids.iterdir():
        stat = Path(f"/proc/{each.name}/stat")
        assert not stat.exists() or stat.read_text().split()[2] in "ZX"


def test_no_more_samples_are_held_than_keep_the_workers_busy() -> None:
    held = most = 0

    def given() -> Iterator[Sample]:
        nonlocal held, most
        for number in range(100):
            held += 1
            most = max(most, held)
            yield Sample(str(number), [])

    with ThreadPoolExecutor(2) as pool:
        for number, (sample, made) in enumerate(map_each(lambda each: [each], pool)(given())):
            assert (sample.key, made) == (str(number), [sample])
            held -= 1
    assert 2 <= most <= 5


def test_transforms(tar: Path) -> None:
    called(tar, "louder", mark="?")
    assert out(tar)[1] == ("1", (("txt", b"TXT 1?"), ("jpg", b"jpg 1")))
    account = called(tar, "no_odd_ones")
    assert keys(out(tar)) == ["0", "2", "4", "6"]
    assert "4 left out, of which nothing was made" in "\n".join(account.lines())
    called(tar, "twice", workers=1)
    assert keys(out(tar)) == [f"{n}-{m}" for n in range(COUNT) for m in range(2)]


def test_transforms_that_fail(tar: Path) -> None:
    with pytest.raises(DataError, match=r"in\.tar: '3': .*ValueError: three is not wanted"):
        called(tar, "fails_on_3")
    assert not (tar.parent / "out.tar").exists()
    called(tar, "fails_on_3", on_error="skip")
    assert "3" not in keys(out(tar))
    assert len(out(tar)) == COUNT - 1
    with pytest.raises(DataError, match="all samples failed"):
        called(tar, "fails", on_error="keep")
    with pytest.raises(ConfigError, match="unknown parameter 'size'"):
        called(tar, "louder", size=3)
    with pytest.raises(ConfigError, match="nothing of that name"):
        called(tar, "softer")


def test_a_worker_that_dies_is_told(tar: Path) -> None:
    with pytest.raises(WorkerError, match="nothing was written"):
        called(tar, "dies")
    assert not (tar.parent / "out.tar").exists()


def test_a_transform_of_all_samples(tar: Path) -> None:
    with pytest.raises(DataError, match="three is not wanted"):
        called(tar, "Numbered")
    assert not (tar.parent / "out.tar").exists()
    account = called(tar, "Numbered", on_error="skip")
    assert [dict(content)["n"] for _, content in out(tar)] == [
        b"0",
        b"1",
        b"2",
        b"4",
        b"5",
        b"6",
        b"7",
    ]
    assert account.failed == 1
    with pytest.raises(ConfigError, match="keep"):
        called(tar, "Numbered", on_error="keep")


def test_results_of_one_key_are_an_error(tar: Path) -> None:
    tar.write_bytes(make([("0.txt", b""), ("1.txt", b""), ("0.txt", b"")]))
    with pytest.raises(DataError, match="'0-0' comes again"):
        called(tar, "twice")
    assert os.listdir(tar.parent) == ["in.tar"]

"""The commands on tars, as people call them: pipes of real processes, exit codes, what is said."""

from __future__ import annotations

import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wds_pipeline.training import open_dataset
from wds_pipeline_tests.cli.conftest import TRACEBACK, Cli
from wds_pipeline_tests.dataset.foreign_tars import make
from wds_pipeline_tests.dataset.tars.archives import keys, samples

NUMBERS = [7, 3, 11, 1, 5, 2]
WHOLE = make([(f"{n}.{field}", b"x" * n) for n in NUMBERS for field in ("jpg", "txt")])


@pytest.fixture
def tar(cli: Cli) -> Path:
    path = cli.project.folder / "in.tar"
    path.write_bytes(WHOLE)
    return path


def shell(cli: Cli, line: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a line of bash, with `wds-pipeline` in it, in the project's folder."""
    program = shlex.join([sys.executable, "-m", "wds_pipeline.cli"])
    line = f"set -o pipefail; {line.replace('wds-pipeline', program)}"
    return subprocess.run(
        ["bash", "-c", line],
        cwd=cli.project.folder,
        env=dict(cli.environment),
        capture_output=True,
        timeout=120,
    )


def test_a_pipe_of_all(cli: Cli, tar: Path) -> None:
    done = shell(
        cli,
        "wds-pipeline cat in.tar -o - | wds-pipeline shuffle - --seed 3 -o - | "
        "wds-pipeline map - -q -c 'wc -c < sample.txt > sample.n' -o - | "
        "wds-pipeline sort - -s n -n -o - | wds-pipeline split - -c 4 -o part-%d.tar",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().split() == [
        str(tar.parent / "part-0.tar"),
        str(tar.parent / "part-1.tar"),
    ]
    found = samples(tar.parent / "part-0.tar", tar.parent / "part-1.tar")
    assert keys(found) == ["1", "2", "3", "5", "7", "11"]
    assert [name for name, _ in found[0][1]] == ["jpg", "txt", "n"]
    said = done.stderr.decode().splitlines()
    assert len(said) == 4  # `map` was asked to be quiet
    assert sum("6 samples read of " in line and ", 6 written" in line for line in said) == 4


def test_a_pipe_from_gnu_tar(cli: Cli, tar: Path) -> None:
    done = shell(cli, "cat in.tar | wds-pipeline cat - -f txt -o - | tar -t")
    assert done.stdout.decode().split() == [f"{n}.txt" for n in NUMBERS]


def test_what_failed_before_shows_behind(cli: Cli, tar: Path) -> None:
    """A tar that lacks its end never becomes a whole one."""
    tar.write_bytes(WHOLE[:5000])
    done = shell(cli, "wds-pipeline cat in.tar -o - | wds-pipeline sort - -o out.tar")
    assert done.returncode == 1
    said = done.stderr.decode()
    assert f"error: {tar.parent}/in.tar: " in said
    assert "error: stdin: " in said
    assert TRACEBACK not in said
    assert not (tar.parent / "out.tar").exists()


def test_a_reader_that_goes_away(cli: Cli, tar: Path) -> None:
    tar.write_bytes(make([(f"{n}.bin", os.urandom(300_000)) for n in range(30)]))
    done = shell(cli, "wds-pipeline cat in.tar -o - | head -c 100 > /dev/null")
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_terminal_gets_no_tar(cli: Cli, tar: Path) -> None:
    ours, theirs = pty.openpty()
    with cli.start("cat", tar, "-o", "-", stdout=theirs) as process:
        os.close(theirs)
        _, said = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 2
    assert "nothing for a terminal" in said
    with cli.start("cat", "-", "-o", "out.tar", stdin=(pair := pty.openpty())[1]) as process:
        _, said = process.communicate(timeout=60)
    for each in pair:
        os.close(each)
    assert process.returncode == 2
    assert "found a terminal" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(cli: Cli, tar: Path, number: int) -> None:
    started = tar.parent / "started"
    process = cli.start("map", tar, "-c", f"touch {started}; sleep 100", "-o", "out.tar")
    deadline = time.monotonic() + 60
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    before = set(os.listdir(tar.parent))
    assert any(name.startswith(".tmp-") for name in before)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 143), said
    assert "nothing was written" in said
    assert set(os.listdir(tar.parent)) == {n for n in before if not n.startswith(".tmp-")}


def test_what_is_said(cli: Cli, tar: Path) -> None:
    done = cli("cat", tar, tar, "--stop", 4, "--match", "?", "-o", tar.parent / "out.tar")
    assert done.stdout == ""
    assert done.stderr.startswith("5 samples read of 1 tar, 4 written (10.2 kB)")
    assert keys(samples(tar.parent / "out.tar")) == ["7", "3", "1", "5"]
    (tar.parent / "keys").write_text("1\n99\n")
    done = cli("cat", tar, "-q", "--keys", tar.parent / "keys", "-o", tar.parent / "k.tar")
    assert done.stderr == "1 keys of --keys were in no tar, such as 99\n"
    done = cli("sort", tar, "-q", "--natural", "-r", "-o", tar.parent / "s.tar")
    assert keys(samples(tar.parent / "s.tar")) == ["11", "7", "5", "3", "2", "1"]
    assert done.stderr == ""
    cli("split", tar, "-s", "12kB", "-o", tar.parent / "p-{00..09}.tar")
    assert samples(*sorted(tar.parent.glob("p-*.tar"))) == samples(tar)
    cli("shuffle", tar, "--seed", 1, "-o", tar.parent / "x.tar")
    assert sorted(samples(tar.parent / "x.tar")) == sorted(samples(tar))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["cat", "in.tar"], 2, "--output"),
        (["cat", "no.tar", "-o", "x.tar"], 1, "not there"),
        (["cat", "in.tar", "-f", " ,", "-o", "x.tar"], 2, "jpg,txt"),
        (["cat", "in.tar", "--keys", "nope", "-o", "x.tar"], 2, "--keys nope"),
        (["cat", "in.tar", "-o", "in.tar"], 1, "one of the inputs"),
        (["split", "in.tar", "-o", "x.tar"], 2, "out-%06d.tar"),
        (["split", "in.tar", "-s", "0", "-o", "x-%d.tar"], 2, "256MB"),
        (["sort", "in.tar", "-n", "--natural", "-o", "x.tar"], 2, "exclude"),
        (["map", "in.tar", "-o", "x.tar"], 2, "either"),
        (["map", "in.tar", "-c", "true", "-p", "a=1", "-o", "x.tar"], 2, "--call"),
        (["map", "in.tar", "--call", "no_such", "-o", "x.tar"], 2, "no such transform"),
        (
            ["map", "in.tar", "-c", "exit 3", "-o", "x.tar"],
            1,
            "'7': the command exited with 3: exit 3",
        ),
        (["cp", "-", "x"], 2, "stdin"),
        (["cp", "in.tar", "x", "--version", "1"], 2, "dataset"),
        (["cp", "smal", "x"], 2, "did you mean 'small'"),
        (["diff", "in.tar"], 2, "two sets"),
        (["diff", "in.tar", "no.tar"], 2, "not there"),
        (["diff", "small", "7"], 2, "version 7 is not published"),
    ],
)
def test_mistakes(
    cli: Cli, tar: Path, arguments: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tar.parent)
    before = sorted(os.listdir())
    result = cli(*arguments, code=code)
    assert said in result.stderr
    assert result.stdout == ""
    assert sorted(os.listdir()) == before


def test_damage(cli: Cli, tar: Path) -> None:
    tar.write_bytes(WHOLE[:5000])
    out = tar.parent / "out.tar"
    assert "write or fetch it again" in cli("cat", tar, "-o", out, code=1).stderr
    said = cli("cat", tar, "-o", out, "--keep-whole").stderr
    assert f"damaged: {tar}" in said
    assert keys(samples(out)) == ["7", "3"]


def test_map_by_a_transform(cli: Cli, tar: Path) -> None:
    out = tar.parent / "out.tar"
    name = "wds_pipeline_tests.dataset.tars.calls:louder"
    cli("map", tar, "--call", name, "-p", "mark=now", "-o", out)
    assert dict(samples(out)[1][1])["txt"] == b"XXXnow"
    said = cli("map", tar, "--call", name, "-p", "mrk=now", "-o", out, "--force", code=2).stderr
    assert "did you mean 'mark'" in said
    over = "wds_pipeline_tests.dataset.tars.calls:Numbered"
    cli("map", tar, "--call", over, "--on-error", "skip", "-o", out, "--force")
    assert len(samples(out)) == len(NUMBERS) - 1
    cli("map", tar, "--call", over, "--workers", 2, "-o", out, "--force", code=2)


def test_diff(cli: Cli, built: Cli, tar: Path) -> None:
    project = cli.project
    project.write("a/0003.txt", "another\x1b[1m caption")
    project.add(30, 1)
    project.build()
    result = cli("diff", "small", 1, 2, code=1)
    assert result.stdout.splitlines() == [
        "+ a/0030",
        "~ a/0003: txt 17 → 19 bytes",
        "train: 1 added, 1 edited",
        "19 samples the same",
    ]
    assert cli("diff", "small", 1, code=1).stdout == result.stdout
    found = cli.json("diff", "small", 1, 2, code=1)
    assert (found["added"], found["edited"], found["deleted"], found["same"]) == (1, 1, 0, 19)
    assert found["changes"][0]["fields"]["txt"]["before"]["size"] == 17
    assert cli("diff", "small", 2, 2).stdout == "20 samples the same\n".replace("20", "21")
    cli("shuffle", tar, "-o", tar.parent / "other.tar")
    assert cli("diff", tar, tar.parent / "other.tar").stdout == "6 samples the same\n"
    tar.write_bytes(tar.read_bytes()[:5000])
    assert "error: " in cli("diff", tar, tar.parent / "other.tar", code=2).stderr


def test_cp(built: Cli, tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tar.parent)
    (tar.parent / "small").mkdir()  # a folder of the dataset's name is not meant
    result = built("cp", "small", "copy")
    assert result.stdout == f"{tar.parent}/copy\n"
    assert "copied" in result.stderr
    assert len(open_dataset(f"{tar.parent}/copy", split="train")) == 20
    again = built.json("cp", "small", "copy", "--version", 1)
    assert (again["tars"], again["there"] > 0) == (0, True)
    built("cp", "small", "copy", "--force", code=2)
    built("cp", "in.tar", "more")
    assert (tar.parent / "more" / "in.tar").read_bytes() == tar.read_bytes()
    (tar.parent / "folder").mkdir()
    (tar.parent / "folder" / "a.tar").write_bytes(WHOLE)
    built("cp", "folder", "more")
    assert (tar.parent / "more" / "a.tar").exists()


def test_the_commands_load_nothing_heavy(cli: Cli, tar: Path) -> None:
    code = "import sys; from wds_pipeline.cli import main\n"
    code += (
        f"main(['cat', {str(tar)!r}, '-o', {str(tar.parent / 'o.tar')!r}], standalone_mode=False)\n"
    )
    code += "print(*{each.partition('.')[0] for each in sys.modules}, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=dict(cli.environment), capture_output=True
    )
    assert not set(done.stderr.decode().split()) & {"dagster", "torch", "webdataset", "botocore"}

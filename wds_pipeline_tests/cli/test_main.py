"""What all commands have in common: speed, messages, exit codes, pipes."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from importlib import import_module
from pathlib import Path

import click
import pytest

from wds_pipeline.cli.main import _COMMANDS, main
from wds_pipeline_tests.cli.conftest import TRACEBACK, Cli


def loaded(code: str, cli: Cli) -> set[str]:
    """The modules that are loaded after some code."""
    code += "\nimport sys; print(*sys.modules, sep='\\n', file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=dict(cli.environment), capture_output=True, text=True
    )
    assert TRACEBACK not in done.stderr
    return {line.partition(".")[0] for line in done.stderr.splitlines()}


def test_the_overview_loads_nothing_heavy(cli: Cli) -> None:
    found = loaded(
        "from wds_pipeline.cli import main; main(['--help'], standalone_mode=False)", cli
    )
    assert not found & {"dagster", "numpy", "PIL", "pyarrow", "pydantic", "rich", "tqdm", "yaml"}


@pytest.mark.parametrize("command", ["plan", "build", "verify", "show"])
def test_no_command_loads_dagster_or_torch(command: str, built: Cli) -> None:
    code = "from wds_pipeline.cli import main\n"
    code += f"if __name__ == '__main__': main(['{command}', 'small'], standalone_mode=False)"
    assert not loaded(code, built) & {"dagster", "torch", "webdataset"}


@pytest.mark.parametrize("name", _COMMANDS)
def test_each_command_has_help_and_the_overview_says_the_same(name: str, cli: Cli) -> None:
    command = import_module(f"wds_pipeline.cli.{name.replace('-', '_')}").command
    assert command.name == name
    assert command.get_short_help_str(limit=100).rstrip(".") == _COMMANDS[name].rstrip(".")
    assert "Usage:" in cli(name, "--help").stdout


def test_version_and_overview(cli: Cli) -> None:
    assert cli("--version").stdout.startswith("wds-pipeline ")
    assert all(name in cli("--help").stdout for name in _COMMANDS)


def test_an_unknown_command_is_told_with_the_nearest(cli: Cli) -> None:
    assert "did you mean 'build'?" in cli("buld", code=2).stderr


@pytest.mark.parametrize("arguments", [["plan"], ["plan", "smal"], ["gc", "zzz"]])
def test_a_dataset_that_is_not_there_is_told_with_those_that_are(
    cli: Cli, arguments: list[str]
) -> None:
    message = cli(*arguments, code=2).stderr
    assert message.startswith("error: ")
    assert "known datasets: small" in message
    assert ("did you mean 'small'?" in message) == ("smal" in arguments)


def test_mistakes_in_the_configuration_exit_with_2(cli: Cli, tmp_path: Path) -> None:
    file = cli.configure()
    file.write_text(file.read_text() + "shrads: {}\n")
    assert "did you mean 'shards'?" in cli("plan", "small", code=2).stderr
    file.unlink()
    assert "no dataset is there" in cli("plan", "small", code=2).stderr
    cli.datasets.rmdir()
    assert "wds-pipeline init" in cli("plan", "small", code=2).stderr


def test_operations_that_fail_exit_with_1(cli: Cli) -> None:
    assert "build it first" in cli("show", "small", code=1).stderr
    for path in cli.project.source.rglob("*.*"):
        path.unlink()
    for command in ("plan", "build"):
        result = cli(command, "small", code=1)
        assert result.stderr.startswith("error: small: source.url:")
        assert not result.stdout
        assert TRACEBACK not in result.stderr


def test_what_nobody_expects_keeps_its_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("wds_pipeline.config_file.load_configs", fail)
    with pytest.raises(AssertionError) as raised:
        cli("datasets")
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_what_the_system_says_is_a_message(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/some/where")

    monkeypatch.setattr("wds_pipeline.config_file.load_configs", fail)
    assert cli("datasets", code=1).stderr == "error: /some/where: Permission denied\n"


def test_a_reader_that_goes_away_is_no_error(built: Cli) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = built.start("urls", "small", stdout=writer)
    os.close(writer)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_output_that_is_full_is_an_error(built: Cli) -> None:
    with open("/dev/full", "w") as full:
        process = built.start("urls", "small", stdout=full)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == "error: the output: No space left on device\n"


def test_names_cannot_steer_the_terminal(built: Cli) -> None:
    built.project.write("a/red\x1b[31m.png", b"x")
    result = built("plan", "small")
    assert "\x1b" not in result.stdout
    assert "\\x1b[31m" in result.stdout
    assert "\x1b" not in built("show", "small", "\x1b[31m", code=1).stderr


def test_shells_can_complete_names(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.shell_completion import ShellComplete

    monkeypatch.setenv("WDS_PIPELINE_DATASETS", str(cli.datasets))
    assert isinstance(main, click.Group)
    completer = ShellComplete(main, {}, "wds-pipeline", "_WDS_PIPELINE_COMPLETE")
    assert [each.value for each in completer.get_completions(["plan"], "s")] == ["small"]


def on_a_terminal(cli: Cli, command: str, **environment: str) -> str:
    """What a command prints on a pseudo-terminal, stdout and stderr together."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 120, 0, 0))
    cli_environment = {**cli.environment, "TERM": "xterm", **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "wds_pipeline.cli", command, "small"],
        env=cli_environment,
        stdout=follower,
        stderr=follower,
        stdin=follower,
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            more = os.read(leader, 4096)
        except OSError:
            break
        if not more:
            break
        shown += more
    assert process.wait(60) == 0
    os.close(leader)
    return shown.decode()


def test_colours_and_bars_are_for_terminals_only(cli: Cli) -> None:
    process = cli.start("build", "small")
    output, errors = process.communicate(timeout=60)
    assert "\x1b" not in output
    assert errors == ""
    cli.project.add(20, 5)
    assert "pack" in on_a_terminal(cli, "build")
    assert "\x1b[1m" in on_a_terminal(cli, "versions", NO_COLOR="")
    assert "\x1b" not in on_a_terminal(cli, "versions", NO_COLOR="1")
    assert "\x1b" not in cli("versions", "small").stdout

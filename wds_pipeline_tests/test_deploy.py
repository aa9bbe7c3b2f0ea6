"""What runs it in production is true: settings load, files fit their schemas, commands exist and work.

What takes Docker or a cluster is not tried here; docs/how-to says what was, and how.
"""

from __future__ import annotations

import configparser
import fnmatch
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import dagster as dg
import pytest
import yaml
from click.testing import CliRunner
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._daemon.run_coordinator import QueuedRunCoordinatorDaemon

from wds_pipeline.config import DatasetConfig
from wds_pipeline.defs import keys
from wds_pipeline.defs.location import build_defs
from wds_pipeline_tests.conftest import Project

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
WORKFLOW = DEPLOY / "github" / "build-dataset.yml"
pytestmark = pytest.mark.skipif(not DEPLOY.exists(), reason="an installed package has no deploy/")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(ROOT / "dagster.yaml", folder)
    return folder


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(home)) as found:
        yield found


def test_dagster_takes_every_setting(instance: dg.DagsterInstance) -> None:
    assert not instance.telemetry_enabled and not instance.nux_enabled
    assert isinstance(instance.run_coordinator, QueuedRunCoordinator)
    assert instance.run_monitoring_enabled
    assert instance.run_launcher.supports_check_run_worker_health
    assert instance.run_retries_enabled and not instance.run_retries_retry_on_asset_or_op_failure
    assert instance.get_settings("sensors")["use_threads"]


def test_dagster_refuses_a_setting_that_it_does_not_know(home: Path) -> None:
    """Else the test above would say nothing of misspelt ones."""
    text = (home / "dagster.yaml").read_text()
    (home / "dagster.yaml").write_text(
        text.replace("start_timeout_seconds", "start_timeout_second")
    )
    with pytest.raises(dg.DagsterInvalidConfigError, match="start_timeout_second"):
        dg.DagsterInstance.from_config(str(home))


def test_the_postgres_overlay_differs_in_the_storage_alone() -> None:
    overlay = load(DEPLOY / "dagster.postgres.yaml")
    assert overlay.pop("storage").keys() == {"postgres"}
    assert overlay == load(ROOT / "dagster.yaml")


def queue(instance: dg.DagsterInstance, defs: dg.Definitions, what: str, dataset: str) -> str:
    """Queues a run of the job, or of assets as the UI launches them: without the job's tags."""
    if what == "build":
        job, chosen = defs.resolve_job_def(keys.job_name(dataset)), None
        tags = dict(job.run_tags)
    else:
        job = defs.resolve_implicit_global_asset_job_def()
        tags, chosen = {}, {keys.asset_key(dataset, keys.SHARD_PLAN)}
    place = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__")
    return instance.create_run_for_job(
        job,
        status=dg.DagsterRunStatus.QUEUED,
        tags=tags,
        asset_selection=chosen,
        remote_job_origin=RemoteJobOrigin(place, job.name),
    ).run_id


def test_one_run_of_a_dataset_at_a_time(project: Project, instance: dg.DagsterInstance) -> None:
    """By the daemon's own choice among the runs that wait, builds and the UI's assets in any mixture."""
    other = project.config(name="other", destination={"url": f"{project.folder}/elsewhere"})
    defs = build_defs([project.config(), other])
    daemon = QueuedRunCoordinatorDaemon(interval_seconds=1)

    def chosen() -> list[str]:
        found = daemon._get_runs_to_dequeue(
            instance, instance.get_concurrency_config(), fixed_iteration_time=None
        )
        return [run.run_id for run in found]

    def cancel(run: str) -> None:
        instance.report_run_canceled(dagster_run_of(instance, run))

    # Dagster writes a pool's limit down when it first sees it in the queue, and heeds it from then on.
    runs = [queue(instance, defs, "assets", name) for name in ("small", "other")]
    assert chosen() == runs
    for kinds in itertools.product(("build", "assets"), repeat=2):
        for run in runs:
            cancel(run)
        first, second = (queue(instance, defs, kind, "small") for kind in kinds)
        third = queue(instance, defs, kinds[1], "other")
        assert chosen() == [first, third], kinds
        cancel(first)
        assert chosen() == [second, third], kinds
        runs = [second, third]


def dagster_run_of(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRun:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("vendor.compose-spec", DEPLOY / "compose.yaml"),
        ("vendor.github-workflows", WORKFLOW),
        ("vendor.github-workflows", ROOT / ".github" / "workflows" / "ci.yml"),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_files_fit_their_schemas(schema: str, path: Path) -> None:
    check_jsonschema = pytest.importorskip("check_jsonschema", reason="pip install '.[test]'")
    done = CliRunner().invoke(check_jsonschema.main, ["--builtin-schema", schema, str(path)])
    assert done.exit_code == 0, done.output


def test_dockerfile_is_what_its_linter_wants() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("no hadolint: its wheel is for Linux on x86-64")
    done = subprocess.run(
        [hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def dockerfile() -> list[tuple[str, str]]:
    """The instructions, each with its arguments on one line."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text()).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2]) for line in text.splitlines() if line.strip()]


def test_image_has_no_root_no_secret_and_a_pinned_base() -> None:
    found = dockerfile()
    assert re.fullmatch(r"python:\d+\.\d+-slim", found[0][1])
    assert [value for name, value in found if name == "USER"] == ["$UID"]
    assert ("ARG", "UID=1000") in found
    names = [value for name, value in found if name in ("ARG", "ENV")]
    assert not re.search("password|secret|token|key", " ".join(names), re.IGNORECASE)
    assert any(name == "HEALTHCHECK" for name, _ in found)


def test_what_the_image_copies_is_there_and_sent() -> None:
    rules = (DEPLOY / "Dockerfile.dockerignore").read_text().split("\n")
    rules = [rule for rule in rules if rule and not rule.startswith("#")]

    def sent(path: str) -> bool:
        """As Docker decides it: the last rule that fits the path or a folder above it."""
        above = [path, *map(str, Path(path).parents)]
        fits = [r for r in rules if any(fnmatch.fnmatch(p, r.lstrip("!")) for p in above)]
        return fits[-1].startswith("!")

    copied = [each for name, rest in dockerfile() if name == "COPY" for each in rest.split()[:-1]]
    assert len(copied) > 5
    for source in copied:
        assert (ROOT / source).exists(), source
        assert sent(source), source
    for private in ("deploy/.env", ".git/config", "demo/raw", ".venv", "datasets/demo.yaml"):
        assert not sent(private), private
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["long_description"] == "file: README.md"
    assert {"README.md", setup["metadata"]["license_files"]} <= set(copied)


def commands() -> Iterator[tuple[str, list[str]]]:
    """The commands that deploy/ starts Dagster with, each with where it is from."""
    for name, service in load(DEPLOY / "compose.yaml")["services"].items():
        if "command" in service:
            yield f"compose {name}", shlex.split(service["command"])
        test = service["healthcheck"]["test"]
        if test[0] == "CMD":
            yield f"compose {name}, health", test[1:]
    for name, value in dockerfile():
        if name in ("CMD", "HEALTHCHECK"):
            yield f"Dockerfile {name}", yaml.safe_load(value[value.index("[") :])
    for path in sorted((DEPLOY / "systemd").glob("*.service")):
        (line,) = re.findall(r"(?m)^ExecStart=(.*)$", path.read_text())
        program, *arguments = shlex.split(line)
        yield path.name, [Path(program).name, *arguments]
    for deployment in load(DEPLOY / "kubernetes" / "values.yaml")["dagster-user-deployments"][
        "deployments"
    ]:
        arguments = deployment["dagsterApiGrpcArgs"]  # the chart adds the port
        yield "values.yaml", ["dagster", "api", "grpc", "-p", "4000", *arguments]


def test_commands_are_those_that_dagster_has() -> None:
    """Parsed by Dagster's own command line, not run."""
    from dagster._cli import create_dagster_cli
    from dagster._daemon.cli import create_dagster_daemon_cli
    from dagster_webserver.cli import dagster_webserver

    programs: dict[str, click.Command] = {
        "dagster": create_dagster_cli(),
        "dagster-daemon": create_dagster_daemon_cli(),
        "dagster-webserver": dagster_webserver,
    }
    seen = set()
    for where, (program, *arguments) in commands():
        if program == "python":
            compile(arguments[1], where, "exec")
            continue
        command, rest = programs[program], arguments
        while isinstance(command, click.Group):
            found = command.get_command(click.Context(command), rest[0])
            assert found is not None, (where, rest)
            command, rest = found, rest[1:]
        context = command.make_context(program, list(rest))
        assert not context.args, where
        seen.add(command.name)
    assert {"grpc", "run", "liveness-check", "grpc-health-check"} <= seen


def test_compose_gives_credentials_by_file_and_listens_here_alone() -> None:
    services = load(DEPLOY / "compose.yaml")["services"]
    overlay = load(DEPLOY / "dagster.postgres.yaml")["storage"]["postgres"]["postgres_db"]
    known = dict(
        line.split("=", 1)
        for line in (DEPLOY / "env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert {value["env"] for value in overlay.values() if isinstance(value, dict)} <= known.keys()
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    assert used <= known.keys()
    assert known["DAGSTER_PG_PASSWORD"] == ""
    assert known["DAGSTER_PG_HOST"] in services
    assert services["webserver"]["ports"] == ["${WDS_LISTEN:-127.0.0.1:3000}:3000"]
    assert known["WDS_LISTEN"].startswith("127.0.0.1:")
    assert [name for name, service in services.items() if "ports" in service] == ["webserver"]
    server = load(DEPLOY / "workspace.yaml")["load_from"][0]["grpc_server"]
    assert server["host"] in services
    assert f"-p {server['port']} " in services[server["host"]]["command"]
    for name in ("code", "webserver", "daemon"):
        assert services[name]["env_file"] == ".env", name


def test_kubernetes_values_agree_with_the_settings() -> None:
    values, settings = load(DEPLOY / "kubernetes" / "values.yaml"), load(ROOT / "dagster.yaml")
    assert values["telemetry"] == settings["telemetry"]
    ours = values["additionalInstanceConfig"]
    assert ours["nux"] == settings["nux"]
    assert ours["concurrency"]["pools"] == settings["concurrency"]["pools"]
    assert ours["run_queue"] == settings["run_queue"]
    limits = "tag_concurrency_limits"
    assert ours["concurrency"]["runs"][limits] == settings["concurrency"]["runs"][limits]
    # Dagster refuses `concurrency` beside the limits that the chart writes for its run coordinator.
    assert values["dagsterDaemon"]["runCoordinator"] == {"enabled": False}
    retries = {snake(name): value for name, value in values["dagsterDaemon"]["runRetries"].items()}
    assert retries == settings["run_retries"]
    for name in ("sensors", "schedules"):
        found = {snake(key): value for key, value in values["dagsterDaemon"][name].items()}
        assert found == settings[name]
    kept = {snake(name): value for name, value in values["retention"].items() if name != "enabled"}
    assert kept == {
        name: {"purgeAfterDays": value["purge_after_days"]}
        for name, value in settings["retention"].items()
    }
    storage = load(DEPLOY / "dagster.postgres.yaml")["storage"]["postgres"]["postgres_db"]
    assert values["postgresql"]["postgresqlScheme"] == storage["scheme"]
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    claimed = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in deployment["volumes"]
        if "persistentVolumeClaim" in volume
    }
    claims = yaml.safe_load_all((DEPLOY / "kubernetes" / "claims.yaml").read_text())
    assert {claim["metadata"]["name"] for claim in claims} == claimed
    mounts = {mount["name"] for mount in deployment["volumeMounts"]}
    assert mounts == {volume["name"] for volume in deployment["volumes"]}


def snake(name: str) -> str:
    return re.sub("([A-Z])", r"_\1", name).lower()


@pytest.mark.parametrize(
    "name", ["run-on-one-machine", "postgres", "docker-compose", "kubernetes", "ci"]
)
def test_how_tos_name_what_is_there(name: str) -> None:
    page = ROOT / "docs" / "how-to" / f"{name}.md"
    text = page.read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    for target in links:
        assert (page.parent / target).exists(), target
    for path in re.findall(r"(?<![\w/.])deploy/[\w./*-]*\w", text):
        assert path == "deploy/.env" or list(ROOT.glob(path)), path
    for example in re.findall(r"(?s)```yaml\n(.*?)```", text):
        DatasetConfig.model_validate(yaml.safe_load(example))


@pytest.fixture
def runner(project: Project, tmp_path: Path) -> Path:
    """A checkout on a runner, with a small dataset."""
    project.add(0, 8)
    work = tmp_path / "work"
    (work / "datasets").mkdir(parents=True)
    config = project.config().model_dump(mode="json", include={"samples", "shards", "compute"})
    config |= {"name": "small", "source": {"url": str(project.source)}}
    config |= {"destination": {"url": str(project.destination)}}
    (work / "datasets" / "small.yaml").write_text(yaml.safe_dump(config))
    shutil.copytree(DEPLOY / "github", work / "deploy" / "github")
    return work


def run_step(work: Path, name: str) -> tuple[int, str, str]:
    """Runs a step of the workflow as GitHub does; exit code, output and the step's summary."""
    workflow = load(WORKFLOW)
    (step,) = [each for each in workflow["jobs"]["build"]["steps"] if each.get("name") == name]
    summary = work / "step_summary.md"
    environment = {
        **os.environ,
        **workflow["env"],
        "DATASET": "small",
        "GITHUB_STEP_SUMMARY": str(summary),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for other in ("DAGSTER_HOME", "WDS_PIPELINE_DATASETS"):
        environment.pop(other, None)
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    return done.returncode, done.stdout, summary.read_text() if summary.exists() else ""


def test_the_workflow_builds_a_dataset(runner: Path, project: Project) -> None:
    code, output, _ = run_step(runner, "Check all datasets' files")
    assert code == 0, output
    code, output, summary = run_step(runner, "Build")
    assert code == 0, output
    assert "### small: built" in summary
    assert "small, version 1" in summary
    assert len(project.published()) == 8
    assert summary.count("```") == 2


def test_the_workflow_fails_with_a_build(runner: Path, project: Project) -> None:
    (project.source / "a" / "0003.txt").unlink()
    text = (runner / "datasets" / "small.yaml").read_text()
    (runner / "datasets" / "small.yaml").write_text(
        text.replace("max_quarantined: 1", "max_quarantined: 0")
    )
    code, output, summary = run_step(runner, "Build")
    assert code != 0
    assert "### small: the build failed" in summary
    assert "max_quarantined" in summary, summary
    assert not (project.destination / "versions").exists(), output


def test_validation_fails_for_a_broken_file(runner: Path) -> None:
    (runner / "datasets" / "broken.yaml").write_text("name: broken\nsorce: {url: raw}\n")
    code, output, _ = run_step(runner, "Check all datasets' files")
    assert code != 0
    assert "broken.yaml" in output and "sorce" in output, textwrap.shorten(output, 2000)

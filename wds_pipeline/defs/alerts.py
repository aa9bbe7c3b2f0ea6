"""Telling somebody of a run that failed: `on_failure:` of a dataset's YAML.

# my_team/alerts.py, installed where the daemon runs
def tell(run: FailedRun) -> None:
    requests.post(os.environ["CHAT_WEBHOOK"], json={"text": str(run)}, timeout=10)

# datasets/captions.yaml
on_failure: my_team.alerts:tell
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import dagster as dg

from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_values import did_you_mean
from wds_pipeline.defs.run_datasets import datasets_of
from wds_pipeline.errors import ConfigError

NAME = "wds_pipeline_alerts"


@dataclass(frozen=True)
class FailedRun:
    """A run that failed. `step` and `message` are of its first step that did; `step` is empty when the
    run died outside of its steps. In the UI the run is at `/runs/<run_id>`."""

    dataset: str
    job: str
    run_id: str
    step: str
    message: str

    def __str__(self) -> str:
        where = f" in {self.step}" if self.step else ""
        return f"{self.dataset}: {self.job} failed{where} (run {self.run_id}):\n{self.message}"


Alert = Callable[[FailedRun], object]


def build_alerts(
    configs: Sequence[DatasetConfig], on_failure: Alert | None = None
) -> dg.SensorDefinition | None:
    """The sensor that calls each dataset's `on_failure`, or the one given for those that have none;
    None when there is nothing to call.

    Raises ConfigError when a callable cannot be imported.
    """
    alerts = {config.name: _load(config) if config.on_failure else on_failure for config in configs}
    wanted = {name: alert for name, alert in alerts.items() if alert is not None}
    if not wanted:
        return None

    @dg.run_failure_sensor(
        name=NAME,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Calls `on_failure` when a run of these fails: {', '.join(sorted(wanted))}.",
    )
    def tell(context: dg.RunFailureSensorContext) -> None:
        steps = [event.step_key for event in context.get_step_failure_events() if event.step_key]
        found = datasets_of(context.instance, context.dagster_run, steps)
        # What one raises fails the tick, which shows it in the UI; the next failure is told again.
        for dataset in sorted(found & wanted.keys()):
            wanted[dataset](_failed_run(context, dataset))

    return tell


def _failed_run(context: dg.RunFailureSensorContext, dataset: str) -> FailedRun:
    run = context.dagster_run
    step, message = "", context.failure_event.message or "the run failed"
    for event in context.get_step_failure_events()[:1]:
        data = event.step_failure_data
        ours = data.user_failure_data
        step = event.step_key or ""
        if ours is not None and ours.description:
            message = ours.description
        elif data.error is not None:
            message = f"{data.error.cls_name}: {data.error.message.strip()}"
    return FailedRun(dataset, run.job_name, run.run_id, step, message)


def _load(config: DatasetConfig) -> Alert:
    module_name, _, name = str(config.on_failure).partition(":")
    where = f"{config.file or config.name}: on_failure: {config.on_failure}"
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"{where}: {error}; install the package where Dagster runs, or correct its name"
        ) from error
    except Exception as error:
        raise ConfigError(
            f"{where}: importing {module_name} failed: {type(error).__name__}: {error}; mend it, or "
            "remove on_failure"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        what = "not a function" if hasattr(module, name) else "nothing of that name"
        raise ConfigError(
            f"{where}: found {what} in {module_name}; expected a function that takes a FailedRun"
            f"{did_you_mean(name, vars(module))}"
        )
    alert: Alert = found
    return alert

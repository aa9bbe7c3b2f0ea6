"""What Dagster does with a dataset by itself: schedules, the sensor of its source, freshness."""

from __future__ import annotations

from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import BeforeValidator, Field, field_validator

from wds_pipeline.config_values import Cron, Model, did_you_mean


class ScheduleConfig(Model):
    """When Dagster does what by itself: cron expressions. A bare one (`schedule: "0 3 * * *"`) is
    `build`."""

    build: Cron | None = None
    """When the dataset is built."""
    verify: Cron | None = None
    """When all of the newest version is read back: bit rot shows. Without it the schedule is there,
    nightly, but has to be switched on in the UI."""
    gc: Cron | None = None
    """When old versions are removed, as `retention` says. Without it, as for `verify`."""
    timezone: str = "UTC"
    """The IANA name of the time zone that the expressions are in, such as Europe/Berlin."""

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            near = did_you_mean(name, available_timezones())
            raise ValueError(
                f"found {name!r}; expected an IANA time zone such as Europe/Berlin{near}"
            ) from None
        return name


def _bare(value: object) -> object:
    return {"build": value} if isinstance(value, str) else value


Schedule = Annotated[
    ScheduleConfig, BeforeValidator(_bare, json_schema_input_type=str | ScheduleConfig)
]


class SensorConfig(Model):
    """Builds the dataset when its source changes. It runs if the section is there, be it empty (`{}`)."""

    interval_seconds: int = Field(default=60, ge=5)
    """How often the daemon looks."""
    settle_seconds: float = Field(default=30, ge=0)
    """A source that changed is built when it has held still for so long: a copy under way is waited
    for."""
    tick_seconds: float = Field(default=20, gt=0, le=50)
    """How long one look may take; a larger source is looked at over several ticks."""
    retries: int = Field(default=3, ge=0)
    """How often a build that failed is tried again while the source stays as it is."""
    retry_seconds: float = Field(default=300, ge=0)
    """How long after a failure; twice as long each further time."""


class FreshnessConfig(Model):
    """When the published version counts as too old."""

    max_lag_hours: float = Field(default=24, gt=0)
    """The check `fresh` warns when a change in the source has waited for longer than this."""

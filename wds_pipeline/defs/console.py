"""What a run says in a terminal: a line for each thing done, and of a failure its message alone.

The UI and the event log have everything, stack traces included.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import dagster as dg

NAME = "console"


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        about: dict[str, Any] = getattr(record, "dagster_meta", {})
        step = about.get("step_key")
        text = _error(about.get("dagster_event")) or about.get("orig_message") or record.msg
        return f"{step}: {text}" if step else str(text)


def _error(event: dg.DagsterEvent | None) -> str | None:
    """What went wrong: our own message, or all that Dagster has of any other error."""
    data: Any = event.event_specific_data if event else None
    ours = getattr(data, "user_failure_data", None)
    if ours is not None and ours.description:
        return str(ours.description)
    if getattr(data, "first_step_failure_event", None) is not None:
        return None  # said before
    error = getattr(data, "error", None)
    if error is not None and error.cls_name == dg.DagsterExecutionInterruptedError.__name__:
        return "interrupted; what is sealed is kept, and the next run goes on from it"
    return error.to_string() if error else None


def _wanted(record: logging.LogRecord) -> bool:
    """What the steps say; of Dagster's own events the errors."""
    event = getattr(record, "dagster_meta", {}).get("dagster_event")
    return event is None or record.levelno >= logging.ERROR


@dg.logger(
    config_schema={
        "log_level": dg.Field(str, default_value="INFO", description="The least level shown.")
    },
    description="A line on stderr for each thing done.",
)
def console(context: dg.InitLoggerContext) -> logging.Logger:
    """The logger of the build jobs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    handler.addFilter(_wanted)
    logger = logging.Logger("wds_pipeline.run", level=context.logger_config["log_level"])
    logger.addHandler(handler)
    return logger

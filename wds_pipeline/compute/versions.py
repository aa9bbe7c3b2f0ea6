"""What a worker has installed, and whether the driver can rely on it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from wds_pipeline import __version__
from wds_pipeline.errors import WorkerError

OWN = "wds_pipeline"
_PACKAGES = ("pyarrow", "numpy", "pillow", "xxhash", "obstore", "dask", "distributed")
_SHOWN = 5  # workers in a message

Versions = Mapping[str, str | None]


def installed() -> dict[str, str | None]:
    """The versions that matter, by package; None for one that is not there. Runs at the workers."""
    found: dict[str, str | None] = {OWN: __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def compare(here: Versions, there: Mapping[str, Versions | Exception], cluster: str) -> str:
    """Compares what the driver has with what each worker, by name, says or fails to say.

    Returns a warning, or nothing where all have the same. Raises WorkerError for a worker without
    this package, with another version of it, or without a package that the driver has.
    """
    differ: dict[str, list[str]] = {}
    for worker, found in there.items():
        if isinstance(found, Exception):
            _add(differ, f"{OWN}: found none that this one can use ({_clause(found)})", worker)
        elif found[OWN] != here[OWN]:
            _add(differ, f"{OWN}: found {found[OWN]}", worker)
        else:
            for name in here.keys() - {OWN, "python"}:
                if here[name] is not None and found.get(name) is None:
                    _add(differ, f"{name}: found none", worker)
    if differ:
        raise refusal(cluster, _lines(differ, here))
    for worker, found in there.items():
        assert not isinstance(found, Exception)
        for name in here.keys() & found.keys():
            if None not in (here[name], found[name]) and here[name] != found[name]:
                _add(differ, f"{name}: found {found[name]}", worker)
    if not differ:
        return ""
    return f"{cluster}: other versions than here, which may give other bytes:\n  " + "\n  ".join(
        _lines(differ, here)
    )


def refusal(cluster: str, lines: list[str]) -> WorkerError:
    """What is said when workers cannot do this driver's work."""
    error = WorkerError(
        f"{cluster}: its workers do not have what this driver has:\n  "
        + "\n  ".join(lines)
        + f"\nInstall wds-pipeline {__version__} at the scheduler and at all workers (one image, one "
        "shared environment), start them again, and build again. Nothing was packed by them"
    )
    error.passing = False
    return error


def _add(differ: dict[str, list[str]], what: str, worker: str) -> None:
    differ.setdefault(what, []).append(worker)


def _lines(differ: Mapping[str, list[str]], here: Versions) -> list[str]:
    lines = []
    for what, workers in sorted(differ.items()):
        more = f" and {len(workers) - _SHOWN:,} more" if len(workers) > _SHOWN else ""
        expected = here[what.partition(":")[0]]
        lines.append(f"{what}, expected {expected}, at {', '.join(workers[:_SHOWN])}{more}")
    return lines


def _clause(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

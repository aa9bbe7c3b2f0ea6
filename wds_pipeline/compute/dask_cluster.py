"""Going to a Dask cluster, or starting one on this machine; and leaving it in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from wds_pipeline.compute import versions
from wds_pipeline.compute.dask_pool import DaskPool
from wds_pipeline.config import ComputeConfig
from wds_pipeline.config_compute import check_address
from wds_pipeline.errors import ConfigError, WorkerError

if TYPE_CHECKING:
    from distributed import Client

_CONNECT_SECONDS = 5.0
_ASK_SECONDS = 30.0
_CLOSE_SECONDS = 5.0
_PATIENCE = 300.0  # seconds without workers, unless Dask's configuration says
_DEATHS = 2  # of workers that a job is forgiven, in a cluster of our own
log = logging.getLogger(__name__)


@contextmanager
def open_dask_pool(config: ComputeConfig) -> Iterator[DaskPool]:
    """The cluster that the configuration names, or one of our own, which ends with the block.

    Raises ConfigError when nothing says which cluster, WorkerError when it cannot be reached, or a
    worker cannot do our work.
    """
    _check_installed()
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        if config.workers is not None:
            address = stack.enter_context(_local_cluster(config.workers))
            cluster = f"compute.workers: {config.workers} (Dask)"
        else:
            address = config.address or _configured()
            cluster = f"compute.address: {address}"
        client = _connect(address, cluster)
        stack.callback(client.close, _CLOSE_SECONDS)
        warning = versions.compare(versions.installed(), _ask(client, cluster), cluster)
        if warning:
            log.warning(warning)
        pool = DaskPool(client, cluster, _patience())
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()


def _check_installed() -> None:
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"compute.kind: dask: needs Dask, which is not installed ({error}): "
            "pip install 'wds-pipeline[dask]'"
        ) from None


def _configured() -> str:
    """The scheduler that Dask's own configuration names."""
    import dask

    address = dask.config.get("scheduler-address", None)
    if not address:
        raise ConfigError(
            "compute.kind: dask: found neither `address` nor `workers`, and nothing in Dask's own "
            "configuration; expected `address: tcp://host:8786` (a scheduler), `workers: N` (a "
            "cluster on this machine), or DASK_SCHEDULER_ADDRESS in the environment"
        )
    address = str(address) if "://" in str(address) else f"tcp://{address}"
    try:
        check_address(address)
    except ValueError as error:
        raise ConfigError(
            f"compute.kind: dask: Dask's own configuration (DASK_SCHEDULER_ADDRESS): {error}"
        ) from None
    return address


def _patience() -> float:
    """How many seconds to wait for workers when there are none."""
    import dask
    from dask.utils import parse_timedelta

    found = dask.config.get("distributed.scheduler.no-workers-timeout", None)
    return _PATIENCE if found is None else float(parse_timedelta(found))


@contextmanager
def _local_cluster(workers: int) -> Iterator[str]:
    """A scheduler in this process and so many worker processes; its address."""
    from distributed import LocalCluster

    with (
        tempfile.TemporaryDirectory(prefix="wds-dask-", ignore_cleanup_errors=True) as folder,
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
            local_directory=folder,
            scheduler_kwargs={"allowed_failures": _DEATHS},
        ) as cluster,
    ):
        try:
            yield cluster.scheduler_address
        except BaseException:
            # Dask would ask each worker to end, and wait for what it is at.
            for nanny in cluster.workers.values():
                nanny.close_gracefully()  # it starts no other worker in the place of this one
                if nanny.pid:
                    os.kill(nanny.pid, signal.SIGKILL)
            raise


def _connect(address: str, cluster: str) -> Client:
    from distributed import Client
    from distributed.versions import VersionMismatchWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VersionMismatchWarning)  # we compare, and say it ourselves
        try:
            _knock(address)
            return Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, ImportError, TypeError, RuntimeError, asyncio.TimeoutError) as error:
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise WorkerError(
                f"{cluster}: no Dask scheduler answered within {_CONNECT_SECONDS:g} s ({reason}). See "
                "whether it runs, and whether this machine may reach it; `dask scheduler` starts one"
            ) from None


def _knock(address: str) -> None:
    """Raises OSError or TimeoutError when no scheduler answers: a client would wait for a greeting for
    ever, from a port that something else listens at or from a scheduler that hangs."""
    from distributed.comm.core import connect
    from distributed.security import Security

    async def greet() -> None:
        arguments = Security().get_connection_args("client")
        (await connect(address, timeout=_CONNECT_SECONDS, **arguments)).abort()

    async def soon() -> None:
        await asyncio.wait_for(greet(), _CONNECT_SECONDS)

    with ThreadPoolExecutor(1) as thread:  # this one may have an event loop of its own
        thread.submit(asyncio.run, soon()).result()


def _ask(client: Client, cluster: str) -> dict[str, versions.Versions | Exception]:
    """What each worker, and the scheduler, has installed. A worker that is gone meanwhile is left out."""
    try:
        found = client.sync(_installed_there, client, callback_timeout=_ASK_SECONDS)
    except TimeoutError:
        raise WorkerError(
            f"{cluster}: not all of its workers said within {_ASK_SECONDS:g} s what they have "
            "installed; look at them (the scheduler's dashboard shows which hang), and build again"
        ) from None
    return {name: each for name, each in found.items() if not isinstance(each, OSError)}


async def _installed_there(client: Client) -> dict[str, versions.Versions | Exception]:
    found = dict(await client.run(versions.installed, on_error="return"))
    try:
        found["the scheduler"] = await client.run_on_scheduler(versions.installed)
    except Exception as error:
        found["the scheduler"] = error
    return found


_quiet_lock = threading.Lock()
_quiet_depth = 0
_levels: dict[str, int] = {}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences distributed's loggers: what they say with a traceback, we say once, in words."""
    global _quiet_depth
    with _quiet_lock:
        if not _quiet_depth:
            for name in [*logging.root.manager.loggerDict]:
                if name.partition(".")[0] in ("distributed", "tornado"):
                    logger = logging.getLogger(name)
                    _levels[name] = logger.level
                    logger.setLevel(logging.CRITICAL + 1)
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if not _quiet_depth:
                for name, level in _levels.items():
                    logging.getLogger(name).setLevel(level)
                _levels.clear()

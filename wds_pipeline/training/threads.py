"""Work in threads, in order: for what lets other threads run, as reading and Pillow do."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Part = TypeVar("Part")


def cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def mapped(threads: int, make: Callable[[Part], Any], parts: Iterable[Part]) -> Generator[Any]:
    """What `make` makes of each part, in their order: in threads, some ahead, if there are any."""
    if not threads:
        yield from map(make, parts)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="wds-stream") as pool:
        under_way: deque[Future[Any]] = deque()
        try:
            for part in parts:
                under_way.append(pool.submit(make, part))
                if len(under_way) > 2 * threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for each in under_way:
                each.cancel()

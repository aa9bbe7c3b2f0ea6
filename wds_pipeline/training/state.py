"""The state of a stream: reading one that was kept, by a stream or by torchdata's StatefulDataLoader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from wds_pipeline.errors import ConfigError

_FACTS = ("dataset", "version", "split")  # for people; what decides is the digest
_NUMBERS = ("epoch", "position")


class WorkerState(NamedTuple):
    """How far a worker is: `step` is the next one that it makes, in the pass that began at `position`
    with global batches of `batch` samples."""

    epoch: int
    position: int
    step: int
    worker: int
    workers: int
    batch: int

    def check_batch(self, batch: int, named: str) -> None:
        """Raises ConfigError where steps are of another size now: workers cannot tell each other."""
        if self.batch not in (0, batch):
            raise ConfigError(
                f"{named}: the state of a worker whose steps are of {self.batch} samples of all ranks was "
                f"given to one whose steps are of {batch}; load it with `stream.load_state_dict`"
            )


class Found(NamedTuple):
    """What a state says: of a stream, or of the workers that had it."""

    epoch: int
    position: int
    workers: tuple[WorkerState, ...]
    later: int
    """How many steps were made after the workers were asked."""

    def merged(self, named: str, count: int, last: str) -> tuple[int, int]:
        """Epoch and position, in an order of `count` samples with this `last`. Raises ConfigError
        where the workers' steps are not in one row."""
        if not self.workers:
            return self.epoch, self.position
        states = self.workers
        first = states[0]
        same = {(each.epoch, each.position, each.batch, each.workers) for each in states}
        steps = sorted(each.step for each in states)
        complete = len(states) == first.workers and len(same) == 1
        if not complete or steps != list(range(steps[0], steps[0] + len(steps))):
            raise ConfigError(
                f"{named}: the state of a DataLoader whose {len(states)} workers are at the steps "
                f"{', '.join(map(str, steps))}; expected adjacent ones: let the stream make the batches "
                "(`batch_size=` there, `batch_size=None` for the DataLoader)"
            )
        position = first.position + (steps[0] + self.later) * first.batch
        if count - position < (first.batch if last == "drop" else 1):
            return first.epoch + 1, 0
        return first.epoch, position

    def of_worker(self, worker: int, workers: int, named: str) -> WorkerState:
        """What it says to a worker. Raises ConfigError if it is of another one."""
        if not self.workers:
            return WorkerState(self.epoch, self.position, worker, worker, workers, 0)
        found = self.workers[0]
        if (found.worker, found.workers) != (worker, workers):
            raise ConfigError(
                f"{named}: the state of worker {found.worker} of {found.workers} was given to worker "
                f"{worker} of {workers}; load it with `stream.load_state_dict`, which takes any number"
            )
        return found


def read_state(state: Mapping[str, Any], expected: Mapping[str, Any], named: str) -> Found:
    """What a state says. Raises ConfigError when it is none, or of another order than `expected`."""
    parts = list(_parts(state))
    if not parts:
        raise ConfigError(
            f"{named}: found {_kind_of(state)}; expected one from "
            "`state_dict()` of a stream, or of a StatefulDataLoader with one"
        )
    for part in parts:
        _check(part, expected, named)
    workers = tuple(
        WorkerState(*(int(part[name]) for name in WorkerState._fields))
        for part in parts
        if "worker" in part
    )
    first = parts[0]
    return Found(int(first["epoch"]), int(first["position"]), workers, _later(state))


def _kind_of(state: object) -> str:
    if not isinstance(state, Mapping):
        return f"{state!r:.80} instead of a state"
    return f"a state with {', '.join(map(repr, state)) or 'nothing'}"


def _parts(state: Any) -> Iterator[Mapping[str, Any]]:
    """The states of streams in a state, however deep."""
    if not isinstance(state, Mapping):
        return
    if all(name in state for name in _NUMBERS):
        yield state
        return
    for value in state.values():
        yield from _parts(value)


def _later(state: Any) -> int:
    """How many steps a StatefulDataLoader made after its snapshot, however deep its state is."""
    if not isinstance(state, Mapping):
        return 0
    return int(state.get("_steps_since_snapshot", 0)) or max(map(_later, state.values()), default=0)


def _check(part: Mapping[str, Any], expected: Mapping[str, Any], named: str) -> None:
    names = [name for name in expected if name not in _FACTS]
    other = [name for name in names if part.get(name) != expected[name]]
    if not other:
        return
    found = "; ".join(
        f"{name}: found {part.get(name)!r}; expected {expected[name]!r}" for name in other
    )
    facts = ", ".join(f"{name} {part[name]}" for name in _FACTS if part.get(name) is not None)
    hint = ""
    if "digest" in other or "datasets" in other:
        hint = f"; it is of {facts}: open just that" if facts else ""
    raise ConfigError(f"{named}: the state is of another order: {found}{hint}")

"""How values are distributed: a histogram with round bounds; smallest, middle and largest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BINS = 24  # about how many
_LOG_RATIO = 40  # a wider spread than this is shown on a logarithmic scale
_ROUND = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
_COARSE = (1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Distribution:
    """Bin i counts the values from `edges[i]` to below `edges[i + 1]`, the last one to its end."""

    name: str
    unit: str
    count: int
    min: float
    median: float
    max: float
    scale: str  # linear or log
    edges: list[float]
    counts: list[int]


def distribution(
    name: str, unit: str, values: NDArray[np.int64] | NDArray[np.float64]
) -> Distribution | None:
    """The distribution of finite numbers; None where there are none."""
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    whole = np.issubdtype(values.dtype, np.integer)
    scale = "log" if low > 0 and high / low > _LOG_RATIO else "linear"
    edges = _log_edges(low, high) if scale == "log" else _linear_edges(low, high, whole)
    counts, _ = np.histogram(values, bins=np.array(edges))
    return Distribution(
        name,
        unit,
        len(values),
        _plain(low),
        _plain(float(np.median(values))),
        _plain(high),
        scale,
        [_plain(edge) for edge in edges],
        counts.tolist(),
    )


def _plain(value: float) -> float:
    """Six significant digits, and no `.0`: what people and diffs want to see."""
    rounded = float(f"{value:.6g}") if abs(value) < 1e6 else value
    return int(rounded) if rounded == int(rounded) else rounded


def _linear_edges(low: float, high: float, whole: bool) -> list[float]:
    if low == high:
        half = 0.5 if whole or not low else abs(low) * 0.05
        return [low - half, low + half]
    step = _round_up((high - low) / _BINS)
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step), math.floor(high / step) + 1
    return [round(number * step, 12) for number in range(first, last + 1)]


def _log_edges(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1
    steps = _ROUND if last - first <= 5 else _COARSE
    all_edges = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    start = max(at for at, edge in enumerate(all_edges) if edge <= low)
    end = min(at for at, edge in enumerate(all_edges) if edge > high)
    return [float(f"{edge:.6g}") for edge in all_edges[start : end + 1]]


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(step for step in (1, 2, 2.5, 5, 10) if step * power >= value * (1 - 1e-9)) * power

"""Parsing in many threads at once, as arrays are decoded."""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from wds_pipeline.dataset.syntax import parsed


def test_it_is_tried_again() -> None:
    answers: Iterator[Exception | int] = iter([SystemError("depth"), SystemError("depth"), 7])

    def parse() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert parsed(parse) == 7


def test_what_fails_for_good_is_told() -> None:
    with pytest.raises(SyntaxError):
        parsed(lambda: ast.parse("1 +"))

    def broken() -> None:
        raise SystemError("for ever")

    with pytest.raises(SystemError, match="for ever"):
        parsed(broken)


def test_headers_of_arrays_in_threads() -> None:
    sink = io.BytesIO()
    np.save(sink, np.zeros((7, 1), np.int32))

    def load(_: int) -> tuple[int, ...]:
        found: np.ndarray = parsed(lambda: np.load(io.BytesIO(sink.getvalue())))
        return found.shape

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(load, range(2000))) == {(7, 1)}

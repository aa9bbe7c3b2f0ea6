"""The layouts of token data sets: their columns, and whether the ids fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wds_pipeline.errors import ConfigError, DataError
from wds_pipeline.tokens.parameters import Parameters

FILL = -1  # of `modality`, and of `idx` where no row was written
TEXT, IMAGE = 0, 1  # values of `modality`
IDX, WRITTEN = "idx", "write_flag"
FORMAT = "wds_pipeline.tokens"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Column:
    """One array: the shape of a row, and the type. `ids` says of which vocabularies its values are."""

    shape: tuple[int, ...]
    dtype: str
    ids: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Layout:
    """A layout with all sizes known. `ends` is where each vocabulary ends, the image's with its shift."""

    columns: dict[str, Column]
    ends: dict[str, int]
    shift: int
    vocabulary: dict[str, int]

    def cast(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """Values as the column has them. Raises DataError rather than wrap one around."""
        column = self.columns[name]
        if column.ids and values.size:
            least, most = int(values.min()), int(values.max())
            end = max(self.ends[each] for each in column.ids)
            if least < 0 or most >= end:
                raise DataError(
                    f"{name}: found the id {least if least < 0 else most:,}; the vocabulary "
                    f"({self._vocabulary()}) has ids from 0 to {end - 1:,}: give the encoder's or "
                    "tokenizer's true size in `vocabulary`"
                )
        if column.dtype != "bool" and values.size:
            limits = np.iinfo(column.dtype)
            if values.min() < limits.min or values.max() > limits.max:
                raise DataError(
                    f"{name}: found {int(values.max()):,}; {column.dtype} holds {limits.max:,} at most"
                )
        return np.ascontiguousarray(values.astype(np.dtype(column.dtype).newbyteorder("<")))

    def _vocabulary(self) -> str:
        sizes = ", ".join(f"{name} {size:,}" for name, size in self.vocabulary.items())
        return f"{sizes}; shift {self.shift:,}"


def of(parameters: Parameters, tokens: int | None) -> Layout:
    """The layout for these parameters; `tokens` is how many ids the tokenizer has.

    Raises ConfigError where a type is too small for its ids, or the vocabularies do not fit.
    """
    vocabulary = _vocabulary(parameters, tokens)
    shift = _shift(parameters, vocabulary)
    ends = {name: size + (shift if name == "image" else 0) for name, size in vocabulary.items()}
    columns = _columns(parameters)
    unknown = (
        set(parameters.dtype) - _with_ids(columns) if isinstance(parameters.dtype, dict) else set()
    )
    if unknown:
        raise ConfigError(
            f"dtype: {', '.join(sorted(unknown))}: expected one of {', '.join(sorted(_with_ids(columns)))}"
        )
    layout = Layout({}, ends, shift, vocabulary)
    for name, column in columns.items():
        layout.columns[name] = _typed(name, column, parameters, layout)
    layout.columns[IDX] = Column((1,), "int32")
    layout.columns[WRITTEN] = Column((1,), "bool")
    return layout


def _vocabulary(parameters: Parameters, tokens: int | None) -> dict[str, int]:
    found = {}
    if tokens is not None:
        found["text"] = parameters.vocabulary.text or tokens
        if found["text"] < tokens:
            raise ConfigError(
                f"vocabulary.text: found {found['text']:,}; the tokenizer has {tokens:,} ids: expected "
                "as many at least, or leave it out"
            )
    if parameters.image is not None:
        found["image"] = parameters.vocabulary.image or 0
    return found


def _shift(parameters: Parameters, vocabulary: dict[str, int]) -> int:
    least = vocabulary["text"] if parameters.layout == "interleaved" else 0
    if parameters.shift is None:
        return least
    if parameters.shift < least:
        raise ConfigError(
            f"shift: found {parameters.shift:,}; the text has the ids 0 to {least - 1:,}, so that the "
            f"image's would be taken for text: expected {least:,} at least, or leave it out"
        )
    return parameters.shift


def _columns(parameters: Parameters) -> dict[str, Column]:
    text, image = parameters.text, parameters.image
    length = (text.block_size or 0) if text is not None else 0
    ids = (image.ids if image is not None else 0,)
    of_text, of_image = frozenset({"text"}), frozenset({"image"})
    if parameters.layout == "pairs":
        return {
            "img_input_ids": Column(ids, "int16", of_image),
            "txt_input_ids": Column((length,), "int32", of_text),
            "txt_attention_mask": Column((length,), "bool"),
        }
    if parameters.layout == "image_class":
        return {
            "img_input_ids": Column(ids, "int16", of_image),
            "img_label": Column((1,), "int32"),
        }
    if parameters.layout == "interleaved":
        block = (parameters.block_size or 0,)
        return {
            "input_ids": Column(block, "", of_text | of_image),
            "attention_mask": Column(block, "bool"),
            "modality": Column(block, "int8"),
        }
    return {
        "input_ids": Column(
            (length,) if text is not None else ids, "", of_text if text else of_image
        ),
        "modality": Column((1,), "int16"),
    }


def _with_ids(columns: dict[str, Column]) -> set[str]:
    return {name for name, column in columns.items() if column.ids}


def _typed(name: str, column: Column, parameters: Parameters, layout: Layout) -> Column:
    """The column in the type that is wanted, if it holds all ids; where the layout has no type of its
    own, in the smallest."""
    if not column.ids:
        return column
    largest = max(layout.ends[each] for each in column.ids) - 1
    asked = parameters.dtype.get(name) if isinstance(parameters.dtype, dict) else parameters.dtype
    dtypes = ("int16", "int32", "int64")
    enough = next(each for each in dtypes if largest <= np.iinfo(each).max)
    dtype = asked or column.dtype or enough
    if largest > np.iinfo(dtype).max:
        raise ConfigError(
            f"dtype: {name} has ids up to {largest:,} (vocabulary: {layout._vocabulary()}); {dtype} holds "
            f"{np.iinfo(dtype).max:,} at most: set `dtype: {{{name}: {enough}}}`"
        )
    return Column(column.shape, dtype, column.ids)

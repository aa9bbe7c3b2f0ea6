"""A batch of rows to arrays: text by the tokenizer, images by the encoder, laid out.

A row that fails is left out alone, with its reason; the others stay in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wds_pipeline.tokens.images import Pixels, decode_all
from wds_pipeline.tokens.layouts import FILL, IMAGE, TEXT, Layout
from wds_pipeline.tokens.parameters import ImageParameters, Parameters
from wds_pipeline.tokens.parts import Part, Row
from wds_pipeline.tokens.text import Text
from wds_pipeline.transforms.api import Rejected

Arrays = dict[str, NDArray[Any]]
Reject = Callable[[str, str], None]
Encode = Callable[[Sequence[Pixels]], NDArray[np.int64]]


class Rows:
    """What turns rows into arrays. `encode` gives the ids of images, `text` is the tokenizer."""

    def __init__(
        self, parameters: Parameters, layout: Layout, text: Text | None, encode: Encode | None
    ) -> None:
        self._parameters = parameters
        self._layout = layout
        self._text = text
        self._encode = encode

    def prepared(self, rows: Sequence[Row], reject: Reject) -> list[Row]:
        """The rows that can be used, their text as ids and their images as pixels."""
        return self._decoded(self._tokenized(rows, reject), reject)

    def arrays(self, rows: Sequence[Row]) -> tuple[list[str], Arrays]:
        """The keys of prepared rows and, by column, their values: [n, …] each.

        What stands in a row may depend on the others that are encoded with it (in floating point, a sum
        depends on its order). So rows that were rejected have no part in it.

        Raises DataError when ids do not fit, or the encoder fails.
        """
        if self._parameters.image is not None:
            images = [part for row in rows for part in row.of("image")]
            self._encode_images(images, self._parameters.image)
        made = self._laid_out(rows)
        return [row.key for row in rows], {
            name: self._layout.cast(name, values) for name, values in made.items()
        }

    def _tokenized(self, rows: Sequence[Row], reject: Reject) -> list[Row]:
        if self._text is None:
            return list(rows)
        texts = [part for row in rows for part in row.of("text")]
        limit = self._text_limit()
        for part, ids in zip(
            texts, self._text.encode([p.content for p in texts], limit), strict=True
        ):
            part.ids = ids
        return [row for row in rows if self._sound(row, "text", reject) and self._fits(row, reject)]

    def _text_limit(self) -> int | None:
        """How many ids a text may have, BOS and EOS included."""
        rules = self._parameters
        assert rules.text is not None
        if rules.layout != "interleaved" or rules.order == "name":
            return rules.text.block_size
        assert rules.block_size is not None and rules.image is not None
        room = rules.block_size - rules.image.ids
        return min(room, rules.text.block_size or room)

    def _fits(self, row: Row, reject: Reject) -> bool:
        """Whether the row is as long as its block wants; one of many parts is cut to it."""
        rules = self._parameters
        assert rules.text is not None
        if rules.layout == "interleaved":
            assert rules.block_size is not None and rules.image is not None
            if rules.order == "name" and rules.text.truncation:
                _cut(row, rules.block_size, rules.image.ids)
            length = sum(_length(part, rules.image.ids) for part in row.parts)
            block: int | None = rules.block_size
        else:
            length, block = sum(len(part.ids) for part in row.of("text")), rules.text.block_size
        assert block is not None
        if not row.parts:
            reject(row.key, f"its first image does not fit into a block of {block:,} ids")
            return False
        if length > block:
            reject(
                row.key,
                f"it has {length:,} ids; expected {block:,} at most, or `truncation: true`",
            )
            return False
        if length < block and rules.text.padding == "none":
            reject(
                row.key, f"it has {length:,} ids and a block {block:,}; `padding: max` fills it up"
            )
            return False
        return True

    def _decoded(self, rows: list[Row], reject: Reject) -> list[Row]:
        rules = self._parameters.image
        if rules is None:
            return rows
        images = [part for row in rows for part in row.of("image")]
        for part, pixels in zip(
            images, decode_all([part.content for part in images], rules), strict=True
        ):
            part.ids, part.content = pixels, None
        return [row for row in rows if self._sound(row, "image", reject)]

    def _encode_images(self, images: list[Part], rules: ImageParameters) -> None:
        assert self._encode is not None
        for start in range(0, len(images), rules.batch_size):
            batch = images[start : start + rules.batch_size]
            found = self._encode([part.ids for part in batch])
            for part, ids in zip(batch, found, strict=True):
                part.ids = ids + self._layout.shift

    def _sound(self, row: Row, kind: str, reject: Reject) -> bool:
        for part in row.of(kind):
            if isinstance(part.ids, Rejected):
                reject(row.key, f"{part.field}: {part.ids}")
                return False
        return True

    def _laid_out(self, rows: Sequence[Row]) -> Arrays:
        rules = self._parameters
        if rules.layout == "interleaved":
            return self._interleaved(rows)
        found: Arrays = {}
        if rules.image is not None:
            found["img_input_ids"] = np.stack(
                [part.ids for row in rows for part in row.of("image")]
            )
        if rules.text is not None:
            length = rules.text.block_size or 0
            texts = [[part.ids for part in row.of("text")] for row in rows]
            found["txt_input_ids"], found["txt_attention_mask"], _ = self._padded(texts, length)
        if rules.layout == "image_class":
            found["img_label"] = np.array([[row.label] for row in rows], np.int64)
        if rules.layout == "one_modality":
            kind, name = (TEXT, "txt") if rules.text is not None else (IMAGE, "img")
            modality = np.full((len(rows), 1), kind, np.int64)
            return {"input_ids": found[f"{name}_input_ids"], "modality": modality}
        return found

    def _interleaved(self, rows: Sequence[Row]) -> Arrays:
        block = self._parameters.block_size or 0
        parts = [[part.ids for part in row.parts] for row in rows]
        ids, mask, places = self._padded(parts, block)
        modality = np.full(ids.shape, FILL, np.int64)
        for at, (row, place) in enumerate(zip(rows, places, strict=True)):
            kinds = [TEXT if part.kind == "text" else IMAGE for part in row.parts]
            lengths = [len(part.ids) for part in row.parts]
            modality[at, place] = np.repeat(np.array(kinds, np.int64), lengths)
        return {"input_ids": ids, "attention_mask": mask, "modality": modality}

    def _padded(
        self, rows: list[list[Any]], length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], list[slice]]:
        """Rows of parts as ids [n, length] with a mask, and where each row lies in its block."""
        assert self._text is not None
        pad = 0 if self._text.pad is None else self._text.pad
        ids = np.full((len(rows), length), pad, np.int64)
        mask = np.zeros((len(rows), length), np.bool_)
        places = []
        for at, parts in enumerate(rows):
            values = np.concatenate([np.asarray(part, np.int64) for part in parts])
            left = self._text.parameters.padding_side == "left"
            first = length - len(values) if left else 0
            place = slice(first, first + len(values))
            ids[at, place], mask[at, place] = values, True
            places.append(place)
        return ids, mask, places


def _length(part: Part, image: int) -> int:
    return len(part.ids) if part.kind == "text" else image


def _cut(row: Row, room: int, image: int) -> None:
    """Cuts what goes beyond the block: a text at its end; an image stays whole or goes, with all behind."""
    kept = []
    for part in row.parts:
        length = _length(part, image)
        if length > room and (part.kind == "image" or not room):
            break
        if part.kind == "text":
            part.ids = part.ids[:room]
        kept.append(part)
        room -= min(length, room)
        if length and not room:
            break
    row.parts = kept

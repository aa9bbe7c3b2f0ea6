"""The transform `tokenize`: the samples of a shard become arrays, in blocks of rows.

A block is a sample of its own, `train-000042/000003`, with the fields of the layout as `.npy` (n rows each),
`idx.npy` (the row within the shard), `write_flag.npy`, `keys.json` (the samples' keys) and `tokens.json` (the
layout, vocabularies, shift and types, and digests of the tokenizer and the checkpoint).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import xxhash

from wds_pipeline.errors import DataError
from wds_pipeline.tokens import encoder, layouts
from wds_pipeline.tokens.blocks import ABOUT, Blocks
from wds_pipeline.tokens.identity import file_digest, library
from wds_pipeline.tokens.parameters import Subset, parse
from wds_pipeline.tokens.parts import Row, row_of
from wds_pipeline.tokens.rows import Rows
from wds_pipeline.tokens.text import Text
from wds_pipeline.transforms.api import Context, Rejected, Sample

_TEXTS = 256  # tokenized at a time where there are no images


class Tokenize:
    """`tokenize: {layout: …, text: {…}, image: {…}, …}`; see `parameters`."""

    VERSION = "1"

    def __init__(self, **parameters: Any) -> None:
        """Checks the parameters and loads the tokenizer; the encoder is loaded with the first shard.

        Raises ConfigError.
        """
        self._parameters = parse(parameters)
        text, image = self._parameters.text, self._parameters.image
        self._text = None if text is None else Text(text)
        tokens = None if self._text is None else self._text.vocabulary
        self._layout = layouts.of(self._parameters, tokens)
        self._files = {} if image is None else encoder.identity(image)
        if text is not None:
            self._files["tokenizer"] = file_digest(text.tokenizer, "text.tokenizer")

    @classmethod
    def identity(cls, **parameters: Any) -> str:
        """A digest of the tokenizer's files, the checkpoint and the encoder's module, and of the libraries'
        feature releases. Raises ConfigError."""
        made = cls(**parameters)
        used = [*sorted(made._files.items())]
        if made._parameters.text is not None:
            used.append(("library", library("tokenizers")))
        if made._parameters.image is not None:
            used += [("library", library(name)) for name in ("torch", "pillow")]
        return f"xxh3-128:{xxhash.xxh3_128_hexdigest(json.dumps(used).encode())}"

    def about(self) -> dict[str, Any]:
        """What a reader of the arrays needs to know."""
        rules, layout = self._parameters, self._layout
        found: dict[str, Any] = {
            "format": layouts.FORMAT,
            "format_version": layouts.FORMAT_VERSION,
            "layout": rules.layout,
            "vocabulary": layout.vocabulary,
            "shift": layout.shift,
            "dtype": {name: column.dtype for name, column in layout.columns.items()},
        }
        if rules.text is not None and self._text is not None:
            found["block_size"] = rules.block_size or rules.text.block_size
            found["text"] = {"bos": self._text.bos, "eos": self._text.eos, "pad": self._text.pad}
        if rules.image is not None:
            found["image"] = {"resolution": rules.image.resolution, "patch": rules.image.patch}
        if rules.subset is not None:
            found["subset"] = rules.subset.model_dump()
        return {**found, "files": self._files}

    def stream(self, samples: Iterator[Sample], context: Context, /) -> Iterator[Sample]:
        """Yields the shard's blocks."""
        rules = self._parameters
        size = _TEXTS if rules.image is None else rules.image.batch_size
        about = (json.dumps(self.about(), sort_keys=True) + "\n").encode()
        rows = self._rows(context.shard)
        blocks = Blocks(rules.rows)
        number = 0

        def named(block: dict[str, Any]) -> Sample:
            nonlocal number
            number += 1
            return {"__key__": f"{context.shard}/{number - 1:06d}", **block, ABOUT: about}

        chosen = self._chosen(samples, context)
        batches = iter(lambda: list(islice(chosen, size)), [])
        prepared = chain.from_iterable(rows.prepared(each, context.reject) for each in batches)
        while batch := list(islice(prepared, size)):
            try:
                keys, arrays = rows.arrays(batch)
            except DataError as error:  # no sample's fault
                raise DataError(f"tokenize: {context.shard}: {error}") from error
            yield from map(named, blocks.add(keys, arrays))
        yield from map(named, blocks.rest())

    def _chosen(self, samples: Iterator[Sample], context: Context) -> Iterator[Row]:
        for sample in samples:
            key = sample["__key__"]
            if self._parameters.subset is None or in_subset(key, self._parameters.subset):
                try:
                    row = row_of(sample, self._parameters)
                except Rejected as reason:
                    context.reject(key, str(reason))
                else:
                    yield row

    def _rows(self, shard: str) -> Rows:
        encode = None
        if self._parameters.image is not None:
            slot = shard.rpartition("-")[2]
            number = int(slot) if slot.isdecimal() else 0
            encode = encoder.encoder_for(self._parameters.image, number).encode
        return Rows(self._parameters, self._layout, self._text, encode)


def in_subset(key: str, subset: Subset) -> bool:
    """Whether a key's hash, as a number from 0 to 1, is below the fraction: a larger fraction of the same
    seed has all samples of a smaller one."""
    data = f"{subset.seed}\0{key}".encode("utf-8", "surrogateescape")
    return xxhash.xxh3_64_intdigest(data) < subset.fraction * 2**64

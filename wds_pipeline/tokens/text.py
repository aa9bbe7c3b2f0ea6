"""Text to ids, by a Hugging Face tokenizer.

The tokenizer's own truncation and padding are switched off: what `tokenize` is told counts, not what
somebody left in the file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from wds_pipeline.config_values import did_you_mean
from wds_pipeline.errors import ConfigError
from wds_pipeline.tokens.parameters import TextParameters, Token
from wds_pipeline.transforms.api import Rejected

EXTRA = "install it: pip install 'wds-pipeline[tokens]'"
_FILE = "tokenizer.json"


class Text:
    """A tokenizer with its rules."""

    def __init__(self, parameters: TextParameters) -> None:
        """Loads the tokenizer. Raises ConfigError."""
        self.parameters = parameters
        self._tokenizer = load(parameters.tokenizer)
        ids = self._tokenizer.ids
        self.vocabulary = max(ids.values(), default=-1) + 1
        """How many ids there are: one more than the largest."""
        self.bos = self._id(parameters.bos, "bos")
        self.eos = self._id(parameters.eos, "eos")
        self.pad = self._id(parameters.pad, "pad")
        if self.pad is None:
            self.pad = self._tokenizer.pad
        if self.pad is None and parameters.padding == "max":
            likely = [token for token in ids if "pad" in token.lower()][:3] or ["</s>"]
            raise ConfigError(
                f"text.pad: required: the tokenizer's file does not say what fills a block up; give an "
                f"id or a token, such as {', '.join(map(repr, likely))}, or `padding: none`"
            )

    def _id(self, token: Token | None, name: str) -> int | None:
        if token is None:
            return None
        known = self._tokenizer.ids
        if isinstance(token, str):
            if token not in known:
                raise ConfigError(
                    f"text.{name}: {token!r} is no token of {self.parameters.tokenizer}"
                    f"{did_you_mean(token, known)}"
                )
            return known[token]
        if not 0 <= token < self.vocabulary:
            raise ConfigError(
                f"text.{name}: found {token}; expected an id from 0 to {self.vocabulary - 1}"
            )
        return token

    def encode(self, texts: Sequence[str], limit: int | None) -> list[list[int] | Rejected]:
        """Each text's ids, `limit` at most with BOS and EOS; or why there are none."""
        if not texts:
            return []
        rules = self.parameters
        own = (self.bos is not None) + (self.eos is not None)
        cut = limit - own if limit is not None and rules.truncation else None
        if cut is not None and cut < 1:
            raise ConfigError(f"text.block_size: found {limit}; BOS and EOS leave no room for text")
        return [
            self._framed(ids, limit)
            for ids in self._tokenizer.encode(texts, rules.special_tokens, cut)
        ]

    def _framed(self, ids: list[int], limit: int | None) -> list[int] | Rejected:
        added = self._tokenizer.added if self.parameters.special_tokens else 0
        if len(ids) <= added and self.parameters.empty == "reject":
            return Rejected("the text is empty; `text: {empty: keep}` makes it a row")
        bos = [] if self.bos is None else [self.bos]
        eos = [] if self.eos is None else [self.eos]
        framed = [*bos, *ids, *eos]
        if limit is not None and len(framed) > limit:
            return Rejected(
                f"the text has {len(framed):,} ids; expected {limit:,} at most, or `truncation: true`"
            )
        return framed


class _File:
    """A `tokenizer.json`, by the library `tokenizers`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        padding = tokenizer.padding
        self.pad: int | None = None if padding is None else padding["pad_id"]
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        self.added: int = tokenizer.num_special_tokens_to_add(is_pair=False)

    def encode(self, texts: Sequence[str], special: bool, cut: int | None) -> list[list[int]]:
        if not special:
            found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            return [each.ids[:cut] for each in found]
        # Not by `enable_truncation`: other threads use the same tokenizer.
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        for each in found:
            if cut is not None:
                each.truncate(max(cut - self.added, 0))
        return [self._tokenizer.post_process(each).ids for each in found]


class _Transformers:
    """A tokenizer that has only Python code in `transformers`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.pad: int | None = tokenizer.pad_token_id
        self.ids: dict[str, int] = tokenizer.get_vocab()
        self.added: int = tokenizer.num_special_tokens_to_add(pair=False)

    def encode(self, texts: Sequence[str], special: bool, cut: int | None) -> list[list[int]]:
        found: list[list[int]] = self._tokenizer(
            list(texts),
            add_special_tokens=special,
            truncation=cut is not None,
            max_length=cut,
            padding=False,
        )["input_ids"]
        return found


def load(path: str) -> _File | _Transformers:
    """The tokenizer at a path; one a process, as long as its file is the same. Raises ConfigError."""
    file = os.path.join(path, _FILE) if os.path.isdir(path) else path
    try:
        modified = os.stat(file).st_mtime_ns
    except FileNotFoundError:
        if os.path.isdir(path):
            return _from_folder(path)
        raise ConfigError(
            f"text.tokenizer: {os.path.abspath(path)}: not there; expected a {_FILE}, or a folder of a "
            "Hugging Face tokenizer (`hf download NAME --local-dir FOLDER`)"
        ) from None
    return _from_file(file, modified)


@lru_cache(maxsize=8)
def _from_file(path: str, modified: int) -> _File:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigError(f"text.tokenizer needs the package tokenizers; {EXTRA}") from error
    # The library's own threads are of no use in a worker process, and forbid it to fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return _File(Tokenizer.from_str(Path(path).read_text(encoding="utf-8")))
    except Exception as error:
        raise ConfigError(
            f"text.tokenizer: {os.path.abspath(path)}: no tokenizer ({' '.join(str(error).split())}); "
            f"expected a {_FILE} of the library tokenizers"
        ) from error


@lru_cache(maxsize=8)
def _from_folder(path: str) -> _File | _Transformers:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ConfigError(
            f"text.tokenizer: {os.path.abspath(path)}: there is no {_FILE}; other tokenizers need the "
            "package transformers: pip install transformers"
        ) from error
    try:
        # Never from the network, and no code that lies in the folder.
        found = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ConfigError(
            f"text.tokenizer: {os.path.abspath(path)}: transformers finds no tokenizer there "
            f"({' '.join(str(error).split())[:300]})"
        ) from error
    inner = getattr(found, "backend_tokenizer", None)
    if inner is None:
        return _Transformers(found)
    fast = _File(inner)
    fast.pad = found.pad_token_id if fast.pad is None else fast.pad
    return fast

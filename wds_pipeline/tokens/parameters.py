"""What the transform `tokenize` may be told, and how each value is checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from wds_pipeline.config_values import Callable, Model, Share, did_you_mean
from wds_pipeline.errors import ConfigError

LayoutName = Literal["pairs", "image_class", "interleaved", "one_modality"]


def _names(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _three(value: object) -> object:
    return [value] * 3 if isinstance(value, int | float) else value


Fields = Annotated[tuple[str, ...], BeforeValidator(_names), Field(min_length=1)]
Channels = Annotated[tuple[float, float, float], BeforeValidator(_three)]
Token = int | str
Dtype = Literal["int16", "int32", "int64"]


class TextParameters(Model):
    """How text becomes ids."""

    field: Fields = ("txt",)
    """The field with the text, UTF-8; of several, the first that a sample has. In the layout
    `interleaved` they may be patterns, such as `*.txt`."""
    tokenizer: str
    """A `tokenizer.json`, or a folder of a Hugging Face tokenizer."""
    block_size: int | None = Field(default=None, ge=1)
    """How many ids a text has at most; a row's length in the layouts `pairs` and `one_modality`."""
    padding: Literal["max", "none"] = "max"
    """`none`: a text that does not fill its block is rejected."""
    padding_side: Literal["right", "left"] = "right"
    truncation: bool = True
    """Longer texts are cut at their end; else they are rejected."""
    bos: Token | None = None
    """An id or a token that is put in front of each text."""
    eos: Token | None = None
    """One that is put behind it; also behind a text that was cut."""
    pad: Token | None = None
    """What fills a block up; by default what the tokenizer's file says."""
    special_tokens: bool = False
    """Whether the tokenizer adds those of its own."""
    empty: Literal["reject", "keep"] = "reject"
    """What becomes of a text without a token."""


class ImageParameters(Model):
    """How images become ids."""

    field: Fields = ("jpg", "jpeg", "png", "webp")
    """The field with the image; of several, the first that a sample has."""
    encoder: Callable
    """`package.module:Class`, or a function: what it returns is a torch module."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """What that is called with."""
    checkpoint: str | None = None
    """The module's state: a file of `torch.save`, loaded weights-only, or `.safetensors`."""
    state: str | None = None
    """Under which key of the checkpoint the state is; `state_dict`, if there is one."""
    drop: tuple[str, ...] = ()
    """Beginnings of the state's names that the module does not need, such as `loss.`."""
    method: str | None = None
    """The module's method; by default `encode` if it has one, else it is called itself."""
    resolution: int = Field(ge=1)
    """Width and height that the encoder is given, in pixels."""
    patch: int = Field(default=16, ge=1)
    """Pixels of an id's side: an image has (resolution / patch)² ids."""
    fit: Literal["crop", "squash", "exact"] = "crop"
    """`crop`: the shorter side is resized, the longer one's middle is kept. `squash`: both are resized.
    `exact`: images of another size are rejected."""
    mean: Channels = (0.5, 0.5, 0.5)
    """The encoder is given (x / 255 − mean) / std; one number, or one a channel."""
    std: Channels = (0.5, 0.5, 0.5)
    batch_size: int = Field(default=32, ge=1)
    device: str = "auto"
    """`auto`: a GPU if there is one, else `cpu`; or `cuda:1`, …"""
    threads: int = Field(default=1, ge=1)
    """How many images are decoded at a time."""
    torch_threads: int = Field(default=1, ge=1)
    """Threads of torch on a CPU. Another number may give other ids where two codes are as near."""

    @model_validator(mode="after")
    def _check(self) -> ImageParameters:
        if self.resolution % self.patch:
            raise ValueError(
                f"resolution: found {self.resolution}; expected a multiple of patch, {self.patch}"
            )
        if not all(self.std):
            raise ValueError(f"std: found {list(self.std)}; expected numbers other than 0")
        return self

    @property
    def ids(self) -> int:
        """How many ids an image has."""
        return int((self.resolution // self.patch) ** 2)


class ClassParameters(Model):
    """Where the class is."""

    field: Fields = ("cls",)
    """The field with the class, a number from 0; of several, the first that a sample has."""
    classes: int | None = Field(default=None, ge=1)
    """How many there are; others are rejected."""


class Vocabulary(Model):
    """How many ids there are."""

    text: int | None = Field(default=None, ge=1)
    """By default as many as the tokenizer has; more where the model's table is padded."""
    image: int | None = Field(default=None, ge=1)
    """As many as the encoder has codes."""


class Subset(Model):
    """A part of the samples, by a hash of the key: the same ones in whatever order or shards."""

    fraction: Share
    seed: int = 0


class Parameters(Model):
    """All of them."""

    layout: LayoutName
    text: TextParameters | None = None
    image: ImageParameters | None = None
    label: ClassParameters = Field(default=ClassParameters(), alias="class")
    block_size: int | None = Field(default=None, ge=1)
    """A row's length in the layout `interleaved`."""
    order: tuple[Literal["text", "image"], Literal["text", "image"]] | Literal["name"] = (
        "text",
        "image",
    )
    """In the layout `interleaved`: which comes first, or `name`: all fields that match, by their names."""
    rows: int = Field(default=1024, ge=1)
    """How many rows a block has at most."""
    vocabulary: Vocabulary = Vocabulary()
    shift: int | None = Field(default=None, ge=0)
    """What is added to the image's ids; in the layout `interleaved` the text's vocabulary, else 0."""
    dtype: Dtype | dict[str, Dtype] | None = None
    """The type of all ids, or of some fields."""
    subset: Subset | None = None

    @model_validator(mode="after")
    def _check(self) -> Parameters:
        wanted = _parts(self)
        for part in ("text", "image"):
            given = getattr(self, part) is not None
            if part in wanted and not given:
                raise ValueError(f"{part}: the layout {self.layout!r} needs it")
            if given and part not in wanted:
                raise ValueError(f"{part}: the layout {self.layout!r} has none; leave it out")
        if "label" not in wanted and "label" in self.model_fields_set:
            raise ValueError(f"class: the layout {self.layout!r} has none; leave it out")
        if self.image is not None and self.vocabulary.image is None:
            raise ValueError("vocabulary.image: required: as many as the encoder has codes")
        if (self.block_size is None) == (self.layout == "interleaved"):
            needed = "required in" if self.block_size is None else "only for"
            raise ValueError(
                f"block_size: {needed} the layout 'interleaved'; others have text.block_size"
            )
        if self.text is not None and self.layout != "interleaved" and self.text.block_size is None:
            raise ValueError("text.block_size: required: the length of a row of text")
        if self.order != "name" and len(set(self.order)) < 2:
            raise ValueError(f"order: found {list(self.order)}; expected text and image, or 'name'")
        self._check_interleaved()
        return self

    def _check_interleaved(self) -> None:
        if self.layout != "interleaved" or self.text is None or self.image is None:
            return
        if self.text.padding == "none" and self.text.padding_side != "right":
            raise ValueError("text.padding_side: there is no padding; leave it out")
        if self.order == "name":
            return
        least = self.image.ids + (self.text.block_size or 1)
        if self.block_size is not None and self.block_size < least:
            raise ValueError(
                f"block_size: found {self.block_size}; expected {least} at least: {self.image.ids} ids "
                f"of the image, {self.text.block_size or 'at least one'} of the text"
            )


def _parts(parameters: Parameters) -> set[str]:
    if parameters.layout == "one_modality":
        both = parameters.text is not None and parameters.image is not None
        if both or (parameters.text is None and parameters.image is None):
            raise ValueError("layout 'one_modality': expected either text or image")
        return {"text"} if parameters.text is not None else {"image"}
    return {
        "pairs": {"text", "image"},
        "interleaved": {"text", "image"},
        "image_class": {"image", "label"},
    }[parameters.layout]


def parse(values: Mapping[str, Any]) -> Parameters:
    """The parameters as the YAML file has them. Raises ConfigError, naming the first wrong one."""
    try:
        return Parameters.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_told(error.errors()[0])) from None


def _told(error: Any) -> str:
    at = tuple(error["loc"])
    where = ".".join(map(str, at))
    if error["type"] == "extra_forbidden":
        known = _known(at[:-1])
        near = did_you_mean(str(at[-1]), known)
        return f"unknown parameter {where!r}; expected one of {', '.join(known)}{near}"
    if error["type"] == "missing":
        return f"the parameter {where!r} is required"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        of_a_part = re.match(r"[\w.]+: ", message)  # it names the key itself
        return f"{where}{'.' if of_a_part else ': '}{message}" if where else message
    return f"{where}: found {error['input']!r}; {message[:1].lower()}{message[1:]}"


def _known(at: tuple[Any, ...]) -> list[str]:
    parts: dict[str, type[BaseModel]] = {
        "text": TextParameters,
        "image": ImageParameters,
        "class": ClassParameters,
        "vocabulary": Vocabulary,
        "subset": Subset,
    }
    model = parts[at[0]] if at else Parameters
    return [field.alias or name for name, field in model.model_fields.items()]

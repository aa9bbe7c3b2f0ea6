"""A mistake in the parameters shows before a shard is packed, and says what to do; no id wraps around."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wds_pipeline.errors import ConfigError, DataError
from wds_pipeline.tokens import layouts
from wds_pipeline.tokens.parameters import parse
from wds_pipeline.tokens.tokenize import Tokenize
from wds_pipeline_tests.tokens.conftest import parameters
from wds_pipeline_tests.tokens.tiny import HERE, Made, picture, train_tokenizer


def fails(files: Path, layout: str, **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Tokenize(**parameters(files, layout, **more))
    return str(caught.value)


@pytest.mark.parametrize(
    ("layout", "more", "message"),
    [
        ("pair", {}, "layout: found 'pair'; input should be 'pairs'"),
        ("pairs", {"row": 3}, "unknown parameter 'row'; expected one of layout"),
        ("pairs", {"text": {"block": 3}}, "unknown parameter 'text.block'; expected one of field, tok"),
        ("pairs", {"text": None}, "text: the layout 'pairs' needs it"),
        ("image_class", {"text": {"tokenizer": "x"}}, "text: the layout 'image_class' has none"),
        ("pairs", {"class": {}}, "class: the layout 'pairs' has none; leave it out"),
        ("pairs", {"block_size": 9}, "block_size: only for the layout 'interleaved'"),
        ("pairs", {"text": {"block_size": None}}, "text.block_size: required"),
        ("interleaved", {"block_size": None}, "block_size: required in the layout 'interleaved'"),
        ("interleaved", {"block_size": 4}, "block_size: found 4; expected 5 at least: 4 ids of the image"),
        ("interleaved", {"shift": 3}, "shift: found 3; the text has the ids 0 to"),
        ("interleaved", {"order": ["text", "text"]}, "order: found ['text', 'text']"),
        ("pairs", {"vocabulary": {"image": None}}, "vocabulary.image: required"),
        ("pairs", {"vocabulary": {"text": 9}}, "vocabulary.text: found 9; the tokenizer has"),
        ("pairs", {"image": {"resolution": 20}}, "image.resolution: found 20; expected a multiple of patch"),
        ("pairs", {"image": {"std": 0}}, "image.std: found"),
        ("pairs", {"text": {"block": 3}}, "special_tokens, empty; did you mean 'block_size'?"),
        ("pairs", {"rows": 0}, "rows: found 0; input should be greater than or equal to 1"),
        ("pairs", {"dtype": {"input_ids": "int32"}}, "dtype: input_ids: expected one of img_input_ids"),
        ("pairs", {"dtype": "uint16"}, "found 'uint16'"),
        ("pairs", {"text": {"eos": "</S>"}}, "text.eos: '</S>' is no token of"),
        ("pairs", {"text": {"bos": 9_000}}, "text.bos: found 9000; expected an id from 0 to"),
        ("pairs", {"text": {"tokenizer": "/nowhere/t.json"}}, "/nowhere/t.json: not there; expected a"),
        ("pairs", {"image": {"checkpoint": "/nowhere/vq.pt"}}, "checkpoint: /nowhere/vq.pt: not readable"),
        ("pairs", {"image": {"encoder": "nowhere.vq:VQ"}}, "image.encoder: nowhere.vq:VQ: No module named"),
        ("pairs", {"image": {"encoder": "VQ"}}, "encoder: found 'VQ'; expected package.module:"),
    ],
)  # fmt: skip
def test_messages(files: Path, layout: str, more: dict[str, Any], message: str) -> None:
    assert message in fails(files, layout, **more)


def test_a_layout_with_one_modality_has_either(files: Path) -> None:
    found = fails(files, "one_modality", text={"tokenizer": "x"}, image={})
    assert "expected either text or image" in found
    assert "expected either text or image" in fails(files, "one_modality", text=None)


def test_the_layout_is_required() -> None:
    with pytest.raises(ConfigError, match="the parameter 'layout' is required"):
        Tokenize()


def test_a_tokenizer_without_padding_needs_a_pad(files: Path, tmp_path: Path) -> None:
    plain = train_tokenizer(tmp_path / "tokenizer.json", padding=False)
    found = fails(files, "pairs", text={"tokenizer": str(plain)})
    assert found.startswith("text.pad: required") and "'<pad>'" in found
    made = Tokenize(**parameters(files, "pairs", text={"tokenizer": str(plain), "pad": "<pad>"}))
    assert made.about()["text"]["pad"] == 0


def test_a_file_that_is_no_tokenizer(files: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "no tokenizer (" in fails(files, "pairs", text={"tokenizer": str(tmp_path)})


def test_a_type_that_is_too_small_is_refused_with_the_sizes(files: Path) -> None:
    found = fails(files, "pairs", vocabulary={"image": 32_769})
    assert found == (
        "dtype: img_input_ids has ids up to 32,768 (vocabulary: text 285, image 32,769; shift 0); int16 "
        "holds 32,767 at most: set `dtype: {img_input_ids: int32}`"
    ).replace("285", str(Tokenize(**parameters(files, "pairs"))._layout.vocabulary["text"]))
    Tokenize(**parameters(files, "pairs", vocabulary={"image": 32_768}))
    wide = Tokenize(
        **parameters(files, "pairs", vocabulary={"image": 32_769}, dtype={"img_input_ids": "int32"})
    )
    assert wide.about()["dtype"]["img_input_ids"] == "int32"


def test_the_shift_counts(files: Path) -> None:
    text = Tokenize(**parameters(files, "pairs"))._layout.vocabulary["text"]
    for image, dtype in ((32_768 - text, "int16"), (32_769 - text, "int32")):
        made = Tokenize(**parameters(files, "interleaved", vocabulary={"image": image}))
        assert made.about()["dtype"]["input_ids"] == dtype
    found = fails(files, "interleaved", vocabulary={"image": 32_769 - text}, dtype="int16")
    assert f"shift {text}" in found and "set `dtype: {input_ids: int32}`" in found
    found = fails(files, "interleaved", shift=32_767, dtype="int16")
    assert "shift 32,767" in found


@pytest.mark.parametrize("value", [-1, 32_768, 40_000, 2**31])
def test_no_value_wraps_around(files: Path, value: int) -> None:
    layout = layouts.of(parse(parameters(files, "pairs", vocabulary={"image": 32_768})), 300)
    with pytest.raises(DataError, match=r"img_input_ids: found .*text 300, image 32,768; shift 0"):
        layout.cast("img_input_ids", np.array([[0, value]]))
    largest = layout.cast("img_input_ids", np.array([[0, 32_767]]))
    assert largest.tolist() == [[0, 32_767]]


def test_a_label_does_not_wrap_either(files: Path) -> None:
    layout = layouts.of(parse(parameters(files, "image_class")), None)
    with pytest.raises(DataError, match="int32 holds 2,147,483,647 at most"):
        layout.cast("img_label", np.array([[2**31]]))


def test_an_encoder_with_more_codes_than_it_should_have(files: Path) -> None:
    values = parameters(files, "pairs", image={"encoder": f"{HERE}:Brightness", "checkpoint": None})
    sample = {"__key__": "a", "txt": "x", "png": picture(200)}
    with pytest.raises(
        DataError, match=r"tokenize: train-000000: img_input_ids: found the id 200; "
    ):
        Made(Tokenize(**values), [sample])

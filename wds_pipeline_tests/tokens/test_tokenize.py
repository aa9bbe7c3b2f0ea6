"""Every layout, and that a row is what its sample says: nothing shifts, wraps, or goes missing."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from wds_pipeline.tokens.parameters import Subset
from wds_pipeline.tokens.tokenize import Tokenize, in_subset
from wds_pipeline.transforms.api import Sample
from wds_pipeline_tests.tokens.conftest import parameters
from wds_pipeline_tests.tokens.tiny import HERE, Made, noise, picture

Make = Callable[..., Tokenize]
BRIGHTNESS = {"encoder": f"{HERE}:Brightness", "checkpoint": None}


def sample(number: int, **more: Any) -> Sample:
    fields = {"txt": f"a picture of boat {number}".encode(), "png": noise(number), "cls": b"7\n"}
    fields |= more
    kept = {name: content for name, content in fields.items() if content is not None}
    return {"__key__": f"k{number:03d}", **kept}


def ids_of(files: Path, text: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(files / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return found


def test_pairs(make: Make, files: Path) -> None:
    made = Made(make("pairs", rows=4, text={"eos": "</s>"}), [sample(n) for n in range(10)])
    assert [json.loads(block["keys.json"]) for block in made.blocks] == [
        [f"k{n:03d}" for n in some] for some in (range(4), range(4, 8), range(8, 10))
    ]
    assert [block["__key__"] for block in made.blocks] == [
        f"train-000000/{n:06d}" for n in range(3)
    ]
    kinds = {name: (str(v.dtype), v.shape) for name, v in made.columns.items()}
    assert kinds == {
        "img_input_ids": ("int16", (10, 4)),
        "txt_input_ids": ("int32", (10, 12)),
        "txt_attention_mask": ("bool", (10, 12)),
        "idx": ("int32", (10, 1)),
        "write_flag": ("bool", (10, 1)),
    }
    for number in range(10):
        wanted = [*ids_of(files, f"a picture of boat {number}"), 2]
        assert made["txt_input_ids"][number].tolist() == wanted + [0] * (12 - len(wanted))
        assert made["txt_attention_mask"][number].sum() == len(wanted)
    assert made["idx"].ravel().tolist() == list(range(10))
    assert made["write_flag"].all()
    assert not made.rejected


def test_image_and_class(make: Make) -> None:
    samples = [sample(n, cls=str(n * 100)) for n in range(5)]
    made = Made(make("image_class"), samples)
    assert made["img_label"].ravel().tolist() == [0, 100, 200, 300, 400]
    assert (str(made["img_label"].dtype), str(made["img_input_ids"].dtype)) == ("int32", "int16")


def test_interleaved_shifts_the_image_behind_the_text(make: Make, files: Path) -> None:
    made = Made(make("interleaved"), [sample(n) for n in range(4)])
    plain = Made(make("pairs"), [sample(n) for n in range(4)])
    shift = max(Tokenizer.from_file(str(files / "tokenizer.json")).get_vocab().values()) + 1
    about = json.loads(made.blocks[0]["tokens.json"])
    assert about["shift"] == about["vocabulary"]["text"] == shift
    assert about["dtype"]["input_ids"] == "int16"
    for at in range(4):
        text = plain["txt_input_ids"][at][plain["txt_attention_mask"][at]].tolist()
        image = (plain["img_input_ids"][at] + shift).tolist()
        length = len(text) + 4
        assert made["input_ids"][at].tolist() == text + image + [0] * (20 - length)
        assert made["attention_mask"][at].tolist() == [True] * length + [False] * (20 - length)
        assert made["modality"][at].tolist() == [0] * len(text) + [1] * 4 + [-1] * (20 - length)
    assert str(made["modality"].dtype) == "int8"


def test_the_image_may_come_first(make: Make) -> None:
    made = Made(make("interleaved", order=["image", "text"]), [sample(0)])
    assert made["modality"][0, :5].tolist() == [1, 1, 1, 1, 0]


def test_a_long_text_never_pushes_the_image_out(make: Make) -> None:
    made = Made(make("interleaved"), [sample(0, txt="boat " * 50)])
    assert made["modality"][0].tolist() == [0] * 16 + [1] * 4


def test_a_document_is_laid_out_by_its_fields_names(make: Make) -> None:
    transform = make(
        "interleaved", order="name", text={"field": "*.txt"}, image={"field": ["*.png"]}
    )
    document = {
        "__key__": "d",
        "10.png": noise(1),
        "2.txt": b"sea",
        "1.png": noise(0),
        "11.txt": b"boat " * 40,
        "json": b"{}",
    }
    made = Made(transform, [document])
    modality = made["modality"][0].tolist()
    text = modality.index(1, 4) - 4
    assert modality == [1] * 4 + [0] * text + [1] * 4 + [0] * (12 - text)
    assert made["attention_mask"].all()
    more = dict(document) | {"12.png": noise(2)}  # behind what fills the block
    assert (Made(transform, [more])["input_ids"] == made["input_ids"]).all()


def test_an_image_that_does_not_fit_whole_ends_the_row(make: Make) -> None:
    transform = make(
        "interleaved", order="name", block_size=6, text={"field": "*.txt"}, image={"field": "*.png"}
    )
    made = Made(transform, [{"__key__": "d", "1.png": noise(0), "2.png": noise(1), "3.txt": b"x"}])
    assert made["modality"][0].tolist() == [1, 1, 1, 1, -1, -1]


@pytest.mark.parametrize(("part", "kind"), [("text", 0), ("image", 1)])
def test_one_modality(make: Make, part: str, kind: int) -> None:
    more: dict[str, Any] = {"image": {}} if part == "image" else {}
    values = make("one_modality", **more)
    made = Made(values, [sample(n) for n in range(3)])
    assert set(made.columns) == {"input_ids", "modality", "idx", "write_flag"}
    assert made["modality"].ravel().tolist() == [kind] * 3
    assert str(made["modality"].dtype) == "int16"
    assert made["input_ids"].shape == (3, 4 if part == "image" else 12)


def test_a_legitimate_image_token_0_keeps_its_row(make: Make) -> None:
    transform = make("pairs", image=BRIGHTNESS, vocabulary={"image": 256})
    made = Made(
        transform, [sample(0, png=picture(0)), sample(1, png=picture(9)), sample(2, png=picture(0))]
    )
    assert made.keys == ["k000", "k001", "k002"]
    assert made["img_input_ids"].tolist() == [[0] * 4, [9] * 4, [0] * 4]
    assert made["write_flag"].all()


@given(
    kinds=st.lists(
        st.sampled_from(["good", "no text", "broken", "not utf-8", "empty"]), max_size=23
    ),
    rows=st.integers(1, 9),
    batch=st.integers(1, 5),
)
@settings(max_examples=40)
def test_every_good_sample_has_its_row_and_every_other_a_reason(
    files: Path, kinds: list[str], rows: int, batch: int
) -> None:
    broken: dict[str, dict[str, Any]] = {
        "good": {},
        "no text": {"txt": None},
        "broken": {"png": noise(1)[:60]},
        "not utf-8": {"txt": b"\xff\xfe"},
        "empty": {"txt": b""},
    }
    samples = [
        sample(n, **{"txt": f"{n}", "png": picture(n)} | broken[kind])
        for n, kind in enumerate(kinds)
    ]
    values = parameters(
        files,
        "pairs",
        rows=rows,
        image={**BRIGHTNESS, "batch_size": batch},
        vocabulary={"image": 256},
    )
    made = Made(Tokenize(**values), samples)
    good = [n for n, kind in enumerate(kinds) if kind == "good"]
    assert made.keys == [f"k{n:03d}" for n in good]
    assert set(made.rejected) == {f"k{n:03d}" for n, kind in enumerate(kinds) if kind != "good"}
    sizes = [len(json.loads(block["keys.json"])) for block in made.blocks]
    assert sizes == [rows] * (len(good) // rows) + ([len(good) % rows] if len(good) % rows else [])
    for at, number in enumerate(good):  # a short last batch writes over no other row
        assert made["img_input_ids"][at].tolist() == [number] * 4
        assert made["txt_attention_mask"][at].sum() == len(str(number))
    if good:
        assert made["idx"].ravel().tolist() == list(range(len(good)))


def test_what_was_rejected_leaves_no_trace(make: Make) -> None:
    samples = [sample(n, **({"png": b"broken"} if n % 3 == 1 else {})) for n in range(20)]
    whole = [each for each in samples if each["png"] != b"broken"]
    assert Made(make("pairs", rows=4), samples).blocks == Made(make("pairs", rows=4), whole).blocks


def test_the_same_bytes_each_time(make: Make) -> None:
    samples = [sample(n) for n in range(9)]
    one = Made(make("interleaved", image={"threads": 3}), samples).blocks
    assert one == Made(make("interleaved", image={"threads": 3}), samples).blocks
    assert one == Made(make("interleaved"), samples).blocks


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"png": None}, "no field jpeg, jpg, png, webp; it has cls, txt"),
        ({"txt": b"ab\xff"}, "txt: not UTF-8: invalid start byte at byte 2"),
        ({"png": b"GIF89a"}, "png: the image cannot be decoded: "),
        ({"txt": ""}, "txt: the text is empty; `text: {empty: keep}` makes it a row"),
    ],
)
def test_reasons(make: Make, change: dict[str, Any], reason: str) -> None:
    made = Made(make("pairs"), [sample(0, **change), sample(1)])
    assert made.rejected["k000"].startswith(reason)
    assert made.keys == ["k001"]


@pytest.mark.parametrize("content", [b"cat", b"-1", b"1.5", b"", "३".encode(), b"10"])
def test_a_class_is_a_number_in_range(make: Make, content: bytes) -> None:
    made = Made(make("image_class", **{"class": {"classes": 10}}), [sample(0, cls=content)])
    assert "expected a class from 0 to 9" in made.rejected["k000"]


def test_an_empty_text_may_be_kept(make: Make) -> None:
    made = Made(make("pairs", text={"empty": "keep"}), [sample(0, txt=""), sample(1)])
    assert made["txt_attention_mask"].any(1).tolist() == [False, True]


@pytest.mark.parametrize("special", [False, True])
def test_truncation_keeps_bos_and_eos(make: Make, files: Path, special: bool) -> None:
    text = {"special_tokens": True} if special else {"bos": "<s>", "eos": 2}
    made = Made(make("pairs", text=text), [sample(0, txt="boat coast " * 30)])
    inner = ids_of(files, "boat coast " * 30)
    assert made["txt_input_ids"][0].tolist() == [1, *inner[:10], 2]


def test_without_truncation_a_longer_text_is_rejected(make: Make) -> None:
    transform = make("pairs", text={"truncation": False, "eos": "</s>"})
    made = Made(transform, [sample(0, txt="xyz" * 9), sample(1)])
    assert made.rejected == {
        "k000": "txt: the text has 28 ids; expected 12 at most, or `truncation: true`"
    }


def test_padding_on_the_left(make: Make) -> None:
    made = Made(make("pairs", text={"padding_side": "left", "pad": "<unk>"}), [sample(0, txt="xy")])
    assert made["txt_input_ids"][0, :10].tolist() == [3] * 10
    assert made["txt_attention_mask"][0].tolist() == [False] * 10 + [True] * 2


def test_without_padding_a_text_must_fill_its_block(make: Make) -> None:
    made = Made(
        make("pairs", text={"padding": "none"}), [sample(0, txt="xy"), sample(1, txt="xy" * 9)]
    )
    assert made.keys == ["k001"]
    assert made.rejected["k000"].startswith("it has 2 ids and a block 12")


@pytest.mark.parametrize("fit", ["crop", "squash", "exact"])
def test_images_of_another_size(make: Make, fit: str) -> None:
    transform = make("pairs", image={**BRIGHTNESS, "fit": fit}, vocabulary={"image": 256})
    made = Made(transform, [sample(0, png=picture(77, (40, 20)))])
    if fit == "exact":
        assert made.rejected["k000"].endswith("40 × 20 pixels; expected 16 × 16")
    else:
        assert made["img_input_ids"].tolist() == [[77] * 4]


def test_a_subset_does_not_depend_on_order_or_shard(make: Make) -> None:
    samples = [sample(n) for n in range(60)]
    transform = make("one_modality", subset={"fraction": "30%", "seed": 5})
    forwards = Made(transform, samples).keys
    assert set(forwards) == set(Made(transform, samples[::-1], "val-000009").keys)
    assert forwards != Made(make("one_modality", subset={"fraction": 0.3, "seed": 6}), samples).keys
    assert 5 < len(forwards) < 35
    larger = Made(make("one_modality", subset={"fraction": 0.6, "seed": 5}), samples).keys
    assert set(forwards) < set(larger)
    assert not Made(transform, samples).rejected


def test_the_fraction_of_a_subset() -> None:
    half = Subset(fraction=0.25, seed=1)
    assert sum(in_subset(str(n), half) for n in range(20_000)) == pytest.approx(5_000, rel=0.05)
    assert all(in_subset(str(n), Subset(fraction=1.0)) for n in range(1_000))
    assert not any(in_subset(str(n), Subset(fraction=0.0)) for n in range(1_000))


def test_the_layouts_types_are_little_endian(make: Make) -> None:
    made = Made(make("pairs"), [sample(0)])
    for name, content in made.blocks[0].items():
        if name.endswith(".npy"):
            assert b"'descr': '>" not in content
            assert np.load(io.BytesIO(content), allow_pickle=False) is not None

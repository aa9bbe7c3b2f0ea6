"""Which field is decoded how; through open_dataset; what is said of specs that cannot be."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wds_pipeline.errors import ConfigError, DecodeError, VerificationError
from wds_pipeline.training import Dataset, open_dataset
from wds_pipeline.training.decode import Decoder, make_decoder
from wds_pipeline.training.decode_image import ImageSpec
from wds_pipeline_tests.conftest import Project, png
from wds_pipeline_tests.training.conftest import stored

PNG = png(5)
SAMPLE = {
    "__key__": "cats/1",
    "__url__": "x.tar",
    "__index__": 3,
    "png": PNG,
    "seg.png": PNG,
    "txt": b"caption",
    "meta.json": b"[1]",
    "cls": b"7",
}


def decode(spec: Any, **more: Any) -> dict[str, Any]:
    decoder = make_decoder(spec, **more)
    assert decoder is not None
    found: dict[str, Any] = decoder(dict(SAMPLE))
    assert {name: found[name] for name in ("__key__", "__url__", "__index__")} == {
        name: SAMPLE[name] for name in ("__key__", "__url__", "__index__")
    }
    assert list(found) == list(SAMPLE)
    return found


def kinds(sample: dict[str, Any]) -> dict[str, str]:
    return {
        name: type(value).__name__ for name, value in sample.items() if not name.startswith("__")
    }


def test_none_is_bytes() -> None:
    assert make_decoder(None) is None


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("auto", ("bytes", "bytes", "str", "list", "int")),
        ("rgb8", ("ndarray", "ndarray", "str", "list", "int")),
        (ImageSpec("torchl"), ("Tensor", "Tensor", "str", "list", "int")),
        (Decoder("pill"), ("Image", "Image", "str", "list", "int")),
        ({"png": "rgb8"}, ("ndarray", "ndarray", "bytes", "bytes", "bytes")),
        ({"png": "rgb8", "seg.png": None}, ("ndarray", "bytes", "bytes", "bytes", "bytes")),
        ({"seg.png": "torchl8"}, ("bytes", "Tensor", "bytes", "bytes", "bytes")),
        ({".PNG": "l", "*": "auto"}, ("ndarray", "ndarray", "str", "list", "int")),
        ({"*": "auto", "cls": None}, ("bytes", "bytes", "str", "list", "bytes")),
        ({"json": "txt", "cls": "txt", "png": len}, ("int", "int", "bytes", "str", "str")),
        ({"txt": bytes.upper}, ("bytes",) * 5),
        ({}, ("bytes",) * 5),
    ],
)
def test_which_field_is_decoded_how(spec: Any, expected: tuple[str, ...]) -> None:
    assert list(kinds(decode(spec)).values()) == list(expected)


def test_the_longest_rule_wins() -> None:
    found = decode({"png": lambda data: "any", "seg.png": lambda data: "mask"})
    assert (found["png"], found["seg.png"]) == ("any", "mask")


def test_the_sample_that_was_given_is_not_changed() -> None:
    before = dict(SAMPLE)
    decoder = make_decoder("pil")
    assert decoder is not None
    decoder(before)
    assert before == SAMPLE


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rgb9", "captions: decode='rgb9': expected 'auto' or an image spec .*did you mean 'rgb'"),
        ("video", "expected 'auto' or an image spec"),
        ({"png": "jsn9"}, r"captions: decode=\{'png': 'jsn9'\}: expected .* did you mean 'jsn'"),
        ({"png": 7}, r"decode=\{'png': 7\}: expected"),
        ({"pgn": "rgb8"}, "captions: decode: no field is, or ends with, 'pgn'.*did you mean 'png'"),
        (7, "captions: decode=7: expected"),
        (Decoder(7), "captions: decode=7: expected"),  # type: ignore[arg-type]
    ],
)
def test_specs_that_cannot_be(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_decoder(spec, "captions", ["png", "txt"])


# What functions of the user's raise.


def test_what_a_users_function_raises_is_wrapped() -> None:
    def label(data: bytes) -> int:
        return {b"cat": 1}[data]

    with pytest.raises(
        DecodeError, match=r"sample 'cats/1', field cls: .*label raised KeyError: b'7'"
    ) as caught:
        decode({"cls": label}, named="captions")
    assert isinstance(caught.value.__cause__, KeyError)
    assert (caught.value.dataset, caught.value.field) == ("captions", "cls")

    def whole(sample: dict[str, Any]) -> Any:
        return sample["jpg"]

    decoder = make_decoder(whole, "captions")
    assert decoder is not None
    with pytest.raises(
        DecodeError, match=r"whole raised KeyError: 'jpg'; the sample has png, seg.png"
    ) as caught:
        decoder(SAMPLE)
    assert (caught.value.key, caught.value.field) == ("cats/1", None)


def test_errors_that_are_not_the_samples_are_not_wrapped() -> None:
    def damaged(data: bytes) -> None:
        raise VerificationError("another shard is damaged")

    with pytest.raises(VerificationError):
        decode({"cls": damaged})
    with pytest.raises(KeyboardInterrupt):
        decode({"cls": interrupt})

    def own(data: bytes) -> None:
        raise DecodeError("too few boxes")

    with pytest.raises(DecodeError, match=r"sample 'cats/1', field cls: .*too few boxes"):
        decode({"cls": own})


def interrupt(data: bytes) -> None:
    raise KeyboardInterrupt


# Through open_dataset.


def check(dataset: Dataset, project: Project) -> None:
    expected = stored(project)
    assert len(dataset) == len(expected)
    for found in (list(dataset), dataset[:], [dataset[n] for n in range(len(dataset))]):
        for sample, (key, fields) in zip(found, expected, strict=True):
            assert sample["__key__"] == key
            assert np.array_equal(sample["png"], np.asarray(_image(fields["png"])))
            assert sample["txt"] == fields["txt"].decode()
            assert sample.get("json") == (json.loads(fields["json"]) if "json" in fields else None)


def _image(data: bytes) -> Image.Image:
    import io

    return Image.open(io.BytesIO(data))


def test_a_dataset(published: Project) -> None:
    dataset = open_dataset(str(published.destination), decode="rgb8")
    check(dataset, published)
    check(pickle.loads(pickle.dumps(dataset)), published)
    check(dataset.select("png.width >= 1"), published)


def first_letter(data: bytes) -> str:
    return data[:1].decode()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_it_goes_to_worker_processes(published: Project, method: str) -> None:
    decode: dict[str, Any] = {"png": ImageSpec("torchrgb", short_side=4), "txt": first_letter}
    dataset = open_dataset(str(published.destination), decode=decode, fields=["png", "txt"])
    dataset[0]
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as workers:
        found = workers.submit(shapes, dataset).result()
    assert found == [((3, 4), "c")] * 3


def shapes(dataset: Dataset) -> list[Any]:
    return [
        ((each["png"].shape[0], min(each["png"].shape[1:])), each["txt"]) for each in dataset[:3]
    ]


def test_mistakes_are_said_when_it_is_opened(published: Project) -> None:
    url = str(published.destination)
    with pytest.raises(ConfigError, match=r"small: version 1.*no field is, or ends with, 'jpg'"):
        open_dataset(url, decode={"jpg": "rgb8"})
    with pytest.raises(ConfigError, match="on_error='ignore': expected 'raise', 'skip'"):
        open_dataset(url, on_error="ignore")
    # One mapping does for all selections of fields.
    dataset = open_dataset(url, decode={"png": "rgb8", "txt": "txt"}, fields=["txt"])
    assert isinstance(dataset[0]["txt"], str)


def test_only_the_fields_that_are_decoded_are_read(
    published: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[int] = []
    pread = os.pread

    def counted(fd: int, size: int, offset: int) -> bytes:
        got.append(size)
        return pread(fd, size, offset)

    dataset = open_dataset(str(published.destination), fields=["seg.png"], decode="rgb8")
    list(dataset)  # opens the shards
    monkeypatch.setattr(os, "pread", counted)
    images = [each["seg.png"] for each in dataset if "seg.png" in each]
    sizes = [len(fields["seg.png"]) for _, fields in stored(published) if "seg.png" in fields]
    assert len(images) == len(sizes) and all(image.ndim == 3 for image in images)
    assert sum(got) == sum(sizes)

"""Text, numbers, arrays, objects: what was encoded comes back, as webdataset has it; damage is an error."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import pickle
import random
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import cbor2
import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy
from webdataset import tenbin as webdatasets_tenbin
from webdataset.autodecode import Decoder as WebDatasetDecoder

from wds_pipeline.errors import ConfigError, DecodeError
from wds_pipeline.training import decode_fields
from wds_pipeline.training.decode import Decoder, make_decoder


def decode(field: str, data: bytes, spec: Any = "auto") -> Any:
    decoder = make_decoder(spec)
    assert decoder is not None
    return decoder({"__key__": "a", "__url__": "x.tar", field: data})[field]


def npy(values: np.ndarray, **options: Any) -> bytes:
    data = io.BytesIO()
    np.save(data, values, **options)
    return data.getvalue()


def npz(**arrays: Any) -> bytes:
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    return data.getvalue()


def pth(value: Any) -> bytes:
    data = io.BytesIO()
    torch.save(value, data)
    return data.getvalue()


ARRAYS: list[np.ndarray] = [
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.zeros((0, 2), np.int64),
]
CONTENT: dict[str, bytes] = {
    **{name: "Größe\n".encode() for name in ("txt", "text", "transcript")},
    **dict.fromkeys(("cls", "cls2", "index", "inx", "id"), b" 42\n"),
    **dict.fromkeys(("class", "count", "html", "htm", "xyz"), b"7"),
    **{name: json.dumps({"a": [1, None, "é"]}).encode() for name in ("json", "jsn")},
    "npy": npy(ARRAYS[0]),
    "npz": npz(a=ARRAYS[0], b=ARRAYS[1]),
    **{name: bytes(webdatasets_tenbin.encode_buffer(ARRAYS)) for name in ("ten", "tb")},
    **{name: msgpack.packb({"a": [1, b"x", "é"]}) for name in ("mp", "msg")},
    "cbor": cbor2.dumps({"a": [1, b"x", "é"]}),
    "pth": pth({"weight": torch.arange(6).reshape(2, 3)}),
}
CONTENT |= {f"{name}.gz": gzip.compress(data) for name, data in CONTENT.items()}
CONTENT |= {"a.b.json": b"[1]", "gz": gzip.compress(b"plain"), "cls.txt": b"5"}


def plain(value: Any) -> Any:
    """Comparable: arrays with their types and shapes."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.tolist())
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


@pytest.fixture
def cbor_by_its_old_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "cbor", cbor2
    )  # the one that webdataset imports is not kept up


@pytest.mark.parametrize("field", CONTENT)
def test_as_webdataset(field: str, cbor_by_its_old_name: None) -> None:
    expected = WebDatasetDecoder([]).decode({field: CONTENT[field]})[field]
    assert plain(decode(field, CONTENT[field])) == plain(expected)
    assert plain(decode(field, CONTENT[field], "pil")) == plain(expected)


_NAMES = st.text(max_size=8)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | _NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)
_DTYPES = st.one_of(
    of_numpy.integer_dtypes(endianness="?"),
    of_numpy.unsigned_integer_dtypes(endianness="?"),
    of_numpy.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    of_numpy.complex_number_dtypes(),
    of_numpy.boolean_dtypes(),
    of_numpy.unicode_string_dtypes(),
    of_numpy.datetime64_dtypes(),
)
_SHAPES = of_numpy.array_shapes(min_dims=0, min_side=0, max_side=4)


@given(_NAMES)
def test_text_comes_back(value: str) -> None:
    assert (
        decode("txt", value.encode("utf-8", "ignore")) == value.encode("utf-8", "ignore").decode()
    )


@given(_VALUES)
def test_objects_come_back(value: Any) -> None:
    assert decode("json", json.dumps(value).encode()) == value
    assert decode("cbor", cbor2.dumps(value)) == value
    assert decode("cbor.gz", gzip.compress(cbor2.dumps(value))) == value


@given(_VALUES.filter(lambda value: str(2**63) not in repr(value)))
def test_msgpack_comes_back(value: Any) -> None:
    assert decode("mp", msgpack.packb(value)) == value


@given(of_numpy.arrays(_DTYPES, _SHAPES), st.booleans())
def test_arrays_come_back(values: np.ndarray, column_first: bool) -> None:
    if column_first:
        values = np.asfortranarray(values)
    for found in (decode("npy", npy(values)), decode("npz", npz(one=values))["one"]):
        assert found.dtype == values.dtype and found.shape == values.shape
        assert found.tobytes() == values.tobytes()
        assert found.flags.writeable


@pytest.mark.filterwarnings("ignore:Stored array in format 3.0:UserWarning")
def test_arrays_of_records() -> None:
    for dtype in ([("x", "<i4"), ("y", ">f8", (2,))], [("größe", "<i4")], [("数", "u1")], "V0"):
        values = np.zeros(3, np.dtype(dtype))
        found = decode("npy", npy(values))
        assert found.dtype == values.dtype and found.shape == (3,)


@given(
    st.lists(
        of_numpy.arrays(
            of_numpy.integer_dtypes(endianness="<")
            | of_numpy.floating_dtypes(endianness="<", sizes=(16, 32, 64)),
            of_numpy.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
        ),
        max_size=4,
    )
)
def test_tenbin_comes_back(arrays: list[np.ndarray]) -> None:
    found = decode("ten", bytes(webdatasets_tenbin.encode_buffer(arrays)))
    assert [each.dtype for each in found] == [each.dtype for each in arrays]
    assert [each.shape for each in found] == [each.shape for each in arrays]
    assert [each.tobytes() for each in found] == [each.tobytes() for each in arrays]
    assert all(each.flags.writeable for each in found)


def test_tenbin_of_uint32_which_webdataset_cannot_read() -> None:
    data = bytearray(webdatasets_tenbin.encode_buffer([np.arange(5, dtype=np.int32)]))
    data[16:18] = b"u4"
    assert decode("ten", bytes(data))[0].dtype == np.uint32


# Damage: never anything but a DecodeError that names the sample.


@settings(max_examples=300, deadline=None)
@given(st.data())
@pytest.mark.filterwarnings("ignore")
def test_damage_is_a_decode_error(data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(sorted(CONTENT)))
    content = bytearray(CONTENT[field])
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DecodeError):
        decode(field, bytes(content))


@settings(max_examples=200)
@given(st.sampled_from(sorted(CONTENT)), st.binary(max_size=200))
@pytest.mark.filterwarnings("ignore")
def test_noise_is_a_decode_error(field: str, content: bytes) -> None:
    with contextlib.suppress(DecodeError):
        decode(field, content)


@pytest.mark.parametrize(
    "field", [f for f in CONTENT if f.partition(".")[0] in decode_fields.KINDS]
)
@pytest.mark.filterwarnings("ignore")
def test_cut_short_it_is_an_error(field: str) -> None:
    whole = CONTENT[field]
    if field.partition(".")[0] in (
        "txt",
        "text",
        "transcript",
        "cls",
        "cls2",
        "index",
        "inx",
        "id",
    ):
        whole = gzip.compress(b"42")
        field = f"{field.removesuffix('.gz')}.gz"
    if field in ("ten", "tb"):  # which do not say how many arrays there are: one, then
        whole = bytes(webdatasets_tenbin.encode_buffer(ARRAYS[:1]))
        whole = whole[: len(whole) - 16]  # without what only fills up
    for end in random.Random(field).sample(range(1, len(whole)), min(40, len(whole) - 1)):
        with pytest.raises(DecodeError, match=f"sample 'a', field {field}: .*found {end:,} bytes"):
            decode(field, whole[:end])


@pytest.mark.parametrize(
    ("field", "content", "message"),
    [
        ("txt", b"caf\xe9", "can't decode byte 0xe9 in position 3.*expected UTF-8 text"),
        ("cls", b"cat", "found 3 bytes that start with b'cat'; expected a whole number in digits"),
        ("cls", b"", "found no bytes; expected a whole number"),
        ("json", b"{'a': 1}", "line 1 column 2.*expected JSON"),
        ("npy", b"PK\3\4" + bytes(20), "not a NumPy array"),
        ("npy", npy(ARRAYS[0])[:-1], r"47 bytes of values; float32 \(3, 4\) needs more"),
        ("txt.gz", b"plain text", "expected UTF-8 text, compressed by gzip"),
        ("txt.gz", gzip.compress(b"x" * 99, mtime=0)[:-4], "cut short"),
    ],
)
def test_what_is_said(field: str, content: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        decode(field, content)


def test_a_header_that_asks_for_too_much() -> None:
    data = npy(ARRAYS[0]).replace(b"(3, 4), }        ", b"(3000000, 400000)")
    assert b"400000" in data
    with pytest.raises(DecodeError):
        decode("npy", data)


def bomb(size: int) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(size))
    return data.getvalue()


def test_what_unpacks_to_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_fields, "MAX_UNPACKED", 10_000)
    for field, content in (("npz", bomb(10_001)), ("txt.gz", gzip.compress(bytes(10_001)))):
        with pytest.raises(DecodeError, match=r"unpacks to .*10,00"):
            decode(field, content)
    assert len(decode("bin.gz", gzip.compress(bytes(10_000)))) == 10_000


def test_gzip_in_parts_and_padded() -> None:
    assert decode("txt.gz", gzip.compress(b"one ") + gzip.compress(b"two") + bytes(9)) == "one two"


# Pickles.


class Touches:
    """What a pickle may do to whoever loads it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("field", ["pyd", "pickle", "pkl", "meta.pkl.gz"])
@pytest.mark.parametrize("spec", ["auto", "pil", {"*": "auto"}])
def test_pickles_are_refused(field: str, spec: Any) -> None:
    content = pickle.dumps({"a": 1})
    content = gzip.compress(content) if field.endswith("gz") else content
    with pytest.raises(
        DecodeError, match=r"a pickle, which runs code.*Decoder\(…, allow_pickle=True\)"
    ):
        decode(field, content, spec)
    assert decode(field, content, Decoder(spec, allow_pickle=True)) == {"a": 1}
    assert decode(field, content, {field: None}) == content


def test_pickles_are_refused_when_it_is_opened() -> None:
    with pytest.raises(DecodeError, match=r"captions: the field 'meta.pyd' is a pickle"):
        make_decoder("pil", "captions", ["jpg", "meta.pyd"])
    make_decoder({"jpg": "pil"}, "captions", ["jpg", "meta.pyd"])
    make_decoder(Decoder("pil", allow_pickle=True), "captions", ["jpg", "meta.pyd"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("pyd", pickle.dumps),
        ("pth", pth),
        ("npy", lambda value: npy(np.array([value], object))),
        ("npz", lambda value: npz(a=np.array([value], object))),
    ],
)
def test_no_code_of_the_datas_is_run(
    field: str, make: Callable[[Any], bytes], tmp_path: Any
) -> None:
    target = tmp_path / "touched"
    content = make(Touches(str(target)))
    with pytest.raises(DecodeError):
        decode(field, content)
    assert not target.exists()
    with contextlib.suppress(DecodeError):
        decode(field, content, Decoder("auto", allow_pickle=True))
    assert target.exists()


# Packages.


@pytest.mark.parametrize(
    ("spec", "field", "package"),
    [
        ("auto", "mp", "msgpack"),
        ("pil", "cbor", "cbor2"),
        ("torchrgb", "jpg", "torch"),
        ("auto", "pth", "torch"),
        ({"mp4": "video"}, "mp4", "av"),
        ({"wav": "audio"}, "wav", "soundfile"),
    ],
)
def test_a_package_that_is_missing_is_said_when_it_is_opened(
    spec: Any, field: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wds_pipeline.training import decode_rules

    find_spec = decode_rules.importlib.util.find_spec  # type: ignore[attr-defined]
    monkeypatch.setattr(
        decode_rules.importlib.util,  # type: ignore[attr-defined]
        "find_spec",
        lambda name: None if name == package else find_spec(name),
    )
    message = (
        f"captions: decode: the field '{field}' needs the package {package}.*pip install {package}"
    )
    with pytest.raises(ConfigError, match=message):
        make_decoder(spec, "captions", [field])
    make_decoder(spec, "captions", ["txt"], ["txt", field])  # which is not read

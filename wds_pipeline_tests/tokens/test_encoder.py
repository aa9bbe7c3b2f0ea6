"""The encoder's protocol, its checkpoint, and what is part of the recipe's digest."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wds_pipeline.errors import ConfigError, DataError
from wds_pipeline.tokens.parameters import TextParameters
from wds_pipeline.tokens.text import Text
from wds_pipeline.tokens.tokenize import Tokenize
from wds_pipeline.transforms.api import Rejected
from wds_pipeline_tests.tokens.conftest import parameters
from wds_pipeline_tests.tokens.tiny import (
    HERE,
    Made,
    TinyVQ,
    noise,
    save_checkpoint,
    train_tokenizer,
)

Make = Callable[..., Tokenize]
SAMPLES = [{"__key__": f"k{n}", "txt": f"boat {n}", "png": noise(n)} for n in range(5)]


def ids(transform: Tokenize) -> list[list[int]]:
    found: list[list[int]] = Made(transform, SAMPLES)["img_input_ids"].tolist()
    return found


def test_ids_are_those_of_the_module(make: Make, files: Path) -> None:
    module = TinyVQ()
    module.load_state_dict(torch.load(files / "vq.pt", weights_only=True))
    from wds_pipeline.tokens.images import decode, normalised
    from wds_pipeline.tokens.parameters import ImageParameters

    rules = ImageParameters(encoder=f"{HERE}:TinyVQ", resolution=16, patch=8)
    pixels = [decode(each["png"], rules) for each in SAMPLES]
    with torch.no_grad():
        wanted = module.encode(torch.from_numpy(normalised(pixels, rules)))
    assert ids(make("pairs")) == wanted.tolist()
    assert len({tuple(each) for each in ids(make("pairs"))}) > 1


def test_a_tuple_with_one_tensor_of_ids_will_do(make: Make) -> None:
    assert ids(make("pairs", image={"encoder": f"{HERE}:Tuple"})) == ids(make("pairs"))


@pytest.mark.parametrize("kind", ["state_dict", "named", "safetensors", "with more"])
def test_checkpoints(make: Make, files: Path, tmp_path: Path, kind: str) -> None:
    state = torch.load(files / "vq.pt", weights_only=True)
    path, more = tmp_path / "vq.ckpt", dict[str, Any]()
    if kind == "state_dict":
        torch.save({"epoch": 3, "state_dict": state}, path)
    elif kind == "named":
        torch.save({"ema": state}, path)
        more = {"state": "ema"}
    elif kind == "safetensors":
        from safetensors.torch import save_file

        path = tmp_path / "vq.safetensors"
        save_file(state, path)
    else:
        torch.save(state | {"loss.weight": torch.zeros(3)}, path)
        more = {"drop": ["loss."]}
    assert ids(make("pairs", image={"checkpoint": str(path), **more})) == ids(make("pairs"))


class _Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 32, "checkpoint": "other"}, "is not of .*: .*size mismatch"),
        ({"state": "ema"}, "image.state: .* has no 'ema'; it has patches.weight"),
        ({"method": "enkode"}, "has no 'enkode'; did you mean 'encode'"),
        ({"arguments": {"kodes": 3}}, r"TinyVQ\(\*\*{'kodes': 3}\) failed: TypeError"),
        ({"encoder": f"{HERE}:NoSuch"}, "cannot be imported: AttributeError"),
        ({"encoder": f"{HERE}:no_module", "checkpoint": None}, "gave str; expected a torch module"),
        ({"checkpoint": "text"}, "cannot be loaded"),
        ({"checkpoint": "evil"}, "cannot be loaded"),
        ({"device": "cuda:7"}, "image.device: cuda:7: "),
    ],
)
def test_what_does_not_load(
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if change.get("device") and torch.cuda.device_count() > 7:
        pytest.skip("this machine has that device")
    save_checkpoint(tmp_path / "other", TinyVQ(codes=9))
    (tmp_path / "text").write_text("no checkpoint")
    (tmp_path / "evil").write_bytes(pickle.dumps(_Evil(), 2))
    transform = make("pairs", image=change)
    with pytest.raises(ConfigError, match=message):
        ids(transform)
    assert not (tmp_path / "evil").is_dir() and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"patch": 16},
            r"gave torch.int64 \(3, 4\) for 3 images; expected one integer tensor of 3 ids",
        ),
        ({"encoder": f"{HERE}:Fails", "checkpoint": None}, "failed on a batch .*out of memory"),
    ],
)
def test_what_gives_no_ids(make: Make, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ids(make("pairs", image=change))


def identity(files: Path, **more: Any) -> str:
    return Tokenize.identity(**parameters(files, "pairs", **more))


def test_the_identity_is_of_the_content(files: Path, tmp_path: Path) -> None:
    for name in ("vq.pt", "tokenizer.json"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    assert identity(tmp_path) == identity(files)
    save_checkpoint(tmp_path / "vq.pt", TinyVQ())
    assert identity(tmp_path) != (before := identity(files))
    (tmp_path / "vq.pt").write_bytes((files / "vq.pt").read_bytes())
    assert identity(tmp_path) == before
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace("<unk>", "<UNK>"))
    assert identity(tmp_path) != before


def test_a_new_checkpoint_is_loaded_under_the_same_name(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "vq.pt"
    path.write_bytes((files / "vq.pt").read_bytes())
    values = parameters(files, "pairs", image={"checkpoint": str(path)})
    before = ids(Tokenize(**values))
    torch.manual_seed(8)
    torch.save(TinyVQ().state_dict(), path)
    assert ids(Tokenize(**values)) != before


def test_the_encoders_code_counts_and_its_comments_do_not(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "my_vq_for_tests.py"
    module.write_text("class VQ:\n    codes = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    image = {"encoder": "my_vq_for_tests:VQ"}
    before = identity(files, image=image)
    module.write_text("# a comment\nclass VQ:\n    codes = 3\n")
    assert identity(files, image=image) == before
    module.write_text("class VQ:\n    codes = 4\n")
    assert identity(files, image=image) != before


def test_tokenizers_of_transformers(make: Make, files: Path, tmp_path: Path) -> None:
    """A folder as `save_pretrained` leaves it, and the file alone, give the same ids."""
    train_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<pad>"}')
    made = make("pairs", text={"tokenizer": str(tmp_path)})
    alone = Made(make("pairs"), SAMPLES)
    assert (Made(made, SAMPLES)["txt_input_ids"] == alone["txt_input_ids"]).all()


def test_a_tokenizer_that_is_python_alone(tmp_path: Path) -> None:
    """ByT5's: an id is a byte plus 3, and 1 ends a text."""
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()

    def encode(text: str, limit: int | None = None, **rules: Any) -> list[int] | Rejected:
        made = Text(TextParameters(tokenizer=str(tmp_path), **rules))
        return made.encode([text, "another"], limit)[0]

    plain = [byte + 3 for byte in "h\u00e9llo".encode()]
    assert encode("h\u00e9llo", special_tokens=True) == [*plain, 1]
    assert encode("h\u00e9llo", special_tokens=False) == plain
    assert encode("h\u00e9llo", 4, special_tokens=True) == [*plain[:3], 1]
    assert encode("h\u00e9llo", 4, special_tokens=False, eos=1) == [*plain[:3], 1]
    assert isinstance(encode("h\u00e9llo", 4, truncation=False), Rejected)
    assert isinstance(encode("", special_tokens=True), Rejected)

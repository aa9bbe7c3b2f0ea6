"""A torch module that makes ids of images: found by its import path, filled from a checkpoint, called.

The protocol: `package.module:Class` (or a function) is called with `arguments` and gives a module. Its
`encode`, if it has one, or itself is called with float32 [B, 3, resolution, resolution] in inference mode.
It returns the ids as an integer tensor of B · (resolution / patch)² elements, row by row; alone, or as the
only integer tensor of that size in a tuple, list or dict (as the VQ modules of taming-transformers do).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wds_pipeline.config_values import did_you_mean
from wds_pipeline.errors import ConfigError, DataError
from wds_pipeline.tokens.identity import code_digest, file_digest
from wds_pipeline.tokens.images import Pixels, normalised
from wds_pipeline.tokens.parameters import ImageParameters
from wds_pipeline.tokens.text import EXTRA

_SHOWN = 5


def identity(rules: ImageParameters) -> dict[str, str]:
    """Digests of the checkpoint and of the code of the module that has the class. Raises ConfigError."""
    found = {"code": code_digest(_source(rules.encoder))}
    if rules.checkpoint is not None:
        found["checkpoint"] = file_digest(rules.checkpoint, "image.checkpoint")
    return found


def _source(path: str) -> str:
    name = path.partition(":")[0]
    try:
        spec = importlib.util.find_spec(name)
    except ImportError as error:
        raise ConfigError(f"image.encoder: {path}: {error}") from error
    if spec is None or spec.origin is None or not os.path.isfile(spec.origin):
        raise ConfigError(
            f"image.encoder: {path}: no module {name!r} with a file; install its package, or put its "
            "folder on PYTHONPATH"
        )
    return spec.origin


class Encoder:
    """A module on its device."""

    def __init__(self, rules: ImageParameters, device: str) -> None:
        """Loads it. Raises ConfigError."""
        self._rules = rules
        self._torch = _torch()
        self._device = device
        try:
            self._module = _filled(_make(rules), rules, self._torch).eval().to(device)
        except (
            RuntimeError,
            AssertionError,
        ) as error:  # torch's, of a device that is not there or full
            raise ConfigError(
                f"image.device: {device}: {' '.join(str(error).split())[:300]}"
            ) from error
        name = rules.method or ("encode" if hasattr(self._module, "encode") else "__call__")
        self._call: Any = getattr(self._module, name, None)
        if self._call is None:
            raise ConfigError(
                f"image.method: {rules.encoder} has no {name!r}{did_you_mean(name, dir(self._module))}"
            )

    def encode(self, pixels: Sequence[Pixels]) -> NDArray[np.int64]:
        """The ids of images: int64 [B, (resolution / patch)²].

        Raises DataError when the module gives something else, or fails.
        """
        torch = self._torch
        batch = torch.from_numpy(normalised(pixels, self._rules)).to(self._device)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self._device.startswith("cuda"):
                # The same kernels each time, in full precision.
                flags = torch.backends.cudnn.flags
                stack.enter_context(
                    flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
                )
            else:
                torch.set_num_threads(self._rules.torch_threads)
            try:
                result = self._call(batch)
            except Exception as error:
                raise DataError(
                    f"image.encoder: {self._rules.encoder} failed on a batch {tuple(batch.shape)} of "
                    f"float32: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
                ) from error
        return self._ids(result, len(pixels))

    def _ids(self, result: Any, count: int) -> NDArray[np.int64]:
        tensors = list(_tensors(result, self._torch))
        wanted = count * self._rules.ids
        kinds = (self._torch.int64, self._torch.int32, self._torch.int16, self._torch.uint8)
        found = [each for each in tensors if each.dtype in kinds and each.numel() == wanted]
        if len(found) != 1:
            shown = ", ".join(f"{each.dtype} {tuple(each.shape)}" for each in tensors[:_SHOWN])
            raise DataError(
                f"image.encoder: {self._rules.encoder} gave {shown or type(result).__name__} for {count} "
                f"images; expected one integer tensor of {wanted:,} ids, {self._rules.ids} an image "
                "((resolution / patch)²); mend resolution or patch, or write a function around it"
            )
        ids: NDArray[np.int64] = found[0].reshape(count, -1).to("cpu", self._torch.int64).numpy()
        return ids


def encoder_for(rules: ImageParameters, slot: int) -> Encoder:
    """The encoder for a shard's slot: of several GPUs, the slots take turns. One a process and device, as
    long as its files are the same. Raises ConfigError."""
    device = rules.device
    if device == "auto":
        cuda = _torch().cuda
        device = f"cuda:{slot % cuda.device_count()}" if cuda.is_available() else "cpu"
    return _cached(rules.model_dump_json(), device, tuple(sorted(identity(rules).values())))


@lru_cache(maxsize=4)
def _cached(rules: str, device: str, files: tuple[str, ...]) -> Encoder:
    return Encoder(ImageParameters.model_validate_json(rules), device)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ConfigError(f"image.encoder needs torch; {EXTRA}") from error
    return torch


def _make(rules: ImageParameters) -> Any:
    module, _, name = rules.encoder.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ConfigError(
            f"image.encoder: {rules.encoder} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    try:
        made = found(**rules.arguments)
    except Exception as error:
        raise ConfigError(
            f"image.encoder: {rules.encoder}(**{rules.arguments}) failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, _torch().nn.Module):
        raise ConfigError(
            f"image.encoder: {rules.encoder} gave {type(made).__name__}; expected a torch module"
        )
    return made


def _filled(module: Any, rules: ImageParameters, torch: Any) -> Any:
    if rules.checkpoint is None:
        return module
    state = _state(rules.checkpoint, torch)
    if rules.state is not None:
        if rules.state not in state:
            raise ConfigError(
                f"image.state: {rules.checkpoint} has no {rules.state!r}; it has "
                f"{', '.join(map(str, list(state)[:_SHOWN]))}"
            )
        state = state[rules.state]
    elif isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    state = {name: value for name, value in state.items() if not name.startswith(rules.drop)}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(
            f"image.checkpoint: {rules.checkpoint} is not of {rules.encoder}: "
            f"{' '.join(str(error).split())[:500]}; name parts that are not needed with `drop`"
        ) from error
    return module


def _state(path: str, torch: Any) -> Any:
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        # Never a pickle that runs code.
        found = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise ConfigError(
            f"image.checkpoint: {path} needs the package safetensors; {EXTRA}"
        ) from error
    except Exception as error:
        raise ConfigError(
            f"image.checkpoint: {path} cannot be loaded ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}); expected a state that `torch.load(weights_only=True)` "
            "reads, or .safetensors"
        ) from error
    if not isinstance(found, Mapping):
        raise ConfigError(
            f"image.checkpoint: {path}: found {type(found).__name__}; expected a dict of tensors"
        )
    return found


def _tensors(value: Any, torch: Any) -> Iterator[Any]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each, torch)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each, torch)

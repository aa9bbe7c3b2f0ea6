"""From what a dataset's `transforms:` name to what does it, and the digest that stands for it.

The digest is part of the recipe of every shard that a transform touches: of the parameters, the version that
the file declares, and, for a module of the user's, its code. A comment or a docstring is no code.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from fsspec.utils import glob_translate

from wds_pipeline.config_transforms import TransformConfig
from wds_pipeline.config_values import did_you_mean
from wds_pipeline.errors import ConfigError, Ended
from wds_pipeline.transforms.code import code_digest, file_of, modules_of

BUILT_IN: dict[str, str] = {
    "resize": "wds_pipeline.transforms.resize:Resize",
    "crop": "wds_pipeline.transforms.crop:Crop",
    "convert": "wds_pipeline.transforms.convert:Convert",
    "thumbnail": "wds_pipeline.transforms.thumbnail:Thumbnail",
    "filter": "wds_pipeline.transforms.filter:Filter",
    "rename": "wds_pipeline.transforms.fields:Rename",
    "select": "wds_pipeline.transforms.fields:Select",
    "drop": "wds_pipeline.transforms.fields:Drop",
    "repeat": "wds_pipeline.transforms.fields:Repeat",
    "set": "wds_pipeline.transforms.facts:Set",
    "extract": "wds_pipeline.transforms.facts:Extract",
    "to_json": "wds_pipeline.transforms.facts:ToJson",
    "hash": "wds_pipeline.transforms.hashes:Hash",
    "phash": "wds_pipeline.transforms.hashes:PerceptualHash",
    "clips": "wds_pipeline.transforms.clips:Clips",
    "resample": "wds_pipeline.transforms.resample:Resample",
    "expand": "wds_pipeline.transforms.expand:Expand",
    "tokenize": "wds_pipeline.tokens.tokenize:Tokenize",
}
"""Name → `module:attribute`. A module is imported when it is asked for."""
_MOST = 64  # transforms of a dataset: `transformed` has a bit for each
_loaded: dict[str, str] = {}  # of a user's targets, the code that this process imported


@dataclass(frozen=True)
class Step:
    """One transform of a dataset, ready to be made: small, and the same in every worker.

    `where` is how messages name it. `fields`: only samples with one of these are concerned; None: all.
    `whole` says that it goes over shards. `code` is the digest of a user's code.
    """

    where: str
    target: str
    parameters: Mapping[str, Any]
    digest: str
    keys: str | None = None
    fields: tuple[str, ...] | None = None
    whole: bool = False
    code: str = ""

    @property
    def name(self) -> str:
        """What it is called in the file."""
        return self.where.rpartition(": ")[2]

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        return None if self.keys is None else re.compile(glob_translate(self.keys))

    def wants(self, key: str) -> bool:
        """Whether samples of this key go through it."""
        return self._pattern is None or self._pattern.match(key) is not None

    def make(self) -> Any:
        """What is called with samples, or has `stream`.

        Raises ConfigError, also when a user's code is not here what it was when the build began.
        """
        if self.code and _loaded.get(self.target) != self.code:
            here = _code(self.target)
            if here and here != self.code:
                module = self.target.partition(":")[0]
                raise ConfigError(
                    f"{self.where}: {file_of(module)} is not what it was when this build began: it was "
                    "edited, or this worker has another copy; build again, with the same files everywhere"
                )
        found = _load(self.target, self.where, self.code)
        if not inspect.isclass(found):
            return partial(found, **self.parameters)
        try:
            return found(**self.parameters)
        except (KeyboardInterrupt, Ended):
            raise
        except BaseException as error:
            raise ConfigError(f"{self.where}: {_told(error)}") from error


def load(transforms: Sequence[TransformConfig], dataset: str) -> tuple[Step, ...]:
    """The steps of a dataset. Raises ConfigError, naming the transform, for one that is not there or that
    its parameters do not fit."""
    if len(transforms) > _MOST:
        raise ConfigError(
            f"{dataset}: transforms: found {len(transforms)}; expected {_MOST} at most: let a function of "
            "yours call some of them"
        )
    return tuple(_step(each, f"{dataset}: transforms[{i}]") for i, each in enumerate(transforms))


def declared(config: TransformConfig) -> str:
    """A digest of a transform by what the file says of it and by its code, without running that of a user.

    For those who want to know whether it changed. Raises ConfigError when there is no such code.
    """
    target = BUILT_IN.get(config.name, config.name)
    if config.name in BUILT_IN:
        code = str(getattr(_load(target, config.name), "VERSION", ""))
    else:
        code = _code(target)
        if not code:
            raise _no_file(target, config.name)
    text = json.dumps([target, _written(config.parameters), config.version, config.keys, code])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _step(config: TransformConfig, where: str) -> Step:
    where = f"{where}: {config.name}"
    target = BUILT_IN.get(config.name, config.name)
    if ":" not in target:
        known = sorted(BUILT_IN)
        raise ConfigError(
            f"{where}: there is no such transform; expected one of {', '.join(known)}, or "
            f"package.module:function{did_you_mean(config.name, known)}"
        )
    ours = config.name in BUILT_IN
    code = "" if ours else _code(target)
    found = _load(target, where, code)
    if not ours and not code:
        raise _no_file(target, where)
    _check_parameters(found, config.parameters, where)
    narrowed = config.parameters.get(getattr(found, "NARROWED_BY", ""))
    step = Step(
        where=where,
        target=target,
        parameters=config.parameters,
        digest=_digest(config, target, found, code, where),
        keys=config.keys,
        fields=tuple(narrowed) if isinstance(narrowed, list | tuple | dict) else None,
        whole=hasattr(found, "stream"),
        code=code,
    )
    if ours and inspect.isclass(found):
        step.make()  # what is wrong with its parameters shows now, not in a worker
    return step


def _load(target: str, where: str, code: str = "") -> Callable[..., Any]:
    """What a target names. A module that this process imported before its code became `code` is read anew."""
    module_name, _, name = target.partition(":")
    try:
        if _loaded.get(target, code) != code:
            for each in reversed(modules_of(target)):
                if each in sys.modules:
                    importlib.reload(sys.modules[each])
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"{where}: {error}; install the package for this Python, put its folder on PYTHONPATH, or "
            "correct the name"
        ) from error
    except (KeyboardInterrupt, Ended):
        raise
    except BaseException as error:  # a program without a guard ends here
        raise ConfigError(
            f"{where}: importing {module_name} failed: {_told(error)}; mend the module"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        what = "no function or class" if hasattr(module, name) else "nothing of that name"
        raise ConfigError(
            f"{where}: found {what} in {module_name}; expected a function of a sample, or a class"
            f"{did_you_mean(name, vars(module))}"
        )
    called = any("__call__" in vars(each) for each in getattr(found, "__mro__", ()))
    if inspect.isclass(found) and not called and not hasattr(found, "stream"):
        raise ConfigError(
            f"{where}: found a class without __call__ or stream; expected one whose instances are called "
            "with a sample"
        )
    if code:
        _loaded[target] = code
    return found  # type: ignore[no-any-return]


def _check_parameters(found: Callable[..., Any], given: Mapping[str, Any], where: str) -> None:
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # it does not tell
        return
    parameters = list(signature.parameters.values())
    if not inspect.isclass(found):  # the first one takes the sample
        parameters = parameters[1:]
    named = [
        each.name
        for each in parameters
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]
    if not any(each.kind is each.VAR_KEYWORD for each in parameters):
        for name in given:
            if name not in named:
                raise ConfigError(
                    f"{where}: unknown parameter {name!r}; it takes "
                    f"{', '.join(named) or 'none'}{did_you_mean(name, named)}"
                )
    for each in parameters:
        if each.name in named and each.default is each.empty and each.name not in given:
            raise ConfigError(f"{where}: the parameter {each.name!r} is required")


def _digest(
    config: TransformConfig, target: str, found: Callable[..., Any], code: str, where: str
) -> str:
    parts = [
        target,
        _written(config.parameters),
        config.version,
        str(getattr(found, "VERSION", "")),
        code,
        config.keys,
        _identity(found, config.parameters, where),
    ]
    text = json.dumps(parts)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _identity(found: Callable[..., Any], parameters: Mapping[str, Any], where: str) -> str:
    """What a transform says of itself beyond that: the content of its model's file, say."""
    tell = getattr(found, "identity", None)
    if tell is None or not inspect.isclass(found):
        return ""
    try:
        return str(tell(**parameters))
    except Exception as error:
        raise ConfigError(f"{where}: {_told(error)}") from error


def _written(value: Any) -> str:
    """A parameter as text that tells what YAML tells apart: a date is not the text of one."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{_written(k)}: {_written(v)}' for k, v in value.items()))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, set | frozenset):
        return f"set {sorted(map(_written, value))}"
    return repr(value)


def _code(target: str) -> str:
    """A digest of the code that a user's transform is made of; "" if there is none to read."""
    modules = modules_of(target)
    return code_digest(modules) if modules else ""


def _no_file(target: str, where: str) -> ConfigError:
    return ConfigError(
        f"{where}: {target.partition(':')[0]} has no file, so a change of its code would not be seen; put "
        "the function into a module of a package"
    )


def _told(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return (
        text if isinstance(error, ConfigError | ValueError) else f"{type(error).__name__}: {text}"
    )

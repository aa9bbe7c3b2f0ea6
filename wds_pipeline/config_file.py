"""Reading datasets' YAML files; each error names the file, the line, the key and what is allowed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_values import did_you_mean
from wds_pipeline.errors import ConfigError

ENVIRONMENT_VARIABLE = "WDS_PIPELINE_DATASETS"
_REFERENCE = re.compile(r"\$\{([^}]*)\}")


def datasets_folder() -> Path:
    """The folder of YAML files: `WDS_PIPELINE_DATASETS`, or `datasets` in the working directory."""
    return Path(os.environ.get(ENVIRONMENT_VARIABLE) or "datasets")


def load_configs(folder: Path | None = None) -> dict[str, DatasetConfig]:
    """All datasets of a folder of YAML files, by name, sorted.

    Raises ConfigError that names every file at fault, also for two datasets with one name or one
    destination.
    """
    folder = datasets_folder() if folder is None else folder
    check_folder(folder)
    configs, problems = read_configs(folder)
    if problems:
        raise ConfigError("\n".join(problems))
    return configs


def check_folder(folder: Path) -> None:
    """Raises ConfigError when there is no folder of datasets."""
    if not folder.is_dir():
        raise ConfigError(
            f"{folder.absolute()}: no such folder; expected the datasets' YAML files there. Make one "
            f"with `wds-pipeline init SOURCE DESTINATION`, or set {ENVIRONMENT_VARIABLE}"
        )


def read_configs(folder: Path) -> tuple[dict[str, DatasetConfig], list[str]]:
    """The datasets of a folder that can be used, by name, sorted; and what is wrong with the others."""
    configs: dict[str, DatasetConfig] = {}
    problems = []
    shared: set[str] = set()  # names that are not usable, though their files are
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".yaml", ".yml")):
        try:
            config = load_config(path)
        except ConfigError as error:
            problems.append(str(error))
            continue
        other = configs.get(config.name)
        if other is not None:
            problems.append(
                f"{path}: name: {config.name!r} is already the dataset of {other.file}; "
                "names must differ, rename one"
            )
            shared.add(config.name)  # nobody knows which of the two is meant
            continue
        for each in configs.values():
            if _place(each) == _place(config):
                written = config.written["destination"]["url"]  # `${NAME}` is not shown expanded
                problems.append(
                    f"{path}: destination.url: {written} is already the destination "
                    f"of {each.name!r} ({each.file}); give each dataset a folder of its own"
                )
                shared |= {config.name, each.name}
        configs[config.name] = config
    found = {name: configs[name] for name in sorted(configs.keys() - shared)}
    problems += _wrong_upstreams(found)
    for circle in _circles(found):
        problems.append(
            f"{found[circle[0]].file}: the datasets are made of each other: {' → '.join(circle)}; "
            "expected one of them to be made of something else"
        )
        shared |= set(circle)
    usable = {name: each for name, each in found.items() if name not in shared}
    return {name: each.with_upstream(configs) for name, each in usable.items()}, problems


def _wrong_upstreams(configs: Mapping[str, DatasetConfig]) -> list[str]:
    """Names of other datasets that are not there."""
    problems = []
    for config in configs.values():
        base = config.overlay.base.name if config.overlay else ""
        for other in sorted(_upstream_names(config) - configs.keys()):
            key = "overlay.base" if other == base else "source.dataset"
            problems.append(
                f"{config.file}: {key}: {other!r}: no such dataset"
                f"{did_you_mean(other, configs) or ';'} known datasets: {', '.join(configs)}; or name its "
                f"destination: {key.rpartition('.')[2]}: {{url: …}}"
            )
    return problems


def _circles(configs: Mapping[str, DatasetConfig]) -> Iterator[list[str]]:
    """Datasets that are made of each other: names, the first one again at the end."""
    graph = {name: _upstream_names(config) for name, config in configs.items()}
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            circle: list[str] = list(reversed(error.args[1]))
            yield circle
            for name in set(circle):
                del graph[name]
        else:
            return


def _upstream_names(config: DatasetConfig) -> set[str]:
    return {each.name for each in config.upstream if each.name}


def _place(config: DatasetConfig) -> str:
    """Where a dataset is published, however that is spelt."""
    url = config.destination_url.removeprefix("file://")
    if "://" not in url:
        return os.path.realpath(url)
    return f"{config.destination.storage.endpoint_url or ''} {url.rstrip('/')}"


def load_config(path: Path) -> DatasetConfig:
    """One dataset from its YAML file. Raises ConfigError that names the file, line and key."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
        if tree is not None:
            _refuse_repeated_keys(path, tree, ())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
        hint = "; quote what holds ${NAME}: '${NAME}/folder'" if "${" in line else ""
        problem = getattr(error, "problem", error)
        raise ConfigError(f"{where}: not valid YAML: {problem}{hint}") from error
    except (ValueError, RecursionError) as error:  # such as the date 2024-99-99
        raise ConfigError(f"{path}: a value cannot be read: {error}; quote it") from error
    if tree is None or not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys such as name, source and destination")
    try:
        config = DatasetConfig.model_validate(_expand(values, path, tree, ()))
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_explain(path, tree, values, each) for each in error.errors())
        ) from None
    config._file = path.absolute()
    config._written = json.loads(json.dumps(values, default=str))
    return config


def _expand(value: Any, path: Path, tree: yaml.Node, at: tuple[Any, ...]) -> Any:
    """Puts environment variables in the place of `${NAME}`."""
    if isinstance(value, dict):
        return {k: _expand(v, path, tree, (*at, k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, path, tree, (*at, i)) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ConfigError(
                f"{_where(path, tree, at)}: the environment variable {name!r} is not set; "
                "set it, or write the value itself"
            )
        return os.environ[name]

    return _REFERENCE.sub(replace, value)


def _explain(path: Path, tree: yaml.Node, values: Any, error: Any) -> str:
    at = tuple(error["loc"])
    where = _where(path, tree, at)
    if error["type"] == "extra_forbidden":
        known = _known_keys(at[:-1])
        return (
            f"{where}: unknown key{did_you_mean(str(at[-1]), known) or '.'} "
            f"Known keys: {', '.join(known)}"
        )
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{where}: this key is required"
    if error["type"] in ("model_type", "dict_type", "list_type"):
        message = f"found {_at(values, at)!r}; expected {_form(error['type'], at)}"
    elif error["type"] != "value_error":
        message = f"found {_at(values, at)!r}; {message[:1].lower()}{message[1:]}"
    return f"{where}: {_as_written(message, _at(values, at))}"


def _form(error_type: str, at: tuple[Any, ...]) -> str:
    """What is to be written instead of something that is no mapping or list."""
    if error_type == "list_type":
        return "a list: [a, b], or a line for each, behind `- `"
    if error_type == "model_type":
        return f"keys of {', '.join(_known_keys(at))}"
    return "a mapping, such as {name: value}"


def _as_written(message: str, value: Any) -> str:
    """The message with `${NAME}` where it quotes an environment variable's value: it may be secret."""
    names = {name for name in _REFERENCE.findall(str(value)) if os.environ.get(name)}
    for name in sorted(names, key=lambda name: -len(os.environ[name])):
        secret = os.environ[name]
        for spelling in (repr(secret)[1:-1], secret):
            message = message.replace(spelling, f"${{{name}}}")
    return message


def _at(values: Any, at: tuple[Any, ...]) -> Any:
    """The written value at a location, or at its nearest parent that the file holds."""
    for key in at:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            break
    return values


def _known_keys(at: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = DatasetConfig
    for key in at:
        if not isinstance(key, str) or key not in model.model_fields:  # a list's number
            continue
        for candidate in _models_in(model.model_fields[key].annotation):
            model = candidate
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [each for part in getattr(annotation, "__args__", ()) for each in _models_in(part)]


def _where(path: Path, tree: yaml.Node, at: tuple[Any, ...]) -> str:
    line = _line(tree, at)
    return f"{path}:{line}: {'.'.join(map(str, at))}" if at else str(path)


def _line(node: yaml.Node, at: tuple[Any, ...]) -> int:
    """The line of a key, or of its nearest parent that the file holds."""
    line = node.start_mark.line + 1
    for key in at:
        if isinstance(node, yaml.MappingNode):
            found = [pair for pair in node.value if pair[0].value == str(key)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int):
            found = [(node.value[key], node.value[key])] if key < len(node.value) else []
        else:
            found = []
        if not found:
            break
        line = found[0][0].start_mark.line + 1
        node = found[0][1]
    return line


def _refuse_repeated_keys(path: Path, node: yaml.Node, at: tuple[Any, ...]) -> None:
    """YAML readers keep the last of two equal keys without a word."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                name = ".".join(map(str, (*at, key.value)))
                raise ConfigError(
                    f"{path}:{line}: {name}: written twice, first in line {seen[key.value]}"
                )
            seen[key.value] = line
            _refuse_repeated_keys(path, value, (*at, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _refuse_repeated_keys(path, value, (*at, index))

"""What the `transforms:` of a dataset's YAML file may say."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import WithJsonSchema, field_serializer, model_validator

from wds_pipeline.config_values import Glob, Model

_OPTIONS = ("version", "keys")


class TransformConfig(Model):
    """One transform, written as its name and its parameters: `resize: {size: 256}`."""

    name: str
    """A built-in's name, or `package.module:function` of a function or class of yours."""
    parameters: dict[str, Any] = {}
    """What it is called or made with."""
    version: str = ""
    """Raise it when results change for a reason that neither its module's code nor its parameters show."""
    keys: Glob | None = None
    """Only samples whose key matches this glob go through it."""

    @field_serializer("parameters", when_used="json")
    def _plain(self, parameters: dict[str, Any]) -> Any:
        """YAML has sets, whose order is another in each process, and bytes, of which JSON has none."""
        return _plain(parameters)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict):
            raise ValueError(f"found {value!r}; expected such as `resize: {{size: 256}}`")
        if isinstance(value.get("name"), str):  # as it is dumped
            return value
        names = [key for key in value if key not in _OPTIONS]
        if len(names) != 1:
            found = ", ".join(map(str, names)) or "nothing"
            raise ValueError(
                f"found {found}; expected one transform's name, with its parameters, and beside it at "
                f"most {' and '.join(_OPTIONS)}"
            )
        parameters = value[names[0]]
        if parameters is not None and not isinstance(parameters, dict):
            raise ValueError(
                f"{names[0]}: found {parameters!r}; expected its parameters, such as {{size: 256}}"
            )
        options = {key: value[key] for key in _OPTIONS if key in value}
        if isinstance(options.get("version"), int | float):
            options["version"] = str(options["version"])
        return {"name": str(names[0]), "parameters": parameters or {}, **options}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(each) for each in value), key=repr)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, str | int | float | bool | None) else str(value)


Transforms = Annotated[
    list[TransformConfig],
    WithJsonSchema(
        {
            "type": "array",
            "items": {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "object",
                        "properties": {
                            "version": {"anyOf": [{"type": "string"}, {"type": "number"}]},
                            "keys": {"type": "string"},
                        },
                        "additionalProperties": {"anyOf": [{"type": "object"}, {"type": "null"}]},
                    },
                ]
            },
        }
    ),
]

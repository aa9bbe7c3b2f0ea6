"""The parameters that the page shows are taken."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from wds_pipeline.config import DatasetConfig
from wds_pipeline.tokens.parameters import Parameters, parse

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "tokens.md").read_text()


def test_the_dataset_is_one() -> None:
    text = next(
        each for each in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "name:" in each
    )
    config = DatasetConfig.model_validate(yaml.safe_load(text))
    (transform,) = config.transforms
    assert transform.name == "tokenize"
    assert parse(transform.parameters).layout == "interleaved"


def test_parameters() -> None:
    found = re.findall(r"<!-- parameters -->\n```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert [parse(yaml.safe_load(each)).layout for each in found] == ["interleaved", "one_modality"]


def test_defaults_are_those_that_it_says() -> None:
    image = Parameters.model_fields["image"].annotation
    for name, default in re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", PAGE, re.MULTILINE):
        fields = next(each for each in image.__args__ if hasattr(each, "model_fields")).model_fields  # type: ignore[union-attr]
        assert str(fields[name].default) == default, name

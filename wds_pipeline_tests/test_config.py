"""What a dataset's YAML file may say, and what the JSON schema says of it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from wds_pipeline.config import (
    ComputeConfig,
    DatasetConfig,
    KeyRule,
    SamplesConfig,
    ShardsConfig,
    SourceConfig,
    SplitConfig,
    json_schema,
)
from wds_pipeline.config_values import did_you_mean

MINIMAL: dict[str, Any] = {
    "name": "small",
    "source": {"url": "raw"},
    "destination": {"url": "published"},
}


def make(**values: Any) -> DatasetConfig:
    return DatasetConfig.model_validate({**MINIMAL, **values})


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("256MB", 256_000_000),
        ("256mb", 256_000_000),
        ("256 MB", 256_000_000),
        ("1GiB", 1024**3),
        ("1.5kB", 1500),
        ("64KiB", 65536),
        ("100B", 100),
        ("12", 12),
        (12_000, 12_000),
    ],
)
def test_sizes(written: Any, found: int) -> None:
    assert ShardsConfig(max_bytes=written).max_bytes == found


@pytest.mark.parametrize(
    "written",
    [
        "",
        "MB",
        "256XB",
        "-1MB",
        0,
        -1,
        "0",
        "1,5MB",
        "1 MB a day",
        "1.5.5GB",
        "a lot",
        None,
        [],
        "nan",
    ],
)
def test_sizes_that_are_none(written: Any) -> None:
    with pytest.raises(ValidationError):
        ShardsConfig(max_bytes=written)


@pytest.mark.parametrize(
    ("written", "found"),
    [("1%", 0.01), ("0.5 %", 0.005), (" 100% ", 1), (0, 0), (0.01, 0.01), ("0.25", 0.25)],
)
def test_shares(written: Any, found: float) -> None:
    assert SamplesConfig(max_quarantined=written).max_quarantined == pytest.approx(found)


@pytest.mark.parametrize(
    "written", ["101%", "-1%", 1.1, -0.1, "x%", "%", float("nan"), "many", None]
)
def test_shares_that_are_none(written: Any) -> None:
    with pytest.raises(ValidationError):
        SamplesConfig(max_quarantined=written)


@pytest.mark.parametrize("name", ["a", "captions", "a1_b"])
def test_names(name: str) -> None:
    assert make(name=name).name == name


@pytest.mark.parametrize("name", ["", "A", "a-b", "1a", "_a", "a b", "a/b", "é", "a\n", "a."])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValidationError, match="expected lower-case letters, digits and _"):
        make(name=name)


# --- splits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "split",
    [
        {"train": 0.95, "val": 0.05},
        {"train": "95%", "val": "5%"},
        {"train": 1},
        {"train": 1.0, "val": 0},
        {"a": 0.1, "b": 0.2, "c": 0.7},
        {"train": 0.5, "val": 0.5, "group_by": "^([^/]+)/", "salt": "x"},
        {"by": "ratio", "train": 1},
        {"by": "directory"},
        {"by": "directory", "names": {"validation": "val"}, "default": "train"},
        {"by": "list", "file": "splits.csv"},
        {},
    ],
)
def test_splits(split: dict[str, Any]) -> None:
    config = make(split=split)
    assert not validate(json_schema(), {**MINIMAL, "split": split})
    again = SplitConfig.model_validate(config.split.model_dump())
    assert again == config.split


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"train": 0.9}, r"the ratios \(train: 0.9\) sum to 0.9, not to 1"),
        ({"train": 0.9, "val": 0.2}, "sum to 1.1"),
        ({"train": 1.5, "val": -0.5}, "negative"),
        ({"train": float("nan")}, "sum to nan"),
        ({"train": True}, "found True; expected a split's ratio"),
        ({"train": "most"}, "found 'most'; expected a split's ratio such as 0.05"),
        ({"train": "x%"}, "expected a share such as 1% or 0.01"),
        ({"train": 1, "group-by": "x"}, "'group-by': found 'x'.*did you mean 'group_by'?"),
        ({"train": 1, "group_by": "("}, "not a regular expression"),
        ({"train": 1, "group_by": "^a"}, r"needs exactly one \(…\) group"),
        ({"train": 1, "group_by": "(a)(b)"}, r"needs exactly one \(…\) group"),
        ({"my-split": 1}, "the split 'my-split': expected letters, digits and _"),
        ({"by": "list"}, "go together"),
        ({"by": "directory", "file": "x"}, "go together"),
        ({"by": "directory", "names": {"a": "b/c"}}, "the split 'b/c'"),
        ({"by": "directory", "default": "x y"}, "the split 'x y'"),
        ({"by": "random"}, "'ratio', 'directory' or 'list'"),
    ],
)
def test_splits_that_are_none(split: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(split=split)


# --- samples and sources -------------------------------------------------------------------------


def test_fields_are_lower_case_and_once() -> None:
    config = SamplesConfig(fields={"jpg": ["JPG", "jpeg", "jpg"], "seg.png": []})
    assert config.fields == {"jpg": ["jpg", "jpeg"], "seg.png": []}


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"fields": {"JPG": ["jpg"]}}, "reads fields in lower case"),
        ({"fields": {"jpg": ["png"], "png": ["png"]}}, "'png' is in 'jpg' and 'png'"),
        ({"fields": {"jpg": [".jpg"]}}, "expected an extension such as jpg"),
        ({"fields": {"": []}}, "expected an extension"),
        ({"fields": {"jpg": ["a/b"]}}, "expected an extension"),
        ({"fields": {"__key__": ["txt"]}}, "expected an extension"),
        ({"fields": {"jpg": []}, "required": ["jpeg"]}, "'jpeg' is not in fields.*mean 'jpg'"),
        ({"key": {"pattern": "("}}, "not a regular expression"),
        ({"key": {"pattern": "(a)", "replace": r"\2"}}, "does not fit the pattern"),
        ({"key": {"pattern": "a", "replace": r"\g<name>"}}, "does not fit the pattern"),
        ({"key": {"pattern": "a", "replace": "\\"}}, "does not fit the pattern"),
        ({"naming": "first_dot"}, "'strict', 'webdataset', 'last_dot' or 'escape'"),
        ({"on_bad_name": "keep"}, "'error' or 'quarantine'"),
    ],
)
def test_samples_that_are_none(samples: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(samples=samples)


def test_key_rules() -> None:
    assert KeyRule(pattern="^(a)/(.*)", replace=r"\2").replace == r"\2"
    assert KeyRule(pattern="(?P<n>a)", replace=r"\g<n>x").replace == r"\g<n>x"


@pytest.mark.parametrize("glob", ["**.jpg", "a**", "a/**b/*", "", "/a/**"])
def test_globs_that_would_match_nothing_are_refused(glob: str) -> None:
    for key in ("include", "exclude"):
        with pytest.raises(ValidationError, match=r"expected a glob|stands alone"):
            SourceConfig.model_validate({"url": "raw", key: [glob]})


@pytest.mark.parametrize("url", ["a/{x}", "a::b", "pipe:cat x", ""])
def test_destinations_that_webdataset_would_misread(url: str) -> None:
    with pytest.raises(ValidationError):
        make(destination={"url": url})


def test_urls_start_at_the_file(tmp_path: Path) -> None:
    config = make(source={"url": "../raw/"}, destination={"url": "/abs/./out"})
    config._file = tmp_path / "datasets/small.yaml"
    assert config.source_url == str(tmp_path / "raw")
    assert config.destination_url == "/abs/out"
    assert config.resolve("file:///x") == "file:///x"
    assert config.resolve("~/x") == str(Path.home() / "x")


def test_the_digest_is_of_what_decides_a_version() -> None:
    before = make().digest()
    assert before == make().digest()
    same: list[dict[str, Any]] = [
        {"description": "other"},
        {"compute": ComputeConfig(workers=3)},
        {"schedule": "0 3 * * *"},
        {"sensor": {}},
        {"freshness": {"max_lag_hours": 1}},
        {"owners": ["team:vision"]},
        {"on_failure": "a.b:c"},
        {"retention": {"versions": 3}},
        {"destination": {"url": "elsewhere"}},
    ]
    assert {make(**each).digest() for each in same} == {before}
    other: list[dict[str, Any]] = [
        {"name": "other"},
        {"source": {"url": "raw", "include": ["*"]}},
        {"samples": {"required": ["jpg"]}},
        {"split": {"train": 1, "salt": "x"}},
        {"shards": {"max_samples": 3}},
        {"verify": {"level": "stat"}},
    ]
    assert len({before, *(make(**each).digest() for each in other)}) == 7


def test_a_bare_schedule_is_the_builds() -> None:
    bare = make(schedule="0 3 * * *").schedule
    assert bare == make(schedule={"build": "0 3 * * *"}).schedule
    assert bare is not None and (bare.timezone, bare.verify) == ("UTC", None)
    assert not validate(json_schema(), {**MINIMAL, "schedule": "0 3 * * *"})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"schedule": {"build": "@daily", "timezone": "Europe/Berln"}}, "did you mean 'Europe/Ber"),
        ({"schedule": {"verify": "tomorrow"}}, "expected a cron expression"),
        ({"owners": ["vision"]}, "expected a mail address, or team: and a name"),
        ({"on_failure": "alerts.tell"}, "expected package.module:function"),
        ({"sensor": {"interval_seconds": 1}}, "greater than or equal to 5"),
    ],
)
def test_what_automation_refuses(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        make(**values)


def test_the_nearest_name() -> None:
    assert did_you_mean("include", ["includes", "exclude"]) == "; did you mean 'includes'?"
    assert did_you_mean("zzz", ["includes"]) == ""


# --- the JSON schema -----------------------------------------------------------------------------


def validate(schema: dict[str, Any], value: Any, root: dict[str, Any] | None = None) -> list[str]:
    """What is wrong with a value, by the part of JSON Schema that pydantic writes."""
    root = root or schema
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        return validate(root["$defs"][name], value, root)
    if "anyOf" in schema:
        found = [validate(each, value, root) for each in schema["anyOf"]]
        return [] if any(not each for each in found) else found[0]
    problems: list[str] = []
    kinds: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "null": type(None),
        "boolean": bool,
    }
    kind = schema.get("type")
    if kind and (not isinstance(value, kinds[kind]) or (kind != "boolean" and value is True)):
        return [f"{value!r} is no {kind}"]
    for key, bound, wrong in (
        ("enum", schema.get("enum"), lambda: value not in schema["enum"]),
        ("minimum", schema.get("minimum"), lambda: value < schema["minimum"]),
        ("minLength", schema.get("minLength"), lambda: len(value) < schema["minLength"]),
        ("const", schema.get("const"), lambda: value != schema["const"]),
    ):
        if bound is not None and wrong():
            problems.append(f"{key}: {value!r}")
    if kind == "array":
        for each in value:
            problems += validate(schema.get("items", {}), each, root)
    if "oneOf" in schema and sum(not validate(each, value, root) for each in schema["oneOf"]) != 1:
        problems.append(f"{value!r} is not one of {schema['oneOf']}")
    if kind == "object" or "required" in schema:
        problems += [f"{key} is required" for key in schema.get("required", ()) if key not in value]
        for key, each in value.items():
            known = schema.get("properties", {}).get(key, schema.get("additionalProperties", True))
            if known is False:
                problems.append(f"{key} is unknown")
            elif known is not True:
                problems += validate(known, each, root)
    return problems


FULL = """
name: captions
description: Pictures and what they show.
source:
  url: s3://raw/captions
  include: ["**/*.jpg"]
  exclude: [tmp/]
  follow_symlinks: never
  fingerprint: content
  storage:
    profile: lab
    endpoint_url: https://minio.example.org
    region: eu-central-1
    addressing_style: path
    anonymous: false
    requester_pays: true
    sse: aws:kms
    sse_kms_key: 1234abcd
    options: {}
    concurrency: 64
    timeout_seconds: 20
    retry_seconds: 90
destination: {url: published, commit: conditional, storage: {concurrency: 32}}
samples:
  naming: last_dot
  key: {pattern: "^images/", replace: ""}
  fields: {jpg: [jpg, jpeg], txt: [txt]}
  required: [jpg, txt]
  on_missing: quarantine
  on_invalid: keep
  on_bad_name: error
  max_quarantined: 1%
transforms:
  - resize: {fields: [jpg], size: 256}
  - my_package.captions:clean: {language: en}
    version: 2
    keys: "cats/**"
  - my_package.captions:plain
split: {train: 0.95, val: 5%, group_by: "^([^/]+)/"}
shards: {max_bytes: 256MB, max_samples: 10000, compact_below: 0.5, digest: sha256, layout: hash}
verify: {level: decode, sample: 10%, max_pixels: 1000000, on_leak: error}
compute: {kind: threads, workers: 4}
retention: {versions: 3, days: 1.5}
exports: [wids, energon]
combine: {url: combined, automatic: true}
schedule: {build: "0 3 * * *", verify: "@daily", gc: "0 5 * * 0", timezone: Europe/Berlin}
sensor: {interval_seconds: 60, settle_seconds: 30, tick_seconds: 20, retries: 3, retry_seconds: 300}
freshness: {max_lag_hours: 12}
owners: ["team:vision", me@example.com]
on_failure: my_package.alerts:tell
"""


def test_the_schema_takes_what_the_loader_takes() -> None:
    values = yaml.safe_load(FULL)
    DatasetConfig.model_validate(values)
    assert not validate(json_schema(), values)
    assert not validate(json_schema(), MINIMAL)
    overlay = {
        "overlay": {"base": "captions", "max_missing": "1%"}
    }  # goes without split and shards
    DatasetConfig.model_validate({**MINIMAL, **overlay})
    assert not validate(json_schema(), {**MINIMAL, **overlay})
    assert set(json_schema()["properties"]) == set(values | overlay), "every key is in the example"
    for name, model in json_schema()["$defs"].items():
        if name not in ("SplitConfig",):
            inner = model.get("anyOf", [model])[0]  # some may be written in a shorter form
            assert inner["additionalProperties"] is False, name
    try:
        import jsonschema  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        return
    jsonschema.validate(values, json_schema())


@pytest.mark.parametrize(
    "change",
    [
        {"sourc": {}},
        {"source": {"url": "raw", "includes": []}},
        {"source": {}},
        {"samples": {"naming": "x"}},
        {"samples": {"fields": ["jpg"]}},
        {"samples": {"key": {"patern": "x"}}},
        {"split": {"train": [1]}},
        {"split": {"by": "x"}},
        {"shards": {"max_samples": 0}},
        {"shards": {"max_bytes": []}},
        {"compute": {"workers": 0}},
        {"verify": {"level": "all"}},
        {"name": 3},
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make(**change)
    assert validate(json_schema(), {**MINIMAL, **change})


def test_how_a_store_is_reached_is_no_part_of_the_content() -> None:
    one = make(source={"url": "s3://raw"}).digest()
    other = make(source={"url": "s3://raw", "storage": {"profile": "x", "concurrency": 3}}).digest()
    assert one == other
    assert one != make(source={"url": "s3://raw2"}).digest()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"url": "sftp://me:hunter2@host/raw"}, r"sftp://…@host/raw has a password"),
        ({"url": "s3://raw", "storage": {"endpoint_url": "https://a:hunter2@b"}}, "has a password"),
        ({"url": "s3://raw", "storage": {"endpoint_url": "minio:9000"}}, "expected a URL such as"),
        ({"url": "s3://raw", "storage": {"options": {"secret": "hunter2"}}}, "'secret' looks like"),
        (
            {"url": "az://raw", "storage": {"options": {"a": {"account_key": "hunter2"}}}},
            "'account_key' looks like a credential",
        ),
        ({"url": "s3://raw", "storage": {"sse_kms_key": "k"}}, "goes with `sse: aws:kms`"),
        ({"url": "s3://raw", "storage": {"anonymous": True, "profile": "p"}}, "exclude each other"),
    ],
)
def test_what_a_store_s_settings_may_not_say(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as raised:
        make(source=source)
    if "hunter2" in str(source.get("url")):
        assert "hunter2" not in raised.value.errors()[0]["msg"]


def test_places_are_what_workers_get(tmp_path: Path) -> None:
    config = make(
        source={"url": "s3://raw/x", "storage": {"profile": "lab"}},
        destination={"url": "out", "commit": "single_writer"},
    )
    source, destination = config.source_place, config.destination_place
    assert (source.scheme, source.part, source.storage.profile) == ("s3", "source", "lab")
    assert (destination.scheme, destination.part) == ("file", "destination")
    assert destination.single_writer
    assert not source.single_writer
    assert pickle.loads(pickle.dumps(source)) == source


def test_every_key_has_a_description() -> None:
    schema = json_schema()
    for model in (schema, *schema["$defs"].values()):
        for key, value in model.get("anyOf", [model])[0]["properties"].items():
            text = value.get("description") or value.get("$ref")
            assert text or "allOf" in value, key


@pytest.mark.parametrize(
    ("url", "meant"),
    [("s3:/b/x", "s3://b/x"), ("s3:b", "s3://b"), ("s3//b/x", "s3://b/x"), ("gs:b", "gs://b")],
)
def test_a_url_that_lacks_a_slash_is_no_folder(url: str, meant: str) -> None:
    for end in ("source", "destination"):
        with pytest.raises(ValidationError, match=f"did you mean {meant}\\?.*write ./{url}"):
            make(**{end: {"url": url}})
    assert "://" not in make(source={"url": f"./{url}"}).source_url

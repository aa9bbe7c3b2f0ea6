"""Datasets' YAML files: what their errors say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.config_file import datasets_folder, load_config, load_configs, read_configs
from wds_pipeline.errors import ConfigError

HEAD = "name: small\nsource: {url: raw}\ndestination: {url: published}\n"


def load(folder: Path, text: str | bytes, name: str = "small.yaml") -> Any:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path)


def refused(folder: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as error:
        load(folder, text)
    text = str(error.value)
    assert text.startswith(str(folder / "small.yaml"))
    return text.replace(f"{folder}/", "")


def test_a_file(tmp_path: Path) -> None:
    config = load(tmp_path, HEAD)
    assert config.name == "small"
    assert config.file == tmp_path / "small.yaml"
    assert config.source_url == str(tmp_path / "raw")
    assert config.written == {
        "name": "small",
        "source": {"url": "raw"},
        "destination": {"url": "published"},
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        # Unknown keys, at each level.
        ("shard: {}\n", "small.yaml:4: shard: unknown key; did you mean 'shards'? Known keys: name,"),
        ("zzz: 1\n", "small.yaml:4: zzz: unknown key. Known keys: name, description, source"),
        (
            "samples:\n  requird: [a]\n",
            "small.yaml:5: samples.requird: unknown key; did you mean 'required'? Known keys: naming,",
        ),
        (
            "samples:\n  key:\n    pattern: a\n    replaces: b\n",
            "small.yaml:7: samples.key.replaces: unknown key; did you mean 'replace'? "
            "Known keys: pattern, replace",
        ),
        ("verify: {levl: stat}\n", "small.yaml:4: verify.levl: unknown key; did you mean 'level'?"),
        ("compute:\n  worker: 1\n", "small.yaml:5: compute.worker: unknown key; did you mean 'workers'?"),
        (
            "split:\n  train: 0.9\n  groupby: x\n",
            "small.yaml:4: split: 'groupby': found 'x'; expected a split's ratio such as 0.05, or "
            "one of the options by, group_by, salt, file, names, default; did you mean 'group_by'?",
        ),
        # Values.
        (
            "samples:\n  naming: first\n",
            "small.yaml:5: samples.naming: found 'first'; input should be 'strict', 'webdataset', "
            "'last_dot' or 'escape'",
        ),
        ("shards:\n\n  max_bytes: lots\n", "small.yaml:6: shards.max_bytes: found 'lots'; "),
        ("shards: {max_samples: 0}\n", "small.yaml:4: shards.max_samples: found 0; input should be"),
        ("shards: 3\n", "small.yaml:4: shards: found 3; expected keys of max_bytes, max_samples,"),
        ("shards:\n", "small.yaml:4: shards: found None; expected keys of max_bytes"),
        ("samples: {required: jpg}\n", "small.yaml:4: samples.required: found 'jpg'; expected a list: [a"),
        ("samples: {fields: [jpg]}\n", "small.yaml:4: samples.fields: found ['jpg']; expected a mapping"),
        ("transforms: {resize: {}}\n", "small.yaml:4: transforms: found {'resize': {}}; expected a list"),
        ("samples:\n  required:\n  - jpg\n  - 3\n", "small.yaml:7: samples.required.1: found 3; "),
        ("description: 2024-01-01\n", "small.yaml:4: description: found datetime.date(2024, 1, 1); "),
        ("split: {train: 0.9}\n", "small.yaml:4: split: the ratios (train: 0.9) sum to 0.9, not to 1"),
        (
            "samples: {fields: {jpg: []}, required: [jpeg]}\n",
            "small.yaml:4: samples: required: 'jpeg' is not in fields (jpg); did you mean 'jpg'?",
        ),
        ("samples:\n  key:\n    pattern: (\n", "small.yaml:6: samples.key.pattern: not a regular"),
        # The form of the file.
        (
            "shards: {}\n\nshards: {}\n",
            "small.yaml:6: shards: written twice, first in line 4",
        ),
        ("samples:\n  naming: strict\n  naming: escape\n", "small.yaml:6: samples.naming: written twice"),
        ("a: [\n", "small.yaml:5: not valid YAML: "),
        ("\ta: 1\n", "small.yaml:4: not valid YAML: "),
        ("---\nname: b\n", "small.yaml:4: not valid YAML: "),
        ("a: !!python/name:os.system\n", "small.yaml:4: not valid YAML: "),
        ("description: 2024-99-99\n", "small.yaml: a value cannot be read: month must be in 1..12"),
        ("1: x\n", "small.yaml:4: 1: "),
        ("? [a]\n: 1\n", "small.yaml:4: not valid YAML: "),
    ],
)  # fmt: skip
def test_errors_name_the_file_line_key_found_and_expected(
    tmp_path: Path, more: str, message: str
) -> None:
    assert refused(tmp_path, HEAD + more).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "small.yaml: expected keys such as name, source and destination"),
        ("# nothing\n", "small.yaml: expected keys"),
        ("- name: small\n", "small.yaml: expected keys"),
        ("small\n", "small.yaml: expected keys"),
        (b"name: \xff\n", "small.yaml: not readable"),
        (b"\x00\x01", "small.yaml"),
        ("a: &x {b: *x}\n", "small.yaml: a value cannot be read"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert refused(tmp_path, text).startswith(message)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: not readable"):
        load_config(tmp_path / "gone.yaml")


def test_all_errors_of_a_file_come_at_once(tmp_path: Path) -> None:
    lines = refused(tmp_path, "name: A b\nsource: {}\nshards: {max_samples: x}\n").splitlines()
    assert [line.partition("small.yaml")[2].split(": ")[:2] for line in lines] == [
        [":1", "name"],
        [":2", "source"],
        [":1", "destination"],
        [":3", "shards.max_samples"],
    ]
    assert "expected one: url is a folder of raw files" in lines[1]
    assert lines[2].endswith("this key is required")


# --- environment variables -----------------------------------------------------------------------


def test_variables_are_put_in_and_not_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WDS_PLACE", "/secret/place")
    monkeypatch.setenv("WDS_COUNT", "7")
    config = load(
        tmp_path,
        "name: small\nsource: {url: '${WDS_PLACE}/raw', include: ['${WDS_COUNT}/*']}\n"
        "destination: {url: out}\nshards: {max_samples: '${WDS_COUNT}'}\n",
    )
    assert config.source.url == "/secret/place/raw"
    assert config.source.include == ["7/*"]
    assert config.shards.max_samples == 7
    assert config.written["source"]["url"] == "${WDS_PLACE}/raw"
    assert config.written["shards"]["max_samples"] == "${WDS_COUNT}"
    assert "secret" not in str(config.written)


def test_a_variable_that_is_not_set_is_named(tmp_path: Path) -> None:
    text = refused(tmp_path, HEAD + "samples:\n  required: [jpg, '${WDS_NOT_SET}']\n")
    assert text == (
        "small.yaml:5: samples.required.1: the environment variable 'WDS_NOT_SET' is not set; set "
        "it, or write the value itself"
    )
    assert "''" in refused(tmp_path, HEAD + "description: '${}'\n")


@pytest.mark.parametrize(
    "more",
    [
        "name: ${S}\nsource: {url: raw}\ndestination: {url: out}\n",
        HEAD + "shards: {max_samples: '${S}'}\n",
        HEAD + "shards: {max_bytes: '${S}'}\n",
        HEAD + "samples: {naming: '${S}'}\n",
        HEAD + "samples: {required: ['${S}'], fields: {jpg: []}}\n",
        HEAD + "samples: {fields: {jpg: ['/${S}']}}\n",
        HEAD + "samples: {key: {pattern: '(${S}'}}\n",
        HEAD + "samples: {key: {pattern: 'a', replace: '${S}\\3'}}\n",
        HEAD + "split: {train: '${S}'}\n",
        HEAD + "split: {train: 1, group_by: '${S}'}\n",
        HEAD + "split: {by: directory, default: '${S}'}\n",
        HEAD + "source: {url: raw, include: ['/${S}']}\n".replace("source", "verify"),
        "name: a\nsource: {url: raw, include: ['/${S}']}\ndestination: {url: out}\n",
        "name: a\nsource: {url: raw}\ndestination: {url: 'pipe:${S}'}\n",
    ],
)
@pytest.mark.parametrize("secret", ["hunter-2!", "it's\\n\"x"])
def test_a_variable_s_value_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, secret: str
) -> None:
    monkeypatch.setenv("S", secret)
    text = refused(tmp_path, more)
    assert secret not in text
    assert repr(secret)[1:-1] not in text
    assert "hunter" not in text


# --- several files -------------------------------------------------------------------------------


def write(folder: Path, file: str, name: str, destination: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(
        f"name: {name}\nsource: {{url: raw}}\ndestination: {{url: '{destination}'}}\n"
    )


def test_several_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "sets", "1.yaml", "b", "one")
    write(tmp_path / "sets", "2.yml", "a", "two")
    (tmp_path / "sets/notes.txt").write_text("x: [")
    assert list(load_configs(tmp_path / "sets")) == ["a", "b"]
    monkeypatch.setenv("WDS_PIPELINE_DATASETS", str(tmp_path / "sets"))
    assert list(load_configs()) == ["a", "b"]
    monkeypatch.delenv("WDS_PIPELINE_DATASETS")
    assert datasets_folder() == Path("datasets")


def test_two_datasets_of_one_name(tmp_path: Path) -> None:
    write(tmp_path, "1.yaml", "a", "one")
    write(tmp_path, "2.yaml", "a", "two")
    with pytest.raises(ConfigError) as error:
        load_configs(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/2.yaml: name: 'a' is already the dataset of {tmp_path}/1.yaml; "
        "names must differ, rename one"
    )


@pytest.mark.parametrize("spelling", ["one", "./one/", "{}/one", "file://{}/one", "link"])
def test_two_datasets_of_one_destination(tmp_path: Path, spelling: str) -> None:
    (tmp_path / "link").symlink_to("one")
    write(tmp_path, "1.yaml", "a", "one")
    write(tmp_path, "2.yaml", "b", spelling.format(tmp_path))
    with pytest.raises(ConfigError) as error:
        load_configs(tmp_path)
    text = str(error.value)
    assert text.startswith(
        f"{tmp_path}/2.yaml: destination.url: {spelling.format(tmp_path)} is already"
    )
    assert f"of 'a' ({tmp_path}/1.yaml)" in text


def test_a_shared_destination_s_secret_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "hunter2")
    write(tmp_path, "1.yaml", "a", "${PLACE}")
    write(tmp_path, "2.yaml", "b", "${PLACE}")
    with pytest.raises(ConfigError) as error:
        load_configs(tmp_path)
    assert "hunter2" not in str(error.value)


def test_each_file_at_fault_is_named(tmp_path: Path) -> None:
    write(tmp_path, "1.yaml", "A", "one")
    write(tmp_path, "2.yaml", "b", "two")
    (tmp_path / "3.yaml").write_text("")
    with pytest.raises(ConfigError) as error:
        load_configs(tmp_path)
    lines = str(error.value).splitlines()
    assert [line.partition("yaml")[0][-2:] for line in lines] == ["1.", "3."]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such folder.*WDS_PIPELINE_DATASETS"):
        load_configs(tmp_path / "none")
    assert load_configs(tmp_path) == {}


def test_a_broken_file_does_not_stop_the_others(tmp_path: Path) -> None:
    good = "name: {0}\nsource: {{url: raw}}\ndestination: {{url: {0}}}\n"
    (tmp_path / "a.yaml").write_text(good.format("a"))
    (tmp_path / "b.yaml").write_text("name: b\nsorce: {}\n")
    (tmp_path / "c.yaml").write_text(good.format("c"))
    (tmp_path / "d.yaml").write_text(good.format("c"))
    configs, problems = read_configs(tmp_path)
    assert list(configs) == ["a"], "which of the two is c, nobody knows"
    assert any("did you mean 'source'" in each for each in problems)
    with pytest.raises(ConfigError, match="sorce"):
        load_configs(tmp_path)


def test_datasets_made_of_each_other_are_not_usable(tmp_path: Path) -> None:
    for name, other in {"a": "b", "b": "c", "c": "b", "d": "d", "e": "b", "f": "e"}.items():
        (tmp_path / f"{name}.yaml").write_text(
            f"name: {name}\nsource: {{dataset: {other}}}\ndestination: {{url: ../{name}}}\n"
        )
    configs, problems = read_configs(tmp_path)
    assert list(configs) == ["a", "e", "f"]
    told = "\n".join(problems)
    assert len(problems) == 2 and "d → d; expected one of them" in told
    assert "b → c → b" in told or "c → b → c" in told
    assert all(
        each.startswith(str(tmp_path)) and ".yaml: the datasets" in each for each in problems
    )


def test_an_unquoted_variable_gets_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: a\nsource: {url: ${RAW}/x}\ndestination: {url: out}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml:2: not valid YAML.*quote what holds"):
        load_config(path)

"""Laws of chains of transforms: they give what plain Python gives; each input is accounted for; the digests
of just those samples change that a change of a transform may change."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wds_pipeline.config import SamplesConfig
from wds_pipeline.config_transforms import TransformConfig
from wds_pipeline.dataset.naming import assign
from wds_pipeline.dataset.samples import Samples, group
from wds_pipeline.dataset.transformed import transformed
from wds_pipeline.transforms.chain import Chain
from wds_pipeline.transforms.registry import Step, load
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.dataset.law_transforms import PLAIN
from wds_pipeline_tests.dataset.test_build_crash import ROOT

HERE = "wds_pipeline_tests.dataset.law_transforms"
GLOBS = {
    None: lambda key: True,
    "a/**": lambda key: key.startswith("a/"),
    "*/0": lambda key: key.endswith("/0"),
    "**/[12]": lambda key: key.endswith(("/1", "/2")),
    "b/3": lambda key: key == "b/3",
    "nothing": lambda key: False,
}
Given = dict[str, dict[str, bytes]]
Spec = tuple[str, dict[str, Any], str | None]


def spec(name: str, **parameters: st.SearchStrategy[Any]) -> st.SearchStrategy[Spec]:
    return st.tuples(st.just(name), st.fixed_dictionaries(parameters), st.sampled_from([*GLOBS]))


FIELDS = ["txt", "json", "cls"]
MARK = spec("mark", text=st.sampled_from("xyz"))
LOUDER = spec(
    "Louder",
    fields=st.lists(st.sampled_from(FIELDS), min_size=1, max_size=2, unique=True),
    times=st.integers(1, 3),
)
KINDS = {
    "mark": MARK,
    "Louder": LOUDER,
    "fan": spec("fan", count=st.integers(0, 3)),
    "skip": spec("skip", of=st.integers(2, 4)),
    "refuse": spec("refuse", of=st.integers(2, 4)),
}
STEPS = st.one_of(*KINDS.values())
CHAINS = st.lists(STEPS, min_size=1, max_size=4)
INPUTS = st.dictionaries(
    st.sampled_from([f"{folder}/{number}" for folder in "ab" for number in range(5)]),
    st.dictionaries(st.sampled_from(FIELDS), st.sampled_from([b"", b"u", b"vv"]), min_size=1),
    min_size=1,
    max_size=8,
)


def configs(chain: list[Spec]) -> list[TransformConfig]:
    return [
        TransformConfig(name=f"{HERE}:{name}", parameters=parameters, keys=keys)
        for name, parameters, keys in chain
    ]


def steps(chain: list[Spec]) -> tuple[Step, ...]:
    return load(configs(chain), "small")


def plainly(chain: list[Spec], inputs: Given) -> tuple[Given, set[str]]:
    """What comes out, and which inputs are refused, by plain Python."""
    out: Given = {}
    refused = set()
    for origin, fields in inputs.items():
        found = [(origin, dict(fields))]
        for name, parameters, keys in chain:
            if not GLOBS[keys](origin):
                continue
            parts = [PLAIN[name](key, each, parameters) for key, each in found]
            if None in parts:
                refused.add(origin)
                break
            found = [each for part in parts if part is not None for each in part]
        else:
            out |= dict(found)
    return out, refused


@given(CHAINS, INPUTS)
@settings(max_examples=100)
def test_a_chain_is_its_transforms_one_after_the_other(chain: list[Spec], inputs: Given) -> None:
    made = Chain(steps(chain), "train-000000")
    found = {}
    for sample in made.run({"__key__": key, **fields} for key, fields in inputs.items()):
        key = sample.pop("__key__")
        assert key not in found
        found[key] = sample
    wanted, refused = plainly(chain, inputs)
    assert found == wanted
    assert set(made.rejected) == refused
    assert made.inputs == len(inputs)


def digests(inputs: Given, chain: tuple[Step, ...]) -> dict[str, bytes]:
    """Each sample's digest, as the plan has it."""
    rows = [
        (f"{key}.{name}", len(data), f"xxh3-128:{data.hex()}", None)
        for key, fields in sorted(inputs.items())
        for name, data in sorted(fields.items())
    ]
    columns = ("path", "size", "fingerprint", "problem")
    types = (pa.large_string(), pa.int64(), pa.large_string(), pa.string())
    files = pa.table(
        [pa.array(each, kind) for each, kind in zip(zip(*rows, strict=True), types, strict=True)],
        names=columns,
    )
    config = SamplesConfig()
    found: Samples = transformed(group(assign(files, config), config, "small"), chain)
    return dict(zip(found.keys.to_pylist(), map(bytes, np.asarray(found.digests)), strict=True))


@given(CHAINS, INPUTS, st.data())
@settings(max_examples=100)
def test_a_change_of_a_transform_changes_the_digests_of_what_it_may_change(
    chain: list[Spec], inputs: Given, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(chain) - 1), "which one")
    name, _, keys = chain[at]
    _, parameters, _ = data.draw(KINDS[name], "what it becomes")
    changed: Spec = (name, parameters, keys)
    other = [*chain[:at], changed, *chain[at + 1 :]]
    one, two = digests(inputs, steps(chain)), digests(inputs, steps(other))
    for key, fields in inputs.items():
        if plainly(chain, {key: fields}) != plainly(other, {key: fields}):
            assert one[key] != two[key], "a shard would stay though its content is another"
        if not GLOBS[keys](key):
            assert one[key] == two[key], "a transform that is not for it has no part in it"
    untouched = [key for key in inputs if not any(GLOBS[keys](key) for _, _, keys in chain)]
    bare = digests(inputs, ())
    assert all(one[key] == bare[key] for key in untouched)


@given(LOUDER, INPUTS)
@settings(max_examples=50)
def test_a_transform_of_fields_touches_only_samples_that_have_one(
    step: Spec, inputs: Given
) -> None:
    first = ("Louder", {**step[1], "times": 9}, step[2])
    one, two = digests(inputs, steps([step])), digests(inputs, steps([first]))
    for key, fields in inputs.items():
        concerned = GLOBS[step[2]](key) and bool(fields.keys() & set(step[1]["fields"]))
        assert (one[key] != two[key]) == concerned


@given(st.lists(STEPS, max_size=2), STEPS, INPUTS)
@settings(max_examples=50)
def test_a_transform_of_whole_shards_and_those_behind_it_touch_all(
    before: list[Spec], behind: Spec, inputs: Given
) -> None:
    """It decides over all samples, and what it makes has other keys and fields than they had."""
    chain = list(steps([*before, ("Joined", {"by": " "}, "nothing"), behind]))
    found = digests(inputs, tuple(chain))
    for at in (len(before), len(before) + 1):
        changed = replace(chain[at], digest="another")
        again = digests(inputs, (*chain[:at], changed, *chain[at + 1 :]))
        assert all(found[key] != again[key] for key in inputs)


@given(chain=CHAINS)
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_published_is_what_plain_python_gives(
    chain: list[Spec], tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = Project(tmp_path_factory.mktemp("law"))
    inputs: Given = {}
    for folder in "ab":
        for number in range(5):
            inputs[f"{folder}/{number}"] = {"txt": b"%d" % number, "bin": bytes(2000)}
            for name, content in inputs[f"{folder}/{number}"].items():
                project.write(f"{folder}/{number}.{name}", content)
    wanted, refused = plainly(chain, inputs)
    if len(refused) == len(inputs):
        return  # refused as a whole, which has its own test
    given_steps = [
        {f"{HERE}:{name}": parameters, **({"keys": keys} if keys else {})}
        for name, parameters, keys in chain
    ]
    manifest = project.build(transforms=given_steps, samples={"required": ["txt"]}).manifest
    assert project.published() == wanted
    assert sum(manifest.quarantined.values()) == len(refused)
    used = sum(each.of_source for each in manifest.splits.values())
    assert used + len(refused) == len(inputs)


def test_digests_are_the_same_in_each_process(tmp_path: Path) -> None:
    """Whatever the seed of Python's hashes, of which the order of a set is made."""
    program = (
        "import yaml\n"
        "from wds_pipeline.config_transforms import TransformConfig\n"
        "from wds_pipeline.transforms.registry import declared, load\n"
        f"name = '{HERE}:mark'\n"
        "text = yaml.safe_load('{text: !!set {a, b, c, d, e, f}}')\n"
        "config = TransformConfig(name=name, parameters=text)\n"
        "print(load([config], 'x')[0].digest, declared(config), config.model_dump(mode='json'))\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1

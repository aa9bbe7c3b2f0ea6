"""Transforms in Dagster: what the catalogue says of them, what they reject, and code that is not there."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from wds_pipeline.config_transforms import TransformConfig
from wds_pipeline.dataset.plan import RECIPE_FORMAT
from wds_pipeline.defs import keys, transforms
from wds_pipeline.defs.check_results import NO_KEY_LOST, VERIFICATION_PASSED
from wds_pipeline.defs.progress import progress_lines
from wds_pipeline_tests.conftest import Project, group_members, read_tar
from wds_pipeline_tests.defs.chain import Chain
from wds_pipeline_tests.defs.conftest import PARTITIONED, failure_of, status_of

CODE = """
def halves(sample):
    if sample["__key__"].endswith("2"):
        return None
    if sample["__key__"].endswith("5"):
        raise ValueError("no fives")
    key = sample["__key__"]
    return [{**sample, "__key__": f"{key}-0"}, {**sample, "__key__": f"{key}-1"}]
"""


def use(chain: Chain, code: str, *names: str | dict[str, Any]) -> None:
    """Only `raw`, through these transforms of a module of this code."""
    (chain.folder / "code" / "chain_code.py").write_text(code)
    del chain.datasets["made"]
    (chain.folder / "datasets" / "made.yaml").unlink()
    chain.add(**{**chain.datasets["raw"], "transforms": list(names)})


def lines(result: dg.ExecuteInProcessResult, instance: dg.DagsterInstance) -> str:
    """What the run's log says."""
    return "\n".join(each.user_message for each in instance.all_logs(result.run_id))


def test_the_catalogue_tells_of_them(chain: Chain) -> None:
    use(chain, CODE, "chain_code:halves")
    result = chain.run("raw_build")
    manifest = chain.latest("raw")
    assert (manifest.total_samples, manifest.quarantined) == (12, {"transform_failed": 1})
    shards = [each.metadata for each in chain.events("raw", keys.SHARDS)]
    assert len(shards) == manifest.total_shards, "each is logged once"
    names = ("samples", "inputs", "left_out", "rejected")
    sums = {name: sum(int(str(each[name].value)) for each in shards) for name in names}
    assert sums == {"samples": 12, "inputs": 7, "left_out": 1, "rejected": 1}
    digests = {each.digest for each in manifest.shards}
    assert {each["digest"].value for each in shards} == digests
    shown = chain.shown("raw", keys.PUBLISHED_VERSION)
    assert shown["transforms"] == "chain_code:halves"
    assert (shown["inputs"], shown["left_out"], shown["rejected"]) == (7, 1, 1)
    assert "8 samples in = 7 used (12 published) + 1 quarantined" in shown["verification"]
    said = lines(result, chain.instance)
    assert "transforms: chain_code:halves" in said
    assert "12 samples of 7, 1 left out by chain_code:halves" in said
    assert (
        "transforms cannot use 1 sample, which go to the quarantine:\n  a/0005: chain_code:halv"
        in said
    )
    assert chain.badges() == {}
    assert status_of(chain.run("raw_build"))["publish"] == "skipped"
    checks_of_what_is_stored(chain)


def checks_of_what_is_stored(chain: Chain) -> None:
    asset = keys.asset_key("raw", keys.PUBLISHED_VERSION)
    names = (NO_KEY_LOST, VERIFICATION_PASSED)
    selection = dg.AssetSelection.checks(*(dg.AssetCheckKey(asset, name) for name in names))
    job = dg.define_asset_job("checks", selection=selection)
    defs = dg.Definitions.merge(chain.defs, dg.Definitions(jobs=[job]))
    result = defs.resolve_job_def("checks").execute_in_process(instance=chain.instance)
    found = result.get_asset_check_evaluations()
    assert {each.check_name: (each.passed, each.description) for each in found}.keys() == {*names}
    assert all(each.passed for each in found), [each.description for each in found]


def test_assets_of_shards_with_rejected_samples(chain: Chain) -> None:
    """Materialized by hand, a shard whose samples fail says so, and what to do."""
    use(chain, CODE, "chain_code:halves")
    chain.materialize("raw", keys.SHARD_PLAN)
    failed = {}
    for partition in chain.partitions("raw"):
        job = chain.defs.resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(
            instance=chain.instance,
            asset_selection=[keys.asset_key("raw", keys.SHARDS)],
            partition_key=partition,
            raise_on_error=False,
        )
        if not result.success:
            failed[partition] = failure_of(result)
    ((partition, message),) = failed.items()
    assert (
        f"{partition}: 1 of its samples are rejected by the transforms, such as a/0005: " in message
    )
    assert "no fives; the build job leaves them out" in message
    chain.build("raw")
    assert chain.latest("raw").total_samples == 12
    for asset in PARTITIONED:
        chain.materialize("raw", asset, [partition])
    assert chain.badges() == {}
    chain.materialize("raw", keys.PUBLISHED_VERSION)
    assert chain.latest("raw").version == 1


def test_all_samples_of_a_shard_rejected(chain: Chain) -> None:
    use(chain, "def none(sample):\n    raise ValueError('never')\n", "chain_code:none")
    message = failure_of(chain.run("raw_build", fails=True))
    assert "never" in message or "transform_failed" in message


def test_code_that_changes_is_shown_and_built(chain: Chain) -> None:
    """Where it touches some samples alone, the others' shards are only told anew."""
    module = chain.folder / "code" / "chain_code.py"
    chain.build("raw")
    made = chain.datasets["made"]
    made["transforms"] = [{"chain_code:upper": {}, "keys": "a/0003"}]
    chain.add(**made)
    chain.build("made")
    names = {each.name for each in chain.latest("made").shards}
    module.write_text(module.read_text().replace("upper()", "title()"))
    assert {name.split()[0] for name in chain.badges()} == {"made/shards"}
    assert len(chain.badges()) == len(names)
    chain.build("made")
    assert chain.badges() == {}
    assert len({each.name for each in chain.latest("made").shards} - names) == 1
    assert chain.published("made")["a/0003"]["txt"] == b"Caption Of A/0003"
    module.write_text(f"# a comment\n{module.read_text()}")
    assert chain.badges() == {}


@pytest.mark.parametrize(
    ("code", "name", "says"),
    [
        ("", "no_such_module:clean", "No module named 'no_such_module'"),
        ("import no_such_package", "chain_code:upper", "No module named 'no_such_package'"),
        ("raise SystemExit(3)", "chain_code:upper", "chain_code"),
        ("def upper(:", "chain_code:upper", "chain_code"),
        ("", "chain_code:upper", "nothing of that name"),
        ("", "resiz", "there is no such transform"),
        ("", "resize", "size"),
    ],
)
def test_a_broken_transform_is_its_own_datasets_trouble(
    chain: Chain, code: str, name: str, says: str
) -> None:
    """The location loads, the others are built; its run says what is wrong, before any work."""
    (chain.folder / "code" / "chain_code.py").write_text(code)
    chain.add(**{**chain.datasets["made"], "transforms": [name]})
    assert {"raw_build", "made_build"} <= {job.name for job in chain.defs.jobs or []}
    result = chain.run("made_build", fails=True)
    assert status_of(result)["scan"] == "failed"
    message = failure_of(result)
    assert "transforms[0]" in message
    assert says in message
    if name == "no_such_module:clean":
        chain.build("raw")


def test_nothing_of_a_users_is_run_when_the_location_loads(chain: Chain) -> None:
    module = chain.folder / "code" / "chain_code.py"
    module.write_text(f"open({str(chain.folder / 'ran')!r}, 'w')\n{module.read_text()}")
    assert "made_build" in {job.name for job in chain.defs.jobs or []}
    assert not (chain.folder / "ran").exists()


def test_code_versions(project: Project) -> None:
    def of(*named: Any) -> str:
        return transforms.code_version(project.config(transforms=list(named)))

    assert of() == RECIPE_FORMAT
    found = [
        of({"resize": {"fields": ["png"], "size": 4}}),
        of({"resize": {"fields": ["png"], "size": 5}}),
        of({"resize": {"fields": ["png"], "size": 5}, "version": "2"}),
        of({"resize": {"fields": ["png"], "size": 5}, "keys": "a/*"}),
        of("hash", {"resize": {"fields": ["png"], "size": 4}}),
        of({"resize": {"fields": ["png"], "size": 4}}, "hash"),
    ]
    assert len(set(found)) == len(found)
    assert all(each.startswith(f"{RECIPE_FORMAT}+") for each in found)


def test_names_and_kinds(project: Project) -> None:
    def kinds(*named: str) -> set[str]:
        config = project.config(transforms=[TransformConfig(name=each) for each in named])
        return transforms.kinds(config, "tar")

    assert kinds() == {"tar"}
    assert kinds("resize", "my.Module:Clean") == {"tar", "resize", "clean"}
    assert kinds("resize", "a.b:c", "hash") == {"tar", "resize", "and_2_more"}
    assert kinds("a.b:café") == {"tar", "caf_"}
    for names in itertools.combinations(("resize", "a.b:café", "x.y:" + "z" * 90), 2):
        dg.AssetSpec("some", kinds=kinds(*names))


def test_progress_of_what_is_counted(tmp_path: Path) -> None:
    with dg.build_op_context() as context:
        found: list[str] = []
        context.log.info = found.append  # type: ignore[method-assign,assignment]
        say = progress_lines(context, 0)
        say("scan", 1_200, 0)
        say("download", 30, 120)
        say("download", 120, 120)
    assert found == ["scan: 1,200 so far", "download: 30 of 120 done (25%)"]


def test_a_repair_of_what_transforms_made(chain: Chain) -> None:
    """To the bytes that were published, though the upstream dataset has a newer version by now."""
    (chain.folder / "code" / "chain_code.py").write_text(CODE)
    chain.add(**{**chain.datasets["made"], "transforms": ["chain_code:halves"]})
    chain.build()
    shards = [each for each in chain.latest("made").shards if each.samples]
    shard = shards[0]
    (other, *_) = group_members(read_tar(chain.folder / "made" / shards[1].path))
    chain.raw.write(f"{other.removesuffix('-0').removesuffix('-1')}.txt", "another caption")
    chain.build("raw")
    path = chain.folder / "made" / shard.path
    data = path.read_bytes()
    path.write_bytes(data[:600] + b"rot" + data[603:])
    chain.run("made_verify", fails=True)
    chain.run("made_repair")
    assert path.read_bytes() == data
    chain.run("made_verify")
    assert not any(shard.partition in name for name in chain.badges())

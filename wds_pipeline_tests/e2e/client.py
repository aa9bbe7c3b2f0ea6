"""What the tests ask the web server for, by GraphQL: the same requests as the UI's."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wds_pipeline_tests.e2e.server import wait_for

_REPOSITORY = {
    "repositoryName": "__repository__",
    "repositoryLocationName": "wds_pipeline",
}
_ASSET_JOB = "__ASSET_JOB"
ENDED = {"SUCCESS", "FAILURE", "CANCELED"}
Json = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run as the list of runs shows it."""

    id: str
    job: str
    status: str
    tags: dict[str, str]


class Client:
    """A web server's GraphQL."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, query: str, **variables: Any) -> Json:
        """The answer's data. Raises AssertionError where GraphQL found an error."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"{self.url}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        data: Json = answer["data"]
        return data

    def location_error(self) -> str:
        """Why the code location could not be loaded; empty if it was."""
        (entry,) = self.ask(
            """{
              workspaceOrError {
                ... on Workspace {
                  locationEntries { locationOrLoadError { ... on PythonError { message } } }
                }
              }
            }"""
        )["workspaceOrError"]["locationEntries"]
        message: str = (entry["locationOrLoadError"] or {}).get("message", "")
        return message

    # ------------------------------------------------------------------------------------- runs

    def launch(self, job: str, config: Json | None = None) -> str:
        """Launches a job; returns the run's id."""
        return self._launch({"pipelineName": job}, config or {}, {})

    def materialize(self, assets: Sequence[str], partitions: Sequence[str] = ()) -> str:
        """Materializes assets such as `small/shards` in one run: of one partition, or of a range."""
        tags = {}
        if len(partitions) == 1:
            tags = {"dagster/partition": partitions[0]}
        elif partitions:
            tags = {
                "dagster/asset_partition_range_start": partitions[0],
                "dagster/asset_partition_range_end": partitions[-1],
            }
        paths = [{"path": asset.split("/")} for asset in assets]
        return self._launch({"pipelineName": _ASSET_JOB, "assetSelection": paths}, {}, tags)

    def _launch(self, selector: Json, config: Json, tags: dict[str, str]) -> str:
        answer = self.ask(
            """mutation ($params: ExecutionParams!) {
              launchRun(executionParams: $params) {
                __typename
                ... on LaunchRunSuccess { run { runId } }
                ... on RunConfigValidationInvalid { errors { message } }
                ... on Error { message }
              }
            }""",
            params={
                "selector": {**_REPOSITORY, **selector},
                "runConfigData": config,
                "mode": "default",
                "executionMetadata": {
                    "tags": [{"key": key, "value": value} for key, value in tags.items()]
                },
            },
        )["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        run: str = answer["run"]["runId"]
        return run

    def backfill(self, assets: Sequence[str], partitions: Sequence[str]) -> str:
        """Materializes any set of partitions; returns the backfill's id."""
        answer = self.ask(
            """mutation ($params: LaunchBackfillParams!) {
              launchPartitionBackfill(backfillParams: $params) {
                __typename
                ... on LaunchBackfillSuccess { backfillId }
                ... on Error { message }
              }
            }""",
            params={
                "assetSelection": [{"path": asset.split("/")} for asset in assets],
                "partitionNames": list(partitions),
            },
        )["launchPartitionBackfill"]
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        backfill: str = answer["backfillId"]
        return backfill

    def runs(self, tags: Mapping[str, str]) -> list[Run]:
        """The runs that have these tags, newest first."""
        wanted = [{"key": key, "value": value} for key, value in tags.items()]
        found = self.ask(
            """query ($filter: RunsFilter) {
              runsOrError(filter: $filter, limit: 200) {
                ... on Runs { results { runId jobName status tags { key value } } }
              }
            }""",
            filter={"tags": wanted},
        )["runsOrError"]["results"]
        return [
            Run(
                each["runId"],
                each["jobName"],
                each["status"],
                {tag["key"]: tag["value"] for tag in each["tags"]},
            )
            for each in found
        ]

    def status(self, run: str) -> str:
        answer = self.ask(
            "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run
        )
        status: str = answer["runOrError"]["status"]
        return status

    def wait_for_run(self, run: str, expected: str = "SUCCESS") -> None:
        """Waits for the run's end. Raises AssertionError, with what the run said, for another one."""
        wait_for(f"the end of run {run}", lambda: self.status(run) in ENDED)
        status = self.status(run)
        assert status == expected, f"run {run}: {status}\n" + "\n".join(self.messages(run))

    def terminate(self, run: str) -> None:
        answer = self.ask(
            """mutation ($id: String!) {
              terminateRun(runId: $id) { __typename ... on Error { message } }
            }""",
            id=run,
        )["terminateRun"]
        assert answer["__typename"] == "TerminateRunSuccess", answer

    def messages(self, run: str) -> list[str]:
        """What the run logged, errors included."""
        events = self.ask(
            """query ($id: ID!) {
              logsForRun(runId: $id) {
                ... on EventConnection {
                  events {
                    ... on MessageEvent { message }
                    ... on ErrorEvent { error { message } }
                    ... on ExecutionStepFailureEvent { failureMetadata { description } }
                  }
                }
              }
            }""",
            id=run,
        )["logsForRun"]["events"]
        return [
            " ".join(
                text
                for text in (
                    each.get("message"),
                    (each.get("error") or {}).get("message"),
                    (each.get("failureMetadata") or {}).get("description"),
                )
                if text
            )
            for each in events
        ]

    # ----------------------------------------------------------------------------------- assets

    def assets(self, group: str) -> dict[str, Json]:
        """Each asset of a dataset by its last name, with what the lineage shows of it."""
        nodes = self.ask(
            """query ($group: AssetGroupSelector) {
              assetNodes(group: $group) {
                assetKey { path }
                groupName kinds description staleStatus isPartitioned
                staleCauses { reason key { path } }
                partitionStats {
                  numPartitions numMaterialized numFailed numMaterializing
                }
                partitionKeys
                dependencyKeys { path }
              }
            }""",
            group={"groupName": group, **_REPOSITORY},
        )["assetNodes"]
        return {node["assetKey"]["path"][-1]: node for node in nodes}

    def materializations(self, asset: str, partition: str | None = None) -> list[Json]:
        """Of an asset such as `small/shards`, newest first: run, time, partition and metadata."""
        found = self.ask(
            """query ($key: AssetKeyInput!, $partitions: [String!]) {
              assetOrError(assetKey: $key) {
                ... on Asset {
                  assetMaterializations(partitions: $partitions, limit: 10000) {
                    runId timestamp partition
                    metadataEntries {
                      label
                      ... on IntMetadataEntry { intRepr }
                      ... on TextMetadataEntry { text }
                      ... on MarkdownMetadataEntry { mdStr }
                      ... on PathMetadataEntry { path }
                      ... on UrlMetadataEntry { url }
                    }
                  }
                }
              }
            }""",
            key={"path": asset.split("/")},
            partitions=None if partition is None else [partition],
        )["assetOrError"]
        every: list[Json] = found.get("assetMaterializations", [])
        return every

    def built_by(self, run: str, asset: str) -> list[str]:
        """The partitions of the asset that a run materialized, sorted, repetitions included."""
        return sorted(
            each["partition"] or "" for each in self.materializations(asset) if each["runId"] == run
        )

    def failed_partitions(self, asset: str) -> list[str]:
        """The partitions that the asset's page shows as failed."""
        node = self.ask(
            """query ($keys: [AssetKeyInput!]) {
              assetNodes(assetKeys: $keys) {
                assetPartitionStatuses {
                  ... on DefaultPartitionStatuses { failedPartitions }
                }
              }
            }""",
            keys=[{"path": asset.split("/")}],
        )["assetNodes"][0]
        return sorted(node["assetPartitionStatuses"]["failedPartitions"])

    def checks(self, asset: str) -> list[str]:
        """The names of the asset's checks."""
        (node,) = self.ask(
            """query ($keys: [AssetKeyInput!]) {
              assetNodes(assetKeys: $keys) {
                assetChecksOrError { ... on AssetChecks { checks { name } } }
              }
            }""",
            keys=[{"path": asset.split("/")}],
        )["assetNodes"]
        return sorted(check["name"] for check in node["assetChecksOrError"].get("checks", []))

    # ------------------------------------------------------------------------ sensors and daemon

    def ticks(self, sensor: str) -> list[Json]:
        """A sensor's ticks, newest first: status, time, the runs launched, why none was."""
        answer = self.ask(
            """query ($selector: SensorSelector!) {
              sensorOrError(sensorSelector: $selector) {
                __typename
                ... on Sensor {
                  sensorState {
                    status
                    ticks(limit: 200) { status timestamp runIds skipReason error { message } }
                  }
                }
                ... on Error { message }
              }
            }""",
            selector={**_REPOSITORY, "sensorName": sensor},
        )["sensorOrError"]
        assert answer["__typename"] == "Sensor", answer
        ticks: list[Json] = answer["sensorState"]["ticks"]
        return ticks

    def daemons(self) -> dict[str, bool]:
        """Which of the daemon's threads are required, and whether they are healthy."""
        found = self.ask(
            "{ instance { daemonHealth { allDaemonStatuses { daemonType healthy required } } } }"
        )["instance"]["daemonHealth"]["allDaemonStatuses"]
        return {each["daemonType"]: bool(each["healthy"]) for each in found if each["required"]}

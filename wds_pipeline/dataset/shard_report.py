"""What verification found in one shard, and its file: `<shard>.report.parquet`, beside the tar.

The rows are the members; level, rules, findings and thumbnails are JSON in the schema's metadata,
under `wds_pipeline.report`.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from wds_pipeline.dataset.content import Facts
from wds_pipeline.dataset.seal import REPORT, path
from wds_pipeline.storage import Storage

LEVELS = ("stat", "digest", "samples", "decode")

# Raise it when a check becomes stricter, so that older reports are not reused.
FORMAT_VERSION = 1
_METADATA = b"wds_pipeline.report"

# One row a member, in the tar's order. `digest` is the xxh3-128 of the content (big-endian), null
# below level `samples`; `problem` a code of `content.check`; sizes are in bytes, width and height
# in pixels, chars in Unicode code points; `decoded` is whether the content was looked into.
MEMBERS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("field", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("digest", pa.binary(16)),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("chars", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("problem", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("decoded", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Rules:
    """What to verify: a level of LEVELS; `sample`, the share of the samples to decode, 0 to 1.

    `extensions` are those that each field may be made of; a field that is missing stands for its
    own last extension. An image of more than `max_pixels` pixels is a problem, and not decoded.
    """

    level: str
    sample: float
    max_pixels: int
    extensions: dict[str, list[str]]

    def extensions_of(self, name: str) -> tuple[str, ...]:
        """The extensions that a field may be made of."""
        return tuple(self.extensions.get(name) or (name,))

    @property
    def content_digest(self) -> str:
        """The same for rules by which content is judged in the same way."""
        parts = json.dumps([self.max_pixels, self.extensions], sort_keys=True)
        return xxhash.xxh3_128_hexdigest(parts.encode())

    def same_content_rules(self, other: Rules) -> bool:
        """Whether facts found by the other rules hold by these."""
        return self.max_pixels == other.max_pixels and self.extensions == other.extensions


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be; `message` says what was found and expected.

    `severity` is error or warning; `key` and `field` are empty where it is not of one sample.
    `count` is of how many members or samples it speaks, when it stands for more than one.
    """

    severity: str
    code: str
    shard: str
    key: str
    field: str
    message: str
    count: int = 1


@dataclass(frozen=True)
class Thumbnail:
    """A sample to show: `jpeg` is empty where it has no image; sizes are the image's, in pixels."""

    key: str
    field: str
    jpeg: bytes
    caption: str
    width: int | None = None
    height: int | None = None


@dataclass
class ShardReport:
    """One shard, verified. `bytes` and `digest` are the seal's; `findings` are structural damage.

    Content that does not decode is no damage of the shard: it is in `members.problem`.
    """

    name: str
    split: str
    slot: int
    rules: Rules
    digest: str
    samples: int
    bytes: int
    members: pa.Table
    findings: list[Finding] = field(default_factory=list)
    thumbnails: list[Thumbnail] = field(default_factory=list)

    @property
    def level(self) -> str:
        return self.rules.level

    @property
    def sample(self) -> float:
        return self.rules.sample

    @property
    def errors(self) -> list[Finding]:
        """The structural damage."""
        return [each for each in self.findings if each.severity == "error"]

    @property
    def passed(self) -> bool:
        """Whether the shard is what its seal, index and plan say."""
        return not self.errors

    def covers(self, digest: str, rules: Rules) -> bool:
        """Whether this report answers what verifying the shard of this digest by `rules` would ask.

        A report of damage never does: the shard may have been repaired.
        """
        deep = LEVELS.index(self.level) >= LEVELS.index(rules.level)
        if rules.level == "decode":
            deep = deep and self.sample >= rules.sample and rules.same_content_rules(self.rules)
        return self.passed and deep and self.digest == digest


def known_facts(reports: Iterable[ShardReport], rules: Rules) -> dict[tuple[str, bytes], Facts]:
    """(field, content digest) → the facts of earlier reports that are true by `rules` too."""
    facts: dict[tuple[str, bytes], Facts] = {}
    for report in reports:
        if not rules.same_content_rules(report.rules):
            continue
        rows = report.members.select(MEMBERS.names).to_pydict()
        for name, digest, width, height, chars, form, problem, detail, decoded in zip(
            *(rows[each] for each in MEMBERS.names if each not in ("key", "size")), strict=True
        ):
            if (decoded or problem) and digest is not None:
                facts[name, digest] = Facts(
                    problem, detail or "", width, height, chars, form, None, decoded
                )
    return facts


def save_report(storage: Storage, report: ShardReport) -> None:
    """Writes the report beside its shard. Raises DestinationError."""
    values = {
        "format_version": FORMAT_VERSION,
        "name": report.name,
        "split": report.split,
        "slot": report.slot,
        "digest": report.digest,
        "samples": report.samples,
        "bytes": report.bytes,
        "rules": asdict(report.rules),
        "findings": [asdict(each) for each in report.findings],
        "thumbnails": [
            asdict(each) | {"jpeg": base64.b64encode(each.jpeg).decode()}
            for each in report.thumbnails
        ],
    }
    sink = io.BytesIO()
    # Arrow's own note of the schema would have the metadata, thumbnails and all, a second time.
    with pq.ParquetWriter(
        sink, MEMBERS, compression="zstd", write_page_checksum=True, store_schema=False
    ) as file:
        file.write_table(report.members.cast(MEMBERS))
        file.add_key_value_metadata({_METADATA.decode(): json.dumps(values)})
    storage.put(path(report.name, REPORT), sink.getvalue())


def load_report(storage: Storage, name: str) -> ShardReport | None:
    """The report beside a shard; None if there is none that this release wrote and can read."""
    try:
        file = pq.ParquetFile(pa.BufferReader(storage.read(path(name, REPORT))))
        table = file.read(use_threads=False)  # see `seal.parse_parquet`
        values = json.loads(table.schema.metadata[_METADATA])
        if values.pop("format_version") != FORMAT_VERSION or values["name"] != name:
            return None
        values["rules"] = Rules(**values["rules"])
        values["findings"] = [Finding(**each) for each in values["findings"]]
        values["thumbnails"] = [
            Thumbnail(**each | {"jpeg": base64.b64decode(each["jpeg"])})
            for each in values["thumbnails"]
        ]
        members = table.replace_schema_metadata(None).cast(MEMBERS)
        return ShardReport(members=members, **values)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def read_columns(storage: Storage, name: str, columns: list[str]) -> pa.Table | None:
    """Some columns of the members of a shard's report; None if there is none that can be read."""
    try:
        data = pa.BufferReader(storage.read(path(name, REPORT)))
        found = pq.ParquetFile(data).read(columns=columns, use_threads=False)
        return found.cast(pa.schema([MEMBERS.field(name) for name in columns]))
    except (FileNotFoundError, pa.ArrowException, KeyError, ValueError):
        return None

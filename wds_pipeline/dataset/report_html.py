"""The report as one page for people: self-contained, for a browser, a mail or a printer."""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Iterable
from typing import Any

import jinja2
from markupsafe import Markup, escape

from wds_pipeline.dataset.distributions import Distribution
from wds_pipeline.dataset.report import Card, Report
from wds_pipeline.dataset.shard_report import Finding
from wds_pipeline.dataset.wording import human_bytes

_SHARDS = 500  # rows of the table of shards
_TITLES = {
    "accounting": "The numbers do not add up",
    "bad_array": "Arrays that do not load",
    "bad_compression": "Compressed files that do not unpack",
    "bad_header": "Tars with a damaged header",
    "bad_index": "Member indexes that cannot be read",
    "bad_json": "JSON that does not parse",
    "bad_name": "Members that webdataset would skip",
    "bad_number": "Numbers that are none",
    "bad_text": "Text that is not UTF-8",
    "broken_image": "Images that do not decode",
    "duplicate": "The same content in several samples of one split",
    "duplicate_field": "A field twice in one sample",
    "duplicate_key": "Keys that are in several places",
    "empty_file": "Empty files",
    "index_mismatch": "Member indexes that disagree with their tar",
    "key_not_adjacent": "Samples whose members are not next to each other",
    "leak": "The same content in several splits",
    "missing_field": "Samples without a required field",
    "missing_index": "Shards without their member index",
    "missing_member": "Members that the plan has and the tar does not",
    "missing_tar": "Shards that are gone",
    "not_a_tar": "Files that are no tar",
    "too_many_pixels": "Images with too many pixels",
    "trailing_data": "Data after the end of a tar",
    "truncated": "Tars that were cut short",
    "unexpected_member": "Members that the plan does not have",
    "unreadable": "Shards that cannot be read",
    "unverified": "Shards that were not verified",
    "wrong_count": "Shards with another number of samples than sealed",
    "wrong_digest": "Shards whose bytes changed",
    "wrong_format": "Images of another format than their extension says",
    "wrong_member_size": "Members of another size than planned",
    "wrong_order": "Members in another order than planned",
    "wrong_size": "Shards of another size than sealed",
}
_LEVELS = {
    "stat": "every shard is there, in its size",
    "digest": "every shard's bytes were compared with its digest",
    "samples": "every shard was read back, member by member",
    "decode": "every shard was read back and its content decoded",
}


def render(report: Report) -> str:
    """The whole page as HTML; it refers to nothing outside itself."""
    cards = [*report.sheet, *report.pictures]
    anchors = {(each.place.shard, each.place.key): f"s{at}" for at, each in enumerate(cards)}
    level = _LEVELS[report.level]
    if report.level == "decode" and report.sample < 1:
        level = f"every shard was read back, and {report.sample:.3g} of the samples decoded"
    return _template().render(
        report=report,
        level=level,
        total_bytes=sum(each.bytes for each in report.shards),
        findings=_by_code(report),
        anchors=anchors,
        cards={anchors[each.place.shard, each.place.key]: each for each in cards},
        images={anchors[each.place.shard, each.place.key]: _image(each) for each in cards},
        histograms=[(each, histogram(each)) for each in report.distributions],
        quarantine=_by_reason(report),
        shards=report.shards[:_SHARDS],
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wds_pipeline.dataset"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "bytes": human_bytes,
        "share": _share,
        "title_of": _title,
        "figure": _figure,
    }
    return environment.get_template("report.html")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3g}"


def _title(code: str) -> str:
    return _TITLES.get(code, code.replace("_", " ").capitalize())


def _by_code(report: Report) -> list[dict[str, Any]]:
    listed: dict[tuple[str, str], list[Finding]] = {}
    for each in report.findings:
        listed.setdefault((each.severity, each.code), []).append(each)
    return [
        {"severity": severity, "code": code, "count": count, "listed": listed.get((severity, code))}
        for (severity, code), count in report.counts.items()
    ]


def _by_reason(report: Report) -> list[dict[str, Any]]:
    return [
        {
            "reason": reason,
            "count": count,
            "rows": [each for each in report.quarantine if each["reason"] == reason],
        }
        for reason, count in report.samples["quarantined_by_reason"].items()
    ]


def _image(card: Card) -> str:
    jpeg = card.thumbnail.jpeg
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else ""


def _share(part: float, whole: float) -> str:
    """A percentage that says 0 % and 100 % only where that is exact."""
    if not whole or part in (0, whole):
        return "100 %" if whole and part == whole else "0 %"
    percent = 100 * part / whole
    if percent < 0.1 or percent > 99.9:
        return "< 0.1 %" if percent < 1 else "> 99.9 %"
    return f"{percent:.1f} %"


# The drawing area of a histogram, in SVG units.
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 320, 132, 34, 18, 8


def histogram(shown: Distribution) -> Markup:
    """A histogram as inline SVG: bars with their numbers as tooltips, both axes labelled."""
    width, height = _WIDTH - _LEFT, _HEIGHT - _BOTTOM - _TOP
    top = max(shown.counts)
    step = width / len(shown.counts)
    floor = _HEIGHT - _BOTTOM
    bars = []
    for at, count in enumerate(shown.counts):
        tall = max(1.0, height * count / top) if count else 0
        gap = min(1.0, step / 6)
        bars.append(
            f'<rect x="{_LEFT + at * step + gap / 2:.1f}" y="{floor - tall:.1f}" '
            f'width="{min(step - gap, 48):.1f}" height="{tall:.1f}">'
            f"<title>{_range(shown, at)}: {count:,}</title></rect>"
        )
    label = (
        f"Histogram of {shown.name} in {shown.unit}: {shown.count:,} values from "
        f"{number(shown.min)} to {number(shown.max)}, median {number(shown.median)}"
    )
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'<g class="bars">{"".join(bars)}</g>'
        f'<path class="axis" d="M{_LEFT} {floor + 0.5}H{_WIDTH}"/>'
        f'<text x="{_LEFT - 5}" y="{_TOP + 8}" text-anchor="end">{number(top)}</text>'
        f'<text x="{_LEFT - 5}" y="{floor}" text-anchor="end">0</text>'
        f"{''.join(_ticks(shown, step))}</svg>"
    )


def _range(shown: Distribution, at: int) -> str:
    return f"{number(shown.edges[at])} to {number(shown.edges[at + 1])}"


def _ticks(shown: Distribution, step: float) -> Iterable[str]:
    y = _HEIGHT - 4
    if len(shown.counts) == 1:
        middle = _LEFT + min(step, 48) / 2
        yield f'<text x="{middle:.1f}" y="{y}" text-anchor="middle">{number(shown.min)}</text>'
        return
    bins = len(shown.edges) - 1
    every = max(1, math.ceil(bins / 5))
    for at in range(0, bins + 1, every):
        anchor = "start" if at == 0 else "end" if at == bins else "middle"
        x = _LEFT + at * step
        yield (f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}">{number(shown.edges[at])}</text>')


def number(value: float) -> str:
    """A short number for an axis: 1,234 or 12k, 0.75."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"

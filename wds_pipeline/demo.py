"""The demo's raw files: pleasant little pictures with captions and json, and every awkward case.

`generate` draws them, the same bytes and the same modification times for the same seed.
`AWKWARD` is the table of what real folders hold besides good samples, each with its outcome.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import math
import os
import random
import re
import shutil
import sys
import time
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageOps

DEFAULT_FOLDER = Path("demo/raw")

# ------------------------------------------------------------------------------ the awkward cases

OK = "ok"
SKIPPED = frozenset(
    {
        "hidden",
        "apple_double",
        "system_file",
        "editor_file",
        "symlink_outside",
        "symlink_broken",
        "special_file",
    }
)
NOT_A_SAMPLE = frozenset({"no_extension", "unselected"})
QUARANTINED = frozenset(
    {
        "dotted_name",
        "bad_name",
        "reserved_name",
        "name_not_utf8",
        "missing_field",
        "duplicate_field",
        "empty_file",
        "broken_image",
        "wrong_format",
        "bad_text",
        "bad_json",
    }
)

_KEY = re.compile(r"^((?:.*/|)[^.]+)[.][^/]*$", re.DOTALL)


@dataclass(frozen=True)
class Case:
    """One awkward case: its files, and what a build makes of them.

    `outcome` is of each file if in SKIPPED or NOT_A_SAMPLE, else of each sample (`keys`).
    `files` are (path, content) pairs; a name that is not UTF-8 is written with surrogate escapes.
    """

    name: str
    what: str
    outcome: str
    files: tuple[tuple[str, str], ...]

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(path for path, _ in self.files)

    @property
    def is_sample(self) -> bool:
        return self.outcome not in SKIPPED | NOT_A_SAMPLE

    @property
    def keys(self) -> tuple[str, ...]:
        """The samples' keys, or nothing if these files are no samples."""
        if not self.is_sample:
            return ()
        if self.outcome == "dotted_name":  # named by its whole stem: no rule made it a key
            return tuple(dict.fromkeys(path.rpartition(".")[0] for path in self.paths))
        found = (_KEY.match(path) for path in self.paths)
        return tuple(dict.fromkeys(match[1] for match in found if match))

    @property
    def count(self) -> int:
        return len(self.keys) if self.is_sample else len(self.files)


def _trio(stem: str, **contents: str) -> tuple[tuple[str, str], ...]:
    fields = {"jpg": "image", "txt": "caption", "json": "json", **contents}
    return tuple((f"{stem}.{field}", content) for field, content in fields.items() if content)


def _twins(count: int) -> tuple[tuple[str, str], ...]:
    stems = [f"{folder}/twin-{i:02}" for i in range(count) for folder in ("firsts", "copies")]
    return tuple(file for s in stems for file in _trio(s, jpg=f"image twin-{s[-2:]}"))


_LONG_NAME = "a-view-of-the-harbour-" + "with-yet-another-small-boat-" * 4 + "at-dawn"
_LONG_FOLDERS = "/".join(f"a-folder-with-a-rather-long-name-{i}" for i in range(1, 8))
_MIDDLE_FOLDERS = "/".join(f"a-folder-with-a-rather-long-name-{i}" for i in range(1, 4))

AWKWARD: tuple[Case, ...] = (
    # Files that are skipped, and counted.
    Case("hidden", "a hidden file", "hidden", (("coast/.hidden.jpg", "image"),)),
    Case("ds_store", "what the macOS Finder leaves", "hidden", (("coast/.DS_Store", "junk"),)),
    Case(
        "apple_double",
        "a macOS resource fork; webdataset would read the key 'coast/'",
        "apple_double",
        (("coast/._coast-0000.jpg", "junk"),),
    ),
    Case(
        "system_file",
        "what the Windows Explorer leaves",
        "system_file",
        (("city/day/Thumbs.db", "junk"), ("city/day/desktop.ini", "junk")),
    ),
    Case(
        "editor_file",
        "backup, lock and swap files of editors",
        "editor_file",
        (
            ("forest/notes.txt~", "caption"),
            ("forest/#notes.txt#", "caption"),
            ("forest/.notes.txt.swp", "junk"),
        ),
    ),
    Case(
        "symlink_outside_file",
        "a symlink to a file outside the source",
        "symlink_outside",
        (("forest/outside.txt", "link /etc/hosts"),),
    ),
    Case(
        "symlink_outside_folder",
        "a symlink to a folder above the source: following it would never end",
        "symlink_outside",
        (("forest/outside", "link ../.."),),
    ),
    Case(
        "symlink_broken",
        "a symlink to nothing",
        "symlink_broken",
        (("forest/dangling.jpg", "link no-such-file.jpg"),),
    ),
    Case(
        "special_file",
        "a named pipe: opening it would wait for ever",
        "special_file",
        (("forest/pipe.txt", "fifo"),),
    ),
    # Files that belong to no sample.
    Case("no_extension", "a file without extension", "no_extension", (("README", "caption"),)),
    Case(
        "unselected",
        "files beside samples whose field is not asked for",
        "unselected",
        (("coast/coast-0000.xmp", "caption"), ("coast/coast-0000.bak", "junk")),
    ),
    # Samples that are left out, each with its reason.
    Case(
        "dotted_name",
        "a dot in the stem: webdataset would read key 'photo', field 'v2.jpg'",
        "dotted_name",
        _trio("city/day/photo.v2"),
    ),
    Case(
        "control_characters",
        "a newline and a bell in names",
        "bad_name",
        (*_trio("city/day/two\nlines"), *_trio("city/day/a\x07bell")),
    ),
    Case(
        "reserved_basename",
        "a basename that starts with '__': Hugging Face drops it",
        "reserved_name",
        _trio("city/day/__cover"),
    ),
    Case(
        "reserved_folder",
        "a first folder like '__meta__': webdataset skips it",
        "reserved_name",
        _trio("__meta__/origin"),
    ),
    Case(
        "name_not_utf8",
        "a Latin-1 name",
        "name_not_utf8",
        _trio(os.fsdecode(b"city/day/caf\xe9-terrace")),
    ),
    Case("no_caption", "a sample without caption", "missing_field", _trio("coast/mute", txt="")),
    Case(
        "field_twice",
        "two files for one field",
        "duplicate_field",
        _trio("coast/twice", jpeg="image again"),
    ),
    Case("empty_image", "an image of no bytes", "empty_file", _trio("coast/blank", jpg="empty")),
    Case(
        "empty_caption", "a caption of no bytes", "empty_file", _trio("coast/silent", txt="empty")
    ),
    Case("truncated", "half a JPEG", "broken_image", _trio("coast/half", jpg="truncated")),
    Case("gif_as_jpg", "a GIF named .jpg", "wrong_format", _trio("coast/moving", jpg="gif")),
    Case("bmp_as_jpg", "a BMP named .jpg", "wrong_format", _trio("coast/plain", jpg="bmp")),
    Case("latin1_text", "a caption in Latin-1", "bad_text", _trio("coast/accent", txt="latin1")),
    Case("broken_json", "json cut short", "bad_json", _trio("coast/cut", json="broken json")),
    # Samples that look odd, and are kept.
    Case("nfc", "composed unicode in a name", OK, _trio("città/café au lait")),
    Case(
        "nfd",
        "decomposed unicode in a name",
        OK,
        _trio("città/" + unicodedata.normalize("NFD", "rivière glacée")),
    ),
    Case("spaces", "spaces, quotes and signs", OK, _trio('still life/it\'s 50% [off] & "new"')),
    Case("long_name", "a name over 100 bytes: tar needs PAX", OK, _trio(f"coast/{_LONG_NAME}")),
    Case(
        "long_path",
        "a path over 100 bytes: tar splits it at a slash",
        OK,
        _trio(f"archive/{_MIDDLE_FOLDERS}/picture"),
    ),
    Case(
        "very_long_path",
        "a path over 256 bytes: tar needs PAX",
        OK,
        _trio(f"archive/{_LONG_FOLDERS}/picture"),
    ),
    Case(
        "symlink_inside",
        "a symlink to a file of the source",
        OK,
        (*_trio("coast/pier"), *_trio("coast/pier-linked", jpg="link pier.jpg")),
    ),
    # So many that some fall in two splits.
    Case("twins", "the same image content in two folders", OK, _twins(12)),
)

# ------------------------------------------------------------------------------------ the pictures

Colour = tuple[int, int, int]


class Story(NamedTuple):
    """What a picture shows: for its caption and its json."""

    title: str
    details: tuple[str, ...]
    tags: tuple[str, ...]


_LIGHT: dict[str, tuple[Colour, Colour, Colour]] = {  # zenith, horizon, sun
    "at dawn": ((98, 120, 186), (255, 208, 180), (255, 236, 200)),
    "at noon": ((58, 140, 212), (206, 234, 250), (255, 250, 220)),
    "at sunset": ((74, 56, 118), (255, 154, 92), (255, 214, 120)),
    "at dusk": ((30, 38, 82), (196, 116, 146), (250, 190, 170)),
    "on a grey day": ((112, 124, 138), (204, 210, 214), (232, 234, 232)),
    "on a spring morning": ((120, 190, 200), (244, 246, 214), (255, 252, 210)),
}
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _mix(a: Colour, b: Colour, t: float) -> Colour:
    return (
        round(a[0] + (b[0] - a[0]) * t),
        round(a[1] + (b[1] - a[1]) * t),
        round(a[2] + (b[2] - a[2]) * t),
    )


def _many(count: int, one: str, more: str) -> str:
    return f"one {one}" if count == 1 else f"{_NUMBERS[count]} {more}"


class _Canvas:
    """A picture in the making, twice as large as wanted: shrinking it smooths the edges."""

    def __init__(self, width: int, height: int, rng: random.Random) -> None:
        self.w, self.h, self.rng = width * 2, height * 2, rng
        self.unit = min(self.w, self.h)
        self.image = Image.new("RGB", (self.w, self.h))
        self.draw = ImageDraw.Draw(self.image)
        self.light = rng.choice(sorted(_LIGHT))
        zenith, horizon, sun = _LIGHT[self.light]
        self.zenith, self.horizon, self.sun = self.vary(zenith), self.vary(horizon), sun

    def vary(self, colour: Colour, by: int = 18) -> Colour:
        r, g, b = (max(0, min(255, c + self.rng.randint(-by, by))) for c in colour)
        return r, g, b

    def finished(self) -> Image.Image:
        return self.image.reduce(2)

    def gradient(self, top: Colour, bottom: Colour, start: float = 0.0, end: float = 1.0) -> None:
        first, last = round(self.h * start), round(self.h * end)
        if last <= first:
            return
        ramp = Image.linear_gradient("L").resize((1, last - first))
        band = ImageOps.colorize(ramp, top, bottom).resize((self.w, last - first))
        self.image.paste(band, (0, first))

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def sky(self, end: float = 1.0) -> None:
        self.gradient(self.zenith, self.horizon, 0, end)

    def sun_at(self, x: float, y: float, radius: float) -> None:
        behind = _mix(self.zenith, self.horizon, y / self.h)
        for grown, strength in ((2.2, 0.12), (1.6, 0.3), (1.0, 1.0)):
            self.disc(x, y, radius * grown, _mix(behind, self.sun, strength))

    def ridge(self, level: float, swing: float, colour: Colour, rough: int = 3) -> list[float]:
        """A hill's outline across the picture, filled down to the bottom; returns its heights."""
        waves = [
            (self.rng.uniform(0.6, 2.2) * (i + 1), self.rng.uniform(0, 6.3)) for i in range(rough)
        ]
        heights = []
        for step in range(49):
            x = step / 48 * 6.3
            rise = sum(math.sin(x * f / 2 + p) / (i + 1) for i, (f, p) in enumerate(waves))
            heights.append((level + swing * rise) * self.h)
        line = [(step / 48 * self.w, y) for step, y in enumerate(heights)]
        self.draw.polygon([*line, (self.w, self.h), (0, self.h)], fill=colour)
        return heights


def _coast(c: _Canvas) -> Story:
    rng, horizon = c.rng, c.rng.uniform(0.42, 0.6)
    c.sky(horizon)
    c.sun_at(rng.uniform(0.15, 0.85) * c.w, rng.uniform(0.12, 0.9) * horizon * c.h, 0.08 * c.unit)
    sea = c.vary((36, 110, 150), 26)
    c.gradient(_mix(sea, c.horizon, 0.45), sea, horizon)
    for _ in range(26):
        y = rng.uniform(horizon + 0.02, 0.95) * c.h
        x, length = rng.uniform(-0.1, 1) * c.w, rng.uniform(0.04, 0.2) * c.w
        c.draw.line((x, y, x + length, y), _mix(sea, (255, 255, 255), 0.28), max(2, c.unit // 220))
    boats = rng.randint(0, 3)
    for _ in range(boats):
        x, y = rng.uniform(0.12, 0.88) * c.w, rng.uniform(horizon + 0.03, 0.76) * c.h
        s = c.unit * (0.05 + 0.22 * (y / c.h - horizon))
        hull, sail = c.vary((130, 50, 40), 40), c.vary((246, 240, 226), 9)
        c.draw.polygon(
            [(x - s, y), (x + s, y), (x + s * 0.6, y + s * 0.4), (x - s * 0.6, y + s * 0.4)], hull
        )
        c.draw.polygon([(x, y - s * 2), (x, y - s * 0.1), (x + s * 0.9, y - s * 0.1)], sail)
        c.draw.polygon(
            [(x - s * 0.08, y - s * 1.7), (x - s * 0.08, y - s * 0.1), (x - s * 0.7, y - s * 0.1)],
            _mix(sail, hull, 0.5),
        )
    sand = rng.random() < 0.6
    if sand:
        c.ridge(0.9, 0.02, c.vary((226, 200, 150), 14))
    sight = _many(boats, "sailing boat", "sailing boats") if boats else "an empty sea"
    return Story(
        f"{sight} {c.light}",
        (
            "a sandy beach in front" if sand else "nothing but water up to the horizon",
            "the waves are low and the sun glows through the haze",
        ),
        ("sea", "sky", *(("boat",) if boats else ()), *(("beach",) if sand else ())),
    )


def _mountains(c: _Canvas) -> Story:
    rng = c.rng
    c.sky(0.8)
    c.sun_at(rng.uniform(0.1, 0.9) * c.w, rng.uniform(0.1, 0.35) * c.h, 0.06 * c.unit)
    peaks, rock = rng.randint(2, 5), c.vary((92, 98, 128), 20)
    for i in range(peaks):
        x = (i + rng.uniform(0.25, 0.75)) / peaks * c.w
        top, half = rng.uniform(0.2, 0.42) * c.h, rng.uniform(0.3, 0.55) * c.w
        foot = 0.85 * c.h
        c.draw.polygon([(x, top), (x + half, foot), (x - half, foot)], _mix(rock, c.horizon, 0.25))
        c.draw.polygon([(x, top), (x + half, foot), (x + half * 0.1, foot)], rock)
        snow = 0.28
        sx, sy = half * snow, top + (foot - top) * snow
        zigzag = [
            (x + sx, sy),
            (x + sx * 0.4, sy * 0.96),
            (x, sy * 1.04),
            (x - sx * 0.5, sy * 0.95),
        ]
        c.draw.polygon([(x, top), *zigzag, (x - sx, sy)], (244, 247, 252))
    near = c.vary((52, 92, 70), 24)
    for depth in range(3):
        c.ridge(0.68 + 0.09 * depth, 0.035, _mix(c.horizon, near, 0.45 + 0.27 * depth))
    return Story(
        f"{_NUMBERS[peaks]} snowy peaks above green hills {c.light}",
        ("the hills in front fade into the haze", "the snow ends in a ragged line"),
        ("mountains", "snow", "hills"),
    )


def _city(c: _Canvas) -> Story:
    rng, night = c.rng, c.light in ("at dusk", "at sunset")
    c.sky(0.95)
    c.sun_at(rng.uniform(0.1, 0.9) * c.w, rng.uniform(0.12, 0.4) * c.h, 0.07 * c.unit)
    x = 0.0
    while x < c.w:
        width = rng.uniform(0.05, 0.12) * c.w
        c.draw.rectangle(
            (x, rng.uniform(0.4, 0.62) * c.h, x + width, c.h), _mix(c.horizon, c.zenith, 0.35)
        )
        x += width
    x, houses = -0.02 * c.w, 0
    while x < c.w:
        width, top = rng.uniform(0.11, 0.2) * c.w, rng.uniform(0.3, 0.72) * c.h
        wall = c.vary((44, 46, 66) if night else (150, 128, 116), 30)
        c.draw.rectangle((x, top, x + width, c.h), wall)
        columns, rows = rng.randint(3, 5), max(2, round((c.h - top) / (0.07 * c.unit)))
        cell, floor = width / columns, (c.h - top) / rows
        dark = _mix(wall, (20, 24, 36), 0.5)
        for row in range(rows):
            for column in range(columns):
                lit = rng.random() < (0.55 if night else 0.12)
                left, upper = x + (column + 0.25) * cell, top + (row + 0.3) * floor
                box = (left, upper, left + cell * 0.5, upper + floor * 0.5)
                c.draw.rectangle(box, (255, 220, 130) if lit else dark)
        x += width + rng.uniform(0, 0.02) * c.w
        houses += 1
    c.gradient(c.vary((60, 60, 66), 8), (44, 44, 50), 0.94)
    return Story(
        f"{_NUMBERS[min(houses, 9)]} houses along a street {c.light}",
        (
            "many of the windows are lit" if night else "hardly a window is lit",
            "a pale skyline stands behind them",
        ),
        ("city", "street", "night" if night else "day"),
    )


def _forest(c: _Canvas) -> Story:
    rng = c.rng
    c.sky(0.7)
    green = c.vary(rng.choice([(40, 110, 70), (60, 120, 50), (150, 110, 40), (160, 76, 44)]), 14)
    c.ridge(0.5, 0.05, _mix(c.horizon, green, 0.4))
    trees = 0
    for depth in range(4):
        shade = _mix(c.horizon, green, 0.5 + depth * 0.16)
        ground = c.ridge(0.6 + depth * 0.1, 0.02, _mix(shade, (240, 236, 200), 0.18))
        for _ in range(rng.randint(4, 8)):
            at = rng.randrange(len(ground))
            x, y = at / 48 * c.w, ground[at] + 0.02 * c.h
            s = c.unit * rng.uniform(0.05, 0.075) * (1 + depth * 0.5)
            c.draw.rectangle(
                (x - s * 0.1, y - s * 0.6, x + s * 0.1, y), _mix(shade, (60, 36, 24), 0.7)
            )
            for level in range(3):
                base, half = y - s * (0.5 + level * 0.6), s * (0.75 - level * 0.17)
                leaf = _mix(shade, (0, 20, 20), 0.12 * (2 - level))
                c.draw.polygon([(x - half, base), (x + half, base), (x, base - s)], leaf)
            trees += 1
    season = "green" if green[1] > green[0] else "autumn"
    return Story(
        f"a {season} forest {c.light}",
        (f"some {trees} trees stand on rolling ground", "the farthest trees are hardly seen"),
        ("forest", "trees", season),
    )


def _dunes(c: _Canvas) -> Story:
    rng = c.rng
    c.sky(0.75)
    c.sun_at(rng.uniform(0.15, 0.85) * c.w, rng.uniform(0.12, 0.4) * c.h, 0.09 * c.unit)
    sand, layers, cacti = c.vary((222, 160, 96), 22), rng.randint(3, 5), rng.randint(0, 4)
    for i in range(layers):
        shade = _mix(_mix(c.horizon, sand, 0.45), _mix(sand, (110, 50, 30), 0.45), i / (layers - 1))
        c.ridge(0.5 + 0.38 * i / (layers - 1), 0.05, shade, 2)
    green = c.vary((56, 120, 84), 18)
    for _ in range(cacti):
        x, y, s = (
            rng.uniform(0.1, 0.9) * c.w,
            rng.uniform(0.8, 0.94) * c.h,
            rng.uniform(0.05, 0.1) * c.unit,
        )
        thick = s * 0.22
        for dx, low, high in ((0, 0, 2.4), (-0.7, 0.9, 1.6), (0.7, 0.7, 1.9)):
            box = (x + dx * s - thick, y - high * s, x + dx * s + thick, y - low * s)
            c.draw.rounded_rectangle(box, thick, green)
        c.draw.rectangle((x - 0.7 * s, y - 1.1 * s, x, y - 0.85 * s), green)
        c.draw.rectangle((x, y - 0.95 * s, x + 0.7 * s, y - 0.7 * s), green)
    return Story(
        f"{_NUMBERS[layers]} rows of dunes {c.light}",
        (
            f"{_many(cacti, 'cactus grows', 'cacti grow')} in front" if cacti else "nothing grows",
            "the sand turns darker towards the viewer",
        ),
        ("desert", "dunes", *(("cactus",) if cacti else ())),
    )


_FRUIT: dict[str, tuple[str, Colour]] = {
    "apple": ("apples", (200, 44, 44)),
    "orange": ("oranges", (240, 146, 36)),
    "lemon": ("lemons", (246, 214, 60)),
    "plum": ("plums", (104, 52, 120)),
    "lime": ("limes", (130, 182, 60)),
}


def _still_life(c: _Canvas) -> Story:
    rng = c.rng
    wall = c.vary(rng.choice([(206, 216, 206), (224, 206, 190), (120, 140, 160), (96, 78, 92)]))
    c.gradient(_mix(wall, (0, 0, 0), 0.2), wall, 0, 0.66)
    table = c.vary((150, 104, 70), 24)
    c.gradient(_mix(table, (255, 255, 255), 0.15), _mix(table, (0, 0, 0), 0.3), 0.66)
    fruit, count = rng.choice(sorted(_FRUIT)), rng.randint(1, 7)
    plural, colour = _FRUIT[fruit]
    s = c.unit * 0.085
    middle, floor = c.w * rng.uniform(0.42, 0.58), c.h * 0.78
    for i in range(count):
        row = i // 4
        x = middle + (i % 4 - (min(4, count - 4 * row) - 1) / 2) * s * 1.75
        y, skin = floor - s * 0.7 - row * s * 1.5, c.vary(colour, 16)
        c.disc(x, y, s, _mix(skin, (0, 0, 0), 0.25))
        c.disc(x - s * 0.06, y - s * 0.06, s * 0.92, skin)
        c.disc(x - s * 0.35, y - s * 0.38, s * 0.2, _mix(skin, (255, 255, 255), 0.6))
        c.draw.line(
            (x, y - s * 0.9, x + s * 0.15, y - s * 1.25), (84, 60, 40), max(2, round(s * 0.1))
        )
    bowl, wide = c.vary(rng.choice([(70, 110, 160), (236, 232, 222), (170, 84, 60)])), s * 4.2
    box = (middle - wide, floor - s * 2.4, middle + wide, floor + s * 2)
    c.draw.chord(box, 8, 172, bowl)
    c.draw.chord(
        (box[0] + s, box[1], box[2] - s, box[3] - s * 0.25),
        20,
        160,
        _mix(bowl, (255, 255, 255), 0.15),
    )
    return Story(
        f"{_many(count, fruit, plural)} in a bowl on a wooden table",
        ("the wall behind is plain", "light falls from the left"),
        ("still life", fruit, "bowl"),
    )


def _night_sky(c: _Canvas) -> Story:
    rng = c.rng
    c.gradient(c.vary((8, 12, 38), 8), c.vary((44, 52, 112), 22))
    for _ in range(rng.randint(60, 130)):
        glow = rng.randint(150, 255)
        size = max(1.2, c.unit * rng.choice((0.0015, 0.0025, 0.004)))
        c.disc(
            rng.uniform(0, c.w), rng.uniform(0, 0.85) * c.h, size, (glow, glow, min(255, glow + 20))
        )
    moon = rng.choice(("a full moon", "a crescent moon", "no moon"))
    x, y, radius = rng.uniform(0.2, 0.8) * c.w, rng.uniform(0.15, 0.45) * c.h, 0.11 * c.unit
    if moon != "no moon":
        shadow = c.image.getpixel((round(x), round(y)))
        c.disc(x, y, radius, (246, 240, 214))
        if moon == "a crescent moon" and isinstance(shadow, tuple):
            c.disc(
                x + radius * 0.45,
                y - radius * 0.15,
                radius * 0.9,
                (shadow[0], shadow[1], shadow[2]),
            )
        else:
            for dx, dy, part in ((-0.3, -0.2, 0.2), (0.3, 0.25, 0.26), (0.1, -0.5, 0.12)):
                c.disc(x + dx * radius, y + dy * radius, part * radius, (226, 218, 190))
    c.ridge(0.84, 0.05, (14, 16, 34))
    c.ridge(0.92, 0.03, (6, 8, 18))
    return Story(
        f"a starry sky with {moon} above dark hills",
        ("the brightest stars stand high", "there is no other light in sight"),
        ("night", "stars", *(("moon",) if moon != "no moon" else ())),
    )


_POSTER: dict[str, Colour] = {
    "red": (214, 66, 56),
    "ochre": (226, 164, 54),
    "teal": (36, 132, 130),
    "navy": (34, 52, 96),
    "cream": (244, 234, 212),
    "pink": (234, 160, 160),
    "olive": (122, 134, 66),
}


def _pattern(c: _Canvas) -> Story:
    rng = c.rng
    names = rng.sample(sorted(_POSTER), 4)
    ground, *inks = (c.vary(_POSTER[name], 8) for name in names)
    c.draw.rectangle((0, 0, c.w, c.h), ground)
    kind = rng.choice(("rings", "stripes", "dots", "tiles"))
    cells = rng.randint(3, 7)
    step = c.unit / cells
    if kind == "rings":
        for i in range(cells * 2, 0, -1):
            c.disc(c.w / 2, c.h / 2, i * step * 0.5, inks[i % 3] if i % 2 else ground)
    elif kind == "stripes":
        lean = rng.choice((-1, 0, 1)) * c.h * 0.6
        for i in range(-cells * 2, round(c.w / step) + cells * 2, 2):
            x = i * step
            c.draw.polygon(
                [(x, 0), (x + step, 0), (x + step + lean, c.h), (x + lean, c.h)], inks[i // 2 % 3]
            )
    else:
        for row in range(math.ceil(c.h / step)):
            for column in range(math.ceil(c.w / step)):
                ink, x, y = inks[rng.randrange(3)], column * step, row * step
                if kind == "dots":
                    c.disc(x + step / 2, y + step / 2, step * rng.uniform(0.2, 0.45), ink)
                else:
                    c.draw.rectangle((x, y, x + step, y + step), rng.choice((ground, ink)))
                    c.draw.pieslice(
                        (x - step, y - step, x + step, y + step), 0, 90, inks[(row + column) % 3]
                    )
    return Story(
        f"a poster of {kind} in {names[1]}, {names[2]} and {names[3]} on {names[0]}",
        (f"about {cells} {kind} fit its shorter side", "the colours are flat"),
        ("poster", kind, *names),
    )


class Scene(NamedTuple):
    folder: str
    stem: str
    paint: Callable[[_Canvas], Story]
    other_words: str  # in another language: captions are not all ASCII


SCENES = (
    Scene("coast", "coast", _coast, "Meer, Küste, Möwen 🌊"),
    Scene("mountains/alps", "peak", _mountains, "Berge über grünen Hügeln — schön!"),
    Scene("city/day", "street", _city, "Une rue, des façades, un café."),
    Scene("city/by night", "street", _city, "Улица в вечернем свете"),
    Scene("forest", "wood", _forest, "Lạc giữa rừng cây"),
    Scene("desert/v1.0", "dune", _dunes, "كثبان رملية"),
    Scene("still life", "fruit bowl", _still_life, "naturaleza muerta: ¡qué rico!"),
    Scene("夜空", "星", _night_sky, "満天の星空"),
    Scene("patterns/posters/set-1", "poster", _pattern, "Плакат в стиле 60-х 🎨"),
)

# Width and height; small ones are frequent, as in most collections.
_SIZES = (
    *((64, 48), (96, 96), (128, 96), (160, 120), (192, 192), (240, 180)) * 2,
    *((256, 256), (320, 180), (320, 240), (400, 300), (360, 360), (480, 320)) * 3,
    *((512, 384), (600, 400), (640, 480), (800, 600)),
)


class Form(NamedTuple):
    """How a picture is stored."""

    extension: str
    name: str  # Pillow's
    options: dict[str, int]


_FORMATS = (
    *((Form("jpg", "JPEG", {"quality": 92}),) * 11),
    *((Form("jpeg", "JPEG", {"quality": 84}),) * 3),
    Form("JPG", "JPEG", {"quality": 95}),
    *((Form("png", "PNG", {"compress_level": 4}),) * 3),
    *((Form("webp", "WEBP", {"quality": 88, "method": 1}),) * 2),
)


class Picture(NamedTuple):
    extension: str
    data: bytes
    width: int
    height: int
    mode: str
    story: Story


def _picture(
    scene: Scene,
    rng: random.Random,
    size: tuple[int, int] | None = None,
    form: Form | None = None,
) -> Picture:
    width, height = size or rng.choice(_SIZES)
    if rng.random() < 0.35:
        width, height = height, width
    canvas = _Canvas(width, height, rng)
    story = scene.paint(canvas)
    image = canvas.finished()
    extension, name, options = form or rng.choice(_FORMATS)
    if rng.random() < 0.03:
        image = image.convert("L")
    elif name == "PNG" and rng.random() < 0.1:
        image = image.convert("RGBA")
    out = io.BytesIO()
    image.save(out, name, **options)
    return Picture(extension, out.getvalue(), width, height, image.mode, story)


def _caption(scene: Scene, story: Story, rng: random.Random) -> str:
    title = story.title[0].upper() + story.title[1:]
    roll = rng.random()
    if roll < 0.3:
        return f"{title}\n"
    sentences = [detail[0].upper() + detail[1:] for detail in story.details]
    if roll > 0.9:
        sentences += [f"The picture was drawn with {tag} in mind" for tag in story.tags]
    elif roll < 0.6:
        sentences = sentences[:1]
    text = ". ".join([title, *sentences]) + "."
    return f"{text} {scene.other_words}\n" if rng.random() < 0.25 else f"{text}\n"


def _metadata(name: str, scene: Scene, picture: Picture) -> bytes:
    record = {
        "id": name,
        "scene": scene.folder,
        "width": picture.width,
        "height": picture.height,
        "mode": picture.mode,
        "bytes": len(picture.data),
        "tags": picture.story.tags,
    }
    return (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode()


# --------------------------------------------------------------------------------------- the files

_DAY_ONE = 1_714_521_600  # 2024-05-01


def _write(path: Path, data: bytes, minute: int) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():
        path.unlink()
    path.write_bytes(data)
    # The content is in the time, so that another seed's file of equal size is seen as an edit.
    stamp = (_DAY_ONE + 60 * minute) * 10**9 + zlib.crc32(data) % 10**9
    os.utime(path, ns=(stamp, stamp))
    return len(data)


def _write_other(path: Path, content: str, minute: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():
        path.unlink()
    if content == "fifo":
        os.mkfifo(path)
        return
    path.symlink_to(content.removeprefix("link "))
    if os.utime in os.supports_follow_symlinks:
        stamp = _DAY_ONE + 60 * minute
        os.utime(path, (stamp, stamp), follow_symlinks=False)


def _awkward_bytes(path: str, content: str, seed: int) -> bytes:
    """What `content` stands for; the files of one sample show and tell the same picture."""
    if content in ("empty", "junk", "latin1"):
        return {
            "empty": b"",
            "junk": b"\0\1junk\n",
            "latin1": "Un café près du port\n".encode("latin-1"),
        }[content]
    stem = path.partition(".")[0]
    topic = content.partition(" ")[2] if content.startswith("image ") else stem
    scene = SCENES[zlib.crc32(os.fsencode(topic)) % len(SCENES)]

    def rng() -> random.Random:
        return random.Random(f"{seed}/{os.fsencode(topic)!r}")

    lies = {"gif": Form("jpg", "GIF", {}), "bmp": Form("jpg", "BMP", {})}
    form = lies.get(content, Form("jpg", "JPEG", {"quality": 90}))
    picture = _picture(scene, rng(), (160, 120), form)
    if content == "caption":
        return _caption(scene, picture.story, rng()).encode()
    if content in ("json", "broken json"):
        data = _metadata(os.fsencode(stem).decode("utf-8", "replace"), scene, picture)
        return data if content == "json" else data[: len(data) // 2]
    return picture.data[: len(picture.data) // 2] if content == "truncated" else picture.data


# What filesystems say to names or kinds of file that they do not have.
_REFUSALS = {errno.EILSEQ, errno.EINVAL, errno.ENAMETOOLONG, errno.ENOTSUP, errno.EPERM}


def _fill(folder: Path, samples: int, seed: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    for i in range(samples):
        scene = SCENES[i % len(SCENES)]
        rng = random.Random(f"{seed}/{i}")
        picture = _picture(scene, rng)
        name = f"{scene.folder}/{scene.stem}-{i:04}"
        caption = _caption(scene, picture.story, rng).encode()
        for field, data in (
            (picture.extension, picture.data),
            ("txt", caption),
            ("json", _metadata(name, scene, picture)),
        ):
            counts["bytes"] += _write(folder / f"{name}.{field}", data, i)
            counts["files"] += 1
        counts[OK] += 1
    for number, case in enumerate(AWKWARD, start=1):
        try:
            for path, content in case.files:
                counts["files"] += 1
                if content == "fifo" or content.startswith("link "):
                    _write_other(folder / path, content, -number)
                else:
                    data = _awkward_bytes(path, content, seed)
                    counts["bytes"] += _write(folder / path, data, -number)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            counts["files"] -= 1
            counts["unsupported"] += 1
        else:
            counts[case.outcome] += case.count
    return counts


def generate(folder: Path, samples: int = 1000, seed: int = 0) -> dict[str, int]:
    """Draw `samples` ordinary samples and all awkward cases below `folder`.

    Returns the number of `files` and `bytes`, and how often each outcome is to be expected;
    `unsupported` counts cases that this filesystem refuses. Nothing is ever deleted: in a folder
    that holds something, the demo's own files are written anew and others stay.
    """
    if folder.is_dir() and any(folder.iterdir()):
        return dict(_fill(folder, samples, seed))
    # Built beside and renamed: a generation that was interrupted is never taken for a whole one.
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        counts = _fill(partial, samples, seed)
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return dict(counts)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m wds_pipeline.demo", description="Generate the demo's raw files."
    )
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER, metavar="FOLDER")
    parser.add_argument("--samples", type=int, default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--force", action="store_true", help="write the files anew if they exist")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    if options.samples < 0:
        parser.error("--samples must not be negative")
    try:
        if not options.force and folder.is_dir() and any(folder.iterdir()):
            print(f"{folder}: there already (`python -m wds_pipeline.demo --force` writes it anew)")
            return 0
        start = time.perf_counter()
        counts = generate(folder, options.samples)
    except OSError as error:
        print(f"{folder}: cannot be written: {error.strerror or error}", file=sys.stderr)
        return 1
    awkward = sum(case.count for case in AWKWARD)
    note = f", {counts['unsupported']} not possible here" if counts.get("unsupported") else ""
    print(
        f"{folder}: {options.samples:,} samples and {awkward} awkward cases generated "
        f"({counts['files']:,} files, {counts['bytes'] / 1e6:.1f} MB, "
        f"{time.perf_counter() - start:.1f} s{note})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Long listings are divided, and are the same as short ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from wds_pipeline.errors import SourceError
from wds_pipeline.storage.s3 import listing
from wds_pipeline.storage.s3.listing import Lister, Page, parse_page
from wds_pipeline_tests.s3 import servers
from wds_pipeline_tests.s3.project import open_s3, place
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server

PAGE = 7


class Keys:
    """A store's keys, and ListObjectsV2 over them."""

    bucket = "bucket"

    def __init__(self, keys: list[str]) -> None:
        self.keys = sorted(keys, key=str.encode)
        self.asked = 0

    def page(self, prefix: str, after: str, delimiter: str, most: int) -> Page:
        self.asked += 1
        keys: list[str] = []
        folders: list[str] = []
        more = False
        for key in self.keys:
            if not key.startswith(prefix) or key.encode() <= after.encode():
                continue
            rest = key[len(prefix) :]
            folder = prefix + rest.partition("/")[0] + "/" if delimiter and "/" in rest else ""
            if folder and folder in folders:
                continue
            if len(keys) + len(folders) == most:
                more = True
                break
            folders.append(folder) if folder else keys.append(key)
        return Page(keys, ["1"] * len(keys), ["e"] * len(keys), ["t"] * len(keys), folders, more)


@pytest.fixture
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of a few keys, and listings divided after two of them."""

    def page(self: Lister, after: str = "", *, delimiter: str = "", most: int = PAGE) -> Page:
        found: Page = self.session.page(self.prefix, after, delimiter, most)
        return found

    monkeypatch.setattr(Lister, "page", page)
    monkeypatch.setattr(listing, "_SERIAL_PAGES", 2)
    monkeypatch.setattr(listing, "_LONG_PIECE", 3)


def kinds(rng: random.Random) -> list[str]:
    """Keys of one of the shapes that buckets have."""
    count = rng.choice((0, 1, PAGE, 40, 300))
    shape = rng.randrange(6)
    if shape == 0:  # flat, with a long common start
        return [f"images/img_{number:06d}.jpg" for number in range(count)]
    if shape == 1:  # folders
        return [f"{number % 13:02d}/{number}.jpg" for number in range(count)]
    if shape == 2:  # deep, and files beside folders
        return [f"a/{number % 3}/{number % 5}/{number}" for number in range(count)] + ["a/x", "b"]
    if shape == 3:  # any letters
        letters = "ab/-_.~é漢😀 "
        return ["".join(rng.choices(letters, k=rng.randint(1, 6))) for _ in range(count)]
    if shape == 4:  # one folder has nearly all
        few = [f"{folder}/{number}" for folder in "abcdefghij" for number in range(2)]
        return few + [f"d/{number % 2}/{number:05d}" for number in range(2 * count)]
    return [f"only/one/{number:x}" for number in range(count)]


def test_pieces_are_the_whole_in_order(short_pages: None) -> None:
    rng = random.Random(5)
    for _ in range(150):
        keys = Keys(list({*kinds(rng)}))
        after = rng.choice(["", *keys.keys[:50:7], "m"])
        lister = Lister(keys, "", None)
        found = [key for page in lister.pages(after) for key in page.keys]
        assert found == [key for key in keys.keys if key.encode() > after.encode()]


def test_a_folder_s_names_are_whole_too(short_pages: None) -> None:
    rng = random.Random(6)
    for _ in range(150):
        keys = Keys(list({*kinds(rng)}))
        lister = Lister(keys, "", None)
        pages = list(lister.pages(delimiter="/"))
        assert sorted(key for page in pages for key in page.keys) == sorted(
            key for key in keys.keys if "/" not in key
        )
        folders = [each for page in pages for each in page.folders]
        assert sorted(folders) == sorted({k.partition("/")[0] + "/" for k in keys.keys if "/" in k})


def test_who_stops_early_leaves_no_thread_waiting(short_pages: None) -> None:
    keys = Keys([f"{number:05d}" for number in range(5000)])
    pages = Lister(keys, "", None).pages()
    for _ in range(4):
        next(pages)
    pages.close()  # type: ignore[attr-defined]


def test_an_error_in_a_piece_is_raised_and_not_a_shorter_listing(
    short_pages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys([f"{number:05d}" for number in range(2000)])
    real: Callable[..., Page] = Keys.page

    def page(self: Keys, prefix: str, after: str, delimiter: str, most: int) -> Page:
        if after > "01" and most > 1:
            raise SourceError("away")
        return real(self, prefix, after, delimiter, most)

    monkeypatch.setattr(Keys, "page", page)
    with pytest.raises(SourceError, match="away"):
        list(Lister(keys, "", None).pages())


def test_the_servers_pages(
    server: S3Server, make_bucket: MakeBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a real server, with pages of ten keys."""
    names = [
        f"root/{folder}{number:03d}.txt" for folder in ("", "a b/", "é/+/") for number in range(40)
    ]
    bucket = make_bucket(server)
    servers.put_all(server.client(), bucket, {name: name.encode() for name in names})
    real = Lister.page

    def page(self: Lister, after: str = "", *, delimiter: str = "", most: int = 10) -> Page:
        return real(self, after, delimiter=delimiter, most=most)

    monkeypatch.setattr(Lister, "page", page)
    monkeypatch.setattr(listing, "_SERIAL_PAGES", 2)
    source = open_s3(server.endpoint, bucket, part="source")
    expected = sorted((name.removeprefix("root/") for name in names), key=str.encode)

    def listed(after: str = "") -> list[str]:
        return [path for table in source.list_keys(after) for path in table["path"].to_pylist()]

    assert listed() == expected
    assert listed(expected[50]) == expected[51:]
    assert source.usage.list > 10
    assert sorted(file.path for file in source.list_files("a b")) == expected[40:80]
    assert source.list_folders() == ["a b", "é"]


def test_a_store_without_order_is_told(short_pages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def pages(_self: Lister, _after: str = "", _delimiter: str = "") -> Any:
        yield Page(["b", "a"][:1], ["1"], ["e"], ["2026-01-01T00:00:00.000Z"], [], True)
        yield Page(["a"], ["1"], ["e"], ["2026-01-01T00:00:00.000Z"], [], False)

    monkeypatch.setattr(Lister, "pages", pages)
    from wds_pipeline.storage import open_storage

    source = open_storage(place("http://127.0.0.1:1", "bucket", "", part="source"))
    with pytest.raises(SourceError, match=r"in no order.*general purpose bucket"):
        list(source.list_keys())


def test_an_answer_that_was_cut_is_no_page() -> None:
    body = b"<ListBucketResult><EncodingType>url</EncodingType><Contents><Key>a+b%2B</Key>"
    body += b"<Size>3</Size><LastModified>t</LastModified></Contents></ListBucketResult>"
    assert parse_page(body).keys == ["a b+"]
    assert parse_page(body).etags == [""]
    for cut in (10, len(body) - 5, body.index(b"<Size>")):
        with pytest.raises(Exception, match="IncompleteBody"):
            parse_page(body[:cut])
    plain = body.replace(b"<EncodingType>url</EncodingType>", b"").replace(b"a+b%2B", b"a+&amp;%2B")
    assert parse_page(plain).keys == ["a+&%2B"]

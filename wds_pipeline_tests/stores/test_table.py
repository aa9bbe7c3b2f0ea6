"""docs/stores.md says what the stores were seen to do."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

from wds_pipeline.errors import DestinationError
from wds_pipeline.storage import open_storage
from wds_pipeline.storage.generic import GenericStorage
from wds_pipeline_tests.stores.backends import Backend, gs_backend, serve_gcs
from wds_pipeline_tests.stores.verbs import listing

pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
ROOT = Path(__file__).parents[2]
COLUMNS = ("url", "source", "destination", "create", "ranges", "copy", "fingerprint", "extra", "by")


def rows() -> dict[str, dict[str, str]]:
    """The table's rows, by how each of the URLs begins that they are of."""
    found = {}
    for line in (ROOT / "docs" / "stores.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == len(COLUMNS):
            for url in re.findall(r"`([a-z0-9]+://[a-z]*)", cells[0]):
                found[url] = dict(zip(COLUMNS, cells, strict=True))
    return found


def row(backend: Backend) -> dict[str, str]:
    url = backend.url if "://" in backend.url else f"file://{backend.url}"
    told = [row for start, row in rows().items() if url.startswith(start)]
    assert len(told) == 1, url
    return told[0]


def test_sources_and_destinations(backend: Backend) -> None:
    told = row(backend)
    backend.fill({"f": b"x"})
    assert listing(backend.open("source"))["f"][0] == 1
    assert told["source"] == "yes"
    storage = backend.open()
    try:
        storage.put("g", b"x")
    except DestinationError:
        assert told["destination"] == "no"
    else:
        assert told["destination"] == "yes"


def test_fingerprints(backend: Backend) -> None:
    backend.fill({"f": b"x"})
    _, fingerprint = listing(backend.open("source"))["f"]
    kind = fingerprint.partition(":")[0] if ":" in fingerprint else "mtime_ns"
    assert row(backend)["fingerprint"].startswith(f"`{kind}`")


def test_conditional_creates(writable: Backend) -> None:
    told = row(writable)["create"]
    place = writable.place().model_copy(update={"single_writer": False})
    try:
        open_storage(place).check_put_if_absent()
    except DestinationError:
        assert "where the store has it" in told or told == "no"
    else:
        assert told.startswith("yes")


def test_copies(writable: Backend) -> None:
    """What goes through here would be counted as read."""
    storage = writable.open()
    storage.put("f", bytes(100_000))
    before = storage.usage.bytes_read
    storage.link("g", "f")
    through_here = storage.usage.bytes_read > before
    told = row(writable)["copy"]
    assert told != "no"
    assert not through_here or told.endswith("else no")


def test_ranges(backend: Backend) -> None:
    backend.fill({"f": bytes(9_000_000)})
    storage = backend.open()
    with storage.open("f") as file:
        file.seek(5_000_000)
        assert file.read(10) == bytes(10)
    assert storage.usage.bytes_read < 1_000_000
    assert row(backend)["ranges"].startswith("yes")


def test_extras(backend: Backend) -> None:
    """They are there to be installed, and the messages name the same."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    storage = backend.open()
    extra = storage.kind.extra if isinstance(storage, GenericStorage) else ""
    assert row(backend)["extra"] == (f"`{extra}`" if extra else "–")
    assert not extra or extra in extras


def test_credentials(backend: Backend) -> None:
    """What the messages say is what the page says."""
    storage = backend.open()
    if isinstance(storage, GenericStorage) and storage.kind.credentials:
        page = (ROOT / "docs" / "stores.md").read_text().replace("`", "").replace("\n", " ")
        for word in re.findall(r"[A-Z]+_[A-Z_]+|~/\S+|key_filename", storage.kind.credentials):
            assert word.strip(",") in page


def test_every_scheme_has_a_row() -> None:
    schemes = {start.partition("://")[0] for start in rows()}
    assert schemes == {"file", "s3", "gs", "az", "abfs", "sftp", "http", "https", "hf", "memory"}


def test_the_emulator_by_itself_has_no_conditions() -> None:
    """As the page says; when it learns them, the tests need not teach it."""
    with serve_gcs() as endpoint, pytest.raises(DestinationError, match="single_writer"):
        gs_backend(endpoint, "r").open().check_put_if_absent()

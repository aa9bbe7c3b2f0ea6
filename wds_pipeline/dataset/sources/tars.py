"""Shards of others: tars by their names. Each is read once; what it holds is known by its contents' digests.

So a tar that is replaced, or given another name, marks only the samples in it that changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from wds_pipeline.compute import open_pool, run_all
from wds_pipeline.config import ComputeConfig, DatasetConfig
from wds_pipeline.config_storage import Place, is_folder
from wds_pipeline.config_values import did_you_mean
from wds_pipeline.dataset import naming
from wds_pipeline.dataset.listing import LISTING, LateListing, Listing
from wds_pipeline.dataset.origins import ORIGINS, Origins
from wds_pipeline.dataset.sources import tar_contents
from wds_pipeline.dataset.sources.base import Progress, Source
from wds_pipeline.dataset.sources.content_digests import digest_array, fingerprints
from wds_pipeline.dataset.sources.tar_contents import TarContents, TarJob
from wds_pipeline.dataset.sources.tidy import tidy
from wds_pipeline.dataset.tar_paths import find_tars
from wds_pipeline.dataset.watch import Look
from wds_pipeline.errors import ConfigError, DataError, SourceError
from wds_pipeline.storage import FileInfo, Storage, open_storage

_KEPT = "sources/tars/"
_FORMAT = "shards-1"  # of the listing's digest
_DOT = pa.scalar(".", pa.large_string())
_WORTH_POOL = 256_000_000  # bytes to read; below, threads are done before processes are there
_TICK = 0.02  # seconds, of a filesystem's times; see `scan`
_STORE_TICK = 1.5  # of a store's, which are often whole seconds
_SHOWN = 5


class _Tar(NamedTuple):
    """One tar, and what is known of it without reading it."""

    store: Storage
    file: FileInfo
    where: str

    @property
    def state(self) -> str:
        """What tells this content from others, without reading it."""
        return f"{self.where}\t{self.file.size}\t{self.file.modified:.6f}"

    @property
    def kept(self) -> str:
        """The name of what is kept of it."""
        return f"{_KEPT}{xxhash.xxh3_128_hexdigest(self.state.encode())}.parquet"


class TarsSource(Source):
    """`source.shards`: tars that somebody else made."""

    def __init__(self, config: DatasetConfig) -> None:
        super().__init__(config)
        assert config.source.shards is not None
        self.spec = config.source.shards

    def check(self) -> None:
        """Whether the tars are there. Raises SourceError, ConfigError."""
        self._find()

    def _find(self) -> list[_Tar]:
        """All tars, each once. Raises SourceError, ConfigError."""
        stores: dict[str, list[str]] = {}
        for url in self.spec.urls:
            for part in url.split("::"):
                full = part if part == "-" or part.startswith("pipe:") else self._resolve(part)
                head = "/".join(full.split("/", 3)[:3]) if "://" in full else ""
                stores.setdefault(head, []).append(full)
        found: list[_Tar] = []
        seen: set[str] = set()
        for names in stores.values():
            try:
                tars = find_tars([name for name in names if name], self.spec.storage)
            except ConfigError as error:
                raise ConfigError(f"source.shards: {error}") from None
            except SourceError as error:
                told = SourceError(f"{self.dataset}: source.shards: {error}")
                told.passing = error.passing
                raise told from error
            place = tars.storage.place.model_copy(
                update={"dataset": self.dataset, "part": "source"}
            )
            storage = open_storage(place)
            for file in tars.files:
                where = storage.locate(file.path)
                if where not in seen:
                    seen.add(where)
                    found.append(_Tar(storage, file, where))
        return found

    def _resolve(self, part: str) -> str:
        slash = "/" if part.endswith("/") and "://" not in part else ""
        return self.config.resolve(part) + slash if part else ""

    def _digest(self, tars: list[_Tar]) -> str:
        parts = [_FORMAT, self.spec.on_damage, *sorted(self.spec.fields or ["*"])]
        return xxhash.xxh3_128_hexdigest(
            "\0".join([*parts, *sorted(each.state for each in tars)]).encode()
        )

    def scan(self, progress: Progress | None = None) -> Listing:
        """Finds the tars; those that are new or changed are read when their members are asked for.

        Raises SourceError, ConfigError, and later DataError for damaged tars.
        """
        tars = self._find()
        return LateListing(self._digest(tars), lambda: self._load(tars, progress))

    def look(
        self,
        seconds: float,
        before: Look | None = None,
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> Look:
        """Sizes and times of the tars; none is read. Raises SourceError, ConfigError."""
        began = now()
        tars = self._find()
        return Look(
            rules="shards", device=0, began=began, ended=now(), files=len(tars),
            bytes=sum(each.file.size for each in tars), state=self._digest(tars), place=None,
        )  # fmt: skip

    def _load(self, tars: list[_Tar], progress: Progress | None) -> Listing:
        contents = self._read(tars, progress)
        self._check_damage(tars, contents)
        tables = [self._wanted(each) for each in contents]
        counts = np.array([table.num_rows for table in tables], np.int64)
        whole = pa.concat_tables(tables)
        paths = pc.binary_join_element_wise(
            whole["key"], whole["field"].cast(pa.large_string()), _DOT
        )
        problems, details = self._problems(tars, tables, paths)
        files = pa.table(
            [paths, whole["size"], fingerprints(digest_array(whole["digest"])), problems],
            schema=LISTING,
        )
        stores, origins = _origins(tars, whole, counts)
        skipped: dict[str, int] = {}
        examples: dict[str, list[str]] = {}
        for each in contents:
            for code, count in each.left_out.items():
                skipped[code] = skipped.get(code, 0) + count
                examples.setdefault(code, []).append(each.examples[code])
        return Listing(
            files,
            skipped=dict(sorted(skipped.items())),
            examples={code: some[:_SHOWN] for code, some in examples.items()},
            origins=Origins(stores, origins),
            details=details,
        )

    def _read(self, tars: list[_Tar], progress: Progress | None) -> list[TarContents]:
        """What the tars hold: kept, or read now."""
        keep = self.keep
        found: dict[str, TarContents] = {}
        if keep is not None:
            there = set(keep.list_names(_KEPT.rstrip("/")))
            old = [each for each in tars if each.kept.removeprefix(_KEPT) in there]
            loaded = keep.at_once(lambda each: tar_contents.load(keep, each.kept), old)
            found = {
                tar.kept: each for tar, each in zip(old, loaded, strict=True) if each is not None
            }
        jobs = [
            TarJob(each.store.place, each.file, keep.place if keep else None, each.kept)
            for each in tars
            if each.kept not in found
        ]
        for job, each in self._run(jobs, progress):
            found[job.kept] = each
        if keep is not None and jobs and self.alone:
            tidy(keep, _KEPT, {each.kept for each in tars})
        return [found[each.kept] for each in tars]

    def _run(
        self, jobs: list[TarJob], progress: Progress | None
    ) -> Iterator[tuple[TarJob, TarContents]]:
        if not jobs:
            return
        _wait_for_the_clock(jobs)
        total = sum(job.file.size for job in jobs)
        config = self.config.compute
        if total < _WORTH_POOL or config.kind == "threads":
            config = ComputeConfig(kind="threads", workers=config.workers)
        done = 0
        with open_pool(config) as pool:
            for job, found in run_all(pool, tar_contents.read_tar, jobs):
                done += job.file.size
                if progress is not None:
                    progress("scan", done, total)
                self.usage.count("get", requests=0, read=job.file.size)
                yield job, found

    def _check_damage(self, tars: list[_Tar], contents: list[TarContents]) -> None:
        """Raises DataError for tars that are damaged, unless they are to be kept."""
        keep = self.spec.on_damage == "keep"
        bad = [
            f"{tar.where}: {code}: {text}"
            for tar, found in zip(tars, contents, strict=True)
            for code, text in found.damage.items()
            if not keep or code == "not_a_tar"
        ]
        if bad:
            more = f"\n  … and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
            shown = "\n  ".join(bad[:_SHOWN])
            raise DataError(
                f"{self.dataset}: source.shards: {len(bad):,} of {len(tars):,} tars are damaged:\n  "
                f"{shown}{more}\nNothing was built. Mend or leave them out, or take what is whole of them "
                "with source.shards.on_damage: keep"
            )

    def _wanted(self, found: TarContents) -> pa.Table:
        """The rows of the wanted fields; of a damaged tar that is kept, its last sample is marked."""
        table = found.table
        if self.spec.fields is None:
            return table
        return table.filter(
            pc.is_in(table["field"], value_set=pa.array(self.spec.fields, pa.string()))
        )

    def _problems(
        self, tars: list[_Tar], tables: list[pa.Table], paths: pa.ChunkedArray
    ) -> tuple[pa.ChunkedArray, dict[str, str]]:
        """Each row's problem, and what more there is to say, by path: which tars it is in."""
        whole = pa.concat_tables(tables)
        if self.spec.fields is not None:
            self._check_fields(whole)
        keys = whole["key"].combine_chunks()
        counts = [table.num_rows for table in tables]
        owner = np.repeat(np.arange(len(tables)), counts)
        codes = keys.dictionary_encode().indices.to_numpy() if len(keys) else np.empty(0, np.int64)
        first = np.full(int(codes.max(initial=-1)) + 1, len(tables))
        np.minimum.at(first, codes, owner)
        last = np.zeros(len(first), np.int64)
        np.maximum.at(last, codes, owner)
        twice = (first != last)[codes] if len(codes) else np.empty(0, bool)
        problems = whole["problem"]
        rows = np.flatnonzero(twice | pc.is_valid(problems).to_numpy())
        if not len(rows):
            return problems, {}
        values = np.asarray(problems.to_pylist(), object)
        values[twice] = "key_in_two_tars"
        details = {}
        for row, path in zip(rows.tolist(), paths.take(pa.array(rows)).to_pylist(), strict=True):
            names = [tars[first[codes[row]]].where]
            names += [tars[last[codes[row]]].where] if twice[row] else []
            details[path] = f"in {' and '.join(names)}: {naming.PROBLEMS[values[row]]}"
        return pa.chunked_array([pa.array(values, pa.string())]), details

    def _check_fields(self, whole: pa.Table) -> None:
        there = set(pc.unique(whole["field"]).to_pylist())
        for name in self.spec.fields or []:
            if name not in there:
                raise ConfigError(
                    f"{self.dataset}: source.shards.fields: no sample has a field {name!r}; of the wanted "
                    f"there are {', '.join(sorted(there)) or 'none'}{did_you_mean(name, there)}"
                )


def _origins(
    tars: list[_Tar], whole: pa.Table, counts: np.ndarray
) -> tuple[tuple[Place, ...], pa.Table]:
    stores = {id(each.store): each.store for each in tars}
    number = {store: at for at, store in enumerate(stores)}
    files = pa.array([each.file.path for each in tars], pa.large_string())
    owner = pa.array(np.repeat(np.arange(len(tars), dtype=np.int32), counts))
    numbers = np.array([number[id(each.store)] for each in tars], np.int16)
    return tuple(each.place for each in stores.values()), pa.table(
        [
            pa.array(np.repeat(numbers, counts)),
            pa.DictionaryArray.from_arrays(owner, files),
            whole["offset"].combine_chunks(),
            pa.nulls(whole.num_rows, pa.large_binary()),
        ],
        schema=ORIGINS,
    )


def _wait_for_the_clock(jobs: list[TarJob]) -> None:
    """After this, a tar that is written to gets another time than the one that is known."""
    tick = _TICK if all(is_folder(job.place.url) for job in jobs) else _STORE_TICK
    age = time.time() - max(job.file.modified for job in jobs)
    if 0 <= age < tick:
        time.sleep(tick - age)

"""`open_dataset`: one immutable version, or a split of it, as a sequence of samples."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from wds_pipeline.config_storage import StorageConfig
from wds_pipeline.config_values import did_you_mean
from wds_pipeline.dataset import version as versions
from wds_pipeline.dataset import view
from wds_pipeline.errors import VersionError
from wds_pipeline.training.cache import CacheConfig
from wds_pipeline.training.catalog import Catalog
from wds_pipeline.training.decode import DecodeSpec, make_decoder
from wds_pipeline.training.fork_lock import ForkLock
from wds_pipeline.training.keys import KeyIndex
from wds_pipeline.training.on_error import RAISE, ErrorPolicy, OnError
from wds_pipeline.training.opening import LATEST, open_catalog
from wds_pipeline.training.overlay_opening import OverlaySpec, join
from wds_pipeline.training.reading import Reader, in_turn, open_reader
from wds_pipeline.training.select import Keys, select

if TYPE_CHECKING:
    import pyarrow.compute as pc
    from typing_extensions import Unpack

    from wds_pipeline.training.stream import Options
    from wds_pipeline.training.torch_stream import TorchStream
    from wds_pipeline.training.webdataset_pipeline import Pipeline

Sample = dict[str, Any]


def open_dataset(
    url: str,
    version: int | str | None = LATEST,
    split: str | None = None,
    *,
    overlays: OverlaySpec | Sequence[OverlaySpec] | None = None,
    fields: Collection[str] | None = None,
    decode: DecodeSpec = None,
    on_error: OnError | ErrorPolicy = RAISE,
    storage: StorageConfig | Mapping[str, Any] | None = None,
    cache: Any = None,
    verify: bool = False,
) -> Dataset:
    """Opens a version as it is now and stays: what is published or removed later changes nothing.

    `url` is the destination of a dataset, a folder or a store. `split` None means all of them.
    `overlays` are datasets that have more fields for its samples, joined by key: URLs, or mappings such as
    `{"url": …, "version": 3, "fields": ["txt"], "missing": "skip"}` (see `overlay_opening.Wanted`); a field
    that several have is the last one's.
    `fields` are those to read, of others no byte. `decode` is an image spec ("pil", "rgb8", …) for all
    fields by their extensions, a mapping from fields to specs or functions, or a function of a sample;
    `on_error` says what iterating does with samples that do not decode: "raise", "skip", or what a
    function says. `storage` says how a store is reached, as `destination.storage` in a dataset's YAML
    does. `cache` is a folder, or a `CacheConfig`, where what is read of a store is kept. `verify` holds each
    shard against its digest before a sample of it is given out.

    Raises VersionError when there is no such version, split or field; ConfigError when `cache` is wrong, or
    `decode` is or needs a package that is not installed; DecodeError for pickles that were not permitted.
    """
    catalog = open_catalog(url, version, split, storage)
    indices = None
    if overlays is not None:
        catalog, indices = join(catalog, overlays, storage)
    wanted = None if fields is None else _names(fields)
    if wanted is not None:
        _check_fields(catalog, wanted)
    return Dataset(
        catalog,
        fields=wanted,
        decode=_decoder(catalog, wanted, decode),
        on_error=on_error,
        cache=None if cache is None else CacheConfig.of(cache),
        verify=verify,
        indices=indices,
    )


def _decoder(
    catalog: Catalog, fields: Collection[str] | None, decode: DecodeSpec
) -> Callable[[Sample], Any] | None:
    if decode is None or callable(decode):
        return make_decoder(decode, catalog.named)
    known = catalog.field_names()
    return make_decoder(decode, catalog.named, known if fields is None else sorted(fields), known)


def _check_fields(catalog: Catalog, wanted: Collection[str]) -> None:
    if not wanted:
        raise VersionError(f"{catalog.named}: fields: found none; expected some, or None for all")
    if catalog.shards and set(wanted) <= set(catalog.members(0).field_names):
        return
    known = catalog.field_names()
    for name in wanted:
        if name not in known:
            raise VersionError(
                f"{catalog.named}: no sample has a field {name!r}; there are {', '.join(known)}"
                f"{did_you_mean(name, known)}"
            )


class Dataset:
    """Samples by their numbers and keys. For threads; goes to worker processes small.

    A sample is a dict: `__key__`; `__url__`, its shard's; `__index__`, its number in the version and
    split; and each field's bytes. Reading raises VerificationError when a shard is not what the
    version says, and VersionError when the version was removed.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        fields: Collection[str] | None = None,
        decode: Callable[[Sample], Any] | None = None,
        on_error: OnError | ErrorPolicy = RAISE,
        cache: Any = None,
        verify: bool = False,
        indices: np.ndarray | None = None,
    ) -> None:
        self.catalog = catalog
        self.fields = None if fields is None else _names(fields)
        self.decode = decode
        self.on_error = on_error
        self.cache = cache
        self.verify = verify
        self.indices = indices
        """The numbers of the selected samples in the catalog; None: all."""
        self._start_over()

    def _start_over(self) -> None:
        self._reader: Reader | None = None
        self._keys: KeyIndex | None = None
        self._positions: dict[int, int] | None = None
        self._count = -1  # not known yet: in another process, the catalog is read when it is needed
        self._lock = ForkLock()
        self.errors = ErrorPolicy.of(self.on_error)
        """How many samples iterating left out, and the first of them."""

    def __getstate__(self) -> dict[str, Any]:
        own = ("_reader", "_keys", "_positions", "_count", "_lock", "errors")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_over()

    def __repr__(self) -> str:
        some = "" if self.indices is None else f" selected of {len(self.catalog):,}"
        return f"<Dataset {self.catalog.named}: {len(self):,} samples{some}>"

    # What it is.

    @property
    def version(self) -> int:
        """The version's number, which `latest` was when it was opened."""
        return self.catalog.version

    @property
    def split(self) -> str | None:
        """The split; None for all."""
        return self.catalog.split

    @property
    def digest(self) -> str:
        """The same for the same samples in the same shards, whatever the version's number."""
        return self.catalog.digest

    @property
    def urls(self) -> list[str]:
        """Paths or URLs of the shards, as `webdataset.WebDataset` takes them. Raises VersionError for a
        selection, which has no shards of its own."""
        if self.indices is not None:
            raise VersionError(
                f"{self.catalog.named}: a selection has no shards of its own; use .webdataset() or "
                ".stream(), which read its samples alone"
            )
        return [shard.url for shard in self.catalog.shards]

    @property
    def braces(self) -> str:
        """One pattern for all shards, such as `…/train-{000000..000575}.tar`.

        Raises VersionError when several splits are open, or the version has no such names.
        """
        self.urls  # noqa: B018
        manifest = getattr(self.catalog.content, "manifest", None)
        splits = [self.split] if self.split is not None else list(getattr(manifest, "splits", []))
        if not isinstance(manifest, versions.Manifest) or len(splits) != 1:
            raise VersionError(
                f"{self.catalog.named}: no single pattern names these shards; open one split "
                f"({', '.join(map(str, splits))})"
            )
        if not view.has_view(self.catalog.storage, manifest):
            raise VersionError(
                f"{self.catalog.named}: has no brace-able names; `wds-pipeline view "
                f"{manifest.dataset} --version {manifest.version}` makes them"
            )
        return view.patterns(self.catalog.storage, manifest)[splits[0]]

    def __len__(self) -> int:
        if self._count < 0:
            self._count = len(self.catalog) if self.indices is None else len(self.indices)
        return self._count

    # Samples.

    @property
    def reader(self) -> Reader:
        """What reads the bytes; opened when it is first asked for."""
        found = self._reader
        if found is None:
            with self._lock:
                found = self._reader
                if found is None:
                    found = open_reader(self.catalog, cache=self.cache, verify=self.verify)
                    self._reader = found
        return found

    @overload
    def __getitem__(self, which: int) -> Any: ...

    @overload
    def __getitem__(self, which: slice) -> list[Any]: ...

    def __getitem__(self, which: int | slice) -> Any:
        """A sample by its number, from the end if negative; a list of them for a slice.

        Raises IndexError.
        """
        if isinstance(which, slice):
            return self.__getitems__(range(*which.indices(len(self))))
        try:
            number = operator.index(which)
        except TypeError:
            raise TypeError(
                f"{self.catalog.named}: found {which!r:.80}; expected a number or a slice; by key: "
                ".by_key('…'), several numbers at once: .__getitems__([…])"
            ) from None
        found = self.reader.read((self._number(number),), self.fields)[0]
        return found if self.decode is None else self.decode(found)

    def __getitems__(self, which: Sequence[int]) -> list[Any]:
        """Several samples at once, in the order asked: what a DataLoader asks for."""
        numbers = [self._number(operator.index(each)) for each in which]
        found = self.reader.read(numbers, self.fields)
        return found if self.decode is None else list(map(self.decode, found))

    def _number(self, position: int) -> int:
        """The number in the catalog of a sample at a position in this dataset."""
        count = self._count if self._count >= 0 else len(self)
        if not -count <= position < count:
            if self.indices is None:
                raise self.catalog.outside(position)
            raise IndexError(
                f"{self.catalog.named}: there is no sample {position:,} among the {count:,} selected"
            )
        position += count if position < 0 else 0
        return position if self.indices is None else int(self.indices[position])

    def __iter__(self) -> Iterator[Any]:
        """All samples in stored order, but those that `on_error` leaves out."""
        numbers = range(len(self)) if self.indices is None else self.indices
        found = in_turn(self.reader, numbers, self.fields)
        return found if self.decode is None else self.errors.decoded(self.decode, found)

    def index_of(self, key: str) -> int:
        """The position of the sample with this key. Raises VersionError, naming the nearest keys."""
        if self._keys is None:
            self._keys = KeyIndex(self.catalog)
        number = self._keys.find(key)
        if self.indices is None:
            return number
        if self._positions is None:
            self._positions = {each: i for i, each in enumerate(self.indices.tolist())}
        if number not in self._positions:
            raise VersionError(
                f"{self.catalog.named}: {key!r} is not among the {len(self):,} selected"
            )
        return self._positions[number]

    def by_key(self, key: str) -> Any:
        """The sample with this key. Raises VersionError, naming the nearest keys."""
        return self[self.index_of(key)]

    # Other views of it.

    def select(
        self,
        where: str | pc.Expression | None = None,
        *,
        keys: Keys | None = None,
        has: Iterable[str] = (),
        lacks: Iterable[str] = (),
        test: Callable[[Sample], Any] | None = None,
        fields: Collection[str] | None = None,
    ) -> Dataset:
        """The samples that all of this is true of, in their order; only their bytes are read.

        `where` is text such as `'jpg.width >= 512 and txt.size < 1000'`, or an expression of Arrow's,
        on the columns `key` and, of each field, `size` (bytes), `width`, `height` (pixels), `chars`,
        `format`, `problem`. `keys` is a glob (`'cats/*'`), a compiled regular expression, or some keys.
        `has` and `lacks` are fields. None of these reads a sample. `test` gets each sample that is left,
        with these `fields` alone.

        Raises VersionError for an unknown field or column, or one that nothing is known of.
        """
        names = (has, lacks, () if fields is None else fields)
        has, lacks, some = (_names(each) for each in names)
        chosen = select(self.catalog, self.indices, where, keys, has, lacks)
        if test is not None:
            if fields is not None:
                _check_fields(self.catalog, some)
            samples = in_turn(self.reader, chosen, self.fields if fields is None else some)
            passed = (bool(test(sample)) for sample in samples)
            chosen = chosen[np.fromiter(passed, bool, len(chosen))]
        return self._with(indices=chosen)

    def _with(self, **changes: Any) -> Dataset:
        made = Dataset.__new__(Dataset)
        made.__setstate__({**self.__getstate__(), **changes})
        return made

    def webdataset(self, **options: Any) -> Pipeline:
        """A pipeline of the `webdataset` package: `.shuffle(…).decode(…).to_tuple(…).batched(…)`.

        Each sample goes to one node and worker; see `webdataset_pipeline.pipeline` for the options.
        """
        from wds_pipeline.training.webdataset_pipeline import pipeline

        return pipeline(self, **options)

    def stream(self, **options: Unpack[Options]) -> TorchStream:
        """Samples in shuffled order, epoch after epoch, shared out to ranks and workers, with a state.

        - `seed` (0) of the order.
        - `shuffle` (True): True or "window", "full", False or "stored", or a `Shuffle`.
        - `batch_size` of a rank, or `global_batch_size` of all: steps are lists of so many samples, or
          what `collate` makes of them; without these, single samples.
        - `last` ("pad"): samples that fill no global batch are filled up with the epoch's first, are left
          out ("drop"), or make a smaller one ("short").
        - `rank` and `world_size`: by default torch.distributed's, or the launcher's (RANK and WORLD_SIZE,
          Slurm, MPI).
        - `threads` decode and collate ahead: by default as many as there are processors where there is
          something to decode or collate, and none in a DataLoader's workers.
        - `on_error`: as for `open_dataset`, which has the default.
        - `ahead_bytes` (256 MB) are read ahead, at most.

        An `IterableDataset` where torch is installed. Raises ConfigError for options that cannot be.
        """
        from wds_pipeline.training.source import DatasetSource, make_stream

        return make_stream(DatasetSource(self), options)  # type: ignore[return-value]

    def close(self) -> None:
        """Closes its files. Reading opens them again."""
        if self._reader is not None:
            self._reader.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _names(fields: Iterable[str]) -> frozenset[str]:
    return frozenset([fields] if isinstance(fields, str) else fields)

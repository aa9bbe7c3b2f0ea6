"""Streams in torch: DataLoader, torchdata's StatefulDataLoader, Lightning, real worker processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wds_pipeline.errors import ConfigError
from wds_pipeline.training import Dataset, open_dataset
from wds_pipeline_tests.conftest import Project

torch = pytest.importorskip("torch", reason="torch is not installed")
from torch.utils.data import DataLoader, IterableDataset  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*os.fork:DeprecationWarning")


def keys(batch: list[dict[str, Any]]) -> list[str]:
    return [each["__key__"] for each in batch]


def ends_with_3(sample: dict[str, Any]) -> dict[str, Any]:
    from wds_pipeline.errors import DecodeError

    if sample["__key__"].endswith("3"):
        raise DecodeError("bad", key=sample["__key__"])
    return sample


@pytest.fixture
def train(published: Project) -> Dataset:
    return open_dataset(str(published.destination), split="train")


def stream(dataset: Dataset, **options: Any) -> Any:
    return dataset.stream(
        **{"seed": 1, "batch_size": 8, "last": "short", "collate": keys, **options}
    )


def test_it_is_a_dataset_of_torch(train: Dataset) -> None:
    assert isinstance(train.stream(), IterableDataset)


@pytest.mark.parametrize(
    ("context", "persistent"),
    [("fork", False), ("fork", True), ("spawn", False), ("forkserver", True)],
)
def test_a_dataloader(train: Dataset, context: str, persistent: bool) -> None:
    alone = stream(train)
    expected = [list(alone) for _ in range(2)]
    workers = 3 if context == "fork" else 2
    made = stream(train)
    loader = DataLoader(
        made,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=context,
        persistent_workers=persistent,
    )
    assert len(loader) == len(expected[0])
    assert [list(loader) for _ in range(2)] == expected  # the epochs differ, without set_epoch
    made.set_epoch(0)
    assert list(loader) == expected[0]
    del loader


def test_more_workers_than_shards_and_batches(train: Dataset) -> None:
    shards = len(train.catalog.shards)
    loader = DataLoader(stream(train), batch_size=None, num_workers=shards + 9)
    assert list(loader) == list(stream(train))


def test_samples_batched_by_the_loader(train: Dataset) -> None:
    loader = DataLoader(train.stream(), batch_size=4, num_workers=2, collate_fn=keys)
    found = [key for batch in loader for key in batch]
    assert sorted(found) == sorted(each["__key__"] for each in train)


@pytest.mark.parametrize("workers", [0, 2])
def test_our_loader_resumes_on_another_number_of_workers(train: Dataset, workers: int) -> None:
    expected = [list(each) for each in [stream(train)] for _ in range(2)]
    whole = [batch for epoch in expected for batch in epoch]
    loader = stream(train).loader(num_workers=workers)
    assert len(loader) == len(expected[0])
    for steps in (1, 4, 10, 13):
        loader.set_epoch(0)
        found = list(islice(loader, min(steps, 10)))
        found += list(islice(loader, max(steps - 10, 0))) if steps > 10 else []
        state = json.loads(json.dumps(loader.state_dict()))
        for other in (0, 1, 3):
            again = stream(train).loader(num_workers=other)
            again.load_state_dict(state)
            left = list(again)
            if steps == 10:  # the first epoch is complete
                assert left == expected[1]
            else:
                assert found + left == whole[: len(found) + len(left)]
                assert len(found + left) == (10 if steps < 10 else 20)


def test_a_loader_kept_open_goes_from_epoch_to_epoch(train: Dataset) -> None:
    alone = stream(train)
    loader = stream(train).loader(num_workers=2, persistent_workers=True, prefetch_factor=2)
    for _ in range(3):
        assert list(loader) == list(alone)
    state = loader.state_dict()
    assert state == alone.state_dict()
    next(iter(loader))
    loader.load_state_dict(state)
    assert list(loader) == list(alone)


class Late:
    """Has the second worker begin when the first one is at work."""

    def __init__(self) -> None:
        self.gate = torch.multiprocessing.Event()

    def __call__(self, worker: int) -> None:
        if worker == 1:
            self.gate.wait(60)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("ours", [False, True])
def test_a_pass_broken_off_before_all_workers_began(
    train: Dataset, ours: bool, persistent: bool
) -> None:
    late, made, alone = Late(), stream(train), stream(train)
    options: Any = {"num_workers": 2, "worker_init_fn": late, "persistent_workers": persistent}
    loader = made.loader(**options) if ours else DataLoader(made, batch_size=None, **options)
    for batch in loader:
        assert batch == next(iter(alone))
        late.gate.set()
        break
    assert [list(loader) for _ in range(2)] == [list(alone) for _ in range(2)]
    del loader


def test_two_passes_at_once(train: Dataset) -> None:
    late, alone = Late(), stream(train)
    loader = stream(train).loader(num_workers=2, worker_init_fn=late)
    running = [iter(loader), iter(loader)]
    found = [[next(each)] for each in running]
    late.gate.set()
    for each, part in zip(running, found, strict=True):
        part.extend(each)
    assert found == [list(alone) for _ in range(2)]
    loader = stream(train).loader(num_workers=2, persistent_workers=True)
    with pytest.raises(ConfigError, match="a pass goes on after another began"):
        list(zip(loader, loader, strict=True))


def test_what_workers_skip_is_counted(published: Project) -> None:
    dataset = open_dataset(str(published.destination), decode=ends_with_3, on_error="skip")
    wrong = sum(each["__key__"].endswith("3") for each in open_dataset(str(published.destination)))
    loader = stream(dataset).loader(num_workers=2)
    assert sum(map(len, loader)) == 120 - wrong
    assert loader.stream.skipped == wrong
    list(loader)
    assert loader.stream.skipped == 2 * wrong
    with pytest.raises(ConfigError, match="without a batch_size; expected one"):
        dataset.stream().loader(num_workers=2)


def test_only_a_loader_knows(train: Dataset) -> None:
    made = stream(train)
    next(iter(DataLoader(made, batch_size=None, num_workers=1)))
    with pytest.raises(
        ConfigError, match=r"only the loader knows how far it is; take `stream.loader"
    ):
        made.state_dict()


@pytest.mark.parametrize("workers", [0, 1])
def test_our_loader_gives_what_the_stream_makes(published: Project, workers: int) -> None:
    dataset = open_dataset(str(published.destination), fields=["png"], decode="rgb8")
    loader = dataset.stream(batch_size=4).loader(workers)
    kinds = {type(sample["png"]) for batch in loader for sample in batch}
    assert kinds == {np.ndarray}  # a DataLoader by itself makes tensors of arrays


def test_what_the_stream_decides(train: Dataset) -> None:
    with pytest.raises(ConfigError, match="loader: batch_size: found 4; expected nothing"):
        stream(train).loader(batch_size=4)
    with pytest.raises(ConfigError, match="loader: in_order: found False; expected True"):
        stream(train).loader(num_workers=2, in_order=False)


def test_an_error_in_a_worker_says_what_is_wrong(published: Project) -> None:
    dataset = open_dataset(str(published.destination), decode=ends_with_3)
    with pytest.raises(Exception, match="bad"):
        list(stream(dataset).loader(num_workers=2))


# torchdata.


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [8, None])
def test_stateful_dataloader(train: Dataset, workers: int, batch_size: int | None) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def loader() -> Any:
        options = {} if batch_size else {"collate": None, "batch_size": None}
        return stateful(stream(train, **options), batch_size=None, num_workers=workers)

    def plain(batch: Any) -> Any:
        return batch if batch_size else batch["__key__"]

    alone = (
        [plain(each) for each in DataLoader(stream(train), batch_size=None)] if batch_size else None
    )
    first = loader()
    whole = [[plain(each) for each in first] for _ in range(3)]
    assert whole[0] != whole[1]
    if batch_size:
        assert whole[0] == alone
    for epoch, steps in ((0, 1), (0, 5), (1, 3)):
        before = loader()
        for _ in range(epoch):
            list(before)
        running: Iterator[Any] = iter(before)
        found = [plain(each) for each in islice(running, steps)]
        state = before.state_dict()
        again = loader()
        again.load_state_dict(state)
        assert found + [plain(each) for each in again] == whole[epoch]
        assert [plain(each) for each in again] == whole[epoch + 1]
        del running
        # The same state goes to any other topology.
        anywhere = stream(train).loader(num_workers=3) if batch_size else None
        if anywhere is not None:
            anywhere.load_state_dict(state)
            assert found + list(anywhere) == whole[epoch]


@pytest.mark.parametrize("last", ["pad", "drop", "short"])
def test_the_state_of_a_stateful_dataloader_at_the_end(train: Dataset, last: str) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    loader = stateful(stream(train, last=last), batch_size=None, num_workers=2)
    alone, again = stream(train, last=last), stream(train, last=last)
    assert list(loader) == list(alone)
    again.load_state_dict(loader.state_dict())
    assert list(again) == list(alone) == list(loader)


def test_a_stateful_dataloader_with_kept_workers_and_few_snapshots(train: Dataset) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    options: Any = {"batch_size": None, "num_workers": 2, "persistent_workers": True}
    alone = stream(train)
    expected = [list(alone) for _ in range(2)][1]
    for steps, every in ((0, 1), (1, 1), (5, 3)):
        before = stateful(stream(train), snapshot_every_n_steps=every, **options)
        list(before)
        running = iter(before)
        found = list(islice(running, steps))
        state = {"step": 1, "data": {"train": before.state_dict()}}  # as a checkpoint has it
        del running, before
        anywhere = stream(train)
        anywhere.load_state_dict(state)
        assert found + list(anywhere) == expected
        again = stateful(stream(train), **options)
        again.load_state_dict(state["data"]["train"])  # type: ignore[index]
        assert found + list(again) == expected


def test_workers_do_not_go_on_with_other_batches(train: Dataset) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    loader = stateful(stream(train), batch_size=None, num_workers=2)
    running = iter(loader)
    next(running)
    state = loader.state_dict()
    list(running)
    again = stateful(stream(train, batch_size=4), batch_size=None, num_workers=2)
    again.load_state_dict(state)
    with pytest.raises(Exception, match=r"steps are of 8 samples .* whose steps are of 4; load it"):
        list(again)


def test_a_stateful_dataloader_that_makes_batches_itself(train: Dataset) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    loader = stateful(train.stream(), batch_size=5, num_workers=2, collate_fn=keys)
    running = iter(loader)
    found = [next(running) for _ in range(3)]
    state = loader.state_dict()
    again = stateful(train.stream(), batch_size=5, num_workers=2, collate_fn=keys)
    again.load_state_dict(state)
    rest = list(again)
    assert sorted(key for batch in found + rest for key in batch) == sorted(keys(list(train)))
    with pytest.raises(ConfigError, match="let the stream make the batches"):
        train.stream().load_state_dict(state)


def test_the_state_of_another_worker(train: Dataset) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    loader = stateful(stream(train), batch_size=None, num_workers=2)
    running = iter(loader)
    next(running)
    state = loader.state_dict()
    again = stateful(stream(train), batch_size=None, num_workers=1)
    again.load_state_dict(state)
    with pytest.raises(Exception, match=r"load it with `stream.load_state_dict`|num_workers"):
        list(again)


# Lightning.


class Seen:
    """What a model of Lightning's was trained and validated on."""

    def __init__(self) -> None:
        self.trained: list[list[str]] = []
        self.validated: list[list[str]] = []

    def model(self, lightning: Any) -> Any:
        """A model that learns nothing."""
        seen = self

        class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(1, 1)

            def training_step(self, batch: list[str], number: int) -> Any:
                seen.trained.append(batch)
                return self.layer(torch.ones(1, 1)).sum()

            def validation_step(self, batch: list[str], number: int) -> None:
                seen.validated.append(batch)

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), 0.1)

        return Model()


@pytest.mark.parametrize("workers", [0, 1])
def test_lightning_goes_on_from_an_epochs_end(train: Dataset, tmp_path: Path, workers: int) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    seen = Seen()

    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    for epochs in (1, 3):
        kept = lightning.callbacks.ModelCheckpoint(tmp_path, save_last=True)  # at each epoch's end
        trainer = lightning.Trainer(
            accelerator="cpu", max_epochs=epochs, callbacks=[kept], **options
        )
        checkpoint = tmp_path / "last.ckpt" if epochs > 1 else None
        trainer.fit(
            seen.model(lightning), stream(train).loader(num_workers=workers), ckpt_path=checkpoint
        )
    alone = stream(train)
    assert seen.trained == [batch for _ in range(3) for batch in alone]


def test_lightning(train: Dataset, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    seen = Seen()

    def fit(loader: Any, steps: int, checkpoint: Path | None = None) -> Any:
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=steps,
            default_root_dir=tmp_path,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        checks = stream(train, shuffle=False).loader()
        trainer.fit(seen.model(lightning), loader, checks, ckpt_path=checkpoint)
        return trainer

    alone = stream(train)
    expected = [batch for _ in range(2) for batch in alone]
    trainer = fit(stream(train).loader(num_workers=2), 7)
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    assert seen.trained == expected[:7]
    fit(stream(train).loader(num_workers=1), 15, tmp_path / "kept.ckpt")
    assert seen.trained == expected[:15]
    assert list(stream(train, shuffle=False)) == seen.validated[-10:]

"""Batches of recordings that native threads read ahead of a training."""

from __future__ import annotations

import threading
from importlib import import_module

import numpy as np
import pytest
import torch

from heimdall_tracking.training import (
    DatasetError,
    LocalizationNet,
    RecordingDataset,
    RecordingLoader,
    Trainer,
)
from heimdall_training.errors import ConfigurationError, InvalidInputError

COUNT = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "train").mkdir()
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        samples = rng.normal(size=(3, 4096)) + 1j * rng.normal(size=(3, 4096))
        np.save(folder / "train" / f"s{number:02}_iq.npy", samples.astype(np.complex64))
        np.save(folder / "train" / f"s{number:02}_label.npy", np.array([45.0, 8.0 + number / 100]))
    return folder


@pytest.fixture
def recordings(folder) -> RecordingDataset:
    return RecordingDataset(folder, "train", sample_rate=48_000.0, n_fft=512, hop=128, bands=64)


def batches_of(loader: RecordingLoader) -> list[tuple[torch.Tensor, torch.Tensor, list[str]]]:
    return list(loader)


def are_equal(one: list, other: list) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2]
        for a, b in zip(one, other, strict=True)
    )


def test_the_batches_are_those_of_the_dataset(recordings):
    loader = RecordingLoader(recordings, 4)
    batches = batches_of(loader)
    assert len(loader) == len(batches) == 3
    assert [len(names) for _, _, names in batches] == [4, 4, 3]
    assert [name for _, _, names in batches for name in names] == recordings.sessions
    rows = [recordings[row] for row in range(COUNT)]
    assert torch.equal(torch.cat([it[0] for it in batches]), torch.stack([row[0] for row in rows]))
    assert torch.equal(torch.cat([it[1] for it in batches]), torch.stack([row[1] for row in rows]))


@pytest.mark.parametrize("workers", [1, 4])
def test_threads_change_no_bit_and_each_epoch_has_an_order_of_its_own(recordings, workers):
    alone = RecordingLoader(recordings, 4, shuffle=True, num_workers=0, seed=3)
    several = RecordingLoader(recordings, 4, shuffle=True, num_workers=workers, seed=3)
    epochs = [batches_of(alone) for _ in range(3)]
    assert all(are_equal(epoch, batches_of(several)) for epoch in epochs)
    orders = [[name for _, _, names in epoch for name in names] for epoch in epochs]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == recordings.sessions for order in orders)
    several.set_epoch(1)
    assert are_equal(epochs[1], batches_of(several))


def test_a_last_batch_that_is_not_full_may_be_left_out(recordings):
    loader = RecordingLoader(recordings, 4, drop_last=True)
    assert len(loader) == len(batches_of(loader)) == 2


def test_processes_share_the_recordings_as_those_of_a_dataloader(recordings):
    whole = RecordingLoader(recordings, 2, shuffle=True, seed=5)
    whole.set_epoch(2)
    order = [name for _, _, names in whole for name in names]
    for is_training, filled in ((True, [*order, order[0]]), (False, order)):
        for rank in range(2):
            part = whole.sharded(2, rank, is_training)
            part.set_epoch(2)
            assert [name for _, _, names in part for name in names] == filled[rank::2]


def test_a_recording_that_cannot_be_read_is_named_and_hangs_nothing(folder, tmp_path):
    (tmp_path / "train").mkdir()
    for path in (folder / "train").iterdir():
        (tmp_path / "train" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "train" / "s05_iq.npy").write_bytes(b"no array")
    broken = RecordingDataset(tmp_path, "train", sample_rate=48_000.0, n_fft=512, hop=128, bands=64)
    for workers in (0, 3):
        with pytest.raises(DatasetError, match=r"s05_iq\.npy"):
            batches_of(RecordingLoader(broken, 2, num_workers=workers))


def test_an_end_before_the_last_batch_ends_the_threads(recordings):
    for _ in range(20):
        for _ in RecordingLoader(recordings, 1, num_workers=4):
            break
    # They are no threads of Python; the folder of the process lists them all.
    from pathlib import Path

    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert names.count("heimdall-record") <= 4
    assert threading.active_count() < 20


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"batch_size": 0}, ConfigurationError, "batch_size must be a whole number of at least 1"),
        ({"num_workers": -1}, ConfigurationError, "num_workers must be a whole number of at least 0"),
        ({"prefetch_factor": 0}, ConfigurationError, "prefetch_factor must be"),
        ({"names": ["a"]}, InvalidInputError, "names must be one for each of 11"),
        ({"dataset": "folder"}, InvalidInputError, "dataset must be a RecordingDataset"),
    ],
)
def test_what_cannot_work_is_named(recordings, given, error, text):
    with pytest.raises(error, match=text):
        RecordingLoader(**{"dataset": recordings, "batch_size": 2, **given})


def test_a_training_takes_the_batches(recordings, make_trainer):
    net = LocalizationNet("convnext_tiny", origin=(45.0, 8.0), seed=1)
    loader = RecordingLoader(recordings, 4, shuffle=True, num_workers=2)
    result = make_trainer(max_epochs=1, limit_train_batches=2).fit(net, loader, loader)
    assert np.isfinite(result.metrics["train/loss"])
    assert np.isfinite(result.metrics["val/loss"])


def test_lightning_takes_the_batches(recordings, tmp_path):
    pl = import_module("lightning.pytorch")

    class Module(pl.LightningModule):  # type: ignore[name-defined]
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(64, 2)
            self.names = []

        def training_step(self, batch, batch_idx):
            features, positions, names = batch
            self.names += names
            outputs = self.layer(features.mean(dim=(1, 3)))
            return torch.nn.functional.mse_loss(outputs, positions)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-6)

    module = Module()
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, RecordingLoader(recordings, 4, num_workers=2))
    assert module.names == recordings.sessions
    assert isinstance(Trainer, type)

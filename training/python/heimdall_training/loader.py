"""Batches of recordings that native threads read ahead of a training."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence

import torch

from ._native import BatchReader, RecordingDataset
from .errors import ConfigurationError, InvalidInputError

# Spectrograms `[rows, channels, bands, frames]`, positions `[rows, 2]` in degrees, and names.
Batch = tuple[torch.Tensor, torch.Tensor, list[str]]


class RecordingLoader:
    """Batches of recordings, whose features native threads compute ahead of the training.

    It takes the place of a `torch.utils.data.DataLoader`, also in Lightning's trainer. The batches are the
    same, bit for bit, for every number of threads.

    Args:
        dataset: The recordings, or pairs of a `RecordingDataset` and the number of a recording in it.
        batch_size: Recordings in a batch, at least 1.
        shuffle: Another order in each epoch. Without it, the order is that of the dataset.
        num_workers: Threads; 0 reads a batch when it is asked for.
        seed: Decides the orders, together with the number of the epoch.
        drop_last: Leave out a last batch that is not full.
        prefetch_factor: Batches that each thread reads ahead, at least 1.
        pin_memory: Put batches into memory that CUDA copies from without waiting; only where there is CUDA.
        names: Names of the recordings; default those of the dataset.

    Raises:
        ConfigurationError: A number is out of its range.
        InvalidInputError: The dataset is something else.

    Example:
        >>> loader = RecordingLoader(RecordingDataset("data", "train"), 32, shuffle=True)  # doctest: +SKIP
        >>> features, positions, names = next(iter(loader))  # doctest: +SKIP
    """

    def __init__(
        self,
        dataset: RecordingDataset | Sequence[tuple[RecordingDataset, int]],
        batch_size: int = 1,
        *,
        shuffle: bool = False,
        num_workers: int = 4,
        seed: int = 0,
        drop_last: bool = False,
        prefetch_factor: int = 2,
        pin_memory: bool = False,
        names: Sequence[str] | None = None,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("prefetch_factor", prefetch_factor, 1),
        ):
            if not isinstance(value, int) or value < least:
                raise ConfigurationError(f"{name} must be a whole number of at least {least}, not {value!r}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.num_workers = num_workers
        self.seed = seed
        self.drop_last = drop_last
        self.prefetch_factor = prefetch_factor
        self.pin_memory = pin_memory
        self._rows = _rows_of(dataset)
        self._names = [*names] if names is not None else [data.sessions[row] for data, row in self._rows]
        if len(self._names) != len(self._rows):
            raise InvalidInputError(
                f"names must be one for each of {len(self._rows)} recordings, not {len(self._names)}"
            )
        # An order of its own in each epoch, also where nobody tells the epoch.
        self._epoch: int | None = None
        self._begun = 0
        self._share: tuple[int, int, bool] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that decides the next order."""
        self._epoch = epoch

    def sharded(self, size: int, rank: int, is_training: bool) -> RecordingLoader:
        """Return a loader of the recordings that one of several processes takes.

        Args:
            size: Number of processes.
            rank: Number of this process, from 0.
            is_training: Each process gets the same number of recordings; the first ones fill up what is
                missing.
        """
        loader = copy.copy(self)
        loader._share = (size, rank, is_training)
        return loader

    def __len__(self) -> int:
        rows = len(self._mine(range(len(self._rows))))
        return rows // self.batch_size if self.drop_last else -(-rows // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Read the batches of an epoch.

        Raises:
            DatasetError: A file breaks its format; the message names it.
        """
        order = self._mine(self._order())
        batches = [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]
        if self.drop_last and batches and len(batches[-1]) < self.batch_size:
            batches.pop()
        reader = BatchReader(self._rows, batches, self.num_workers, self.prefetch_factor)
        return self._read(reader, batches)

    def _read(self, reader: BatchReader, batches: list[list[int]]) -> Iterator[Batch]:
        pins = self.pin_memory and torch.cuda.is_available()
        try:
            for rows, (features, positions) in zip(batches, reader, strict=False):
                if pins:
                    features, positions = features.pin_memory(), positions.pin_memory()
                yield features, positions, [self._names[row] for row in rows]
        finally:
            reader.close()

    def _order(self) -> Sequence[int]:
        epoch = self._begun if self._epoch is None else self._epoch
        self._begun = epoch + 1
        self._epoch = None
        if not self.shuffle:
            return range(len(self._rows))
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order: list[int] = torch.randperm(len(self._rows), generator=generator).tolist()
        return order

    def _mine(self, order: Sequence[int]) -> list[int]:
        if self._share is None:
            return [*order]
        size, rank, is_training = self._share
        rows = [*order]
        if is_training and rows:
            rows += itertools.islice(itertools.cycle(order), -len(rows) % size)
        return rows[rank::size]


def _rows_of(
    dataset: RecordingDataset | Sequence[tuple[RecordingDataset, int]],
) -> list[tuple[RecordingDataset, int]]:
    if isinstance(dataset, RecordingDataset):
        return [(dataset, row) for row in range(len(dataset))]
    try:
        rows = [(data, int(row)) for data, row in dataset]
    except (TypeError, ValueError):
        rows = []
    if not rows or not all(isinstance(data, RecordingDataset) for data, _ in rows):
        raise InvalidInputError(
            "dataset must be a RecordingDataset, or pairs of one and the number of a recording, not "
            f"{type(dataset).__name__}"
        )
    for data, row in rows:
        if not 0 <= row < len(data):
            raise InvalidInputError(f"recording {row} must be from 0 to {len(data) - 1} of {data!r}")
    return rows

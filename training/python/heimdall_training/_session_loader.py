"""The batches of recordings for a training: the one place that decides what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.utils.data import DataLoader, Dataset

from heimdall_tracking.training.config import TrainingConfig

from ._sessions import Session
from .errors import DatasetError

# Spectrogram, latitude and longitude, and the name of a recording.
Row = tuple[torch.Tensor, torch.Tensor, str]


def make_loader(
    sessions: Sequence[Session], config: TrainingConfig, is_training: bool, processes: int = 1
) -> DataLoader[Row]:
    """Return batches of some recordings: spectrograms, positions in degrees, names.

    Args:
        sessions: The recordings.
        config: Size of a batch, and threads.
        is_training: Shuffle anew in each epoch, and leave out a last batch of one recording, because
            BatchNorm needs the variance of a batch.
        processes: Processes that share the recordings.

    Raises:
        DatasetError: There is one recording for a process to train on.
    """
    per_process = -(-len(sessions) // processes)
    if is_training and per_process < 2:
        raise DatasetError(
            f"{len(sessions)} sessions are too few to train {processes} processes: each needs at least 2, "
            "because BatchNorm needs the variance of a batch"
        )
    return DataLoader(
        Recordings(sessions, config.num_workers),
        batch_size=config.batch_size,
        shuffle=is_training,
        drop_last=is_training and per_process % config.batch_size == 1,
        pin_memory=config.device != "cpu" and torch.cuda.is_available(),
    )


class Recordings(Dataset[Row]):
    """Recordings of several folders, read by threads: the native code does it without Python's lock.

    Args:
        sessions: The recordings.
        threads: Threads that read the recordings of a batch; 0 reads them one after the other.
    """

    def __init__(self, sessions: Sequence[Session], threads: int) -> None:
        self.sessions = list(sessions)
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.sessions)

    def __getitem__(self, index: int) -> Row:
        session = self.sessions[index]
        features, label, _ = session.dataset[session.row]
        return features, label, session.name

    def __getitems__(self, indices: list[int]) -> list[Row]:
        """Read the recordings of a batch."""
        if self._threads < 2:
            return [self[index] for index in indices]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "heimdall-recordings")
        return [*self._pool.map(self.__getitem__, indices)]

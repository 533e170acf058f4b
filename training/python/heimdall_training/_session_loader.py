"""The batches of recordings for a training: the one place that decides what reads them."""

from __future__ import annotations

from collections.abc import Sequence

from heimdall_tracking.training.config import TrainingConfig

from ._sessions import Session
from .errors import DatasetError
from .loader import RecordingLoader


def make_loader(
    sessions: Sequence[Session], config: TrainingConfig, is_training: bool, processes: int = 1
) -> RecordingLoader:
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
    return RecordingLoader(
        [(session.dataset, session.row) for session in sessions],
        config.batch_size,
        shuffle=is_training,
        num_workers=config.num_workers,
        seed=config.seed or 0,
        drop_last=is_training and per_process % config.batch_size == 1,
        pin_memory=config.device != "cpu",
        names=[session.name for session in sessions],
    )

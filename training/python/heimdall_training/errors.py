"""Exceptions of heimdall_training, children of those of heimdall_tracking."""

from heimdall_tracking.errors import (
    ArtifactNotFoundError,
    ConfigurationError,
    HeimdallError,
    InvalidInputError,
)

__all__ = [
    "ArtifactNotFoundError",
    "CheckpointNotFoundError",
    "ConfigurationError",
    "DatasetError",
    "DatasetNotFoundError",
    "HeimdallError",
    "InvalidInputError",
    "PretrainedWeightsNotFoundError",
    "TrainingError",
]


class TrainingError(HeimdallError, RuntimeError):
    """Training cannot go on: the loss is not finite, a file cannot be written, libtorch refused."""


class DatasetError(HeimdallError, ValueError):
    """A dataset breaks its format or cannot be split as asked; the message has file, line and value."""


class DatasetNotFoundError(DatasetError, FileNotFoundError):
    """The folder of a dataset, or a file that belongs into it, does not exist."""


class CheckpointNotFoundError(ArtifactNotFoundError):
    """A checkpoint does not exist or cannot be read."""


class PretrainedWeightsNotFoundError(ArtifactNotFoundError):
    """ImageNet weights are not in torch's cache; the message has their URL and their place."""

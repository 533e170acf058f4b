"""Experiment tracking that never blocks training, read by a stock MLflow.

    from heimdall_tracking import initialize_mlflow, settings

    tracker = initialize_mlflow(settings)
    with tracker.run("experiment-v1") as run:
        tracker.log_metrics({"train/loss": 0.5}, step=0)

The training loop is ``heimdall_tracking.training``; importing this package loads neither it nor torch.
"""

from ._finish import register as _register_finish
from ._native import ActiveRun, MLflowTracker, __version__
from .errors import (
    ArtifactError,
    ArtifactNotFoundError,
    ConfigurationError,
    HeimdallError,
    InvalidInputError,
    JournalError,
    NotFoundError,
    PermissionDeniedError,
    RunStateError,
    StoreUnavailableError,
    UndeliveredError,
    WrongTypeError,
)
from .settings import Settings, initialize_mlflow, settings

__all__ = [
    "ActiveRun",
    "ArtifactError",
    "ArtifactNotFoundError",
    "ConfigurationError",
    "HeimdallError",
    "InvalidInputError",
    "JournalError",
    "MLflowTracker",
    "NotFoundError",
    "PermissionDeniedError",
    "RunStateError",
    "Settings",
    "StoreUnavailableError",
    "UndeliveredError",
    "WrongTypeError",
    "__version__",
    "initialize_mlflow",
    "settings",
]

_register_finish()

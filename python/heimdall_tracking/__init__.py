"""Experiment tracking that never blocks training, read by a stock MLflow.

    from heimdall_tracking import initialize_mlflow, settings

    tracker = initialize_mlflow(settings)
    with tracker.run("experiment-v1") as run:
        tracker.log_metrics({"train/loss": 0.5}, step=0)

The training loop is ``heimdall_tracking.training``; importing this package loads neither it nor torch.
"""

from ._finish import register as _register_finish
from ._native import (
    DatasetInput,
    DestinationStatus,
    Experiment,
    FileInfo,
    GarbageItem,
    MetricPoint,
    ModelVersion,
    RegisteredModel,
    Run,
    SparedItem,
    Status,
    __version__,
)
from .active_run import ActiveRun
from .errors import (
    AlreadyExistsError,
    ArtifactError,
    ArtifactNotFoundError,
    ConfigurationError,
    ExportError,
    HeimdallError,
    InvalidInputError,
    JournalError,
    MissingPackageError,
    NotFoundError,
    PermissionDeniedError,
    RegistrationError,
    RunStateError,
    StoreUnavailableError,
    UndeliveredError,
    WrongTypeError,
)
from .runs import RunList
from .settings import initialize_mlflow
from .tracker import MLflowTracker
from .tracker import when_bridged as _when_bridged
from .uploads import Upload
from .versions import VersionList

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from .inputs import Dataset
    from .lifecycle import GarbageReport, collect_garbage
    from .models import ModelInfo, OnnxExport, load_model
    from .settings import Settings, settings
else:
    # The import has put the module in the place of the settings.
    del settings

__all__ = [
    "ActiveRun",
    "AlreadyExistsError",
    "ArtifactError",
    "ArtifactNotFoundError",
    "ConfigurationError",
    "Dataset",
    "DatasetInput",
    "DestinationStatus",
    "Experiment",
    "ExportError",
    "FileInfo",
    "GarbageItem",
    "GarbageReport",
    "HeimdallError",
    "InvalidInputError",
    "JournalError",
    "MLflowTracker",
    "MetricPoint",
    "MissingPackageError",
    "ModelInfo",
    "ModelVersion",
    "NotFoundError",
    "OnnxExport",
    "PermissionDeniedError",
    "RegisteredModel",
    "RegistrationError",
    "Run",
    "RunList",
    "RunStateError",
    "Settings",
    "SparedItem",
    "Status",
    "StoreUnavailableError",
    "UndeliveredError",
    "Upload",
    "VersionList",
    "WrongTypeError",
    "__version__",
    "collect_garbage",
    "initialize_mlflow",
    "load_model",
    "settings",
]


def _attach(tracker: MLflowTracker) -> None:
    """Let stock MLflow use a tracker. The bridge is imported with the first tracker, not with the package."""
    from .bridge import attach

    attach(tracker)


_when_bridged.append(_attach)


def __getattr__(name: str) -> object:
    # These modules load hashing, JSON and more, so they are imported when a name of theirs is used.
    if name == "Dataset":
        from .inputs import Dataset

        globals()[name] = Dataset
        return Dataset
    if name in ("GarbageReport", "collect_garbage"):
        from . import lifecycle

        globals()[name] = getattr(lifecycle, name)
        return globals()[name]
    if name in ("ModelInfo", "OnnxExport", "load_model"):
        from . import models

        globals()[name] = value = getattr(models, name)
        return value
    if name in ("Settings", "settings"):
        # They read files and the environment, and the class imports pydantic where it is installed.
        import sys

        module = sys.modules[f"{__name__}.settings"]
        globals()[name] = value = getattr(module, name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_register_finish()

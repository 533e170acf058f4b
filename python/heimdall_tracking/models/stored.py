"""A model from a local folder or a store, by a tracker that is given or made for the call."""

from __future__ import annotations

from os import PathLike
from typing import Any

from ..settings import initialize_mlflow, settings
from ..tracker import MLflowTracker
from .load import Flavor, load_source


def load_model(
    source: str | PathLike[str],
    *,
    module: Any = None,
    flavor: Flavor | None = None,
    device: Any = "cpu",
    allow_pickle: bool | None = None,
    tracker: MLflowTracker | None = None,
    tracking_uri: str | None = None,
) -> Any:
    """Load a model, without mlflow. `MLflowTracker.load_model` is the same for the stores of a tracker.

    Args:
        source: `models:/<name>/<version or stage>`, `models:/<name>@<alias>`, `runs:/<run id>/<path>`, the
            URI of a folder (`s3://…`, `mlflow-artifacts:/…`, `file:///…`), or its local path.
        module: A `torch.nn.Module` of the model's layers. It gets the state dict that is in the folder, and
            nothing is unpickled.
        flavor: Flavour to load where the folder has both: `pytorch` or `onnx`.
        device: Device for the weights, as `torch.load` takes it for `map_location`.
        allow_pickle: True lets code of the model run, which a pickle contains. Default:
            `MLFLOW_ALLOW_PICKLE_DESERIALIZATION`, else True, as by stock MLflow.
        tracker: Tracker whose stores are asked; default one that is made for the call, if the source is no
            local folder.
        tracking_uri: Store of the tracker that is made; default that of the settings.

    Returns:
        A `torch.nn.Module` in evaluation mode (a scripted one has its `forward` alone), or for ONNX an
        `onnxruntime.InferenceSession`.

    Raises:
        NotFoundError: There is no such model, or it has not that flavour.
        InvalidInputError: The folder is none that MLflow would load, or `module` has other layers.
        PermissionDeniedError: The model is a pickle, and pickles are not allowed.
        MissingPackageError: A package that the flavour needs is not installed.

    Example:
        >>> import torch
        >>> tracker = MLflowTracker("sqlite:///mlflow.db")
        >>> with tracker.run("trained"):
        ...     info = tracker.log_model(torch.nn.Linear(2, 1), registered_model_name="lines")
        >>> load_model("models:/lines/1", tracking_uri="sqlite:///mlflow.db")
        Linear(in_features=2, out_features=1, bias=True)
    """

    def made() -> MLflowTracker:
        if tracker is not None:
            return tracker
        return MLflowTracker(tracking_uri) if tracking_uri else initialize_mlflow(settings)

    return load_source(source, made, module, flavor, device, allow_pickle)

"""Settings of the tracker, and the one call that existing scripts make."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Protocol

from ._native import MLflowTracker


def _environment(name: str, default: str | None = None) -> Any:
    return field(default_factory=lambda: os.environ.get(name) or default)


@dataclass
class Settings:
    """Where and under which name runs are recorded.

    Every field is read from its environment variable when the object is made. Any other object with
    these attributes (a pydantic `Settings`, a namespace) serves `initialize_mlflow` as well.

    Args:
        mlflow_tracking_uri: Where runs are recorded; `MLFLOW_TRACKING_URI`, else `sqlite:///mlflow.db`.
        mlflow_artifact_uri: Where artifacts of a new experiment go; `MLFLOW_ARTIFACT_URI`, else the
            folder `mlruns` beside the database.
        mlflow_backend_store_uri: Database behind the tracking URI; `MLFLOW_BACKEND_STORE_URI`. Must be the
            same as the tracking URI where both name a database.
        mlflow_registry_uri: Where models are registered; `MLFLOW_REGISTRY_URI`, else the tracking URI.
        mlflow_s3_endpoint_url: S3 endpoint; `MLFLOW_S3_ENDPOINT_URL`.
        mlflow_s3_access_key_id: S3 access key; `AWS_ACCESS_KEY_ID`. Not shown in the repr.
        mlflow_s3_secret_access_key: S3 secret key; `AWS_SECRET_ACCESS_KEY`. Not shown in the repr.
        mlflow_experiment_name: Experiment; `MLFLOW_EXPERIMENT_NAME`, else `heimdall-localization`.
        mlflow_run_name_prefix: What training scripts begin run names with; `rf-localization`.
    """

    mlflow_tracking_uri: str = _environment("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    mlflow_artifact_uri: str | None = _environment("MLFLOW_ARTIFACT_URI")
    mlflow_backend_store_uri: str | None = _environment("MLFLOW_BACKEND_STORE_URI")
    mlflow_registry_uri: str | None = _environment("MLFLOW_REGISTRY_URI")
    mlflow_s3_endpoint_url: str | None = _environment("MLFLOW_S3_ENDPOINT_URL")
    mlflow_s3_access_key_id: str | None = field(
        default_factory=lambda: os.environ.get("AWS_ACCESS_KEY_ID"), repr=False
    )
    mlflow_s3_secret_access_key: str | None = field(
        default_factory=lambda: os.environ.get("AWS_SECRET_ACCESS_KEY"), repr=False
    )
    mlflow_experiment_name: str = _environment("MLFLOW_EXPERIMENT_NAME", "heimdall-localization")
    mlflow_run_name_prefix: str = "rf-localization"


settings = Settings()
"""The settings of this process, read from the environment at import."""


class TrackerSettings(Protocol):
    """What `initialize_mlflow` reads."""

    @property
    def mlflow_tracking_uri(self) -> str: ...
    @property
    def mlflow_artifact_uri(self) -> str | None: ...
    @property
    def mlflow_backend_store_uri(self) -> str | None: ...
    @property
    def mlflow_registry_uri(self) -> str | None: ...
    @property
    def mlflow_s3_endpoint_url(self) -> str | None: ...
    @property
    def mlflow_s3_access_key_id(self) -> str | None: ...
    @property
    def mlflow_s3_secret_access_key(self) -> str | None: ...
    @property
    def mlflow_experiment_name(self) -> str: ...


def initialize_mlflow(settings: TrackerSettings) -> MLflowTracker:
    """Make the tracker that some settings describe.

    Args:
        settings: Any object with the attributes of `Settings`.

    Returns:
        A tracker whose experiment exists; no run is active yet.

    Raises:
        ConfigurationError: A URI cannot be used, or the database cannot be opened.
        InvalidInputError: The experiment name is empty or too long.
    """
    return MLflowTracker(
        tracking_uri=settings.mlflow_tracking_uri,
        artifact_uri=settings.mlflow_artifact_uri,
        backend_store_uri=settings.mlflow_backend_store_uri,
        registry_uri=settings.mlflow_registry_uri,
        s3_endpoint_url=settings.mlflow_s3_endpoint_url,
        s3_access_key_id=settings.mlflow_s3_access_key_id,
        s3_secret_access_key=settings.mlflow_s3_secret_access_key,
        experiment_name=settings.mlflow_experiment_name,
    )

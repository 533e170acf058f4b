"""Settings of the tracker, and the one call that existing scripts make."""

from __future__ import annotations

import os

from ._native import without_credentials
from .heimdall_defaults import DEFAULT_TAGS, EXPERIMENT_NAME, RUN_NAME_PREFIX
from .tracker import MLflowTracker

# Spelled out, as importing `typing` and `dataclasses` would cost more than all the rest of this package.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class TrackerSettings(Protocol):
        """The settings that `initialize_mlflow` reads."""

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


SECRETS = ("mlflow_s3_access_key_id", "mlflow_s3_secret_access_key")


class Settings:
    """The places and the name under which runs are recorded.

    A setting that is not given is read from its environment variable when the object is made. Any other
    object with these attributes (a pydantic `Settings`, a namespace) serves `initialize_mlflow` as well.

    Args:
        mlflow_tracking_uri: Store of the runs; `MLFLOW_TRACKING_URI`, else the PostgreSQL database that
            `POSTGRES_HOST` and, where they are set, `POSTGRES_PORT`, `POSTGRES_USER`, `POSTGRES_PASSWORD` and
            `POSTGRES_DB` name, else `sqlite:///mlflow.db`.
        mlflow_artifact_uri: Folder for artifacts of a new experiment; `MLFLOW_ARTIFACT_URI`, else the
            folder `mlruns` beside SQLite's file, with PostgreSQL in the working directory, and with a server
            the folder that the server names.
        mlflow_backend_store_uri: Database behind the tracking URI; `MLFLOW_BACKEND_STORE_URI`. Must be the
            same as the tracking URI where both name a database.
        mlflow_registry_uri: Registry of the models; `MLFLOW_REGISTRY_URI`, else the tracking URI.
        mlflow_s3_endpoint_url: S3 endpoint; `MLFLOW_S3_ENDPOINT_URL`.
        mlflow_s3_access_key_id: S3 access key; `AWS_ACCESS_KEY_ID`. Not shown in the repr.
        mlflow_s3_secret_access_key: S3 secret key; `AWS_SECRET_ACCESS_KEY`. Not shown in the repr.
        mlflow_experiment_name: Experiment; `MLFLOW_EXPERIMENT_NAME`, else `heimdall-localization`.
        mlflow_run_name_prefix: Text that training scripts begin run names with.
    """

    def __init__(
        self,
        *,
        mlflow_tracking_uri: str | None = None,
        mlflow_artifact_uri: str | None = None,
        mlflow_backend_store_uri: str | None = None,
        mlflow_registry_uri: str | None = None,
        mlflow_s3_endpoint_url: str | None = None,
        mlflow_s3_access_key_id: str | None = None,
        mlflow_s3_secret_access_key: str | None = None,
        mlflow_experiment_name: str | None = None,
        mlflow_run_name_prefix: str = RUN_NAME_PREFIX,
    ) -> None:
        env = os.environ.get
        self.mlflow_tracking_uri = (
            mlflow_tracking_uri or env("MLFLOW_TRACKING_URI") or _postgres_uri() or "sqlite:///mlflow.db"
        )
        self.mlflow_artifact_uri = mlflow_artifact_uri or env("MLFLOW_ARTIFACT_URI")
        self.mlflow_backend_store_uri = mlflow_backend_store_uri or env("MLFLOW_BACKEND_STORE_URI")
        self.mlflow_registry_uri = mlflow_registry_uri or env("MLFLOW_REGISTRY_URI")
        self.mlflow_s3_endpoint_url = mlflow_s3_endpoint_url or env("MLFLOW_S3_ENDPOINT_URL")
        self.mlflow_s3_access_key_id = mlflow_s3_access_key_id or env("AWS_ACCESS_KEY_ID")
        self.mlflow_s3_secret_access_key = mlflow_s3_secret_access_key or env("AWS_SECRET_ACCESS_KEY")
        self.mlflow_experiment_name = (
            mlflow_experiment_name or env("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT_NAME
        )
        self.mlflow_run_name_prefix = mlflow_run_name_prefix

    def __repr__(self) -> str:
        shown = {name: value for name, value in vars(self).items() if name not in SECRETS}
        for name, value in shown.items():
            if value is not None and name.endswith(("_uri", "_url")):
                shown[name] = without_credentials(value)
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def _postgres_uri() -> str | None:
    """Return the database that the variables of PostgreSQL's container image name, if they name its host."""
    env = os.environ.get
    host = env("POSTGRES_HOST")
    if not host:
        return None
    user = env("POSTGRES_USER") or "postgres"
    database = _percent_encoded(env("POSTGRES_DB") or user)
    password = env("POSTGRES_PASSWORD")
    port = env("POSTGRES_PORT")
    account = _percent_encoded(user) + (f":{_percent_encoded(password)}" if password else "")
    if host.startswith("/"):
        # A URI cannot have a folder of sockets as its host.
        options = f"?host={_percent_encoded(host)}" + (f"&port={port}" if port else "")
        return f"postgresql://{account}@/{database}{options}"
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"postgresql://{account}@{host}{f':{port}' if port else ''}/{database}"


def _percent_encoded(text: str) -> str:
    """Encode a text for any part of a URI; `urllib.parse` would cost more than the rest of this module."""
    safe = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~"
    return "".join(chr(byte) if byte in safe else f"%{byte:02X}" for byte in os.fsencode(text))


settings = Settings()
"""The settings of this process, read from the environment at import."""


def initialize_mlflow(settings: TrackerSettings) -> MLflowTracker:
    """Make the tracker that some settings describe.

    Args:
        settings: Any object with the attributes of `Settings`.

    Returns:
        A tracker whose experiment exists; no run is active yet. Its runs have the tags phase=training,
        service=training and model=LocalizationNet, unless they set others.

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
        default_tags=DEFAULT_TAGS,
    )

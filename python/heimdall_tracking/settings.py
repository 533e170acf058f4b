"""Settings of the tracker, and the one call that existing scripts make.

There are two classes of settings with the same fields and values: a plain one, and a model of
pydantic-settings for those who have it. Importing pydantic takes a hundred times as long as importing this
package, so the plain class serves until somebody asks for the name `Settings`.
"""

from __future__ import annotations

from ._plain_settings import DEFAULTS, FIELDS, PlainSettings, found, text_of
from .heimdall_defaults import DEFAULT_TAGS, EXPERIMENT_NAME
from .tracker import MLflowTracker

# Spelled out, as importing `typing` and `dataclasses` would cost more than all the rest of this package.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._pydantic_settings import Settings as Settings

    # An object with some of the fields of `Settings`, or a mapping with them as its keys.
    TrackerSettings = object


def initialize_mlflow(settings: TrackerSettings = None) -> MLflowTracker:
    """Make the tracker that some settings describe.

    Args:
        settings: Any object with attributes of `Settings`, such as a model of pydantic, a dataclass or a
            namespace, or a mapping with them as keys. A field that is missing or None has its default: the
            variable of the environment or of `.env`, else what `Settings` documents. Where the tracking URI
            is given, artifact, backend-store and registry URI belong to it and are not read from variables.
            Default: `heimdall_tracking.settings`.

    Returns:
        A tracker whose experiment exists; no run is active yet. Its runs have the tags phase=training,
        service=training and model=LocalizationNet, unless they set others. A run that is given no name is
        named by `mlflow_run_name_prefix` and the time, such as `rf-localization_20251108_093000`.

    Raises:
        ConfigurationError: A field has the wrong type, a URI cannot be used, or the database cannot be
            opened.
        InvalidInputError: The experiment name is empty or too long.

    Example:
        >>> tracker = initialize_mlflow({"mlflow_tracking_uri": "sqlite:///mlflow.db"})
        >>> tracker.experiment_name
        'heimdall-localization'
    """
    if settings is None:
        settings = _settings_of_this_process()
    values = values_of(settings)
    experiment_name = values["mlflow_experiment_name"]
    if experiment_name in (None, EXPERIMENT_NAME):
        experiment_name = experiment_of_environment(values["mlflow_tracking_uri"] or "") or experiment_name
    tracker = MLflowTracker(
        tracking_uri=values["mlflow_tracking_uri"] or "",
        artifact_uri=values["mlflow_artifact_uri"],
        backend_store_uri=values["mlflow_backend_store_uri"],
        registry_uri=values["mlflow_registry_uri"],
        s3_endpoint_url=values["mlflow_s3_endpoint_url"],
        s3_access_key_id=values["mlflow_s3_access_key_id"],
        s3_secret_access_key=values["mlflow_s3_secret_access_key"],
        experiment_name=EXPERIMENT_NAME if experiment_name is None else experiment_name,
        default_tags=DEFAULT_TAGS,
        run_name_prefix=values["mlflow_run_name_prefix"],
    )
    if tracker._is_bridged:
        from .bridge.attached import keep

        # A script that only sets MLflow up by this call drops what it returns.
        keep(tracker)
    return tracker


def experiment_of_environment(uri: str) -> str | None:
    """Return the name of the experiment `MLFLOW_EXPERIMENT_ID` in a store.

    None where `MLFLOW_EXPERIMENT_NAME` names one, and where the store is another one than that of
    `MLFLOW_TRACKING_URI`, does not answer or has no such experiment.
    """
    from . import _environment

    experiment_id = _environment.get("MLFLOW_EXPERIMENT_ID")
    if not experiment_id or "mlflow_experiment_name" in found():
        return None
    from ._uris import same_store
    from .errors import HeimdallError

    given = found().get("mlflow_tracking_uri")
    if given is not None and not same_store(uri, given[0]):
        return None
    try:
        # MLflow makes this experiment in each store.
        asking = MLflowTracker(uri, experiment_name="Default", set_environment=False, bridge=False)
        return asking.get_experiment(experiment_id).name
    except HeimdallError as error:
        import logging

        logging.getLogger("heimdall_tracking").warning(
            "the experiment MLFLOW_EXPERIMENT_ID=%s is not used: %s", experiment_id, error
        )
        return None


# Fields that name places which belong to the tracking URI.
OF_THE_TRACKING_URI = ("mlflow_artifact_uri", "mlflow_backend_store_uri", "mlflow_registry_uri")


def values_of(settings: TrackerSettings) -> dict[str, str | None]:
    """Return the texts of all fields of some settings, with the default of each that is missing.

    Raises:
        ConfigurationError: A field has the wrong type, or the object can be no settings.
    """
    from collections.abc import Mapping

    if isinstance(settings, (str, bytes, int, float, list, tuple, set)) or hasattr(settings, "__fspath__"):
        from .errors import ConfigurationError

        raise ConfigurationError(
            "settings must be an object with attributes such as mlflow_tracking_uri, or a dict with such "
            f"keys, not {type(settings).__name__}; a tracker for one URI is MLflowTracker(uri)"
        )
    if isinstance(settings, Mapping):
        given = {field: text_of(field, settings.get(field)) for field in FIELDS}
    else:
        given = {field: text_of(field, getattr(settings, field, None)) for field in FIELDS}
    has_store = given["mlflow_tracking_uri"] is not None
    variables = found()
    for field, value in given.items():
        if value is None and not (has_store and field in OF_THE_TRACKING_URI):
            given[field] = variables[field][0] if field in variables else DEFAULTS.get(field)
    if given["mlflow_s3_endpoint_url"]:
        # A URL of pydantic ends with a slash that nobody has written.
        given["mlflow_s3_endpoint_url"] = given["mlflow_s3_endpoint_url"].rstrip("/")
    return given


def _settings_of_this_process() -> PlainSettings:
    value: PlainSettings = __getattr__("settings")
    return value


def __getattr__(name: str) -> Any:
    if name == "settings":
        globals()[name] = settings = PlainSettings()
        return settings
    if name == "Settings":
        try:
            from ._pydantic_settings import Settings as cls
        except ImportError:
            # There is no pydantic-settings, or one that is too old.
            cls = PlainSettings  # type: ignore[assignment, misc]
        globals()[name] = cls
        return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if TYPE_CHECKING:
    settings: Settings

"""The trackers that are made for `heimdall+…` URIs, where a script makes none."""

from __future__ import annotations

import os
import threading

from .._uris import PREFIX, fingerprint, same_store, without_prefix
from .attached import detach, trackers_of_store
from .stock import stock

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Fingerprints of the stores that a process above this one has named with the prefix. Whoever starts a
# process, as `mlflow run` does, tells it MLflow's present URI, which has no prefix.
HANDED_ON = "HEIMDALL_JOURNALED"
# The experiment of a script that names none. MLflow makes it in each database.
DEFAULT_EXPERIMENT = "Default"
DATABASES = ("sqlite", "postgresql")

# Plain URIs of the stores that `heimdall+…` URIs have named.
_asked: list[str] = []
# The trackers that were made for them, for as long as the process lives.
_made: list[Any] = []
_lock = threading.RLock()


def plain_uri(uri: str) -> str:
    """Return the URI of the same store for stock MLflow, with an absolute path where it names a file."""
    from .. import _start

    return _start.store(without_prefix(uri))


def provide(uri: str, artifact_uri: str | None = None) -> None:
    """Make the tracker of a store that a `heimdall+…` URI has named, if there is none yet.

    Args:
        uri: A plain URI. Nothing is done for one that was never named with the prefix, here or in a process
            above this one.
        artifact_uri: Place for the artifacts of new experiments.

    Raises:
        MlflowException: The URI, the database or the experiment cannot be used.
    """
    with _lock:
        if not _is_asked_for(uri) or trackers_of_store(uri):
            return
        # A tracker that is off, or silent on this rank, was made and is not bridged.
        if any(same_store(uri, tracker._uris()[0]) for tracker in _made):
            return
        import mlflow.tracking.fluent  # noqa: F401

        tracker = _tracker(uri, artifact_uri)
        _made.append(tracker)
        if not tracker._is_bridged or tracker.status().mode == "silent":
            detach(tracker)


def use_plain_uris() -> None:
    """Let MLflow's present URIs be the plain ones, which all of MLflow understands.

    The variables of the environment keep the prefix: processes that this one starts have a journal as well,
    for the same store, whatever folder they start in.
    """
    from mlflow.tracking._model_registry import utils as registry_utils
    from mlflow.tracking._tracking_service import utils as tracking_utils

    places = (
        (tracking_utils, "_tracking_uri", "MLFLOW_TRACKING_URI"),
        (registry_utils, "_registry_uri", "MLFLOW_REGISTRY_URI"),
    )
    for module, place, variable in places:
        named = os.environ.get(variable, "")
        if named.startswith(PREFIX) and PREFIX + plain_uri(named) != named:
            os.environ[variable] = PREFIX + plain_uri(named)
        uri = getattr(module, place, None) or os.environ.get(variable) or ""
        if uri.startswith(PREFIX):
            plain = plain_uri(uri)
            if variable == "MLFLOW_TRACKING_URI":
                ask_for(plain)
            setattr(module, place, plain)


def ask_for(plain: str) -> None:
    """Let a plain URI be one that a `heimdall+…` URI has named."""
    with _lock:
        if plain not in _asked:
            _asked.append(plain)
            if not _is_handed_on(plain):
                known = os.environ.get(HANDED_ON, "").split(",")
                os.environ[HANDED_ON] = ",".join(filter(None, [*known, fingerprint(plain)]))


def _is_asked_for(uri: str) -> bool:
    return any(same_store(uri, asked) for asked in _asked) or _is_handed_on(uri)


def _is_handed_on(uri: str) -> bool:
    handed_on = os.environ.get(HANDED_ON, "")
    return bool(handed_on) and fingerprint(uri) in handed_on.split(",")


def _tracker(uri: str, artifact_uri: str | None) -> Any:
    from mlflow.exceptions import MlflowException

    from ..errors import ConfigurationError, HeimdallError

    given: dict[str, Any] = {"registry_uri": _registry_uri(), "set_environment": False}
    if uri.partition(":")[0].partition("+")[0] in DATABASES:
        # The place that the stock store has for them.
        given["artifact_uri"] = artifact_uri or os.environ.get("_MLFLOW_SERVER_ARTIFACT_ROOT") or "./mlruns"
    try:
        try:
            return _new(uri, experiment_name=_experiment_name(uri), **given)
        except ConfigurationError:
            # The experiment may be deleted, which does not matter to a script that uses another one.
            other = _active_experiment(uri)
            if other is None:
                raise
            return _new(uri, experiment_name=other, **given)
    except HeimdallError as error:
        raise MlflowException(str(error)) from error


def _new(uri: str, **given: Any) -> Any:
    from ..tracker import MLflowTracker

    # What the stock store refuses is refused.
    return MLflowTracker(uri, strict=True, **given)


def _registry_uri() -> str | None:
    from mlflow.tracking._model_registry import utils

    uri = getattr(utils, "_registry_uri", None) or os.environ.get("MLFLOW_REGISTRY_URI")
    return plain_uri(uri) if uri else None


def _experiment_name(uri: str) -> str:
    """Return the name of the experiment that the environment names; runs may go into any other one."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if name:
        return name
    experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID")
    found = _ask_stock(uri, lambda store: store.get_experiment(experiment_id).name) if experiment_id else None
    return found or DEFAULT_EXPERIMENT


def _active_experiment(uri: str) -> str | None:
    return _ask_stock(uri, lambda store: next(iter(store.search_experiments(max_results=1))).name)


def _ask_stock(uri: str, question: Any) -> str | None:
    """Ask the stock store of a URI, which may be away or know no answer."""
    from mlflow.tracking._tracking_service import utils

    try:
        build = utils._tracking_store_registry.get_store_builder(uri)
        name: str = question(stock(build)(store_uri=uri, artifact_uri=None))
    except Exception:
        return None
    return name

"""The stores of `heimdall+…` URIs, by which MLflow finds the bridge where a script makes no tracker.

MLflow imports this module wherever this package is installed, so it does next to nothing until a
`heimdall+…` URI is used.
"""

from __future__ import annotations

import os
import sys

from .._uris import PREFIX, without_prefix
from .attached import trackers_of_registry
from .provided import HANDED_ON, ask_for, plain_uri, provide, use_plain_uris
from .stock import FLUENT, registry_of, stock

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Variables by which `mlflow server` tells its workers their stores.
SERVER_VARIABLES = (
    "_MLFLOW_SERVER_FILE_STORE",
    "_MLFLOW_SERVER_READ_REPLICA_BACKEND_STORE",
    "_MLFLOW_SERVER_REGISTRY_STORE",
)
CLIENT_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
HANDLERS = "mlflow.server.handlers"


def tracking_store(store_uri: str, artifact_uri: str | None = None, **more: Any) -> Any:
    """Open the store of a `heimdall+…` URI: the bridged one, with a tracker that is made for it.

    Args:
        store_uri: The URI.
        artifact_uri: Place for the artifacts of new experiments.
        more: Arguments that MLflow's releases add; the stock store gets them.

    Raises:
        MlflowException: The URI, the database or the experiment cannot be used.
    """
    plain = plain_uri(store_uri)
    if _is_server():
        return _of_server("_tracking_store_registry", plain)(
            store_uri=plain, artifact_uri=artifact_uri, **more
        )
    from mlflow.tracking._tracking_service import utils

    ask_for(plain)
    use_plain_uris()
    provide(plain, artifact_uri)
    build = utils._tracking_store_registry.get_store_builder(plain)
    return build(store_uri=plain, artifact_uri=artifact_uri, **more)


def registry_store(store_uri: str, tracking_uri: str | None = None, **more: Any) -> Any:
    """Open the model registry of a `heimdall+…` URI, read after everything that was recorded before.

    Args:
        store_uri: The URI.
        tracking_uri: The store of the runs.
        more: Arguments that MLflow's releases add; the stock registry gets them.

    Raises:
        MlflowException: The URI or the database cannot be used.
    """
    plain = plain_uri(store_uri)
    if _is_server():
        return _of_server("_model_registry_store_registry", plain)(store_uri=plain, **more)
    from mlflow.tracking._model_registry import utils

    use_plain_uris()
    tracking = plain_uri(tracking_uri or store_uri)
    if (tracking_uri or store_uri).startswith(PREFIX):
        ask_for(tracking)
    provide(tracking)
    stores = registry_of(utils)
    build = stores.get_store_builder(plain)
    if trackers_of_registry(plain):
        return build(store_uri=plain, tracking_uri=tracking, **more)
    # There is no record that it would have to wait for.
    return stock(build)(store_uri=plain, **more)


# Servers


def _is_server() -> bool:
    """Return true in the processes of `mlflow server`: its command, its workers and its jobs."""
    return bool(os.environ.get(SERVER_VARIABLES[0])) or (
        "mlflow.cli" in sys.modules and HANDLERS in sys.modules
    )


def _of_server(registry: str, plain: str) -> Any:
    """Return what opens the stock store of a server.

    A server has answered a write when all of its workers read it, so nothing waits in a journal.
    """
    _serve_plainly()
    from mlflow.utils import uri

    if not hasattr(uri.extract_db_type_from_uri, "__wrapped__"):
        uri.extract_db_type_from_uri = _without_prefix_first(uri.extract_db_type_from_uri)
    if HANDLERS in sys.modules:
        return getattr(sys.modules[HANDLERS], registry).get_store_builder(plain)
    from mlflow.tracking._model_registry import utils as registry_utils
    from mlflow.tracking._tracking_service import utils as tracking_utils

    if registry == "_tracking_store_registry":
        return tracking_utils._tracking_store_registry.get_store_builder(plain)
    return registry_of(registry_utils).get_store_builder(plain)


def _without_prefix_first(function: Any) -> Any:
    """Return MLflow's reader of the kind of a database, for `heimdall+…` URIs as well."""
    from functools import wraps

    @wraps(function)
    def read(db_uri: str) -> Any:
        return function(without_prefix(db_uri))

    return read


def _serve_plainly() -> None:
    """Give the parts of a worker that read the variables the plain URIs."""
    if os.environ.get(SERVER_VARIABLES[0]):
        for name in SERVER_VARIABLES + CLIENT_VARIABLES:
            if os.environ.get(name, "").startswith(PREFIX):
                os.environ[name] = without_prefix(os.environ[name])


def _begin() -> None:
    """Prepare the process where its environment names a `heimdall+…` URI, or had one above."""
    if any(os.environ.get(name, "").startswith(PREFIX) for name in SERVER_VARIABLES):
        _serve_plainly()
    elif HANDED_ON in os.environ or any(
        os.environ.get(name, "").startswith(PREFIX) for name in CLIENT_VARIABLES
    ):
        from . import imports

        if FLUENT not in sys.modules:
            imports.watch(FLUENT, _begin_with_mlflow)


def _begin_with_mlflow() -> None:
    from . import installation

    if not _is_server():
        use_plain_uris()
        installation.install()


_begin()

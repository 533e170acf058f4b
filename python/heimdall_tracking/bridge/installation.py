"""The places in stock MLflow that the bridge replaces."""

from __future__ import annotations

import atexit
import functools
import sys
import threading
from typing import Any

from .. import _start
from .._uris import without_prefix
from .attached import trackers_of_registry, trackers_of_store
from .provided import provide
from .stock import FLUENT, registry_of

# Stores that a tracker can have; the schemes of `heimdall+…` come through MLflow's entry points.
SCHEMES = ("sqlite", "postgresql", "http", "https")

_lock = threading.RLock()
_installed = False


def install() -> None:
    """Put the bridge into MLflow, which is imported; the stores that MLflow keeps are opened anew."""
    global _installed
    from mlflow.tracking._model_registry import utils as registry_utils
    from mlflow.tracking._tracking_service import utils as tracking_utils

    tracking, registry = tracking_utils._tracking_store_registry, registry_of(registry_utils)
    with _lock:
        if not _installed:
            fluent = sys.modules[FLUENT]
            _wrap(tracking, _tracking_builder)
            _wrap(registry, _registry_builder)
            _replace_stack(fluent)
            _give_experiment()
            _end_before_mlflow(fluent)
            _open_artifacts_plainly()
            _installed = True
    for stores in (tracking, registry):
        cached: Any = getattr(type(stores), "_get_store_with_resolved_uri", None)
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()


def _wrap(stores: Any, wrapped: Any) -> None:
    for scheme in SCHEMES:
        builder = stores._registry.get(scheme)
        if builder is not None:
            stores._registry[scheme] = wrapped(builder)


def _tracking_builder(stock: Any) -> Any:
    @functools.wraps(stock)
    def build(store_uri: str, artifact_uri: str | None = None, **more: Any) -> Any:
        provide(store_uri, artifact_uri)
        if not trackers_of_store(store_uri):
            return stock(store_uri=store_uri, artifact_uri=artifact_uri, **more)
        from .tracking_store import HeimdallTrackingStore

        store_uri = _start.store(store_uri)
        return HeimdallTrackingStore(
            store_uri, lambda: stock(store_uri=store_uri, artifact_uri=artifact_uri, **more)
        )

    return build


def _registry_builder(stock: Any) -> Any:
    @functools.wraps(stock)
    def build(store_uri: str, tracking_uri: str | None = None, **more: Any) -> Any:
        provide(tracking_uri or store_uri)
        arguments = {"tracking_uri": tracking_uri, **more} if tracking_uri is not None else more
        if not trackers_of_registry(store_uri):
            return stock(store_uri=store_uri, **arguments)
        from .registry_store import HeimdallRegistryStore

        store_uri = _start.store(store_uri)
        return HeimdallRegistryStore(store_uri, lambda: stock(store_uri=store_uri, **arguments))

    return build


def _open_artifacts_plainly() -> None:
    """Let the places of artifacts know the tracking URI and the registry URI without our prefix."""
    from mlflow.store.artifact.artifact_repository_registry import ArtifactRepositoryRegistry

    open_stock = ArtifactRepositoryRegistry.get_artifact_repository

    @functools.wraps(open_stock)
    def open_plainly(self: Any, *arguments: Any, **named: Any) -> Any:
        def plain(value: Any) -> Any:
            return without_prefix(value) if isinstance(value, str) else value

        return open_stock(
            self, *map(plain, arguments), **{name: plain(value) for name, value in named.items()}
        )

    ArtifactRepositoryRegistry.get_artifact_repository = open_plainly


def _replace_stack(fluent: Any) -> None:
    from . import stack

    before = fluent._active_run_stack
    fluent._active_run_stack = stack.replacement(fluent, before)


def _give_experiment() -> None:
    from mlflow.tracking.default_experiment import registry

    from .experiment import TrackerExperiment

    registry._default_experiment_provider_registry.register(TrackerExperiment)


def _end_before_mlflow(fluent: Any) -> None:
    """Let the process end the trackers' runs before MLflow ends its own, which are of other stores."""
    from .._finish import before_others

    # Handlers are called from the last to the first that was registered.
    atexit.unregister(fluent._safe_end_run)
    atexit.register(fluent._safe_end_run)
    before_others()

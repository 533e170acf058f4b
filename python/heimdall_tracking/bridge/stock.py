"""Parts of stock MLflow whose names differ between its releases."""

from __future__ import annotations

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FLUENT = "mlflow.tracking.fluent"


def registry_of(utils: Any) -> Any:
    """Return the registry of the stores of models."""
    if hasattr(utils, "_get_store_registry"):
        return utils._get_store_registry()
    return utils._model_registry_store_registry


def stock(build: Any) -> Any:
    """Return what MLflow itself opens a store by."""
    return getattr(build, "__wrapped__", build)

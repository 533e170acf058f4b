"""MLflow's model registry, read after everything that was recorded before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.abstract_store import AbstractStore

from .attached import trackers_of_registry
from .handed_on import HandsOn, hand_on_the_rest


class HeimdallRegistryStore(HandsOn, AbstractStore):  # type: ignore[misc]
    """The registry of a tracker, as an MLflow store.

    Verbs of the registry answer at once or not at all, so nothing of them is journaled: each waits until the
    runs that it may be about are delivered, and is then made by the stock store.
    """

    def __init__(self, store_uri: str, open_stock: Callable[[], Any]) -> None:
        self._begin(store_uri, open_stock)

    def _trackers(self) -> list[Any]:
        return trackers_of_registry(self._uri)

    def create_registered_model(self, *arguments: Any, **named: Any) -> Any:
        """Create a registered model. What MLflow registers next has the files that were recorded before."""
        self._deliver_files()
        return self._stock.create_registered_model(*arguments, **named)

    def create_model_version(self, *arguments: Any, **named: Any) -> Any:
        """Create a version of a registered model, whose files are at their place by then."""
        self._deliver_files()
        return self._stock.create_model_version(*arguments, **named)

    def _deliver_files(self) -> None:
        """Wait for files too; an artifact store that is away stops no change of the registry."""
        self._deliver()
        with contextlib.suppress(MlflowException):
            self._deliver(files=True)


hand_on_the_rest(HeimdallRegistryStore, AbstractStore)

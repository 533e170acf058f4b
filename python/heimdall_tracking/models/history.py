"""The tag that lists the models of a run, by which MLflow's UI finds them."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from typing import Any

from .._native import Run
from .folder import ModelInfo

HISTORY = "mlflow.log-model.history"
# MLflow cuts longer tags, and a cut JSON text cannot be read.
LONGEST_TAG = 5000


class Histories:
    """The models of a tracker's runs, as their tags list them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, list[dict[str, Any]]] = {}

    def add(
        self, info: ModelInfo, before: Callable[[str], Run | None], set_tag: Callable[[str, str], object]
    ) -> None:
        """Add a model to those of its run.

        Args:
            info: The model, just logged.
            before: Returns the run as it was before this tracker logged to it; None for a new run.
            set_tag: Sets a tag of the run.
        """
        with self._lock:
            set_tag(HISTORY, self._with(info, before))

    def _with(self, info: ModelInfo, before: Callable[[str], Run | None]) -> str:
        if info.run_id not in self._entries:
            run = before(info.run_id)
            self._entries[info.run_id] = listed(run.tags.get(HISTORY, "[]")) if run else []
        flavors = {
            name: {key: value for key, value in flavor.items() if key != "config"}
            for name, flavor in info.flavors.items()
        }
        entries = self._entries[info.run_id]
        entries.append(
            {
                "run_id": info.run_id,
                "artifact_path": info.artifact_path,
                "utc_time_created": info.utc_time_created,
                "model_uuid": info.model_uuid,
                "flavors": flavors,
            }
        )
        # The oldest entries go first; all models stay among the artifacts.
        while len(json.dumps(entries)) > LONGEST_TAG and len(entries) > 1:
            del entries[0]
        return json.dumps(entries)


def listed(tag: str) -> list[dict[str, Any]]:
    """Return the entries of a tag; none where the tag is not a list in JSON."""
    with contextlib.suppress(ValueError):
        entries = json.loads(tag)
        if isinstance(entries, list):
            return entries
    return []

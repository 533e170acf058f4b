"""The calls that the trainer makes to a tracker, and the rule that a tracker never ends a training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger("heimdall_training")


class Tracker(Protocol):
    """Anything that records, such as `heimdall_tracking.MLflowTracker` with an active run."""

    def log_params(self, params: Mapping[str, Any], /) -> object:
        """Record hyperparameters."""

    def log_metrics(self, metrics: Mapping[str, float], /, step: int) -> object:
        """Record metrics of one step."""

    def log_artifact(self, local_path: Path, /, artifact_path: str) -> object:
        """Store a file in a folder of the run's artifacts."""

    def log_artifacts_dir(self, local_dir: Path, /, artifact_path: str) -> object:
        """Store the files of a folder in a folder of the run's artifacts."""


class Recorder:
    """Hands calls on to a tracker, if there is one. The first failure is reported, no failure is raised."""

    def __init__(self, tracker: Tracker | None) -> None:
        self._tracker = tracker
        self._failed = False

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record hyperparameters."""
        self._call(lambda tracker: tracker.log_params(params))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of one step."""
        self._call(lambda tracker: tracker.log_metrics(metrics, step=step))

    def log_artifact(self, path: Path, folder: str) -> None:
        """Store a file."""
        self._call(lambda tracker: tracker.log_artifact(path, artifact_path=folder))

    def log_artifacts_dir(self, path: Path, folder: str) -> None:
        """Store a folder."""
        self._call(lambda tracker: tracker.log_artifacts_dir(path, artifact_path=folder))

    def log_model(self, model: object, path: Path, folder: str) -> None:
        """Store a network so that MLflow loads it where the tracker knows how, else its folder as it is."""
        log_model = getattr(self._tracker, "log_model", None)
        if log_model is None:
            self.log_artifacts_dir(path, folder)
        else:
            self._call(lambda _: log_model(model, artifact_path=folder))

    def _call(self, call: Callable[[Tracker], object]) -> None:
        if self._tracker is None:
            return
        try:
            call(self._tracker)
        except Exception as error:
            self.report(error)

    def report(self, error: Exception) -> None:
        """Report the first failure of the tracker."""
        if not self._failed:
            logger.warning(
                "the tracker failed and training goes on; further failures are not reported: %s: %s",
                type(error).__name__,
                error,
            )
        self._failed = True

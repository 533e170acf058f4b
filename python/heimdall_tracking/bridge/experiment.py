"""The tracker's experiment, as the one that MLflow uses where a script names none."""

from __future__ import annotations

import contextlib
from typing import Any

from mlflow.tracking import get_tracking_uri
from mlflow.tracking.default_experiment.abstract_context import DefaultExperimentProvider

from .attached import trackers_of_store


class TrackerExperiment(DefaultExperimentProvider):  # type: ignore[misc]
    """Gives MLflow the experiment of the newest tracker for its tracking URI."""

    def in_context(self) -> bool:
        """Return true where MLflow's tracking URI is the store of a tracker."""
        return bool(trackers_of_store(get_tracking_uri()))

    def get_experiment_id(self) -> str | None:
        """Return the id of the experiment; a text that stands for it while the store is away."""
        for tracker in trackers_of_store(get_tracking_uri()):
            return experiment_id(tracker)
        return None


# Ids that stand for the experiments of trackers whose store has not answered yet.
_PLACEHOLDER = "heimdall:"


def experiment_id(tracker: Any) -> str:
    """Return the id of a tracker's experiment; a text that stands for it while the store is away."""
    from ..errors import StoreUnavailableError

    with contextlib.suppress(StoreUnavailableError):
        found: str = tracker.experiment_id
        return found
    return placeholder(tracker.experiment_name)


def placeholder(name: str) -> str:
    """Return the text that stands for the id of an experiment while the store is away."""
    return f"{_PLACEHOLDER}{name}"


def name_behind(experiment_id: str) -> str | None:
    """Return the name of the experiment that such a text stands for; None for an id of the store."""
    if str(experiment_id).startswith(_PLACEHOLDER):
        return str(experiment_id)[len(_PLACEHOLDER) :]
    return None

"""MLflow's objects for runs, made from the store or, while the store is away, from what is known here."""

from __future__ import annotations

import inspect
import time
from typing import Any

from mlflow.entities import Experiment, LifecycleStage, Run, RunData, RunInfo, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from .experiment import experiment_id, placeholder


def active_run(tracker: Any, run_id: str) -> Run:
    """Return an active run of a tracker."""
    try:
        return MlflowClient(tracker._uris()[0]).get_run(run_id)
    except MlflowException:
        return unread_run(run_id, experiment_id(tracker))


def unread_experiment(name: str) -> Experiment:
    """Return an experiment that the store could not be asked for."""
    return Experiment(placeholder(name), name, None, LifecycleStage.ACTIVE)


def unread_run(
    run_id: str,
    experiment_id: str,
    *,
    user_id: str = "",
    start_time: int | None = None,
    end_time: int | None = None,
    status: str = "RUNNING",
    run_name: str | None = None,
    tags: Any = (),
) -> Run:
    """Return a run that the store could not be asked for."""
    known = {
        "run_uuid": run_id,
        "run_id": run_id,
        "experiment_id": experiment_id,
        "user_id": user_id,
        # Both spellings occur: releases before 3 have the number of the status in some places.
        "status": RunStatus.from_string(status),
        # MLflow's object cannot be without one.
        "start_time": start_time or end_time or time.time_ns() // 1_000_000,
        "end_time": end_time,
        "lifecycle_stage": "active",
        "artifact_uri": None,
        "run_name": run_name,
    }
    accepted = inspect.signature(RunInfo.__init__).parameters
    info = RunInfo(**{name: value for name, value in known.items() if name in accepted})
    return Run(info, RunData(tags=list(tags)))

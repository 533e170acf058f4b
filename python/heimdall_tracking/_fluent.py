"""MLflow's fluent API in the same process: `mlflow.log_metric` logs to the tracker's active run.

MLflow keeps a stack of active runs per thread, and ends the runs on it when the interpreter exits. The
tracker's active runs are put on every stack, those of threads to come included, and taken off when they end
and before MLflow's own end, so that the tracker alone says how its runs have ended.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Iterable
from typing import Any

from ._optional import need

# Longest wait at the start of a run until MLflow can read the run, in seconds.
PATIENCE_S = 30.0

logger = logging.getLogger("heimdall_tracking")


class _Fluent:
    """The runs that MLflow is shown, of the tracker whose client was used last."""

    def __init__(self, mlflow: Any) -> None:
        self._mlflow = mlflow
        self._stacks = mlflow.tracking.fluent._active_run_stack
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._shown: list[Any] = []
        self.tracker: weakref.ref[Any] | None = None
        # MLflow before 2.12 has one stack for all threads, a plain list.
        if not isinstance(self._stacks, list):
            self._stacks.default_factory = self._new_stack
            self._stacks.get()
        # The handler is registered behind MLflow's, and so called before it.
        atexit.register(self.show, ())

    def _new_stack(self) -> list[Any]:
        # A child after a fork has a tracker of its own, or none.
        return list(self._shown) if os.getpid() == self._pid else []

    def _all_stacks(self) -> Iterable[list[Any]]:
        if isinstance(self._stacks, list):
            return [self._stacks]
        self._stacks.get()
        stacks: dict[int, list[Any]] = self._stacks.get_all_thread_values()
        return stacks.values()

    def show(self, runs: Iterable[Any]) -> None:
        """Put runs on every stack in place of those that were shown before."""
        with self._lock:
            wanted = list(runs)
            shown = {id(run) for run in self._shown}
            gone = shown - {id(run) for run in wanted}
            new = [run for run in wanted if id(run) not in shown]
            self._shown = wanted
            for stack in self._all_stacks():
                stack[:] = [run for run in stack if id(run) not in gone] + new

    def follow(self, tracker: Any, run_ids: Iterable[str]) -> None:
        """Show the active runs of a tracker, once they are in the store."""
        with self._lock:
            known = {run.info.run_id: run for run in self._shown}
        runs = []
        for run_id in run_ids:
            run = known.get(run_id)
            if run is None:
                tracker.flush(PATIENCE_S)
                run = self._mlflow.ActiveRun(tracker._client.get_run(run_id))
            runs.append(run)
        self.show(runs)


_fluent: _Fluent | None = None
_lock = threading.Lock()


def client(tracker: Any) -> Any:
    """Return the stock client of a tracker, whose active runs become those of MLflow's fluent API.

    Raises:
        MissingPackageError: mlflow is not installed.
    """
    global _fluent
    mlflow = need("mlflow", "tracker.client")
    tracker.flush()
    with _lock:
        if _fluent is None:
            _fluent = _Fluent(mlflow)
        fluent = _fluent
        if tracker._client is None:
            tracker._client = mlflow.MlflowClient(*tracker._uris())
        if fluent.tracker is None or fluent.tracker() is not tracker:
            fluent.show(())
            fluent.tracker = weakref.ref(tracker)
            tracking, registry = tracker._uris()
            mlflow.set_tracking_uri(tracking)
            mlflow.set_registry_uri(registry)
            mlflow.set_experiment(experiment_id=tracker.experiment_id)
            tracker._on_active_runs(_reader(fluent, fluent.tracker))
    fluent.follow(tracker, tracker.active_run_ids)
    return tracker._client


def _reader(fluent: _Fluent, reference: weakref.ref[Any]) -> Any:
    def read(run_ids: list[str]) -> None:
        tracker = reference()
        # Another tracker's client may have been used since.
        if tracker is None or fluent.tracker is not reference:
            return
        try:
            fluent.follow(tracker, run_ids)
        except Exception as error:
            with contextlib.suppress(Exception):
                fluent.show(())
            logger.warning(
                "MLflow's fluent API does not see the active run of the tracker: %s: %s",
                type(error).__name__,
                error,
            )

    return read

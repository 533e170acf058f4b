"""MLflow's tracking store, whose writes go through the journal of a tracker."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from mlflow.entities import LifecycleStage, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE, ErrorCode
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.utils import validation
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

from ..errors import HeimdallError
from . import entities
from .attached import trackers_of_store
from .experiment import name_behind
from .handed_on import HandsOn, hand_on_the_rest

UNAVAILABLE = ErrorCode.Name(TEMPORARILY_UNAVAILABLE)


class HeimdallTrackingStore(HandsOn, AbstractStore):  # type: ignore[misc]
    """The store of a tracker, as an MLflow store.

    Runs, metrics, params, tags and datasets are recorded in the journal of a tracker for the store. What is
    read, and what the journal has no record for (experiments, traces, logged models), is left to the stock
    store, once everything that was recorded before is delivered.
    """

    def __init__(self, store_uri: str, open_stock: Callable[[], Any]) -> None:
        self._begin(store_uri, open_stock)
        # The store keeps a tracker: its journal is needed for as long as MLflow uses the store.
        self._kept = trackers_of_store(store_uri)[:1]
        self._experiments: dict[str, str] = {}
        # Trackers of the runs that were found to be there.
        self._found: dict[str, Any] = {}
        # Params of runs that others have begun, as the store had them.
        self._params: dict[str, dict[str, str]] = {}
        AbstractStore.__init__(self)

    def _trackers(self) -> list[Any]:
        return trackers_of_store(self._uri) or self._kept

    def _tracker(self, run_id: str) -> Any:
        """Return the tracker that has started a run, so that its records stay in order; else the newest."""
        found = self._trackers()
        for tracker in found:
            if tracker._has_run(run_id):
                return tracker
        return found[0]

    def _check_run(self, run_id: str) -> Any:
        """Check that a run can be written to, and return its tracker. A store that is away is believed.

        Raises:
            MlflowException: There is no such run, or it is deleted.
        """
        tracker = self._found.get(run_id)
        if tracker is not None:
            return tracker
        tracker = self._tracker(run_id)
        if tracker._has_run(run_id):
            self._found[run_id] = tracker
            return tracker
        try:
            run = self.get_run(run_id)
        except MlflowException as error:
            if error.error_code == UNAVAILABLE:
                return tracker
            raise
        if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
            raise MlflowException(
                f"The run {run_id} must be in the 'active' state. "
                f"Current state is {run.info.lifecycle_stage}.",
                INVALID_PARAMETER_VALUE,
            )
        self._found[run_id] = tracker
        self._params[run_id] = dict(run.data.params)
        return tracker

    def _check_params(self, run_id: str, params: Any) -> None:
        """Check params against those that a run had when this process came to it, as the stock store does.

        Raises:
            MlflowException: A param has another value.
        """
        known = self._params.get(run_id)
        if known is None:
            return
        for param in params:
            before = known.get(param.key, str(param.value))
            if before != str(param.value):
                raise MlflowException(
                    f"Changing param values is not allowed. Param with key='{param.key}' was already logged "
                    f"with value='{before}' for run ID='{run_id}'. "
                    f"Attempted logging new value '{param.value}'.",
                    INVALID_PARAMETER_VALUE,
                )

    def _experiment_name(self, experiment_id: str) -> str:
        name = name_behind(experiment_id) or self._experiments.get(experiment_id)
        if name is None:
            experiment = self.get_experiment(experiment_id)
            if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
                raise MlflowException(
                    f"The experiment {experiment.experiment_id} must be in the 'active' state. "
                    f"Current state is {experiment.lifecycle_stage}.",
                    INVALID_PARAMETER_VALUE,
                )
            name = self._experiments[experiment_id] = experiment.name
        return name

    def get_experiment_by_name(self, experiment_name: str) -> Any:
        """Return an experiment by its name; while the store is away, one that stands for it in new runs."""
        try:
            self._deliver()
        except MlflowException as error:
            if error.error_code != UNAVAILABLE:
                raise
            return entities.unread_experiment(experiment_name)
        return self._stock.get_experiment_by_name(experiment_name)

    # Runs

    def create_run(
        self, experiment_id: str, user_id: str, start_time: int, tags: Any, run_name: str | None
    ) -> Any:
        """Record the start of a run, and return the run once it is in the store."""
        tags = list(tags or [])
        named = next((tag.value for tag in tags if tag.key == MLFLOW_RUN_NAME), None)
        if run_name and named and run_name != named:
            raise MlflowException(
                "Both 'run_name' argument and 'mlflow.runName' tag are specified, but with different values "
                f"(run_name='{run_name}', mlflow.runName='{named}').",
                INVALID_PARAMETER_VALUE,
            )
        run_name = run_name or named or _random_name()
        if not named:
            tags.append(RunTag(MLFLOW_RUN_NAME, run_name))
        new = {
            "experiment": self._experiment_name(str(experiment_id)),
            "run_name": run_name,
            "user_id": user_id or "",
            "start_time": start_time,
            "tags": tags,
        }
        run_id = _told(self._trackers()[0]._create_run, new)
        try:
            return self.get_run(run_id)
        except MlflowException as error:
            if error.error_code != UNAVAILABLE:
                raise
        return entities.unread_run(
            run_id, str(experiment_id), user_id=user_id, start_time=start_time, run_name=run_name, tags=tags
        )

    def update_run_info(
        self, run_id: str, run_status: Any, end_time: int | None, run_name: str | None
    ) -> Any:
        """Record a status, an end or a name of a run, and return the run's facts."""
        tracker = self._check_run(run_id)
        status = None if run_status is None else RunStatus.to_string(run_status)
        if status == "SCHEDULED":
            # The journal has no record for a run that waits.
            self._deliver()
            return self._stock.update_run_info(run_id, run_status, end_time, run_name)
        if run_name:
            _told(tracker.set_tag, MLFLOW_RUN_NAME, run_name, run_id=run_id)
        if status is not None:
            _told(tracker._set_run_status, run_id, status, end_time)
        try:
            run = self.get_run(run_id)
            if status == "RUNNING":
                # Somebody goes on with it.
                self._params[run_id] = dict(run.data.params)
            return run.info
        except MlflowException as error:
            if error.error_code != UNAVAILABLE:
                raise
        unread = entities.unread_run(
            run_id, "", end_time=end_time, status=status or "RUNNING", run_name=run_name
        )
        return unread.info

    def delete_run(self, run_id: str) -> None:
        """Delete a run by the stock store."""
        self._deliver()
        self._stock.delete_run(run_id)
        self._found.pop(run_id, None)
        self._params.pop(run_id, None)
        for tracker in self._trackers():
            tracker._forget_run(run_id)

    # Data of runs

    def _is_logged(self, run_id: str, metrics: Any, params: Any, tags: Any) -> bool:
        """Record a batch where nothing of it needs a check or a change by MLflow; else return False."""
        tracker = self._found.get(run_id)
        if tracker is None or (params and run_id in self._params):
            return False
        return bool(tracker._log_plain(run_id, metrics, params, tags))

    def log_metric(self, run_id: str, metric: Any) -> None:
        """Record a metric."""
        if self._is_logged(run_id, [metric], [], []):
            return
        if getattr(metric, "model_id", None) is not None:
            self._deliver()
            self._stock.log_metric(run_id, metric)
            return
        validation._validate_metric(metric.key, metric.value, metric.timestamp, metric.step)
        tracker = self._check_run(run_id)
        _told(tracker.log_metric, metric.key, metric.value, metric.step, metric.timestamp, run_id)

    def log_param(self, run_id: str, param: Any) -> None:
        """Record a param."""
        if self._is_logged(run_id, [], [param], []):
            return
        param = validation._validate_param(param.key, param.value) or param
        tracker = self._check_run(run_id)
        self._check_params(run_id, [param])
        _told(tracker.log_param, param.key, param.value, run_id)

    def set_tag(self, run_id: str, tag: Any) -> None:
        """Record a tag."""
        if self._is_logged(run_id, [], [], [tag]):
            return
        tag = validation._validate_tag(tag.key, tag.value) or tag
        _told(self._check_run(run_id).set_tag, tag.key, tag.value, run_id)

    def log_batch(self, run_id: str, metrics: Any, params: Any, tags: Any) -> None:
        """Record metrics, params and tags: all of them or, on an error, none."""
        if self._is_logged(run_id, metrics, params, tags):
            return
        validation._validate_run_id(run_id)
        validated = validation._validate_batch_log_data(metrics, params, tags)
        metrics, params, tags = validated or (metrics, params, tags)
        validation._validate_batch_log_limits(metrics, params, tags)
        validation._validate_param_keys_unique(params)
        if any(getattr(metric, "model_id", None) is not None for metric in metrics):
            self._check_run(run_id)
            self._deliver()
            self._stock.log_batch(run_id, metrics, params, tags)
            return
        tracker = self._check_run(run_id)
        self._check_params(run_id, params)
        _told(tracker.log_batch, metrics, params, tags, run_id)

    def log_inputs(self, run_id: str, datasets: Any = None, models: Any = None) -> None:
        """Record datasets that a run was given; models that it was given are left to the stock store."""
        validation._validate_run_id(run_id)
        if datasets is not None:
            if not isinstance(datasets, list):
                raise TypeError(f"Argument 'datasets' should be a list, got '{type(datasets)}'")
            validation._validate_dataset_inputs(datasets)
        tracker = self._check_run(run_id)
        # Of several inputs of one dataset the first counts, as in the stock store.
        first: dict[tuple[str, str], Any] = {}
        for given in datasets or []:
            first.setdefault((given.dataset.name, given.dataset.digest), given)
        for given in first.values():
            tags = {tag.key: tag.value for tag in given.tags or []}
            _told(tracker.log_input, given.dataset, tags=tags, run_id=run_id)
        if models:
            self._deliver()
            self._stock.log_inputs(run_id, models=models)

    def log_batch_async(self, run_id: str, metrics: Any, params: Any, tags: Any) -> Any:
        """Record metrics, params and tags; the journal sends them in the background as ever."""
        from mlflow.utils.async_logging.run_operations import RunOperations

        self.log_batch(run_id, metrics, params, tags)
        return RunOperations(operation_futures=[])

    def log_metric_async(self, run_id: str, metric: Any) -> Any:
        """Record a metric, as `log_batch_async` does."""
        return self.log_batch_async(run_id, [metric], [], [])

    def log_param_async(self, run_id: str, param: Any) -> Any:
        """Record a param, as `log_batch_async` does."""
        return self.log_batch_async(run_id, [], [param], [])

    def set_tag_async(self, run_id: str, tag: Any) -> Any:
        """Record a tag, as `log_batch_async` does."""
        return self.log_batch_async(run_id, [], [], [tag])

    # Nothing is queued here: what was recorded is in the journal, and every read comes after it.

    def flush_async_logging(self) -> None:
        """Wait until everything recorded is in the store, where the store is there."""
        with contextlib.suppress(MlflowException):
            self._deliver()

    def end_async_logging(self) -> None:
        """Do nothing: what was recorded is in the journal, and the end of a run waits for the store."""

    def shut_down_async_logging(self) -> None:
        """Do nothing, as `end_async_logging` does."""


hand_on_the_rest(HeimdallTrackingStore, AbstractStore)


def _told(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Make a call of a tracker, and raise what is wrong with its arguments as MLflow does."""
    try:
        return call(*arguments, **named)
    except HeimdallError as error:
        raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error


def _random_name() -> str:
    from mlflow.utils.name_utils import _generate_random_name

    return str(_generate_random_name())

"""A run that lasts for a `with` block."""

from __future__ import annotations

from types import BuiltinMethodType

from . import _outcome

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from os import PathLike
    from types import TracebackType
    from typing import Any, Literal

    import matplotlib.figure
    import pandas

    from ._recorder import Recorder
    from .models.folder import ModelInfo
    from .uploads import Upload


class ActiveRun:
    """A run that lasts for a `with` block, and that logs to itself.

    The methods are those of the tracker, for this run alone: from any thread or task, whatever run is active
    there, and after the end of the block as well. Before the block is entered they raise `RunStateError`.

    Example:
        >>> tracker = MLflowTracker("sqlite:///mlflow.db")
        >>> with tracker.run("outer") as outer, tracker.run("inner", nested=True) as inner:
        ...     inner.log_metric("loss", 0.5)
        ...     outer.log_metric("loss", 0.25)
        >>> tracker.get_run(outer.run_id).metrics
        {'loss': 0.25}
    """

    __slots__ = ("_run_id", "_start", "_tracker")

    def __init__(self, tracker: Recorder, start: Callable[[], str]) -> None:
        self._tracker = tracker
        self._start = start
        self._run_id: str | None = None

    @property
    def run_id(self) -> str | None:
        """Id of the run; None before the block is entered."""
        return self._run_id

    def __enter__(self) -> ActiveRun:
        self._run_id = self._start()
        return self

    def __exit__(
        self,
        exception: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end(_outcome.of(value))

    def end(self, status: str = "FINISHED") -> None:
        """End the run and the runs nested in it; does nothing where it has ended.

        Args:
            status: As for `MLflowTracker.end_run`.
        """
        run_id, tracker = self._started(), self._tracker
        if not isinstance(tracker.end_run, BuiltinMethodType):
            # A subclass of the user's has an end of its own. It ends the innermost run, so each is ended.
            active = tracker.active_run_ids
            if run_id in active:
                for _ in active[active.index(run_id) :]:
                    tracker.end_run(status)
        # The run may be of another thread, or have nested runs of other threads. A tracker that is not one of
        # ours has no such method.
        if (end := getattr(tracker, "_end", None)) is not None:
            end(run_id, status)

    def log_param(self, key: str, value: Any) -> None:
        """Log a param of this run: see `MLflowTracker.log_param`."""
        self._tracker.log_param(key, value, run_id=self._started())

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log params of this run: see `MLflowTracker.log_params`."""
        self._tracker.log_params(params, run_id=self._started())

    def log_metric(
        self, key: str, value: float, step: int | None = None, timestamp: int | None = None
    ) -> None:
        """Log a metric of this run: see `MLflowTracker.log_metric`."""
        self._tracker.log_metric(key, value, step, timestamp, run_id=self._started())

    def log_metrics(
        self, metrics: Mapping[str, float], step: int | None = None, timestamp: int | None = None
    ) -> None:
        """Log metrics of this run: see `MLflowTracker.log_metrics`."""
        self._tracker.log_metrics(metrics, step, timestamp, run_id=self._started())

    def log_batch(
        self,
        metrics: Iterable[tuple[Any, ...] | Any] | None = None,
        params: Mapping[str, Any] | Iterable[Any] | None = None,
        tags: Mapping[str, Any] | Iterable[Any] | None = None,
    ) -> None:
        """Log metrics, params and tags of this run: see `MLflowTracker.log_batch`."""
        self._tracker.log_batch(metrics, params, tags, run_id=self._started())

    def set_tag(self, key: str, value: Any) -> None:
        """Set a tag of this run: see `MLflowTracker.set_tag`."""
        self._tracker.set_tag(key, value, run_id=self._started())

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of this run: see `MLflowTracker.set_tags`."""
        self._tracker.set_tags(tags, run_id=self._started())

    def delete_tag(self, key: str) -> None:
        """Remove a tag of this run: see `MLflowTracker.delete_tag`."""
        self._tracker.delete_tag(key, run_id=self._started())

    def log_artifact(
        self,
        local_path: str | PathLike[str],
        artifact_path: str | None = "artifacts",
        immutable: bool = False,
    ) -> Upload:
        """Log a file of this run: see `MLflowTracker.log_artifact`."""
        return self._tracker.log_artifact(local_path, artifact_path, immutable, run_id=self._started())

    def log_artifacts_dir(
        self,
        local_dir: str | PathLike[str],
        artifact_path: str | None = "artifacts",
        immutable: bool = False,
    ) -> Upload:
        """Log every file below a folder: see `MLflowTracker.log_artifacts_dir`."""
        return self._tracker.log_artifacts_dir(local_dir, artifact_path, immutable, run_id=self._started())

    def delete_artifacts(self, path: str | None = None) -> None:
        """Delete files of this run: see `MLflowTracker.delete_artifacts`."""
        self._tracker.delete_artifacts(path, run_id=self._started())

    def log_text(self, text: str, artifact_file: str) -> None:
        """Log a text as a file of this run: see `MLflowTracker.log_text`."""
        self._tracker.log_text(text, artifact_file, run_id=self._started())

    def log_dict(self, dictionary: Mapping[str, Any] | Sequence[Any], artifact_file: str) -> None:
        """Log a dict or list as a file of this run: see `MLflowTracker.log_dict`."""
        self._tracker.log_dict(dictionary, artifact_file, run_id=self._started())

    def log_figure(
        self,
        figure: matplotlib.figure.Figure | Any,
        artifact_file: str,
        save_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Log a figure as a file of this run: see `MLflowTracker.log_figure`."""
        self._tracker.log_figure(figure, artifact_file, save_kwargs, run_id=self._started())

    def log_image(
        self,
        image: Any,
        artifact_file: str | None = None,
        key: str | None = None,
        step: int | None = None,
        timestamp: int | None = None,
    ) -> None:
        """Log an image of this run: see `MLflowTracker.log_image`."""
        self._tracker.log_image(image, artifact_file, key, step, timestamp, run_id=self._started())

    def log_table(self, data: dict[str, Any] | pandas.DataFrame, artifact_file: str) -> None:
        """Log a table of this run, or append to it: see `MLflowTracker.log_table`."""
        self._tracker.log_table(data, artifact_file, run_id=self._started())

    def log_input(
        self, dataset: Any, context: str | None = None, tags: Mapping[str, Any] | None = None
    ) -> None:
        """Log that this run was given a dataset: see `MLflowTracker.log_input`."""
        self._tracker.log_input(dataset, context, tags, run_id=self._started())

    def log_model(
        self,
        model: Any,
        artifact_path: str = "model",
        input_example: Any = None,
        signature: Any = None,
        registered_model_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        description: str = "",
        tags: Mapping[str, Any] | None = None,
        pip_requirements: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        serialization: Literal["auto", "pickle", "torchscript"] = "auto",
    ) -> ModelInfo:
        """Log a model of this run: see `MLflowTracker.log_model`."""
        return self._tracker.log_model(
            model,
            artifact_path,
            input_example=input_example,
            signature=signature,
            registered_model_name=registered_model_name,
            metadata=metadata,
            description=description,
            tags=tags,
            pip_requirements=pip_requirements,
            output_names=output_names,
            serialization=serialization,
            run_id=self._started(),
        )

    def _started(self) -> str:
        if self._run_id is None:
            from .errors import RunStateError

            raise RunStateError("the run has not started: enter its `with` block first")
        return self._run_id

    def __repr__(self) -> str:
        return f"ActiveRun(run_id={self._run_id or 'not started'!r})"


# Users import the class from the package itself.
ActiveRun.__module__ = "heimdall_tracking"

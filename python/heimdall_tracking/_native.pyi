from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict

__version__: str

class RunInfo(TypedDict):
    """A run as the store has it; times are milliseconds since 1970."""

    run_id: str
    experiment_id: str
    status: str
    start_time: int | None
    end_time: int | None
    parameters: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]

class BestRun(TypedDict):
    """The best run by one metric."""

    run_id: str
    metric_value: float
    params: dict[str, str]

class DestinationStatus:
    """State of the delivery to a destination at the time of the call."""

    @property
    def uri(self) -> str:
        """URI of the destination, without credentials."""

    @property
    def pending(self) -> int:
        """Records that wait in the journal for the destination."""

    @property
    def parked(self) -> int:
        """Records that it refused for good; they are kept in `HEIMDALL_DIR/dead_letter`."""

    @property
    def last_error(self) -> str | None:
        """Answer of the destination, while it takes nothing."""

    @property
    def since(self) -> int | None:
        """Time since which the destination has taken nothing, milliseconds since 1970."""

    @property
    def oldest(self) -> int | None:
        """Time at which the oldest waiting record was logged, milliseconds since 1970."""

    @property
    def uploading(self) -> int:
        """Bytes of the files that are on their way to the artifact store."""

    @property
    def uploaded(self) -> int:
        """Bytes of these files that are sent."""

class Status:
    """State of the delivery at the time of the call. Its members are items as well: `status["pending"]`."""

    @property
    def mode(self) -> Literal["online", "offline", "silent"]:
        """`offline`: nothing is tried; `silent`: a rank of a distributed training that records nothing."""

    @property
    def pending(self) -> int:
        """Records that wait for the primary destination."""

    @property
    def parked(self) -> int:
        """Records that a destination refused for good; they are kept in `HEIMDALL_DIR/dead_letter`."""

    @property
    def unrecorded(self) -> int:
        """Values that calls of this process could not record; they are kept there as well."""

    @property
    def degraded(self) -> bool:
        """True while a destination or the journal's disk takes nothing."""

    @property
    def last_error(self) -> str | None:
        """Answer of the destination, while it takes nothing."""

    @property
    def journal(self) -> str:
        """Folder of the journal."""

    @property
    def in_memory(self) -> int:
        """Records that are in memory only, as the disk takes nothing: lost if the process dies."""

    @property
    def oldest(self) -> int | None:
        """Time at which the oldest record that waits for the primary one was logged, ms since 1970."""

    @property
    def destinations(self) -> list[DestinationStatus]:
        """The destinations, the primary one first."""

    def __getitem__(self, key: str) -> Any: ...

class Run:
    """A run as the store had it when it was asked."""

    @property
    def run_id(self) -> str:
        """Id of the run."""

    @property
    def run_name(self) -> str:
        """Name of the run."""

    @property
    def experiment_id(self) -> str:
        """Id of the run's experiment."""

    @property
    def user_id(self) -> str:
        """Name of the user who made the run."""

    @property
    def status(self) -> str:
        """`RUNNING`, `SCHEDULED`, `FINISHED`, `FAILED` or `KILLED`."""

    @property
    def start_time(self) -> int | None:
        """Start of the run, milliseconds since 1970."""

    @property
    def end_time(self) -> int | None:
        """End of the run, milliseconds since 1970; None while it runs for the first time."""

    @property
    def lifecycle_stage(self) -> str:
        """`active` or `deleted`."""

    @property
    def artifact_uri(self) -> str:
        """URI of the run's artifacts."""

    @property
    def params(self) -> dict[str, str]:
        """Params of the run."""

    @property
    def metrics(self) -> dict[str, float]:
        """Latest value of each metric of the run."""

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the run."""

    @property
    def inputs(self) -> list[DatasetInput]:
        """Datasets that the run was given, by name and digest."""

class DatasetInput:
    """A dataset that a run was given."""

    @property
    def name(self) -> str:
        """Name of the dataset."""

    @property
    def digest(self) -> str:
        """Text that tells versions of the dataset apart."""

    @property
    def source_type(self) -> str:
        """Kind of the source, such as `local`."""

    @property
    def source(self) -> str:
        """Source of the dataset, as JSON."""

    @property
    def schema(self) -> str | None:
        """Columns and types of the dataset, as JSON."""

    @property
    def profile(self) -> str | None:
        """Figures about the dataset, as JSON."""

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the input; `mlflow.data.context` names the dataset's purpose."""

class MetricPoint:
    """A point of a metric's history."""

    @property
    def value(self) -> float:
        """Value of the point."""

    @property
    def step(self) -> int:
        """Step of the point."""

    @property
    def timestamp(self) -> int:
        """Time of the point, milliseconds since 1970."""

class Experiment:
    """An experiment as the store had it when it was asked."""

    @property
    def experiment_id(self) -> str:
        """Id of the experiment."""

    @property
    def name(self) -> str:
        """Name of the experiment."""

    @property
    def artifact_location(self) -> str:
        """URI below which the artifacts of the experiment's runs go."""

    @property
    def lifecycle_stage(self) -> str:
        """`active` or `deleted`."""

    @property
    def creation_time(self) -> int | None:
        """Time of its creation, milliseconds since 1970."""

    @property
    def last_update_time(self) -> int | None:
        """Time at which the experiment was last renamed, deleted or restored, milliseconds since 1970."""

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the experiment."""

class FileInfo:
    """A file or folder among a run's artifacts, with the names of MLflow's entity."""

    @property
    def path(self) -> str:
        """Path of the file or folder among the run's artifacts, with `/` between the parts."""

    @property
    def is_dir(self) -> bool:
        """True for a folder."""

    @property
    def file_size(self) -> int | None:
        """Length in bytes; a folder has none."""

class RegisteredModel:
    """A registered model as the registry had it when it was asked."""

    @property
    def name(self) -> str:
        """Name of the model."""

    @property
    def creation_timestamp(self) -> int | None:
        """Time of its creation, milliseconds since 1970."""

    @property
    def last_updated_timestamp(self) -> int | None:
        """Time of the last change of the name, the description or a version, milliseconds since 1970."""

    @property
    def description(self) -> str:
        """Description for people; empty without one."""

    @property
    def latest_versions(self) -> list[ModelVersion]:
        """The newest version in each stage that has one, by their numbers."""

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the model."""

    @property
    def aliases(self) -> dict[str, str]:
        """Number of the version of each alias."""

class ModelVersion:
    """A model version as the registry had it when it was asked."""

    @property
    def name(self) -> str:
        """Name of the registered model."""

    @property
    def version(self) -> str:
        """Number of the version, as MLflow gives it: a str."""

    @property
    def creation_timestamp(self) -> int | None:
        """Time of its registration, milliseconds since 1970."""

    @property
    def last_updated_timestamp(self) -> int | None:
        """Time of the last change of the stage or the description, milliseconds since 1970."""

    @property
    def description(self) -> str:
        """Description for people; empty without one."""

    @property
    def user_id(self) -> str | None:
        """Name of the user who registered the version, if the registry knows."""

    @property
    def current_stage(self) -> str:
        """`None`, `Staging`, `Production` or `Archived`, a str."""

    @property
    def source(self) -> str:
        """Source of the registration: an artifact URI, or the `models:/` URI of a copied version."""

    @property
    def run_id(self) -> str | None:
        """Id of the run that made the version."""

    @property
    def run_link(self) -> str | None:
        """A page that shows the run."""

    @property
    def status(self) -> str:
        """`READY`, `PENDING_REGISTRATION` or `FAILED_REGISTRATION`."""

    @property
    def status_message(self) -> str | None:
        """Message about the status."""

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the version."""

    @property
    def aliases(self) -> list[str]:
        """Aliases of the model that name this version, sorted."""

class MLflowTracker:
    """Native half of `heimdall_tracking.MLflowTracker`, which makes and documents it."""

    @property
    def tracking_uri(self) -> str:
        """URI of the store of the runs, without credentials."""

    @property
    def artifact_uri(self) -> str | None:
        """The artifact URI the tracker was made with, without credentials."""

    @property
    def backend_store_uri(self) -> str:
        """Database that runs are written to, without credentials."""

    @property
    def registry_uri(self) -> str:
        """URI of the registry of the models, without credentials."""

    @property
    def experiment_name(self) -> str:
        """Name of the experiment."""

    @property
    def experiment_id(self) -> str:
        """Id of the experiment in the store."""

    @property
    def active_run_id(self) -> str | None:
        """Id of the active run of the calling thread or task, the innermost; None when there is none.

        That is the run that this thread or task has started last, or was started in. A thread or task that
        has neither has the outermost run.
        """

    @property
    def _rank(self) -> int:
        """Rank of this process in a distributed training; 0 outside of one."""

    @property
    def active_run_ids(self) -> list[str]:
        """Ids of `active_run_id` and of the runs that it is nested in, the innermost last."""

    def resume(self, run: str, nested: bool = False, from_step: int | None = None) -> str:
        """Go on with a run that has ended: it is RUNNING again and the active one. Waits for the store.

        Args:
            run: Id of the run, or its name: then it is the run of that name in the experiment that started
                last and is not deleted.
            nested: As for `start_run`.
            from_step: Record the points from this step on anew: those of all metrics at this step and later
                ones that were recorded before this call are deleted, once, and those recorded after it are
                kept. System metrics (`system/…`) count steps of their own and are kept. With it, `run` may
                be the active run, which stays active. A process that works on the run meanwhile is not
                waited for. An MLflow server cannot delete points: it keeps them, which is told once.
                Default: no point is deleted.

        Returns:
            Id of the run.

        Raises:
            RunStateError: Another run is active, and `nested` is false; or this one is, without `from_step`.
            NotFoundError: There is no such run.
            InvalidInputError: It is deleted, or `from_step` is no integer from 0 to 2**63 - 1.
            StoreUnavailableError: The store cannot answer.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run("long"):
            ...     tracker.log_param("lr", 0.1)
            ...     for step in range(10):
            ...         tracker.log_metric("loss", 1.0, step=step)
            >>> run_id = tracker.resume("long", from_step=8)
            >>> tracker.log_metric("loss", 0.5, step=8)
            >>> tracker.end_run()
            >>> len(tracker.get_metric_history(run_id, "loss"))
            9
        """

    def end_run(self, status: str = "FINISHED") -> None:
        """End the active run of this thread or task, and the runs nested in it that are still open.

        Without one this does nothing, so ending twice is harmless. Returns once the store has all of the run,
        its files as well, but after `HEIMDALL_END_TIMEOUT` (10 s) at the latest; the rest goes on behind it.

        Args:
            status: `FINISHED`, `FAILED` or `KILLED`, in any case.

        Raises:
            InvalidInputError: Another status; the run stays active.
        """

    def set_terminated(self, status: str = "FINISHED") -> None:
        """End the active run: `end_run` by the name that MLflow's client has for it.

        Args:
            status: As for `end_run`.

        Raises:
            InvalidInputError: As for `end_run`.
        """

    def log_param(self, key: str, value: Any, run_id: str | None = None) -> None:
        """Log a param of the active run.

        Args:
            key: Key of the param.
            value: Value of the param, as for `log_params`.
            run_id: Run to log to; default the active run.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: Of a strict tracker: as for `log_params`.
        """

    def log_params(self, params: Mapping[str, Any], run_id: str | None = None) -> None:
        """Log params of the active run. One that cannot be recorded costs itself alone.

        Args:
            params: Values by key, or an object that holds them: an `argparse.Namespace`, a dataclass, a model
                of pydantic or attrs, a config of OmegaConf. Lists, dicts and such objects as values are
                stored as JSON, everything else as `str()` gives it; over 6,000 characters are cut, as by
                MLflow. The same value again is fine.
            run_id: Run to log to; default the active run.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: Of a strict tracker: a key breaks MLflow's rules, a param of this run has
                another value, or a value has a NUL character or a lone surrogate.
            WrongTypeError: Of a strict tracker: a key is no str.
        """

    def log_metric(
        self,
        key: str,
        value: float,
        step: int | None = None,
        timestamp: int | None = None,
        run_id: str | None = None,
    ) -> None:
        """Log a metric of the active run.

        Args:
            key: Key of the metric.
            value: Value of the metric, as for `log_metrics`.
            step: Step or epoch, any 64-bit integer; default 0.
            timestamp: Time of the point in milliseconds since 1970; default now.
            run_id: Run to log to; default the active run.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: Of a strict tracker: the key breaks MLflow's rules, or the time is negative.
            WrongTypeError: Of a strict tracker: the value is not a number.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run("measured") as run:
            ...     tracker.log_metric("val/loss", 0.25, step=1)
            >>> [(point.step, point.value) for point in tracker.get_metric_history(run.run_id, "val/loss")]
            [(1, 0.25)]
        """

    def log_metrics(
        self,
        metrics: Mapping[str, float],
        step: int | None = None,
        timestamp: int | None = None,
        run_id: str | None = None,
    ) -> None:
        """Log metrics of the active run, all of one time. One that cannot be recorded costs itself alone.

        Args:
            metrics: Numbers by key: Python and NumPy numbers, arrays and tensors of one element. NaN and
                infinities are kept as MLflow keeps them. Bools and texts of numbers are taken, as by MLflow,
                unless the tracker is strict.
            step: Step or epoch, any 64-bit integer; default 0.
            timestamp: Time of the metrics in milliseconds since 1970; default now.
            run_id: Run to log to; default the active run.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: Of a strict tracker: a key breaks MLflow's rules, or the time is negative.
            WrongTypeError: Of a strict tracker: a value is not a number.
        """

    def log_batch(
        self,
        metrics: Iterable[tuple[Any, ...] | Any] | None = None,
        params: Mapping[str, Any] | Iterable[Any] | None = None,
        tags: Mapping[str, Any] | Iterable[Any] | None = None,
        run_id: str | None = None,
    ) -> None:
        """Log metrics, params and tags of the active run. What cannot be recorded costs itself alone.

        A batch may have any length: it reaches the store in parts that the store takes.

        Args:
            metrics: Tuples (key, value, step, timestamp), of which the last two may be left out or None, or
                objects with these attributes, such as `mlflow.entities.Metric`.
            params: Values by key, or objects with `key` and `value`, such as `mlflow.entities.Param`.
            tags: Values by key, or objects with `key` and `value`, such as `mlflow.entities.RunTag`.
            run_id: Run to log to; default the active run.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: Of a strict tracker: something in it breaks MLflow's rules, as for
                `log_metrics`, `log_params` and `set_tags`.
            WrongTypeError: Of a strict tracker: a key is no str, a value no number, a step or timestamp no
                whole number.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run("batch") as run:
            ...     tracker.log_batch(metrics=[("loss", 0.5, 1), ("loss", 0.25, 2)], params={"lr": 0.1})
            >>> tracker.get_run(run.run_id).metrics
            {'loss': 0.25}
        """

    def set_tag(self, key: str, value: Any, run_id: str | None = None) -> None:
        """Set a tag of the active run; an earlier value is replaced.

        Args:
            key: Key of the tag.
            value: Value of the tag, as `str()` gives it; over 8,000 characters are cut, as by MLflow.
            run_id: Run to log to; default the active run.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: Of a strict tracker: the key breaks MLflow's rules, or the value has a NUL or
                a lone surrogate.
        """

    def set_tags(self, tags: Mapping[str, Any], run_id: str | None = None) -> None:
        """Set tags of the active run. One that cannot be recorded costs itself alone.

        Args:
            tags: Values by key, as for `set_tag`.
            run_id: Run to log to; default the active run.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: Of a strict tracker: as for `set_tag`.
            WrongTypeError: Of a strict tracker: a key is no str.
        """

    def delete_tag(self, key: str, run_id: str | None = None) -> None:
        """Remove a tag of the active run; a tag that it does not have is no error.

        Args:
            key: Key of the tag.
            run_id: Run to log to; default the active run.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: The key breaks MLflow's rules.
        """

    def delete_artifacts(self, path: str | None = None, run_id: str | None = None) -> None:
        """Delete a file, or a folder with all below it, from a run's artifacts.

        The call returns at once; the deletion follows the files that were logged before it, and waits for a
        store that is away, as they do. What of them has not been sent is not sent any more. Files that are
        logged later stay. If the process dies, the next start deletes. A store that refuses keeps the files,
        with one warning and a dead letter. A path that is not there is no error.

        Args:
            path: File or folder among the run's artifacts; default all artifacts of the run.
            run_id: Run of the files; default the active run.

        Raises:
            RunStateError: No run is named and none is active.
            NotFoundError: There is no such run.
            InvalidInputError: `path` is empty, absolute or climbs out; or the run is deleted.
            WrongTypeError: `path` is no str.
            JournalError: The deletion cannot be recorded.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run():
            ...     tracker.log_text("1", "checkpoints/1.txt")
            ...     tracker.log_text("2", "checkpoints/2.txt")
            ...     tracker.delete_artifacts("checkpoints/1.txt")
            ...     [info.path for info in tracker.list_artifacts("checkpoints")]
            ['checkpoints/2.txt']
        """

    def list_artifacts(self, path: str = "", run_id: str | None = None) -> list[FileInfo]:
        """List a folder of a run's artifacts, by name; deeper files are in the lists of its folders.

        Waits until logged data has arrived, then for the artifact store.

        Args:
            path: Folder among the run's artifacts; "" is their root. Of one that is not there, nothing.
            run_id: The run; default the active one.

        Raises:
            RunStateError: No run is named and none is active.
            NotFoundError: There is no such run.
            ArtifactError: The artifact store refuses or cannot answer.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run():
            ...     tracker.log_text("hello", "notes/first.txt")
            ...     [info.path for info in tracker.list_artifacts("notes")]
            ['notes/first.txt']
        """

    def download_artifacts(
        self, source: str | PathLike[str], path: str = "", dst: str | PathLike[str] | None = None
    ) -> str:
        """Download a file, or a folder with all below it. Waits until logged data has arrived.

        Several files are fetched at a time, and long ones in ranges: where a download was interrupted, the
        next one with the same `dst` fetches the missing parts. A downloaded file has the length that the
        store says, and is of one version where the store has versions. Nothing is written outside of `dst`.

        Args:
            source: A run's id, or a URI: `runs:/<run id>/<path>`, `models:/<name>/<version or stage>`,
                `models:/<name>/latest`, `models:/<name>@<alias>`, `s3://…`, `mlflow-artifacts:/…`, a local
                path.
            path: File or folder below it.
            dst: Folder to download into; made where it is not there. Default: a new one that nobody else may
                read; a file that is on this disk already is not copied then.

        Returns:
            The local path of the file or folder: `dst` and `path`, as with MLflow.

        Raises:
            NotFoundError: There is no such run or model version.
            ArtifactNotFoundError: There is no such file or folder.
            ArtifactError: It cannot be fetched, or is not what the store says; a name in the store leads
                outside of `dst`.
            InvalidInputError: `path` is absolute or climbs out.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run() as run:
            ...     tracker.log_text("hello", "notes/first.txt")
            >>> folder = tracker.download_artifacts(run.run_id, "notes", "downloaded")
            >>> tracker.load_text(run.run_id, "notes/first.txt")
            'hello'
        """

    def transition_model_stage(
        self,
        model_name: str,
        version: str | int,
        stage: str,
        archive_existing_versions: bool = False,
    ) -> None:
        """Put a model version into a stage. Waits for the registry.

        Args:
            model_name: Registered model.
            version: Number of the version.
            stage: `None`, `Staging`, `Production` or `Archived`, in any case.
            archive_existing_versions: True moves versions that are in this stage, Staging or Production, to
                Archived.

        Raises:
            NotFoundError: There is no such model or version; nothing is archived then.
            InvalidInputError: Another stage, or one that others are not archived from, or no version number.
            StoreUnavailableError: The registry cannot answer.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> number = tracker.register_model("staged", "s3://models/staged")
            >>> tracker.transition_model_stage("staged", number, "production", archive_existing_versions=True)
            >>> tracker.get_model_version("staged", number).current_stage
            'Production'
        """

    def create_registered_model(
        self, name: str, tags: Mapping[str, Any] | None = None, description: str | None = None
    ) -> RegisteredModel:
        """Create a registered model without versions. Waits for the registry.

        Args:
            name: Name of the model, up to 256 characters, without `/` and `:`.
            tags: Tags of the model.
            description: Description for people, up to 5,000 characters.

        Raises:
            AlreadyExistsError: There is one of that name.
            InvalidInputError: The name, the description or a tag breaks MLflow's rules.
            StoreUnavailableError: The registry cannot answer.
        """

    def get_registered_model(self, name: str) -> RegisteredModel:
        """Read a registered model. Waits for the registry.

        Args:
            name: Name of the model.

        Raises:
            NotFoundError: There is none of that name.
            StoreUnavailableError: The registry cannot answer.
        """

    def rename_registered_model(self, name: str, new_name: str) -> RegisteredModel:
        """Rename a registered model with its versions, tags and aliases. Waits for the registry.

        Args:
            name: Name of the model.
            new_name: New name of the model.

        Returns:
            The model by its new name.

        Raises:
            NotFoundError: There is no such model.
            AlreadyExistsError: There is one of the new name.
            InvalidInputError: The new name breaks MLflow's rules.
            StoreUnavailableError: The registry cannot answer.
        """

    def update_registered_model(self, name: str, description: str) -> RegisteredModel:
        """Give a registered model another description. Waits for the registry.

        Args:
            name: The model.
            description: Up to 5,000 characters.

        Raises:
            NotFoundError: There is no such model.
            InvalidInputError: The description is too long.
            StoreUnavailableError: The registry cannot answer.
        """

    def delete_registered_model(self, name: str) -> None:
        """Delete a registered model with its versions, for good; their files stay. Waits for the registry.

        Args:
            name: The model.

        Raises:
            NotFoundError: There is no such model.
            StoreUnavailableError: The registry cannot answer.
        """

    def set_registered_model_tag(self, name: str, key: str, value: Any) -> None:
        """Set a tag of a registered model; an earlier value is replaced. Waits for the registry.

        Args:
            name: The model.
            key: The tag's key, as for `set_tag`.
            value: Value of the tag, as `str()` gives it; unlike a run's it is not cut: a PostgreSQL database
                keeps up to 5,000 characters.

        Raises:
            NotFoundError: There is no such model.
            InvalidInputError: The key or the value breaks the rules.
            StoreUnavailableError: The registry cannot answer.
        """

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        """Remove a tag of a registered model; one that it does not have is no error. Waits for the registry.

        Args:
            name: The model.
            key: The tag's key.

        Raises:
            NotFoundError: There is no such model.
            InvalidInputError: The key breaks MLflow's rules.
            StoreUnavailableError: The registry cannot answer.
        """

    def search_registered_models(
        self,
        filter_string: str | None = None,
        max_results: int | None = None,
        order_by: str | Sequence[str] | None = None,
    ) -> list[RegisteredModel]:
        """Find registered models. Waits for the registry.

        Args:
            filter_string: Filter in MLflow's language, such as `name LIKE 'heimdall%' AND tags.team = 'rf'`;
                None finds all. MLflow's prompts are found only by a filter that asks for them.
            max_results: At most so many; None is all.
            order_by: `name` or `last_updated_timestamp`, each with ASC or DESC; default by name.

        Raises:
            InvalidInputError: MLflow would refuse the filter or an order; `max_results` is negative.
            StoreUnavailableError: The registry cannot answer.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> model = tracker.create_registered_model("sought", tags={"team": "rf"})
            >>> [model.name for model in tracker.search_registered_models("tags.team = 'rf'")]
            ['sought']
        """

    def get_model_version(self, name: str, version: str | int) -> ModelVersion:
        """Read a version of a model. Waits for the registry.

        Args:
            name: Registered model.
            version: Number of the version.

        Raises:
            NotFoundError: There is no such model or version.
            InvalidInputError: No version number.
            StoreUnavailableError: The registry cannot answer.
        """

    def get_model_version_by_alias(self, name: str, alias: str) -> ModelVersion:
        """Read the version of a model that an alias is of. Waits for the registry.

        Args:
            name: Registered model.
            alias: The alias; `latest`, in any case, is of the newest version.

        Raises:
            NotFoundError: There is no such model or alias.
            InvalidInputError: The alias is not valid.
            StoreUnavailableError: The registry cannot answer.
        """

    def get_latest_versions(self, name: str, stages: Sequence[str] | None = None) -> list[ModelVersion]:
        """Read the newest version of a model in each stage. Waits for the registry.

        Args:
            name: Registered model.
            stages: The stages, in any case; default all.

        Returns:
            A version for each of the stages that has one, by their numbers.

        Raises:
            NotFoundError: There is no such model.
            InvalidInputError: An unknown stage.
            StoreUnavailableError: The registry cannot answer.
        """

    def search_model_versions(
        self,
        filter_string: str | None = None,
        max_results: int | None = None,
        order_by: str | Sequence[str] | None = None,
    ) -> list[ModelVersion]:
        """Find model versions. Waits for the registry.

        Args:
            filter_string: Filter in MLflow's language, such as `name = 'm' AND version_number > 3`, `run_id =
                '…'`, `source_path LIKE 's3://%'` or `tags.format = 'onnx'`; None finds all.
            max_results: At most so many; None is all.
            order_by: `name`, `version_number`, `creation_timestamp` or `last_updated_timestamp`, each with
                ASC or DESC; default the last update, latest first. Behind them by name and version, highest
                first.

        Returns:
            The versions in that order, unlike those of MLflow's client with their aliases.

        Raises:
            InvalidInputError: MLflow would refuse the filter or an order; `max_results` is negative.
            StoreUnavailableError: The registry cannot answer.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> number = tracker.register_model("found", "s3://models/found", tags={"format": "onnx"})
            >>> [it.name for it in tracker.search_model_versions("tags.format = 'onnx'")]
            ['found']
        """

    def update_model_version(self, name: str, version: str | int, description: str) -> ModelVersion:
        """Give a version of a model another description. Waits for the registry.

        Args:
            name: Registered model.
            version: Number of the version.
            description: Up to 5,000 characters.

        Raises:
            NotFoundError: There is no such model or version.
            InvalidInputError: The description is too long, or no version number.
            StoreUnavailableError: The registry cannot answer.
        """

    def set_model_version_tag(self, name: str, version: str | int, key: str, value: Any) -> None:
        """Set a tag of a version; an earlier value is replaced. Waits for the registry.

        Args:
            name: Registered model.
            version: Number of the version.
            key: The tag's key, as for `set_tag`.
            value: Value of the tag, as `str()` gives it, up to 100,000 characters (5,000 before MLflow 3).

        Raises:
            NotFoundError: There is no such model or version.
            InvalidInputError: The key or the value breaks the rules, or no version number.
            StoreUnavailableError: The registry cannot answer.
        """

    def delete_model_version_tag(self, name: str, version: str | int, key: str) -> None:
        """Remove a tag of a version; one that it does not have is no error. Waits for the registry.

        Args:
            name: Registered model.
            version: Number of the version.
            key: The tag's key.

        Raises:
            NotFoundError: There is no such model or version.
            InvalidInputError: The key breaks MLflow's rules, or no version number.
            StoreUnavailableError: The registry cannot answer.
        """

    def delete_model_version(self, name: str, version: str | int) -> None:
        """Delete a version with its aliases, for good; its files stay. Waits for the registry.

        The number is not given again as long as the model is there.

        Args:
            name: Registered model.
            version: Number of the version.

        Raises:
            NotFoundError: There is no such model or version.
            InvalidInputError: No version number.
            StoreUnavailableError: The registry cannot answer.
        """

    def set_model_alias(self, name: str, alias: str, version: str | int) -> None:
        """Give an alias to a version; another version that had the alias loses it. Waits for the registry.

        Args:
            name: Registered model.
            alias: Letters, digits, underscores and dashes, up to 255 characters; not `latest` and not `v`
                with digits behind.
            version: Number of the version.

        Raises:
            NotFoundError: There is no such model or version.
            InvalidInputError: The alias or the version number is not valid.
            StoreUnavailableError: The registry cannot answer.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> number = tracker.register_model("called", "s3://models/called")
            >>> tracker.set_model_alias("called", "champion", number)
            >>> tracker.resolve_model_uri("models:/called@champion")
            's3://models/called'
        """

    def delete_model_alias(self, name: str, alias: str) -> None:
        """Remove an alias of a model; one that it does not have is no error. Waits for the registry.

        Args:
            name: Registered model.
            alias: The alias.

        Raises:
            NotFoundError: There is no such model.
            InvalidInputError: The alias is not valid.
            StoreUnavailableError: The registry cannot answer.
        """

    def get_model_version_download_uri(self, name: str, version: str | int) -> str:
        """Tell where the registry has the files of a version. Waits for the registry.

        Args:
            name: Registered model.
            version: Number of the version.

        Returns:
            The value that MLflow's client returns, an artifact URI as a rule. Where that client was given a
            `runs:/` URI to register, the value is that URI: `resolve_model_uri` goes on from there.

        Raises:
            NotFoundError: There is no such model or version.
            InvalidInputError: No version number.
            StoreUnavailableError: The registry cannot answer.
        """

    def resolve_model_uri(self, uri: str | PathLike[str]) -> str:
        """Tell where the files are that a model URI names. Delivers first, then waits for the registry.

        Args:
            uri: Any URI that `register_model` takes; behind the version of a `models:/` URI may be the path
                of a file in it.

        Returns:
            An artifact URI, or an absolute path.

        Raises:
            NotFoundError: The run, version, alias or logged model does not exist.
            InvalidInputError: No model URI.
            StoreUnavailableError: The registry or the store cannot answer.
        """

    def get_run_info(self, run_id: str) -> RunInfo:
        """Read a run back. Delivers recorded data first, then waits for the store.

        Args:
            run_id: Any run of the store.

        Returns:
            Its id, experiment, status, times (ms since 1970), parameters, latest metrics and tags.

        Raises:
            NotFoundError: There is no such run.
            StoreUnavailableError: The store cannot answer.
        """

    def get_run(self, run_id: str) -> Run:
        """Read a run back. Delivers recorded data first, then waits for the store.

        Args:
            run_id: Any run of the store, deleted or not.

        Returns:
            The run, with its params, latest metrics, tags and inputs.

        Raises:
            NotFoundError: There is no such run.
            StoreUnavailableError: The store cannot answer.
        """

    def get_best_run(
        self,
        metric: str = "val/loss",
        compare_fn: Callable[..., Any] | Literal["min", "max"] = min,
        filter: str = "",
    ) -> BestRun | None:
        """Find the run of the experiment with the best latest value of a metric.

        Args:
            metric: Key of the metric; slashes and blanks need no quotes.
            compare_fn: The built-ins `min` or `max`, or their names.
            filter: Only runs that this filter finds, in MLflow's language; empty finds all.

        Returns:
            The run's id, the value and its params. None when no run has a number there: a run whose
            latest value is NaN is never the best. Of equal runs it is the one that started last.

        Raises:
            InvalidInputError: Another `compare_fn`, no valid key, or a filter that MLflow would refuse.
            StoreUnavailableError: The store cannot answer.
        """

    def get_metric_history(self, run_id: str, key: str) -> list[MetricPoint]:
        """Read all points of a metric. Delivers recorded data first, then waits for the store.

        Args:
            run_id: Any run of the store.
            key: Key of the metric.

        Returns:
            The points by time, step and value; none for a metric that the run does not have.

        Raises:
            NotFoundError: There is no such run.
            InvalidInputError: The key is none that a metric can have.
            StoreUnavailableError: The store cannot answer.
        """

    def list_experiments(
        self, view: Literal["active_only", "deleted_only", "all"] = "active_only"
    ) -> list[Experiment]:
        """List the experiments of the store. Delivers recorded data first, then waits for the store.

        Args:
            view: Experiments to list: those that are not deleted, those that are, or both.

        Returns:
            The experiments, those that were updated last first.

        Raises:
            InvalidInputError: Another view.
            StoreUnavailableError: The store cannot answer.
        """

    def get_experiment(self, name_or_id: str | None = None) -> Experiment:
        """Read an experiment, deleted or not. Delivers recorded data first, then waits for the store.

        Args:
            name_or_id: Name of the experiment or, where none has that name, its id; default the tracker's own
                experiment.

        Raises:
            NotFoundError: There is no such experiment.
            StoreUnavailableError: The store cannot answer.
        """

    def delete_run(self, run_id: str) -> None:
        """Delete a run, which can be restored. Waits for the store.

        Args:
            run_id: Any run of the store but an active one of this tracker.

        Raises:
            NotFoundError: There is no such run.
            RunStateError: It is active in this tracker.
            StoreUnavailableError: The store cannot answer.
        """

    def restore_run(self, run_id: str) -> None:
        """Restore a run that was deleted. Waits for the store.

        Args:
            run_id: Any run of the store.

        Raises:
            NotFoundError: There is no such run.
            StoreUnavailableError: The store cannot answer.
        """

    def delete_experiment(self, name_or_id: str) -> None:
        """Delete an experiment with its runs, which can be restored. Waits for the store.

        Args:
            name_or_id: As for `get_experiment`.

        Raises:
            NotFoundError: There is no such experiment.
            RunStateError: This tracker has an active run in it.
            StoreUnavailableError: The store cannot answer.
        """

    def restore_experiment(self, name_or_id: str) -> None:
        """Restore an experiment that was deleted, with its runs. Waits for the store.

        Args:
            name_or_id: As for `get_experiment`.

        Raises:
            NotFoundError: There is no such experiment.
            StoreUnavailableError: The store cannot answer.
        """

    def flush(self, timeout: float | None = None) -> None: ...
    def status(self) -> Status:
        """Return the state of the delivery: records pending and parked, answers of destinations, the journal.

        Returns:
            A status that a terminal and a notebook show readably.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> tracker.flush()
            >>> tracker.status().pending
            0
        """

    def _start_run(self, run: Mapping[str, Any]) -> str: ...
    def _end(self, run_id: str, status: str) -> None: ...
    def _log_artifact(
        self,
        local_path: str | PathLike[str],
        artifact_path: str | None,
        immutable: bool,
        run_id: str | None,
    ) -> tuple[list[str], int, int]: ...
    def _log_artifacts_dir(
        self,
        local_dir: str | PathLike[str],
        artifact_path: str | None,
        immutable: bool,
        run_id: str | None,
    ) -> tuple[list[str], int, int]: ...
    def _has_arrived(self, end: int) -> bool: ...
    def _wait_for(self, start: int, end: int, timeout: float | None) -> None: ...
    def _register_model(self, model: Mapping[str, Any]) -> str: ...
    def _search_runs(self, search: Mapping[str, Any]) -> list[Run]: ...
    def _versions_with_runs(
        self, name: str, versions: Sequence[str] | None
    ) -> list[tuple[ModelVersion, Run | None]]: ...
    def _log_bytes(self, content: bytes, artifact_file: str, run_id: str | None) -> None: ...
    @property
    def _is_bridged(self) -> bool: ...
    @property
    def _is_strict(self) -> bool: ...
    def _run_of(self, run_id: str | None, action: str) -> str: ...
    def _note_unrecorded(self, kind: str, value: tuple[str, str, str], run_id: str) -> None: ...
    def _tell_once(self, key: str, text: str) -> None: ...
    def _check_artifact_file(self, artifact_file: str) -> None: ...
    def _log_input(self, dataset: Mapping[str, Any], run_id: str | None) -> None: ...
    def _resumed_from(self, run_id: str) -> Run | None: ...
    def _uris(self) -> tuple[str, str]: ...
    def _create_run(self, run: Mapping[str, Any]) -> str: ...
    def _enter(self, run_id: str) -> None: ...
    def _leave(self, run_id: str) -> None: ...
    def _set_run_status(self, run_id: str, status: str, end_time: int | None) -> None: ...
    def _has_run(self, run_id: str) -> bool: ...
    def _forget_run(self, run_id: str) -> None: ...
    def _deliver(self) -> None: ...
    def _deliver_files(self) -> None: ...
    def _log_plain(self, run_id: str, metrics: object, params: object, tags: object) -> bool: ...

def finish(
    status: str,
    is_certain: bool,
    timeout: float,
    show: Callable[[int, int, int], object] | None = None,
) -> None:
    """End active runs with `status` and wait up to `timeout` seconds for delivery. Called at exit.

    Unless the status is certain, the exit code of the process decides later, where the system tells it.
    Until then, `show` is called with the values of `progress`.
    """

def progress() -> tuple[int, int, int]:
    """Return how many records of this process wait, how many bytes of files are on their way, and sent."""

def was_interrupted() -> bool:
    """Return True where Ctrl-C was sent since the last run began, whoever has caught it."""

def forget_parent() -> None:
    """Forget, in a child after a fork, the trackers of its parent."""

def without_credentials(uri: str) -> str:
    """Return a URI as it may be shown: user and password replaced by `***`."""

class SyncOutcome:
    """Result of `sync`."""

    @property
    def delivered(self) -> int:
        """Records that were delivered."""

    @property
    def parked(self) -> int:
        """Records that a destination refused for good; they are kept in `HEIMDALL_DIR/dead_letter`."""

    @property
    def left(self) -> dict[str, tuple[int, str]]:
        """Records that are left for a destination, by its URI, and why."""

    @property
    def notices(self) -> list[str]:
        """Sentences for the user."""

class JournalStatus:
    """A journal on this disk."""

    @property
    def journal(self) -> str:
        """Folder of the journal."""

    @property
    def pid(self) -> int:
        """Id of the process that wrote or writes the journal."""

    @property
    def created(self) -> int:
        """Time at which the journal was begun, milliseconds since 1970."""

    @property
    def alive(self) -> bool:
        """True while that process lives, and so delivers the journal itself."""

    @property
    def destinations(self) -> list[WaitingRecords]:
        """Destinations of the journal, the primary one first."""

class WaitingRecords:
    """Records of a journal that wait for one destination."""

    @property
    def uri(self) -> str:
        """URI of the destination, without credentials."""

    @property
    def pending(self) -> int:
        """Number of records that wait."""

    @property
    def oldest(self) -> int | None:
        """Time at which the oldest waiting record was logged, milliseconds since 1970."""

    @property
    def trouble(self) -> str | None:
        """Last error of the destination, as far as it was noted."""

def sync(
    heimdall_dir: str | PathLike[str],
    known_uris: Sequence[str],
    uri: str | None = None,
    timeout: float | None = None,
    progress: Callable[[int, int, int, int], object] | None = None,
) -> SyncOutcome:
    """Deliver the journals of processes that are gone, as `heimdall sync` does.

    Args:
        heimdall_dir: Folder of the journals.
        known_uris: URIs with the credentials that journals do not hold.
        uri: Destination of all records, whatever the journals name.
        timeout: Seconds to work at most; None is without end.
        progress: Told how many records are delivered, of how many, how many bytes of files are on their way
            and how many of them are sent.

    Raises:
        ConfigurationError: `uri` is none that can be recorded to.
    """

def journals(heimdall_dir: str | PathLike[str]) -> list[JournalStatus]:
    """Return the journals of a folder, oldest first, as `heimdall status` shows them."""

def mended_path(path: str) -> str: ...
def dead_letters(heimdall_dir: str | PathLike[str]) -> list[tuple[str, int]]:
    """Return the files of records that were refused for good, and how many each has."""

def inspect(file: str | PathLike[str], line: Callable[[str], object]) -> None:
    """Call `line` with each line that describes a segment of a journal.

    Raises:
        JournalError: The file cannot be read or is no segment.
    """

class GarbageItem:
    """Something that goes, or has gone."""

    __match_args__: tuple[str, ...]

    @property
    def kind(self) -> str:
        """`deleted run`, `unkept run`, `unfinished upload` or `orphan`."""

    @property
    def experiment(self) -> str:
        """Name of the experiment."""

    @property
    def run_id(self) -> str | None:
        """Id of the run that it belongs to, or seems to."""

    @property
    def uri(self) -> str:
        """Its place."""

    @property
    def files(self) -> int:
        """Files that go."""

    @property
    def bytes(self) -> int:
        """Bytes of the files."""

    @property
    def reason(self) -> str:
        """Reason for deleting it, in words."""

    @property
    def run_goes(self) -> bool:
        """True where the run goes as well: a deleted one for good, another one to the deleted."""

    @property
    def deleted(self) -> bool:
        """True where it has been deleted."""

    @property
    def error(self) -> str | None:
        """Error that kept it from being deleted."""

class SparedItem:
    """Something that looked like garbage and stays."""

    __match_args__: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Kind of garbage that it resembles: `deleted run`, `unkept run`, `unfinished upload` or `orphan`."""

    @property
    def experiment(self) -> str:
        """Name of the experiment."""

    @property
    def run_id(self) -> str | None:
        """Id of the run that it belongs to, or seems to."""

    @property
    def uri(self) -> str:
        """Its place."""

    @property
    def reason(self) -> str:
        """Reason for keeping it, in words."""

def collect_garbage(
    config: Mapping[str, Any],
) -> tuple[list[GarbageItem], list[SparedItem], list[tuple[str, str]]]:
    """Look for garbage in a store, and delete it where that is asked for.

    `heimdall_tracking.collect_garbage` documents it, takes ages in words and makes a report of this.

    Args:
        config: Arguments by their names; ages are seconds.

    Returns:
        The garbage, the things that look like garbage and stay, and the places that could not be searched,
        each with the reason.

    Raises:
        ConfigurationError: The store cannot be opened, cannot purge, rules have no experiments, there is no
            `heimdall_dir`, or a journal in it cannot be read.
        InvalidInputError: An age, a rule or its metric is wrong.
        NotFoundError: There is no such experiment.
        StoreUnavailableError: The store does not answer.
    """

class StoreCheck(TypedDict):
    """Findings of `check_store`."""

    uri: str
    has_tables: bool
    revision: str | None
    is_writable: bool
    artifact_location: str | None
    is_deleted: bool
    default_location: str | None
    clock: int | None

def check_store(uri: str, experiment: str, timeout: float) -> StoreCheck | None:
    """Look at a store, and at an experiment in it, without changing either.

    Args:
        uri: Tracking or registry URI.
        experiment: Name of the experiment.
        timeout: Longest wait in seconds.

    Returns:
        The findings; times are milliseconds since 1970. None where the store does not answer in time.

    Raises:
        ConfigurationError: The URI is wrong, or the database cannot be opened or is not MLflow's.
        PermissionDeniedError: The store does not accept the credentials.
        StoreUnavailableError: The store cannot be reached.
    """

class ArtifactCheck(TypedDict):
    """Findings of `check_artifacts`."""

    done: list[str]
    modified: int | None
    written: tuple[int, int]
    error: str | None

def check_artifacts(config: Mapping[str, Any]) -> ArtifactCheck | None:
    """Write a small file below an artifact location, read it and delete it.

    Args:
        config: Tracking URI, location, path of the file below it, the local file, S3 settings and timeout by
            their names.

    Returns:
        The steps that worked, in order, and the error of the first that did not; times are milliseconds since
        1970. None where the store does not answer in time.

    Raises:
        ConfigurationError: The location cannot be used as configured.
    """

def _floor(metrics: Mapping[str, Any], step: int | None = None) -> None: ...

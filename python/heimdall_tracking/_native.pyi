from collections.abc import Callable, Mapping
from os import PathLike
from types import TracebackType
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

class Status(TypedDict):
    """How delivery stands."""

    pending: int
    parked: int
    degraded: bool
    last_error: str | None
    journal: str

class MLflowTracker:
    """Records runs of one experiment so that a stock MLflow reads them as its own.

    Calls that log something check their arguments, append to a journal on local disk and return; a thread
    delivers in the background, in order, and tries again for as long as the store is away. What a call has
    accepted survives the end of the process: the next tracker with the same `HEIMDALL_DIR` delivers it.
    Calls that ask something deliver first and wait for the answer.

    All methods may be called from any thread. After a fork the child needs a tracker of its own.

    Args:
        tracking_uri: Where runs are recorded: `sqlite:///<path>` (relative) or `sqlite:////<path>`
            (absolute). A database that does not exist is created with the schema of MLflow 3.17.2.
        artifact_uri: Folder for the artifacts of the experiment, if it has to be created; default `mlruns`
            beside the database. An experiment that exists keeps the location it has.
        backend_store_uri: Database behind the tracking URI; if given, it must be the same database.
        registry_uri: Where models are registered; default the tracking URI.
        s3_endpoint_url: Endpoint of an S3 store for `s3://` artifacts (no such store in this version).
        s3_access_key_id: Its access key. Never shown.
        s3_secret_access_key: Its secret key. Never shown.
        experiment_name: Experiment, 1 to 256 characters; created if it does not exist.

    Raises:
        ConfigurationError: A URI has an unknown scheme or cannot be opened, the file is no MLflow
            database, the experiment is deleted.
        InvalidInputError: The experiment name is empty or too long.
        JournalError: `HEIMDALL_DIR` (default `.heimdall` in the working directory) cannot be written.

    Example:
        >>> tracker = MLflowTracker("sqlite:///mlflow.db")
        >>> run_id = tracker.start_run("experiment-v1")
        >>> tracker.log_metrics({"val/loss": 0.25}, step=1)
        >>> tracker.end_run()
        >>> tracker.get_run_info(run_id)["metrics"]
        {'val/loss': 0.25}
    """

    def __init__(
        self,
        tracking_uri: str,
        artifact_uri: str | None = None,
        backend_store_uri: str | None = None,
        registry_uri: str | None = None,
        s3_endpoint_url: str | None = None,
        s3_access_key_id: str | None = None,
        s3_secret_access_key: str | None = None,
        experiment_name: str = "heimdall-localization",
    ) -> None: ...
    @property
    def tracking_uri(self) -> str:
        """Where runs are recorded, without credentials."""

    @property
    def artifact_uri(self) -> str | None:
        """The artifact URI the tracker was made with, without credentials."""

    @property
    def backend_store_uri(self) -> str:
        """Database that runs are written to, without credentials."""

    @property
    def registry_uri(self) -> str:
        """Where models are registered, without credentials."""

    @property
    def experiment_name(self) -> str:
        """Name of the experiment."""

    @property
    def experiment_id(self) -> str:
        """Id of the experiment in the store."""

    @property
    def active_run_id(self) -> str | None:
        """Id of the active run; None when there is none."""

    def start_run(self, run_name: str | None = None, tags: Mapping[str, Any] | None = None) -> str:
        """Start a run and make it the active one.

        Args:
            run_name: Name, up to 250 characters; a random one if left out.
            tags: Tags; they win over the defaults phase=training, service=training,
                model=LocalizationNet and over the tags `mlflow.user`, `mlflow.source.*` that are set too.
                Values over 8,000 characters are cut, as by MLflow.

        Returns:
            Id of the run, 32 hexadecimal digits.

        Raises:
            RunStateError: Another run is active.
            InvalidInputError: The name or a tag's key breaks MLflow's rules; no run is started.
        """

    def end_run(self, status: str = "FINISHED") -> None:
        """End the active run. Without one this does nothing, so ending twice is harmless.

        Args:
            status: `FINISHED`, `FAILED` or `KILLED`, in any case.

        Raises:
            InvalidInputError: Another status; the run stays active.
        """

    def run(self, run_name: str | None = None, tags: Mapping[str, Any] | None = None) -> ActiveRun:
        """Run for a `with` block: FINISHED at its end, FAILED on an exception, KILLED on Ctrl-C.

        Args:
            run_name: As for `start_run`.
            tags: As for `start_run`.

        Returns:
            A context manager; the run starts where the block is entered.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run("experiment-v2") as run:
            ...     tracker.log_params({"learning_rate": 1e-3})
            >>> tracker.get_run_info(run.run_id)["status"]
            'FINISHED'
        """

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log params of the active run: all of them or, on an error, none.

        Args:
            params: Values by key. Lists and dicts are stored as JSON, everything else as `str()` gives it;
                over 6,000 characters are cut, as by MLflow. The same value again is fine.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: A key breaks MLflow's rules, or a param of this run has another value.
            WrongTypeError: A key is no str.
        """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics of the active run, timed now: all of them or, on an error, none.

        Args:
            metrics: Numbers by key: Python and NumPy numbers, arrays and tensors of one element. NaN and
                infinities are kept as MLflow keeps them. A bool is not a number.
            step: Step or epoch, any 64-bit integer; default 0.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: A key breaks MLflow's rules.
            WrongTypeError: A value is not a number.
        """

    def log_artifact(self, local_path: str | PathLike[str], artifact_path: str | None = "artifacts") -> None:
        """Log a file of the active run as it is now; it may change or go right after the call.

        Args:
            local_path: The file.
            artifact_path: Folder among the run's artifacts; None or "" is their root.

        Raises:
            RunStateError: No run is active.
            ArtifactNotFoundError: There is no such file.
            InvalidInputError: `artifact_path` is absolute or climbs out.
            JournalError: The file cannot be copied into the journal.
        """

    def log_artifacts_dir(
        self, local_dir: str | PathLike[str], artifact_path: str | None = "artifacts"
    ) -> None:
        """Log every file below a folder, hidden ones too, as it is now. Empty folders leave no trace.

        Args:
            local_dir: The folder. Links are followed where they stay in it.
            artifact_path: Folder among the run's artifacts; None or "" is their root.

        Raises:
            RunStateError: No run is active.
            ArtifactNotFoundError: There is no such folder.
            InvalidInputError: `artifact_path` is absolute or climbs out, a link leaves the folder.
            JournalError: A file cannot be copied into the journal; then none of the folder is logged.
        """

    def register_model(
        self,
        model_name: str,
        model_uri: str,
        description: str = "",
        tags: Mapping[str, Any] | None = None,
    ) -> str:
        """Register a version of a model, creating the model if needed. Waits for the registry.

        Args:
            model_name: Registered model, up to 256 characters, without `/` and `:`.
            model_uri: `runs:/<run id>/<path>` or the URI or path of a folder. `runs://…` is understood too.
            description: Description of the version, up to 5,000 characters.
            tags: Tags of the version.

        Returns:
            The version's number, as MLflow gives it: a str.

        Raises:
            NotFoundError: The run of a `runs:/` URI does not exist.
            InvalidInputError: A name, URI, description or tag breaks MLflow's rules.
            StoreUnavailableError: The registry cannot answer.
        """

    def transition_model_stage(self, model_name: str, version: str | int, stage: str) -> None:
        """Put a model version into a stage. Waits for the registry.

        Args:
            model_name: Registered model.
            version: Number of the version.
            stage: `None`, `Staging`, `Production` or `Archived`, in any case.

        Raises:
            NotFoundError: There is no such model or version.
            InvalidInputError: Another stage, or no version number.
        """

    def get_run_info(self, run_id: str) -> RunInfo:
        """Read a run back. Delivers what is recorded first, then waits for the store.

        Args:
            run_id: Any run of the store.

        Returns:
            Its id, experiment, status, times (ms since 1970), parameters, latest metrics and tags.

        Raises:
            NotFoundError: There is no such run.
            StoreUnavailableError: The store cannot answer.
        """

    def get_best_run(
        self,
        metric: str = "val/loss",
        compare_fn: Callable[..., Any] | Literal["min", "max"] = min,
    ) -> BestRun | None:
        """Find the run of the experiment with the best latest value of a metric.

        Args:
            metric: Key of the metric; slashes and blanks need no quotes.
            compare_fn: The built-ins `min` or `max`, or their names.

        Returns:
            The run's id, the value and its params. None when no run has a number there: a run whose
            latest value is NaN is never the best. Of equal runs it is the one that started last.

        Raises:
            InvalidInputError: Another `compare_fn`, or no valid key.
            StoreUnavailableError: The store cannot answer.
        """

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything recorded so far is in the store.

        Args:
            timeout: Seconds to wait at most; None is without end.

        Raises:
            UndeliveredError: The time is over; what is left stays in the journal.
        """

    def status(self) -> Status:
        """How delivery stands: records pending and parked, what the store answers, where the journal is."""

class ActiveRun:
    """A run that lasts for a `with` block."""

    @property
    def run_id(self) -> str | None:
        """Id of the run; None before the block is entered."""

    def __enter__(self) -> ActiveRun: ...
    def __exit__(
        self,
        exception: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool: ...

def finish(status: str, timeout: float) -> None:
    """End active runs with `status` and wait up to `timeout` seconds for delivery. Called at exit."""

def forget_parent() -> None:
    """Forget, in a child after a fork, the trackers of its parent."""

def without_credentials(uri: str) -> str:
    """Return a URI as it may be shown: user and password replaced by `***`."""
